"""This module builds the engine of a run that samples while it trains, for one process or for several ranks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shiqrun.models.policy import Policy
from shiqrun.models.pretrained import Pretrained
from shiqrun.models.reference import FrozenReference
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.episode_worker import EpisodeWorker
from shiqrun.rollout.episodes import Asked, Tasks
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.settings import ONLINE, LocalRollouts, RayRollouts, RolloutSettings, VllmRollouts
from shiqrun.rollout.several_ranks import SharedEngine, TogetherEngine, from_rank_0
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.worker import RolloutWorker, Worker
from shiqrun.training.plan import Run
from shiqrun.util import ranks

if TYPE_CHECKING:
    from shiqrun.rollout.ray.sampler import PolicyRecipe

EXPERIENCE = "experience"
"""Folder of the run directory with all sampled trajectories, a data set for `data=jsonl`."""
Made = TypeVar("Made")


def build_engine(run: Run, settings: RolloutSettings, prompts: Asked, after: int) -> Engine:
    """Return the engine that samples trajectories for the run; all ranks call this together.

    Args:
        run: with its models loaded.
        settings: of sampling.
        prompts: of the training split, or its tasks.
        after: number of optimiser steps that are finished.

    Raises:
        InputError: there can be no such engine, on all ranks.
    """
    if isinstance(settings, LocalRollouts):
        return _local_engine(run, settings, prompts, after)
    build = _vllm_engine if isinstance(settings, VllmRollouts) else _ray_engine
    engine = _on_rank_0(lambda: build(run, settings, prompts, after))  # type: ignore[arg-type]
    return engine if engine is not None and ranks.world() == 1 else SharedEngine(engine)


def _on_rank_0(make: Callable[[], Made]) -> Made | None:
    """Return what rank 0 makes on rank 0, and None on the others; an error of rank 0 is raised on all."""
    made: list[Made] = []
    from_rank_0(lambda: made.append(make()))
    return made[0] if made else None


def _local_engine(run: Run, settings: LocalRollouts, prompts: Asked, after: int) -> Engine:
    """Return the engine that samples in the training processes, each with a copy of the policy; see `build_engine`."""
    plan = run.plan
    buffer = _on_rank_0(lambda: Buffer(plan.run_dir / EXPERIENCE, after=after))
    number = ranks.broadcast_object(0 if buffer is None else buffer.counts()["accepted"])
    policy = copy_for_sampling(run.policy)
    if plan.hardware.strategy != "fsdp":  # else it is sharded with the policy, which moves it
        policy.to(plan.hardware.device())
    counted = {"seed": plan.seed, "number": number}
    worker: Worker
    if isinstance(prompts, Tasks):
        worker = EpisodeWorker(policy, run.tokenizer, prompts, settings, **counted)
    else:
        assert plan.reward is not None
        plan.reward.to(plan.hardware.device())
        worker = RolloutWorker(policy, run.tokenizer, prompts, plan.reward, settings, **counted)
    if buffer is None:
        return TogetherEngine(worker, None)
    engine = LocalEngine(
        worker,
        buffer,
        every=settings.model_update_interval,
        max_staleness=settings.max_staleness,
        max_steps=run.max_steps,
    )
    return engine if ranks.world() == 1 else TogetherEngine(worker, engine)


def _ray_engine(run: Run, settings: RayRollouts, prompts: Asked, after: int) -> Engine:
    """Return the engine that samples by Ray actors; see `build_engine`."""
    from shiqrun.rollout.ray.engine import RayEngine
    from shiqrun.rollout.ray.sampler import SamplerSetup

    plan = run.plan
    setup = SamplerSetup(_recipe(run), run.tokenizer, prompts, plan.reward_again, settings, plan.seed)
    return RayEngine(setup, plan.run_dir / EXPERIENCE, n=plan.shares[ONLINE], after=after)


def _recipe(run: Run) -> "PolicyRecipe":
    """Return what makes the run's policy in an actor, from the path of its model."""
    from shiqrun.rollout.ray.sampler import PolicyRecipe

    plan, choice = run.plan, run.plan.choice
    if isinstance(choice, Pretrained) and Path(choice.path).is_dir():
        choice = replace(choice, path=str(Path(choice.path).absolute()))  # actors may work in another directory
    return PolicyRecipe(choice, plan.model, run.tokenizer, plan.seed, plan.hardware.dtype, run.policy.autocast)


def _vllm_engine(run: Run, settings: VllmRollouts, prompts: Asked, after: int) -> Engine:
    """Return the engine that samples by a vLLM server; see `build_engine`."""
    from shiqrun.rollout.vllm.engine import VllmEngine

    plan = run.plan
    assert plan.reward is not None
    assert not isinstance(prompts, Tasks)
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
    return FrozenReference(policy).policy
