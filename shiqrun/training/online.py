"""Sampling while learning: the engine of a run, what its trajectories are given, and when weights are published."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from shiqrun.batching.logged_data import LoggedData
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError, TrainingError
from shiqrun.estimates.value_cache import prompts_of
from shiqrun.models.policy import Policy
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.mixing import OnlineData
from shiqrun.rollout.other_sources import annotated_rows
from shiqrun.rollout.settings import ONLINE, RayRollouts, RolloutSettings
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.worker import RolloutWorker
from shiqrun.sampling.prompts import Prompt
from shiqrun.training.annotate import RunFacts, annotate
from shiqrun.training.checks_data import expect, reward_above_top, unvalued_questions
from shiqrun.training.plan import Plan, Run
from shiqrun.training.step.method import Method

log = logging.getLogger("shiqrun")
EXPERIENCE = "experience"
"""Of a run directory: all that was sampled, a data set for `data=jsonl`."""


@contextmanager
def sampling(run: Run, prompts: Sequence[Prompt], *, after: int) -> Iterator[tuple[LoggedData, "Rollouts | None"]]:
    """Inside, the batches of a run and, where it samples, what keeps its engine informed.

    Args:
        run: with its models loaded and its rows annotated.
        prompts: of `prompts_to_answer`.
        after: optimiser steps that are done.
    """
    trainer, settings = run.plan.trainer, run.plan.rollout
    shape = {"micro_batch_tokens": trainer.micro_batch_tokens, "seed": run.plan.seed}
    if settings is None:
        yield LoggedData(run.encoded, batch_size=trainer.batch_size, **shape), None
        return
    expect(unvalued_questions(prompts, run.facts.prompt_values))
    engine = engine_of(run, settings, prompts, after)
    try:
        data = data_of(run, settings, engine)
        yield data, Rollouts(engine, data, settings.model_update_interval)
    finally:
        engine.close()


def engine_of(run: Run, settings: RolloutSettings, prompts: Sequence[Prompt], after: int) -> Engine:
    """What samples for the run.

    Args:
        run: with its models loaded.
        settings: of its rollouts.
        prompts: to answer.
        after: optimiser steps that are done.
    """
    plan = run.plan
    assert plan.reward is not None
    directory, device = plan.run_dir / EXPERIENCE, plan.hardware.device()
    policy = acting_copy(run.policy)
    if isinstance(settings, RayRollouts):
        from shiqrun.rollout.ray.engine import RayEngine
        from shiqrun.rollout.ray.sampler import SamplerSetup

        setup = SamplerSetup(policy, run.tokenizer, prompts, plan.reward_again, settings, plan.seed)
        return RayEngine(setup, directory, n=plan.shares[ONLINE], after=after)
    buffer = Buffer(directory, after=after)
    plan.reward.to(device)
    number = buffer.counts()["accepted"]
    worker = RolloutWorker(
        policy.to(device), run.tokenizer, prompts, plan.reward, settings, seed=plan.seed, number=number
    )
    return LocalEngine(
        worker,
        buffer,
        every=settings.model_update_interval,
        max_staleness=settings.max_staleness,
        max_steps=run.max_steps,
    )


def acting_copy(policy: Policy) -> Policy:
    """A copy that samples, without value head and gradients."""
    return Policy(copy.deepcopy(policy.model), autocast=policy.autocast).eval().requires_grad_(False)


def prompts_to_answer(run: Run) -> list[Prompt]:
    """Those of the training split; none where nothing is sampled.

    Raises:
        InputError: there is none, or one leaves no room for a completion.
    """
    plan, settings = run.plan, run.plan.rollout
    if settings is None:
        return []
    room = (settings.max_new_tokens, plan.choice.context())
    prompts = prompts_of(plan.source, plan.data, run.tokenizer, *room, key="rollout.max_new_tokens")["train"]
    if not prompts:
        raise InputError("rollout: the training split has no prompt to answer; look at the data")
    return prompts


def data_of(run: Run, settings: RolloutSettings, engine: Engine) -> OnlineData:
    """Return the batches of a run that samples while it trains."""
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
    )


def annotate_sampled(rows: Rows, *, plan: Plan, facts: RunFacts) -> Rows:
    """Return sampled rows with what the losses read, as the run's other rows have it.

    Raises:
        TrainingError: a reward is above the largest that the loss takes to be possible.
    """
    if wrong := reward_above_top(plan, rows):
        raise TrainingError(wrong)
    return annotate(rows, facts)


class Rollouts(Callback):
    """Gives the engine new weights, and tells it and the logs how far training is.

    Args:
        engine: that samples.
        data: that hands its trajectories out.
        every: optimiser steps between two sets of weights.
    """

    def __init__(self, engine: Engine, data: OnlineData, every: int) -> None:
        self.engine, self.data, self.every = engine, data, every
        self._published: tuple[int, Mapping[str, Tensor] | None] = (-1, None)
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """The weights that are sampled by, unless they are those of the checkpoint itself."""
        version, weights = self._published
        return {"version": version, "weights": None if version == self._step else weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After a resume."""
        self._published = (state_dict["version"], state_dict["weights"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first weights."""
        assert isinstance(pl_module, Method)
        self._step = trainer.global_step
        version, weights = self._published
        self._publish(max(version, 0), weights or trained_weights(pl_module.policy))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """A step is done; now and then the next weights."""
        assert isinstance(pl_module, Method)
        self._step = step = trainer.global_step
        self.data.finish_step(step)
        if pl_module.logs_now(step):
            pl_module.record({f"rollout/{name}": value for name, value in self.data.sampling_metrics().items()})
        if step % self.every == 0 and step < (trainer.max_steps or 0):
            self._publish(step, trained_weights(pl_module.policy))

    def _publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self._published = (version, weights)
        self.engine.publish(version, weights)

    def summary(self) -> dict[str, Any]:
        """For `summary.json`."""
        told = self.engine.stats() | self.data.total_staleness()
        return {f"rollout/{name}": value for name, value in told.items()}


def trained_weights(policy: Policy) -> dict[str, Tensor]:
    """What training changes of the policy's model, copied to the CPU."""
    named = policy.model.named_parameters()
    return {name: p.detach().to("cpu", copy=True) for name, p in named if p.requires_grad}
