"""A run that samples while it trains builds an engine, and annotates sampled rows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.rows import Rows
from shiqrun.batching.splits import examples_of
from shiqrun.errors import InputError, TrainingError
from shiqrun.estimates.value_cache import read_prompts
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.episodes import Asked, Tasks, playable
from shiqrun.rollout.mixing import OnlineData
from shiqrun.rollout.other_sources import annotated_rows
from shiqrun.rollout.settings import RolloutSettings
from shiqrun.training.annotate import RunFacts, annotate
from shiqrun.training.checks_data import answered_prompts_have_values, raise_if_wrong, rewards_stay_within_top
from shiqrun.training.engines import build_engine
from shiqrun.training.plan import Plan, Run
from shiqrun.training.publishing import Rollouts, rollouts_of

log = logging.getLogger("shiqrun")


@contextmanager
def batches_of_run(run: Run, prompts: Asked, *, after: int) -> Iterator[tuple[LoggedData, Rollouts | None]]:
    """Yield a run's batches and, where it samples, the callback that publishes weights; close the engine afterwards.

    Args:
        run: with its rows annotated.
        prompts: from `prompts_to_answer`.
        after: number of optimiser steps that are finished.
    """
    trainer, settings = run.plan.trainer, run.plan.rollout
    shape = {"micro_batch_tokens": trainer.micro_batch_tokens, "seed": run.plan.seed}
    if settings is None:
        yield LoggedData(run.encoded, batch_size=trainer.batch_size, **shape), None
        return
    if not isinstance(prompts, Tasks):
        raise_if_wrong(answered_prompts_have_values(prompts, run.facts.prompt_values))
    engine = build_engine(run, settings, prompts, after)
    try:
        data = online_data(run, settings, engine)
        yield data, rollouts_of(engine, data, settings.model_update_interval)
    finally:
        engine.close()


def prompts_to_answer(run: Run) -> Asked:
    """Return the training prompts that the policy answers, or the tasks it plays; none where nothing is sampled.

    Raises:
        InputError: there is no prompt, or one leaves no room for a completion; or no task is playable.
    """
    plan, settings = run.plan, run.plan.rollout
    if settings is None:
        return []
    if (environment := plan.source.environment()) is not None:
        limits = [n for n in (plan.data.max_length, plan.choice.context()) if n is not None]
        examples = examples_of(plan.source, "train", plan.data)
        return playable(examples, environment, run.tokenizer, settings, min(limits, default=None))
    room = (settings.max_new_tokens, plan.choice.context())
    prompts = read_prompts(plan.source, plan.data, run.tokenizer, *room, key="rollout.max_new_tokens")["train"]
    if not prompts:
        raise InputError("rollout: the training split has no prompt to answer; look at the data")
    return prompts


def online_data(run: Run, settings: RolloutSettings, engine: Engine) -> OnlineData:
    """Return what deals sampled and other trajectories to the optimiser steps of a run."""
    plan = run.plan
    others = {} if run.further is None else {"further": run.further}
    if "annotated" in plan.shares:
        others["annotated"] = annotated_rows(run.encoded.train)
    return OnlineData(
        run.encoded,
        engine=engine,
        settings=settings,
        others=others,
        annotate=partial(annotate_sampled, plan=plan, facts=run.facts),
        together=plan.compares,
        batch_size=plan.trainer.batch_size,
        micro_batch_tokens=plan.trainer.micro_batch_tokens,
        seed=plan.seed,
        max_steps=run.max_steps,
        even=plan.hardware.strategy == "fsdp",
    )


def annotate_sampled(rows: Rows, *, plan: Plan, facts: RunFacts) -> Rows:
    """Return sampled rows with the columns that the losses read, after checking their rewards.

    Raises:
        TrainingError: a reward is above the largest that the loss takes to be possible.
    """
    if wrong := rewards_stay_within_top(plan, rows):
        raise TrainingError(wrong)
    return annotate(rows, facts)
