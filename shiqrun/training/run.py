"""One run, from a plan that is ready to the run directory."""

import logging
import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from shiqrun.batching.logged_data import LoggedData
from shiqrun.console import is_main_process, track
from shiqrun.data.source import ExactEvaluation
from shiqrun.errors import InputError, Interrupted
from shiqrun.evaluation.credit import credit, write_credit
from shiqrun.losses.requirements import needs_of
from shiqrun.models.reference import AdapterOff, Frozen, Live, Reference, cached, weights_fingerprint
from shiqrun.models.reference_cache import cache_key, cached_scores
from shiqrun.settings import STAMP
from shiqrun.tracking import log_samples
from shiqrun.training.annotate import annotate
from shiqrun.training.artifacts import (
    append_samples,
    drop_samples_after,
    provenance,
    save_policy,
    save_reward_model,
    write_json,
)
from shiqrun.training.callbacks import AtomicCheckpointIO, Checkpoints, Signals, Stopped, Validation
from shiqrun.training.checks import source_losses
from shiqrun.training.live_view import View
from shiqrun.training.metrics_csv import MetricsFile
from shiqrun.training.online import prompts_to_answer, sampling
from shiqrun.training.plan import Run
from shiqrun.training.step.method import Method
from shiqrun.training.summary_tables import draw_episodes, end_of_run, plan_table

log = logging.getLogger("shiqrun")
SAMPLES = "samples.jsonl"
SHOWN_TRAJECTORIES = 8


def _reference(run: Run) -> tuple[Reference | None, dict[str, Any]]:
    """The reference, and for the summary what a cache of it cost or saved."""
    plan, kind = run.plan, run.plan.algo.reference
    if kind == "none":
        return None, {}
    if kind == "frozen":
        return Frozen(run.policy), {}
    if kind == "adapter":
        return AdapterOff(run.policy), {}
    began, found, computing = time.perf_counter(), [], 0.0
    for name, rows in (("train", run.encoded.train), ("val", run.encoded.val)):
        rows.reference, there, seconds = cached_scores(
            run.policy,
            rows,
            plan.cache_dir,
            key=cache_key(run.policy, rows, run.weights),
            tokens=plan.trainer.micro_batch_tokens,
            device=plan.hardware.device(),
            progress=partial(track, description=f"reference scores of {name}, micro-batches"),
        )
        found.append(there)
        computing += seconds
    spent = time.perf_counter() - began
    how = "read from the cache in" if all(found) else "computed in"
    log.info(
        "reference scores of %d trajectories: %s %.1f s",
        len(run.encoded.train) + len(run.encoded.val),
        how,
        spent,
    )
    computed = computing if math.isfinite(computing) else None
    cost = {"seconds/reference": spent, "seconds/reference_computed": computed, "reference_cached": all(found)}
    return cached, cost


def _exact(run: Run) -> ExactEvaluation | None:
    """Exact evaluation, where the problem has an optimum that can be enumerated and the method a temperature."""
    beta = run.plan.loss.keywords.get("beta")
    if beta is None or not run.plan.eval.every:
        return None
    exact = run.plan.source.exact(run.tokenizer, split="val", beta=beta)
    if exact is not None:
        exact.set_reference(run.policy.model)
    return exact


def describe(run: Run) -> None:
    """Prints rows, actions, steps, parameters and estimated memory: the end of a dry run."""
    plan_table(run)


def execute(run: Run, resume: bool) -> None:
    """Trains, and writes the run directory.

    Args:
        run: from `ready`.
        resume: go on from `checkpoints/last.ckpt`, or from the start where there is none.

    Raises:
        TrainingError: a loss or gradient that is not finite, or a policy that is not the reference at step 0.
        Interrupted: a signal arrived; the checkpoint is saved.
    """
    plan, began = run.plan, time.perf_counter()
    checkpoints = Checkpoints(plan.run_dir / "checkpoints", plan.trainer.checkpoint_every)
    checkpoint = checkpoints.last if resume and checkpoints.last.is_file() else None
    step = _stand(run, checkpoint) if checkpoint else -1
    describe(run)
    prompts = prompts_to_answer(run)
    annotated = annotate(run)  # first: a file that does not fit this run is found before anything is computed
    (reference, cost), exact = _reference(run), _exact(run)
    cost |= annotated
    method = Method(
        run.policy,
        reference,
        plan.loss,
        plan.trainer,
        max_steps=run.max_steps,
        seed=plan.seed,
        algo=plan.algo,
        beta=plan.loss.keywords.get("beta", 0.0),
        stamp={**run.made_of(), "reward_offset": run.offset},
        by_source=source_losses(plan.rollout, plan.loss),
        sources=[] if plan.rollout is None else list(plan.rollout.shares(plan.trainer.batch_size)),
    )
    metrics = MetricsFile(plan.run_dir / "metrics.csv", keep=step)
    method.latest = metrics.latest()
    validation = _validation(run, checkpoints, exact, reference) if plan.eval.every else None
    if is_main_process():
        drop_samples_after(plan.run_dir / SAMPLES, step)
    with sampling(run, prompts, after=max(step, 0)) as (data, rollouts):
        # Rollouts first: what validation saves is then of weights that were published
        watching = [*([rollouts] if rollouts else []), *([validation] if validation else [])]
        trainer = _fit(run, method, data, [*watching, View(_title(run)), checkpoints], metrics, checkpoint)
        cost |= rollouts.summary() if rollouts else {}
    if trainer.is_global_zero:
        _finish(run, method, validation, exact, {"seconds": time.perf_counter() - began, **cost})
    trainer.strategy.barrier("saved")


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
    """Trains; the last of the callbacks are the checkpoints.

    Raises:
        Interrupted: a signal arrived; the checkpoint is saved.
    """
    signals = Signals(callbacks[-1])
    trainer = _trainer(run, [*callbacks, signals], [metrics, *run.plan.trackers()])
    signals.install()
    try:
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    except Stopped as stopped:
        raise Interrupted(str(stopped)) from None
    finally:
        signals.restore()
    return trainer


def _validation(
    run: Run, checkpoints: Checkpoints, exact: ExactEvaluation | None, reference: Reference | None
) -> Validation:
    def keep(trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        append_samples(run.plan.run_dir / SAMPLES, rows)
        for logger in trainer.loggers:
            log_samples(logger, trainer.global_step, rows)

    live: Live | None = None
    if run.evaluator is not None:  # a cache knows the data's tokens only: answers need the adapter off or a second copy
        copied = AdapterOff if run.plan.model.lora_r else Frozen
        live = reference if isinstance(reference, Frozen | AdapterOff) else copied(run.policy)
    evaluate = exact.evaluate if exact else None
    return Validation(run.plan.eval.every, checkpoints, evaluate, answers=run.evaluator, live=live, keep=keep)


def _write_credit(run: Run, method: Method, validation: Validation | None) -> None:
    """The token view of a few held-out trajectories and of a few of the policy's last answers."""
    reference = validation.live if validation and validation.live else method.reference
    if reference is None or not method.beta:
        return
    device = run.plan.hardware.device()  # Lightning has taken the policy back to the CPU, but not its reference
    run.policy.to(device)
    if isinstance(reference, Frozen):
        reference.to(device)
    view = partial(credit, run.policy, tokenizer=run.tokenizer, beta=method.beta)
    rows = run.encoded.val if len(run.encoded.val) else run.encoded.train
    known = cached if rows.reference is not None else reference
    found = view(known, rows, picked=range(min(SHOWN_TRAJECTORIES, len(rows))))
    if run.evaluator is not None and validation is not None and validation.last is not None:
        answers = run.evaluator.trajectories(validation.last, SHOWN_TRAJECTORIES)
        if run.plan.algo.reward_offset != "group_mean":  # which an answer has none of
            answers.offset[:] = run.offset
        found += view(reference, answers, kind="sample")
    write_credit(run.plan.run_dir / "credit.jsonl", found)
    run.policy.cpu()


def _trainer(run: Run, callbacks: list[Any], loggers: list[Logger]) -> Trainer:
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    hardware = run.plan.hardware
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        max_steps=run.max_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.plan.run_dir,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def _stand(run: Run, checkpoint: Path) -> int:
    """The step at which a checkpoint stands.

    Raises:
        InputError: it was made with other data, starting model or reward of answers than the run's config makes now.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
    for name, now in run.made_of().items():
        before = saved[STAMP].get(name, now)
        if before != now:
            raise InputError(
                f"{checkpoint} was made with another {name} (fingerprint {before}, now {now}); "
                f"put the former {name} back, or start a new run"
            )
    log.info("going on after step %d of %d", saved["global_step"], run.max_steps)
    return int(saved["global_step"])


def _finish(
    run: Run, method: Method, validation: Validation | None, exact: ExactEvaluation | None, cost: dict[str, Any]
) -> None:
    plan = run.plan
    metrics = {k: v for k, v in method.latest.items() if np.isfinite(v)}
    shown = {k: f"{v:.4g}" for k, v in sorted(metrics.items())}
    card: dict[str, Any] = {**plan.names, "steps": run.max_steps, "settings": plan.shown, "metrics": shown}
    if "score" in needs_of(plan.loss):
        save_reward_model(run.policy, run.tokenizer, plan.run_dir / "reward_model", card, prompts=run.encoded.prompts)
        saved = weights_fingerprint(run.policy.causal_lm)
    else:
        saved = save_policy(run.policy, run.tokenizer, plan.run_dir / "policy", card)
    if exact is not None:
        draw_episodes(run, exact)
    _write_credit(run, method, validation)
    summary = {
        **metrics,
        "steps": run.max_steps,
        **cost,
        "seconds/steps": method.seconds,
        **({"seconds/eval": validation.seconds, "eval_share": validation.share()} if validation else {}),
        "seed": plan.seed,
        "algo": plan.names["algo"],
        "data": plan.names["data"],
        "parameters": sum(p.numel() for p in run.policy.parameters()),
        "parameters/trained": sum(p.numel() for p in run.policy.parameters() if p.requires_grad),
        **({"quantize": quantize} if (quantize := getattr(plan.choice, "quantize", None)) else {}),
        "trajectories/train": len(run.encoded.train),
        "trajectories/val": len(run.encoded.val),
        "reward_offset": run.offset,
        **({f"reward/{k}": v for k, v in plan.reward.about().items()} if plan.reward else {}),
        "fingerprint/data": run.encoded.fingerprint,
        "fingerprint/model": run.weights,
        "fingerprint/policy": saved,
        **{f"dropped/{why}": n for why, n in run.encoded.dropped.items()},
        **provenance(),
    }
    write_json(plan.run_dir / "summary.json", summary)  # the last file: its presence says that the run is finished
    end_of_run(plan.run_dir, validation.first if validation else {}, metrics, cost["seconds"])
