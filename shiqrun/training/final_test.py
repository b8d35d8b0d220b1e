"""`FinalTest` evaluates a trained policy once on the test split, which chose neither a checkpoint nor a setting."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from shiqrun.data.source import ExactEvaluation
from shiqrun.evaluation.evaluator import PolicyEvaluator
from shiqrun.models.reference import Live
from shiqrun.models.sharding import with_whole_weights
from shiqrun.training.metrics_csv import MetricsFile
from shiqrun.training.step.method import Method
from shiqrun.util.atomic import write_atomic

FILE, VALIDATED = "test.jsonl", "val.jsonl"
"""The files of a run directory with a row for each completion, episode or problem of the test split, and for each
problem of the validation split that was solved exactly; `samples.jsonl` has the completions of validation prompts."""


class FinalTest(Callback):
    """A `FinalTest` evaluates the policy on the test split after the last step of a run, by answers or exactly.

    Args:
        run_dir: gets `test.jsonl`.
        answers: the evaluation by sampled completions or episodes, or None.
        live: the reference that `answers` compares with.
        validated, tested: the exact evaluations on the validation and the test problems, which know the reference; None
            where there is none.

    Attributes:
        metrics: the metrics of the trained policy, as `test/NAME`; empty before the last step.
        seconds: time that the test took.
    """

    def __init__(
        self,
        run_dir: Path,
        answers: PolicyEvaluator | None,
        live: Live | None,
        validated: ExactEvaluation | None,
        tested: ExactEvaluation | None,
    ) -> None:
        self.run_dir, self.answers, self.live = run_dir, answers, live
        self.validated, self.tested = validated, tested
        self.metrics: dict[str, float] = {}
        self.seconds = 0.0

    @with_whole_weights
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the policy, write `test.jsonl`, and tell the trackers; all ranks together."""
        if self.answers is None and self.validated is None and self.tested is None:
            return
        assert isinstance(pl_module, Method)
        began, step = time.perf_counter(), trainer.global_step
        rows: list[dict[str, Any]] = []
        found: dict[str, float] = {}
        pl_module.policy.eval()
        if self.validated is not None:
            if not _problems(self.validated, step):  # the run was resumed behind its last evaluation
                self.validated.evaluate(pl_module.policy.model)
            self._write(trainer, VALIDATED, _problems(self.validated, step))
        if self.tested is not None:
            found = self.tested.evaluate(pl_module.policy.model)
            rows = _problems(self.tested, step)
        pl_module.policy.train()
        if self.answers is not None:
            self.answers.begin(self.live, pl_module.device, trainer.global_rank, trainer.world_size)
            result = self.answers.run(pl_module.policy)
            found, rows = found | result.metrics, result.rows(step)
        self.metrics = {f"test/{name}": value for name, value in found.items()}
        self.seconds = time.perf_counter() - began
        self._write(trainer, FILE, rows)
        for logger in trainer.loggers if trainer.is_global_zero and self.metrics else ():
            if not isinstance(logger, MetricsFile):  # whose rows are those of training
                logger.log_metrics(self.metrics, step)

    def _write(self, trainer: Trainer, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as a file of the run directory, on rank 0."""
        if trainer.is_global_zero and rows:
            write_atomic(self.run_dir / name, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _problems(exact: ExactEvaluation, step: int) -> list[dict[str, Any]]:
    """Return the rows of the problems that were evaluated last."""
    return [{"step": step, **row} for row in getattr(exact, "problems", ())]
