"""What can be found wrong with a run's rollouts before anything is loaded, and the losses of their sources."""

import inspect
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shiqrun import losses
from shiqrun.errors import InputError
from shiqrun.losses.requirements import compares_completions, needs_of
from shiqrun.losses.soft_policy import monte_carlo
from shiqrun.rollout.settings import RayRollouts, RolloutSettings

if TYPE_CHECKING:
    from shiqrun.training.plan import Plan

BY_SOURCE = {name: getattr(losses, name) for name in losses.__all__} | {"monte_carlo": monte_carlo}
"""What a source may be trained by."""


def expect_fit(plan: "Plan") -> None:
    """Nothing, if the run can sample what its method learns from.

    Raises:
        InputError: naming the setting and what to set instead.
    """
    name, rollout, wanted = plan.names["algo"], plan.rollout, needs_of(plan.loss)
    if rollout is None:
        if "behaviour" in wanted:
            raise InputError(
                f"algo={name} learns from the policy's own samples, whose log-probabilities logged data do not have: "
                "set rollout=local (or ray) and eval.reward=NAME"
            )
        return
    if not wanted or "score" in wanted:
        raise InputError(f"rollout: algo={name} learns nothing from the policy's own samples; set rollout=none")
    if plan.source.answers_back():
        raise InputError(
            f"rollout: data={plan.names['data']} answers the policy, and a rollout is one completion; set "
            "rollout=none, or see data=programs"
        )
    if plan.reward is None:
        raise InputError("rollout: what is sampled needs a reward; set eval.reward=NAME")
    if plan.algo.reference not in ("frozen", "adapter"):
        raise InputError(
            f"algo.reference={plan.algo.reference}: no cache has the tokens that are sampled; set "
            "algo.reference=frozen (or adapter)"
        )
    if plan.trainer.max_steps is None:
        raise InputError("rollout: sampling has no epochs; set trainer.max_steps")
    if plan.hardware.devices > 1:
        raise InputError(
            f"hardware.devices={plan.hardware.devices}: with rollouts one process trains; set hardware.devices=1, and "
            "rollout=ray to sample in others"
        )
    _expect_sources(plan, rollout)


def _expect_sources(plan: "Plan", rollout: RolloutSettings) -> None:
    """Nothing, if the method can learn from what a batch is made of."""
    name, wanted = plan.names["algo"], needs_of(plan.loss)
    shares = rollout.shares(plan.trainer.batch_size)
    if compares_completions(plan.loss) and rollout.samples_per_prompt < 2:
        raise InputError(f"algo={name} compares completions of a prompt: set rollout.samples_per_prompt=2 or more")
    if "behaviour" in wanted and set(shares) - {"online", "replay"}:
        raise InputError(
            f"algo={name} learns from samples alone: set rollout.offline=0, or rollout.sources.logged=0 and "
            "rollout.sources.replay=1"
        )
    if plan.algo.reward_offset == "group_mean" and rollout.samples_per_prompt < 2:
        raise InputError(
            "algo.reward_offset=group_mean takes every prompt's mean return, but with rollout.samples_per_prompt=1 all "
            "rewards would be 0; sample 2 or more, or use mean or none"
        )
    idle = [name for name, weight in rollout.sources.items() if weight and name not in (*shares, "logged")]
    if idle:
        raise InputError(
            f"rollout.sources.{idle[0]}={rollout.sources[idle[0]]:g}, but rollout.offline=0 leaves it no share; set "
            "rollout.offline, or leave the source out"
        )
    _expect_replay(rollout, shares.get("replay", 0))
    if isinstance(rollout, RayRollouts):
        _expect_ray(rollout, shares["online"])
    if "annotated" in shares and plan.algo.targets is None:
        raise InputError("rollout.sources.annotated: which actions have targets? set algo.targets=FILE")
    for source, bound in source_losses(rollout, plan.loss).items():
        if source not in shares:
            raise InputError(
                f"rollout.losses.{source}: no trajectory comes from there; give rollout.sources.{source} a weight and "
                "rollout.offline a share, or leave it out"
            )
        _expect_loss(plan, source, bound)


def _expect_replay(rollout: RolloutSettings, share: int) -> None:
    if share > rollout.replay_size:
        raise InputError(f"rollout.replay_size={rollout.replay_size}: a step replays {share}; keep at least as many")
    if share and rollout.max_staleness == 0:
        raise InputError(
            "rollout.max_staleness=0 lets nothing be replayed; allow some, or set rollout.sources.replay=0"
        )


def _expect_ray(rollout: RayRollouts, share: int) -> None:
    if find_spec("ray") is None:
        raise InputError("rollout=ray: Ray is missing; pip install 'shiqrun[ray]', or set rollout=local")
    if rollout.waiting < share:
        raise InputError(f"rollout.waiting={rollout.waiting}: a step takes {share}; let as many wait")


def expect_values(plan: "Plan") -> None:
    """Prompt values are of the rewards as they are, and need a reward to be made."""
    if plan.algo.reward_offset != "none":
        raise InputError(
            f"algo.reward_offset={plan.algo.reward_offset}: prompt values are of rewards as they are; set it to none"
        )
    if plan.algo.values is None and plan.reward is None:
        raise InputError(
            f"algo={plan.names['algo']} needs the value of every prompt: give algo.values=FILE, made by `shiqrun "
            "values`, or eval.reward=NAME to have the reference's completions scored first"
        )
    by_source = plan.rollout is not None and "monte_carlo" in plan.rollout.losses.values()
    if bool(plan.algo.monte_carlo) != (plan.algo.targets is not None) and not (by_source and plan.algo.targets):
        raise InputError(
            f"algo.monte_carlo={plan.algo.monte_carlo:g}, algo.targets={plan.algo.targets}: the Monte-Carlo term needs "
            "both a weight and a file of estimates, which `shiqrun pivotal` makes"
        )


def _expect_loss(plan: "Plan", source: str, bound: partial[Any]) -> None:
    name = next(name for name, loss in BY_SOURCE.items() if loss is bound.func)
    more = needs_of(bound) - needs_of(plan.loss)
    if more:
        raise InputError(
            f"rollout.losses.{source}={name} needs {', '.join(sorted(more))}, which algo={plan.names['algo']} does not"
        )
    if bound.func is monte_carlo and source not in ("annotated", "logged"):
        raise InputError(
            f"rollout.losses.{source}=monte_carlo: none of these trajectories has a target; only annotated and logged "
            "ones do (algo.targets)"
        )
    if bound.func is monte_carlo and plan.algo.targets is None:
        raise InputError(f"rollout.losses.{source}=monte_carlo: which estimates? set algo.targets=FILE")


def source_losses(rollout: RolloutSettings | None, loss: partial[Any]) -> dict[str, partial[Any]]:
    """The losses of sources that are not the method's, with the hyperparameters of the method that they know.

    Raises:
        InputError: there is no such loss.
    """
    found = {}
    for source, name in (rollout.losses if rollout else {}).items():
        if name is None:
            continue
        if name not in BY_SOURCE:
            near = get_close_matches(name, BY_SOURCE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(BY_SOURCE))}"
            raise InputError(f"rollout.losses.{source}={name}: no such loss; {hint}")
        own = inspect.signature(BY_SOURCE[name]).parameters
        shared = {key: value for key, value in loss.keywords.items() if key in own}
        found[str(source)] = partial(BY_SOURCE[name], **shared)
    return found
