"""Sampling while learning: the engine of a run, what its trajectories are given, and when weights are published."""

import copy
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from shiqrun.batching.logged_data import LoggedData, offsets
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError, TrainingError
from shiqrun.estimates.value_cache import prompts_of
from shiqrun.losses.requirements import compares_completions
from shiqrun.models.policy import Policy
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.local import Local
from shiqrun.rollout.mixing import OnlineData
from shiqrun.rollout.settings import ONLINE, RayRollouts, RolloutSettings
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.worker import Worker
from shiqrun.sampling.prompts import Prompt
from shiqrun.training.other_sources import annotated_rows
from shiqrun.training.plan import Run
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
    _expect_values_of(run, prompts)
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
        return RayEngine(setup, directory, n=settings.shares(plan.trainer.batch_size)[ONLINE], after=after)
    buffer = Buffer(directory, after=after)
    plan.reward.to(device)
    number = buffer.counts()["accepted"]
    worker = Worker(policy.to(device), run.tokenizer, prompts, plan.reward, settings, seed=plan.seed, number=number)
    return Local(
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


def _expect_values_of(run: Run, prompts: Sequence[Prompt]) -> None:
    lacking = [p for p in prompts if run.prompt_values is not None and p.prompt_id not in run.prompt_values]
    if lacking:
        raise InputError(
            f"algo.values: {len(lacking)} of {len(prompts)} prompts that would be answered have no value, first "
            f"{lacking[0].source}; make values of the same data with `shiqrun values`"
        )


def data_of(run: Run, settings: RolloutSettings, engine: Engine) -> OnlineData:
    """The batches of a run that samples."""
    plan = run.plan
    others = {}
    if run.further is not None:
        run.further.offset = offsets(run.further, plan.algo.reward_offset, run.offset)
        others["further"] = run.further
    if "annotated" in settings.shares(plan.trainer.batch_size):
        others["annotated"] = annotated_rows(run.encoded.train)
    return OnlineData(
        run.encoded,
        engine=engine,
        settings=settings,
        others=others,
        dressed=lambda rows: dressed(run, rows),
        together=compares_completions(plan.loss),
        batch_size=plan.trainer.batch_size,
        micro_batch_tokens=plan.trainer.micro_batch_tokens,
        seed=plan.seed,
        max_steps=run.max_steps,
    )


def dressed(run: Run, rows: Rows) -> Rows:
    """Sampled rows with what the logged ones of the run have: prompt values, reward offset, tokens of the anchor."""
    logged = run.encoded.train
    rows.packed, rows.device = logged.packed, logged.device
    if logged.anchor is not None:
        number, vocabulary, seed = logged.anchor
        rows.anchor = (number, vocabulary, seed + zlib.crc32(rows.trajectories[0].source.encode()))
    if run.prompt_values is not None:
        _expect_at_most_top(run, rows)
        rows.prompt_value = np.array([run.prompt_values[t.prompt_id] for t in rows.trajectories], np.float32)
    rows.offset = offsets(rows, run.plan.algo.reward_offset, run.offset)
    return rows


def _expect_at_most_top(run: Run, rows: Rows) -> None:
    """Nothing, if no sampled reward is above the largest that the cross-entropy takes to be possible."""
    words, largest = run.plan.loss.keywords, float(rows.returns.max())
    if words.get("link") == "cross_entropy" and largest > words.get("top", 0.0):
        raise TrainingError(
            f"a sampled trajectory earned {largest:g}, but the cross-entropy takes {words.get('top', 0.0):g} for the "
            f"largest there can be: set algo.top to the largest reward of {run.plan.names['data']}"
        )


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
        self.data.done(step)
        if pl_module.logs_now(step):
            pl_module.record({f"rollout/{name}": value for name, value in self.data.told().items()})
        if step % self.every == 0 and step < (trainer.max_steps or 0):
            self._publish(step, trained_weights(pl_module.policy))

    def _publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self._published = (version, weights)
        self.engine.publish(version, weights)

    def summary(self) -> dict[str, Any]:
        """For `summary.json`."""
        told = self.engine.stats() | self.data.all_ages()
        return {f"rollout/{name}": value for name, value in told.items()}


def trained_weights(policy: Policy) -> dict[str, Tensor]:
    """What training changes of the policy's model, copied to the CPU."""
    named = policy.model.named_parameters()
    return {name: p.detach().to("cpu", copy=True) for name, p in named if p.requires_grad}
