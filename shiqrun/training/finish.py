"""`finish` writes what a run leaves after its last step: the policy, the token view, `summary.json`, a table."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shiqrun.batching.joining import rows_by_part
from shiqrun.console import console
from shiqrun.data.source import ExactEvaluation
from shiqrun.evaluation.credit import credit, write_credit
from shiqrun.models.reference import FrozenReference, scores_in_batch, weights_fingerprint
from shiqrun.models.saved_files import file_digests, table_digests
from shiqrun.rewards.provenance import provenance_of
from shiqrun.training.artifacts import provenance, save_policy, save_reward_model
from shiqrun.training.callbacks import Validation
from shiqrun.training.memory_of_run import peak_memory
from shiqrun.training.plan import Plan, Run
from shiqrun.training.step.method import Method
from shiqrun.training.summary_tables import draw_episodes, print_metrics_table
from shiqrun.util.atomic import remove_partials
from shiqrun.util.summary import write_summary

SHOWN_TRAJECTORIES = 8
"""Trajectories of each kind in the token view."""


def finish(
    run: Run, method: Method, validation: Validation | None, exact: ExactEvaluation | None, cost: dict[str, Any]
) -> None:
    """Write the files of a finished run, `summary.json` last, and print the table of its metrics.

    Args:
        run: as it was trained.
        method: with the trained policy.
        validation: with the numbers before training and the last completions.
        exact: evaluates exactly; None where the data set has no known optimum.
        cost: seconds and counts for the summary, `seconds` of the whole run among them.
    """
    metrics = {name: value for name, value in method.latest.items() if np.isfinite(value)}
    saved = _save_model(run, metrics)
    if exact is not None:
        draw_episodes(run, exact)
    _write_credit(run, method, validation)
    write_summary(run.plan.run_dir, _summary(run, method, validation, metrics, cost, saved))
    if "stopped_early" in cost:
        schedule = f"trainer.lr_schedule={run.plan.trainer.lr_schedule} is that of {method.max_steps} steps"
        console.print(f"{cost['stopped_early']}; {schedule}, and policy/ has the last weights", highlight=False)
    pairs = len(run.encoded.val) // 2
    print_metrics_table(run.plan.run_dir, validation.first if validation else {}, metrics, cost["seconds"], pairs)


def _model_directory(plan: Plan) -> Path:
    return plan.run_dir / ("reward_model" if "score" in plan.needs else "policy")


def _save_model(run: Run, metrics: dict[str, float]) -> str:
    """Save the policy, or the reward model that was trained; return a fingerprint of its weights."""
    plan = run.plan
    shown = {k: f"{v:.4g}" for k, v in sorted(metrics.items())}
    card: dict[str, Any] = {**plan.names, "steps": run.max_steps, "settings": plan.shown, "metrics": shown}
    directory = _model_directory(plan)
    remove_partials(directory.parent, directory.name)  # a run has one writer; what a killed one left may be large
    if "score" in plan.needs:
        known = provenance_of(run.encoded.prompts, run.encoded.prompt_keys())
        save_reward_model(run.policy, run.tokenizer, directory, card, known)
        return weights_fingerprint(run.policy.causal_lm)
    return save_policy(run.policy, run.tokenizer, directory, card)


def _summary(
    run: Run,
    method: Method,
    validation: Validation | None,
    metrics: dict[str, float],
    cost: dict[str, Any],
    saved: str,
) -> dict[str, Any]:
    """Return the contents of `summary.json`, whose presence says that a run is finished."""
    plan = run.plan
    return {
        **metrics,
        "steps": run.max_steps,
        **cost,
        "seconds/steps": method.seconds,
        "memory/peak": peak_memory(plan.hardware.device().type),
        **({"seconds/eval": validation.seconds, "eval_share": validation.share()} if validation else {}),
        "seed": plan.seed,
        "algo": plan.names["algo"],
        "data": plan.names["data"],
        "parameters": sum(p.numel() for p in run.policy.parameters()),
        "parameters/trained": sum(p.numel() for p in run.policy.parameters() if p.requires_grad),
        **({"quantize": quantize} if (quantize := getattr(plan.choice, "quantize", None)) else {}),
        "trajectories/train": len(run.encoded.train),
        "trajectories/val": len(run.encoded.val),
        **rows_by_part(run.encoded),
        "reward_offset": run.offset,
        **({f"reward/{k}": v for k, v in plan.reward.about().items()} if plan.reward else {}),
        "fingerprint/data": run.encoded.fingerprint,
        "fingerprint/model": run.weights,
        "fingerprint/policy": saved,
        **file_digests(_model_directory(plan)),
        **file_digests(plan.run_dir / "adapter"),
        **table_digests(plan.run_dir),
        **{f"dropped/{why}": n for why, n in run.encoded.dropped.items()},
        **provenance(),
    }


def _write_credit(run: Run, method: Method, validation: Validation | None) -> None:
    """Write the token view of a few held-out trajectories and of a few of the policy's last completions."""
    reference = validation.live if validation and validation.live else method.reference
    if reference is None or not method.beta:
        return
    device = run.plan.hardware.device()  # Lightning has taken the policy back to the CPU, but not its reference
    run.policy.to(device)
    if isinstance(reference, FrozenReference):
        reference.to(device)
    view = partial(credit, run.policy, tokenizer=run.tokenizer, beta=method.beta)
    rows = run.encoded.val if len(run.encoded.val) else run.encoded.train
    known = scores_in_batch if "reference" in rows.columns else reference
    found = view(known, rows, picked=range(min(SHOWN_TRAJECTORIES, len(rows))))
    if run.evaluator is not None and validation is not None and validation.last is not None:
        answers = run.evaluator.trajectories(validation.last, SHOWN_TRAJECTORIES)
        if run.plan.algo.reward_offset != "group_mean":  # a completion has no group whose mean could be taken
            answers = answers.with_column("offset", np.full(len(answers), run.offset, np.float32))
        found += view(reference, answers, kind="sample")
    write_credit(run.plan.run_dir / "credit.jsonl", found)
    run.policy.cpu()
