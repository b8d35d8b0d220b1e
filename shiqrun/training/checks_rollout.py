"""This module has the rules on settings of a run that samples while it trains (`rollout=local`, `ray`, `vllm`).

See `checks.py`: a rule returns what is wrong and what to set instead, or None.
"""

from difflib import get_close_matches
from importlib.util import find_spec

from shiqrun.losses.requirements import needs_of
from shiqrun.losses.soft_policy import monte_carlo
from shiqrun.rollout.settings import ONLINE, RayRollouts, RolloutSettings
from shiqrun.training import checks_episodes, checks_ranks, checks_reference
from shiqrun.training.plan import Plan
from shiqrun.training.source_losses import LOSSES, name_of_loss, source_losses


def temperatures_are_ordered(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The range of sampling temperatures needs its least one first."""
    low, high = rollout.temperature
    return None if low <= high else f"rollout.temperature={rollout.temperature}: expected [least, greatest]"


def staleness_covers_the_update_interval(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The allowed staleness of trajectories must cover the steps between two updates of the sampler's weights."""
    oldest = rollout.model_update_interval - 1
    if rollout.max_staleness is not None and rollout.max_staleness < oldest:
        return (
            f"rollout.max_staleness={rollout.max_staleness}: weights are up to {oldest} steps old before new ones come "
            f"(rollout.model_update_interval={rollout.model_update_interval}); allow as many"
        )
    return None


def offline_share_has_sources(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The share of a batch that is not sampled from the policy needs a source of trajectories."""
    if rollout.offline and not sum(rollout.sources.values()):
        return (
            f"rollout.offline={rollout.offline:g}, but rollout.sources={dict(rollout.sources)} names nothing to fill "
            "it with; set rollout.sources.logged=1, or rollout.offline=0"
        )
    return None


def further_source_has_a_file(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The source `further` and its file `rollout.path` must be set together."""
    if bool(rollout.path) != bool(rollout.sources.get("further")):
        return "rollout.path is the file of rollout.sources.further: set both or none"
    return None


def method_learns_from_samples(plan: Plan, rollout: RolloutSettings) -> str | None:
    """Cloning and reward models learn nothing from the policy's own samples."""
    if not plan.needs or "score" in plan.needs:
        return f"rollout: algo={plan.name} learns nothing from the policy's own samples; set rollout=none"
    return None


def method_pairs_no_samples(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A KL estimate needs completions of other prompts, which are joined before training and scored in each step."""
    if "kl_estimate" in plan.needs:
        return f"rollout: algo={plan.name} puts logged completions behind other prompts, not sampled; set rollout=none"
    return None


def reference_scores_samples(plan: Plan, rollout: RolloutSettings) -> str | None:
    """Sampled tokens are in no cache, so that the reference must be a model."""
    if plan.algo.reference not in ("frozen", "adapter"):
        return (
            f"algo.reference={plan.algo.reference}: no cache has the tokens that are sampled; set "
            "algo.reference=frozen (or adapter)"
        )
    return None


def number_of_steps_is_set(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A run that samples has no epochs, so it needs a number of optimiser steps."""
    return None if plan.trainer.max_steps is not None else "rollout: sampling has no epochs; set trainer.max_steps"


def step_samples_something(plan: Plan, rollout: RolloutSettings) -> str | None:
    """At least one trajectory of each optimiser step must be sampled from the policy."""
    if not plan.shares[ONLINE]:
        return (
            f"rollout.offline={rollout.offline:g} leaves none of trainer.batch_size={plan.trainer.batch_size} "
            f"trajectories to sample (in groups of {rollout.samples_per_prompt}); lower it, or set rollout=none"
        )
    return None


def every_source_gives_something(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A source with a weight must give at least one trajectory, or one group, to every optimiser step."""
    empty = [source for source, number in plan.shares.items() if not number]
    if empty:
        groups = f" (in groups of {rollout.samples_per_prompt})" if empty[0] == "replay" else ""
        return (
            f"rollout.sources.{empty[0]}: less than one of trainer.batch_size={plan.trainer.batch_size} trajectories"
            f"{groups}; leave it out, or raise rollout.offline"
        )
    return None


def groups_fill_the_batch(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The trajectories of all sources, sampled ones in whole groups, must add up to the batch size."""
    if sum(plan.shares.values()) != plan.trainer.batch_size:
        return (
            f"trainer.batch_size={plan.trainer.batch_size} is not a multiple of rollout.samples_per_prompt="
            f"{rollout.samples_per_prompt}, and no logged trajectories fill it up; choose another of the two"
        )
    return None


def groups_can_be_compared(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A loss that compares completions of a prompt needs at least two samples of each prompt."""
    if plan.compares and rollout.samples_per_prompt < 2:
        return f"algo={plan.name} compares completions of a prompt: set rollout.samples_per_prompt=2 or more"
    return None


def policy_gradient_reads_samples_alone(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A loss that reads the log-probabilities of sampling cannot be given logged trajectories."""
    if "sampler_reference" in plan.needs and set(plan.shares) - {ONLINE}:
        return f"algo={plan.name} learns from fresh samples of its reference alone: set rollout.offline=0"
    if "behaviour" in plan.needs and set(plan.shares) - {ONLINE, "replay"}:
        return (
            f"algo={plan.name} learns from samples alone: set rollout.offline=0, or rollout.sources.logged=0 and "
            "rollout.sources.replay=1"
        )
    return None


def group_mean_leaves_rewards(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The mean of a group of one is its own return, so that nothing of any reward would be left."""
    if plan.algo.reward_offset == "group_mean" and rollout.samples_per_prompt < 2:
        return (
            "algo.reward_offset=group_mean takes every prompt's mean return, but with rollout.samples_per_prompt=1 all "
            "rewards would be 0; sample 2 or more, or use mean or none"
        )
    return None


def every_source_has_a_share(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A source with a weight must have a share of the batch; only `logged` has a weight by default."""
    idle = [source for source, weight in rollout.sources.items() if weight and source not in (*plan.shares, "logged")]
    if idle:
        return (
            f"rollout.sources.{idle[0]}={rollout.sources[idle[0]]:g}, but rollout.offline=0 leaves it no share; set "
            "rollout.offline, or leave the source out"
        )
    return None


def replay_pool_holds_a_step(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The replay pool must hold at least the trajectories that one optimiser step replays."""
    share = plan.shares.get("replay", 0)
    if share > rollout.replay_size:
        return f"rollout.replay_size={rollout.replay_size}: a step replays {share}; keep at least as many"
    return None


def staleness_allows_replay(plan: Plan, rollout: RolloutSettings) -> str | None:
    """Replayed trajectories are at least a step old."""
    if "replay" in plan.shares and rollout.max_staleness == 0:
        return "rollout.max_staleness=0 lets nothing be replayed; allow some, or set rollout.sources.replay=0"
    return None


def ray_is_installed(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The engine `ray` needs the package Ray."""
    if isinstance(rollout, RayRollouts) and find_spec("ray") is None:
        return "rollout=ray: Ray is missing; pip install 'shiqrun[ray]', or set rollout=local"
    return None


def queue_holds_a_step(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The queue of sampled trajectories must hold those of one optimiser step, or no step would ever get them."""
    if isinstance(rollout, RayRollouts) and rollout.waiting < plan.shares[ONLINE]:
        return f"rollout.waiting={rollout.waiting}: a step takes {plan.shares[ONLINE]}; let as many wait"
    return None


def annotated_rows_have_targets(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The source `annotated` needs a file of value targets, since it holds the trajectories that have some."""
    if "annotated" in plan.shares and plan.algo.targets is None:
        return "rollout.sources.annotated needs value targets of actions; set algo.targets=FILE"
    return None


def source_loss_exists(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The loss of a source must be one that shiqrun has."""
    for source, name in rollout.losses.items():
        if name is not None and name not in LOSSES:
            near = get_close_matches(name, LOSSES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(LOSSES))}"
            return f"rollout.losses.{source}={name}: no such loss; {hint}"
    return None


def source_with_a_loss_has_a_share(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A source with a loss of its own must give trajectories."""
    for source in source_losses(rollout, plan.loss):
        if source not in plan.shares:
            return (
                f"rollout.losses.{source}: no trajectory comes from there; give rollout.sources.{source} a weight and "
                "rollout.offline a share, or leave it out"
            )
    return None


def source_loss_needs_no_more(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The loss of a source may read only what the method's loss reads, since only that is prepared."""
    for source, loss in source_losses(rollout, plan.loss).items():
        if more := needs_of(loss) - plan.needs:
            return (
                f"rollout.losses.{source}={name_of_loss(loss)} needs {', '.join(sorted(more))}, which algo={plan.name} "
                "does not"
            )
    return None


def monte_carlo_source_has_targets(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The Monte-Carlo term as a source's loss needs trajectories of the data set, which alone have value targets."""
    for source, loss in source_losses(rollout, plan.loss).items():
        if loss.func is not monte_carlo:
            continue
        if source not in ("annotated", "logged"):
            return (
                f"rollout.losses.{source}=monte_carlo: none of these trajectories has a target; only annotated and "
                "logged ones do (algo.targets)"
            )
        if plan.algo.targets is None:
            return f"rollout.losses.{source}=monte_carlo needs value targets; set algo.targets=FILE"
    return None


RULES = (
    temperatures_are_ordered,
    staleness_covers_the_update_interval,
    offline_share_has_sources,
    further_source_has_a_file,
    method_learns_from_samples,
    method_pairs_no_samples,
    checks_episodes.data_can_be_sampled,
    checks_episodes.samples_have_a_reward,
    checks_episodes.episodes_need_no_prompt_values,
    reference_scores_samples,
    number_of_steps_is_set,
    checks_ranks.shared_weights_score_no_served_samples,
    step_samples_something,
    every_source_gives_something,
    groups_fill_the_batch,
    groups_can_be_compared,
    policy_gradient_reads_samples_alone,
    checks_reference.reference_is_the_sampler,
    group_mean_leaves_rewards,
    every_source_has_a_share,
    replay_pool_holds_a_step,
    staleness_allows_replay,
    ray_is_installed,
    queue_holds_a_step,
    annotated_rows_have_targets,
    source_loss_exists,
    source_with_a_loss_has_a_share,
    source_loss_needs_no_more,
    checks_ranks.all_losses_train_the_value,
    monte_carlo_source_has_targets,
)
"""The rules of runs that sample, in the order in which they are checked; later ones may rely on earlier ones."""
