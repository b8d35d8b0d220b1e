"""`execute` trains the policy of one prepared run and writes the files of its run directory."""

import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.splits import Split
from shiqrun.console import is_main_process, waiting
from shiqrun.data.source import ExactEvaluation
from shiqrun.errors import InputError, Interrupted
from shiqrun.evaluation.checkpoint_files import read_checkpoint, remove_leftovers
from shiqrun.evaluation.evaluator import CompletionEvaluator
from shiqrun.evaluation.kept_answers import KeptAnswers
from shiqrun.models.reference import AdapterOff, FrozenReference, Live, Reference
from shiqrun.models.sharding import whole
from shiqrun.settings import STAMP, Hardware
from shiqrun.tracking import log_samples
from shiqrun.training.callbacks import MARKS, Checkpoints, Validation
from shiqrun.training.checkpoint_io import AtomicCheckpointIO
from shiqrun.training.early_stop import EarlyStop
from shiqrun.training.estimates import with_estimates
from shiqrun.training.final_test import FinalTest
from shiqrun.training.finish import finish
from shiqrun.training.live_view import LiveView
from shiqrun.training.metrics_csv import MetricsFile
from shiqrun.training.moving_reference import ReferenceMoves, moves_of
from shiqrun.training.online import batches_of_run, prompts_to_answer
from shiqrun.training.plan import Run
from shiqrun.training.run_reference import with_reference
from shiqrun.training.samples_jsonl import SamplesFile
from shiqrun.training.sharded_strategy import ShardedStrategy
from shiqrun.training.shared_weights import SharedWeights
from shiqrun.training.signals import Signals, Stopped
from shiqrun.training.source_losses import source_losses
from shiqrun.training.started_ranks import environment_of_run
from shiqrun.training.step.method import Method
from shiqrun.training.step.sharded import ShardedMethod
from shiqrun.training.summary_tables import print_plan_table
from shiqrun.util import ranks
from shiqrun.util.kept_facts import KeptFacts

log = logging.getLogger("shiqrun")


def _exact(run: Run, split: Split = "val") -> ExactEvaluation | None:
    """Return the exact evaluation, where the problem's optimum can be enumerated and the method has a temperature.

    Raises:
        InputError: the problem cannot be solved with this tokenizer, or has no such split.
    """
    if run.plan.beta is None or not run.plan.eval.every or (split == "test" and not run.plan.eval.test_prompts):
        return None
    if split not in run.plan.source.splits and run.plan.source.evaluated_exactly:
        raise InputError(f"eval.test_prompts: data={run.plan.names['data']} has no {split} split; leave the test out")
    exact = run.plan.source.exact(run.tokenizer, split=split, beta=run.plan.beta)
    if exact is not None:
        with whole(run.policy):
            exact.set_reference(run.policy.model)
    return exact


def describe(run: Run) -> None:
    """Print rows, actions, steps, parameters and estimated memory of a run."""
    print_plan_table(run)


def rehearse(run: Run) -> None:
    """Find what only the start of training would find, and describe the run, with which a dry run ends.

    Raises:
        InputError: the problem cannot be solved exactly with this tokenizer.
    """
    with waiting("solving the validation problems exactly"):
        _exact(run)
        _exact(run, "test")
    describe(run)


def execute(run: Run, resume: bool) -> None:
    """Train the policy of a run, and write the files of its run directory.

    The stages: rows get prompt values and value targets, then the reference's scores; the method is built and fitted
    to batches of the rows; the trained policy and the summary are written.

    Args:
        run: from `prepare_run`.
        resume: continue from `checkpoints/last.ckpt`, or from the start where there is none.

    Raises:
        InputError: the checkpoint, prompt values or value targets were made with other data, models or rewards.
        TrainingError: a loss or gradient that is not finite, or a policy that is not the reference at step 0.
        Interrupted: a signal arrived; the checkpoint is saved.
    """
    plan, began = run.plan, time.perf_counter()
    checkpoints = Checkpoints(plan.run_dir / "checkpoints", plan.trainer.checkpoint_every)
    if is_main_process():
        remove_leftovers(plan.run_dir / "checkpoints")
    checkpoint = checkpoints.last if resume and checkpoints.last.is_file() else None
    step, metrics, samples = _begun(run, checkpoints, checkpoint)
    describe(run)
    prompts = prompts_to_answer(run)
    with waiting("solving the validation problems exactly"):
        exact, exact_test = _exact(run), _exact(run, "test")  # first: they need a tokenizer of their own
    run, cost_of_estimates = with_estimates(run)  # first, so that a wrong file is found before any scoring
    run, reference, cost_of_reference = with_reference(run)
    method, moves = _method(run, reference), moves_of(run, reference)
    method.latest = metrics.latest()
    validation = _validation(run, checkpoints, exact, reference, samples, moves) if plan.eval.every else None
    shared = SharedWeights(run.policy, [reference, validation and validation.live])
    shared.shard_with(method)
    cost = {**cost_of_reference, **cost_of_estimates}
    with batches_of_run(run, prompts, after=max(step, 0)) as (data, rollouts):
        data.even = plan.hardware.strategy == "fsdp"
        # Rollouts come first: a checkpoint saved by validation holds published weights. The reference moves last
        watching = [each for each in (rollouts, validation, LiveView(_title(run)), moves) if each is not None]
        tests = [FinalTest(plan.run_dir, run.tester, validation.live, exact, exact_test)] if validation else []
        stop = [EarlyStop(plan.trainer, validation)] if plan.trainer.stop_metric else []
        trainer = _fit(run, method, data, [*watching, *tests, *stop, checkpoints], metrics, checkpoint)
        cost |= {name: value for told in (rollouts, moves) if told for name, value in told.summary().items()}
    if stop and stop[0].reason:
        run, cost = replace(run, max_steps=stop[0].step), cost | stop[0].summary()
    run = shared.gathered(run, method)
    for test in tests:
        method.latest |= test.metrics
        cost |= {"seconds/test": test.seconds} if test.metrics else {}
    if trainer.is_global_zero:
        finish(run, method, validation, exact, {"seconds": time.perf_counter() - began, **cost})
    trainer.strategy.barrier("saved")


def _method(run: Run, reference: Reference | None) -> Method:
    """Return the LightningModule of the run."""
    plan = run.plan
    made = ShardedMethod if plan.hardware.strategy == "fsdp" else Method
    return made(
        run.policy,
        reference,
        plan.loss,
        plan.trainer,
        max_steps=run.max_steps,
        seed=plan.seed,
        algo=plan.algo,
        beta=plan.beta or 0.0,
        stamp={**run.fingerprints(), "reward_offset": run.offset},
        by_source=source_losses(plan.rollout, plan.loss),
        sources=[*([] if plan.rollout is None else plan.shares), *plan.source.parts],
        max_gap=plan.rollout.tolerated_gap if plan.rollout is not None else None,
    )


def _title(run: Run) -> str:
    return f"{run.plan.names['algo']} on {run.plan.names['data']}"


def _fit(
    run: Run,
    method: Method,
    data: LoggedData,
    callbacks: list[Any],
    metrics: MetricsFile,
    checkpoint: Path | None,
) -> Trainer:
    """Fit the method to the data with Lightning; the last of the callbacks writes checkpoints.

    Raises:
        Interrupted: a signal arrived; the checkpoint is saved.
    """
    signals = Signals(callbacks[-1])
    with waiting("starting the trainer"):
        trainer = _trainer(run, [*callbacks, signals], [metrics, *run.plan.trackers()])
    signals.install()
    try:
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        raise Interrupted(str(stopped), stopped.number) from None
    finally:
        signals.restore()
    return trainer


def _validation(
    run: Run,
    checkpoints: Checkpoints,
    exact: ExactEvaluation | None,
    reference: Reference | None,
    samples: SamplesFile | None,
    moves: ReferenceMoves | None,
) -> Validation:
    """Return the callback that evaluates the policy on the validation split, by completions and exactly."""

    def keep(trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        assert samples is not None  # only the main process keeps rows
        samples.append(rows)
        for logger in trainer.loggers:
            log_samples(logger, trainer.global_step, rows)

    live: Live | None = None
    if run.evaluator is not None:  # cached scores cover logged tokens only; completions need a live reference
        copied = AdapterOff if run.plan.model.lora_r else FrozenReference
        present = isinstance(reference, FrozenReference | AdapterOff) and moves is None
        live = reference if present else copied(run.policy)  # type: ignore[assignment]
    for each in (run.evaluator, run.tester) if moves is None else ():  # a reference that moves is not the start
        if isinstance(each, CompletionEvaluator):
            each.kept = KeptAnswers(KeptFacts(run.plan.cache_dir / "answers"), run.weights)
    evaluate, every = exact.evaluate if exact else None, run.plan.eval.every
    further = None if moves is None else moves.kl_to_present
    return Validation(every, checkpoints, evaluate, answers=run.evaluator, live=live, keep=keep, further=further)


def _trainer(run: Run, callbacks: list[Any], loggers: list[Logger]) -> Trainer:
    """Return Lightning's trainer; progress, checkpoints and validation are the callbacks' own."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")  # which no loss changes in place
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    hardware = run.plan.hardware
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=_strategy(hardware),
        max_steps=run.max_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), environment_of_run()],
        default_root_dir=run.plan.run_dir,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def _strategy(hardware: Hardware) -> Any:
    """Return Lightning's strategy, for sharded weights with checkpoints of our own."""
    if hardware.strategy != "fsdp":
        return hardware.strategy
    return ShardedStrategy(data_parallel_size=hardware.processes, tensor_parallel_size=1)


def _begun(run: Run, checkpoints: Checkpoints, checkpoint: Path | None) -> tuple[int, MetricsFile, SamplesFile | None]:
    """Return the step that the run goes on from, -1 for a new run, and its journals as they were at that step.

    Raises:
        InputError: the checkpoint is damaged or does not fit the run, or a row that it was saved after is missing.
    """
    folder, saved = run.plan.run_dir, _read_fitting(checkpoint, run) if checkpoint else {}
    step = int(saved.get("global_step", -1))
    marks = saved.get("callbacks", {}).get(Checkpoints.__qualname__, {}).get(MARKS, {})
    if saved and not marks:
        log.info("the checkpoint is of an earlier version: metrics.csv and samples.jsonl are not compared with it")
    advice = f"restore it, or delete {checkpoints.last} and go on with resume={folder}, which trains from step 0"
    metrics = MetricsFile(folder / "metrics.csv", step, marks.get("metrics.csv"), advice)
    checkpoints.journals["metrics.csv"] = metrics
    samples = None
    if is_main_process():
        samples = SamplesFile(folder / "samples.jsonl", step, marks.get("samples.jsonl"), advice)
        checkpoints.journals["samples.jsonl"] = samples
    return step, metrics, samples


def _read_fitting(checkpoint: Path, run: Run) -> dict[str, Any]:
    """Return the content of a checkpoint that fits the run.

    Raises:
        InputError: it is damaged, holds code, or was made with other data, starting model or reward of answers than
            the run's config makes now.
    """
    saved = read_checkpoint(checkpoint, share=(ranks.rank(), ranks.world()))
    for name, now in run.fingerprints().items():
        before = saved[STAMP].get(name, now)
        if before != now:
            raise InputError(
                f"{checkpoint} was made with another {name} (fingerprint {before}, now {now}); "
                f"put the former {name} back, or start a new run"
            )
    log.info("resuming after step %d of %d", saved["global_step"], run.max_steps)
    return saved
