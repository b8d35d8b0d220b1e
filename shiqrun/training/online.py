"""A run that samples while it trains builds an engine, annotates sampled rows and publishes its weights."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError, TrainingError
from shiqrun.estimates.value_cache import read_prompts
from shiqrun.models.policy import Policy
from shiqrun.models.pretrained import Pretrained
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.mixing import OnlineData
from shiqrun.rollout.other_sources import annotated_rows
from shiqrun.rollout.settings import ONLINE, RayRollouts, RolloutSettings, VllmRollouts
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.worker import RolloutWorker
from shiqrun.sampling.prompts import Prompt
from shiqrun.training.annotate import RunFacts, annotate
from shiqrun.training.checks_data import answered_prompts_have_values, raise_if_wrong, rewards_stay_within_top
from shiqrun.training.plan import Plan, Run
from shiqrun.training.step.method import Method

if TYPE_CHECKING:
    from shiqrun.rollout.ray.sampler import PolicyRecipe

log = logging.getLogger("shiqrun")
EXPERIENCE = "experience"
"""Folder of the run directory with all sampled trajectories, a data set for `data=jsonl`."""


@contextmanager
def batches_of_run(
    run: Run, prompts: Sequence[Prompt], *, after: int
) -> Iterator[tuple[LoggedData, "Rollouts | None"]]:
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
    raise_if_wrong(answered_prompts_have_values(prompts, run.facts.prompt_values))
    engine = build_engine(run, settings, prompts, after)
    try:
        data = online_data(run, settings, engine)
        yield data, Rollouts(engine, data, settings.model_update_interval)
    finally:
        engine.close()


def build_engine(run: Run, settings: RolloutSettings, prompts: Sequence[Prompt], after: int) -> Engine:
    """Return the engine that samples trajectories for the run.

    Args:
        run: with its models loaded.
        settings: of sampling.
        prompts: of the training split.
        after: number of optimiser steps that are finished.
    """
    plan = run.plan
    assert plan.reward is not None
    directory, device = plan.run_dir / EXPERIENCE, plan.hardware.device()
    if isinstance(settings, VllmRollouts):
        return _vllm_engine(run, settings, prompts, after)
    if isinstance(settings, RayRollouts):
        from shiqrun.rollout.ray.engine import RayEngine
        from shiqrun.rollout.ray.sampler import SamplerSetup

        setup = SamplerSetup(_recipe(run), run.tokenizer, prompts, plan.reward_again, settings, plan.seed)
        return RayEngine(setup, directory, n=plan.shares[ONLINE], after=after)
    buffer = Buffer(directory, after=after)
    plan.reward.to(device)
    number = buffer.counts()["accepted"]
    policy = copy_for_sampling(run.policy).to(device)
    worker = RolloutWorker(policy, run.tokenizer, prompts, plan.reward, settings, seed=plan.seed, number=number)
    return LocalEngine(
        worker,
        buffer,
        every=settings.model_update_interval,
        max_staleness=settings.max_staleness,
        max_steps=run.max_steps,
    )


def _recipe(run: Run) -> "PolicyRecipe":
    """Return what makes the run's policy in an actor, from the path of its model."""
    from shiqrun.rollout.ray.sampler import PolicyRecipe

    plan, choice = run.plan, run.plan.choice
    if isinstance(choice, Pretrained) and Path(choice.path).is_dir():
        choice = replace(choice, path=str(Path(choice.path).absolute()))  # actors may work in another directory
    return PolicyRecipe(choice, plan.model, run.tokenizer, plan.seed, plan.hardware.dtype, run.policy.autocast)


def _vllm_engine(run: Run, settings: VllmRollouts, prompts: Sequence[Prompt], after: int) -> Engine:
    """Return the engine that samples by a vLLM server; see `build_engine`."""
    from shiqrun.rollout.vllm.engine import VllmEngine

    plan = run.plan
    assert plan.reward is not None
    plan.reward.to(plan.hardware.device())
    return VllmEngine(
        run.policy,
        run.tokenizer,
        prompts,
        plan.reward,
        settings,
        run_dir=plan.run_dir,
        buffer=Buffer(plan.run_dir / EXPERIENCE, after=after),
        seed=plan.seed,
        max_steps=run.max_steps,
        model=getattr(plan.choice, "path", None),
        tokens=plan.trainer.micro_batch_tokens,
    )


def copy_for_sampling(policy: Policy) -> Policy:
    """Return a frozen copy of the policy for sampling, without its value head."""
    return Policy(copy.deepcopy(policy.model), autocast=policy.autocast).eval().requires_grad_(False)


def prompts_to_answer(run: Run) -> list[Prompt]:
    """Return the training prompts that the policy answers; none where nothing is sampled.

    Raises:
        InputError: there is no prompt, or one leaves no room for a completion.
    """
    plan, settings = run.plan, run.plan.rollout
    if settings is None:
        return []
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
    )


def annotate_sampled(rows: Rows, *, plan: Plan, facts: RunFacts) -> Rows:
    """Return sampled rows with the columns that the losses read, after checking their rewards.

    Raises:
        TrainingError: a reward is above the largest that the loss takes to be possible.
    """
    if wrong := rewards_stay_within_top(plan, rows):
        raise TrainingError(wrong)
    return annotate(rows, facts)


class Rollouts(Callback):
    """A `Rollouts` is a callback that publishes the policy's weights to the engine and logs sampling metrics.

    Args:
        engine: samples trajectories.
        data: hands them out to optimiser steps.
        every: optimiser steps between two sets of weights.
    """

    def __init__(self, engine: Engine, data: OnlineData, every: int) -> None:
        self.engine, self.data, self.every = engine, data, every
        self._published: tuple[int, Mapping[str, Tensor] | None] = (-1, None)
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that the engine samples with, unless they are those of the checkpoint itself."""
        version, weights = self._published
        return {"version": version, "weights": None if version == self._step else weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the weights that the engine sampled with."""
        self._published = (state_dict["version"], state_dict["weights"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the first weights, or after a resume those that the engine sampled with."""
        assert isinstance(pl_module, Method)
        self._step = trainer.global_step
        version, weights = self._published
        self._publish(max(version, 0), weights or trained_weights(pl_module.policy))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Report the finished step to the data, log sampling metrics, and publish weights every `every` steps."""
        assert isinstance(pl_module, Method)
        self._step = step = trainer.global_step
        self.data.finish_step(step)
        if pl_module.logs_now(step):
            found = self.data.sampling_metrics() | self.engine.metrics()
            pl_module.record({f"rollout/{name}": value for name, value in found.items()})
        if step % self.every == 0 and step < (trainer.max_steps or 0):
            self._publish(step, trained_weights(pl_module.policy))

    def _publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self._published = (version, weights)
        self.engine.publish(version, weights)

    def summary(self) -> dict[str, Any]:
        """Return the counts and staleness of all sampling for `summary.json`."""
        told = self.engine.stats() | self.data.total_staleness()
        return {f"rollout/{name}": value for name, value in told.items()}


def trained_weights(policy: Policy) -> dict[str, Tensor]:
    """Return the parameters that training changes, by name, copied to the CPU."""
    named = policy.model.named_parameters()
    return {name: p.detach().to("cpu", copy=True) for name, p in named if p.requires_grad}
