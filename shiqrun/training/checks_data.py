"""`check_data` checks loaded data against rules: rewards where the loss reads them, values of the same prompts.

As in `checks.py`, a rule returns what is wrong and what to do about it, or None.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.batching.reward_offsets import offset_center, reward_offsets
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError
from shiqrun.estimates.value_file import PromptRewards
from shiqrun.losses.pairs import ROUNDING
from shiqrun.losses.requirements import hyperparameters
from shiqrun.rewards.units import Verdict, compare_with_sampled, listed, of_source, scored_by, wrong_of
from shiqrun.sampling.prompts import Prompt
from shiqrun.training.plan import Plan


def raise_if_wrong(wrong: str | None) -> None:
    """Raise the message of a broken rule as an error; do nothing for None.

    Raises:
        InputError: the rule found something wrong.
    """
    if wrong:
        raise InputError(wrong)


def check_data(plan: Plan, encoded: EncodedData) -> None:
    """Check the training split against every rule.

    Raises:
        InputError: the message of the first rule that the data break.
    """
    for rule in RULES:
        raise_if_wrong(rule(plan, encoded.train))


# ------------------------------------------------------------------ rules of the training split
def every_trajectory_has_a_reward(plan: Plan, rows: Rows) -> str | None:
    """A loss that reads rewards needs one for every trajectory."""
    if "rewards" not in plan.needs:
        return None
    bare = np.flatnonzero(~rows.rewarded)
    if len(bare):
        row, number, data = int(bare[0]), len(rows), "data"
        if rows.parts is not None:
            data, of_part = f"data.parts.{rows.parts.name(row)}", rows.parts.number == rows.parts.number[row]
            bare, number = bare[of_part[bare]], int(of_part.sum())
        return (
            f"{data + ': ' if rows.parts else ''}algo={plan.name} needs rewards, but {len(bare)} of {number} "
            f"trajectories have none, first {rows.trajectories[row].source}; add a column `reward` or `rewards`, or "
            f"set {data}.pair_rewards=[1,-1] for pairs ({data}.label_rewards=[1,-1] for a column `label` of true and "
            "false)"
        )
    return None


def actions_are_the_policys(plan: Plan, rows: Rows) -> str | None:
    """A loss that reads rewards needs actions that a policy chose, not the environment's tokens."""
    if "rewards" in plan.needs and plan.data.train_on != "assistant":
        return f"data.train_on=response is for algo=sft: {plan.name} would take the environment's tokens for actions"
    return None


def group_means_leave_rewards(plan: Plan, rows: Rows) -> str | None:
    """The mean of a group of one is its own return, so that nothing of its reward would be left."""
    if plan.algo.reward_offset != "group_mean":
        return None
    alone = np.flatnonzero(np.bincount(rows.group)[rows.group] == 1)
    if len(alone) == len(rows):
        return (
            "algo.reward_offset=group_mean takes every prompt's mean return, but each prompt has one completion, so "
            "that all rewards would be 0; use mean or none"
        )
    if len(alone):
        return (
            f"algo.reward_offset=group_mean takes every prompt's mean return, but {len(alone)} of {len(rows)} "
            f"trajectories are alone with their prompt (some perhaps since others were dropped), first "
            f"{rows.trajectories[alone[0]].source}: their rewards would be 0; use mean or none, or take these rows out"
        )
    return None


def some_pair_is_decided(plan: Plan, rows: Rows) -> str | None:
    """A loss that reads which completion is better needs a prompt whose completions differ in return."""
    if "order" not in plan.needs:
        return None
    level = rows.returns
    if not any(np.ptp(level[unit]) > ROUNDING * np.abs(level[unit]).sum() for unit in rows.units):
        return f"algo={plan.name} needs a better and a worse completion, but every pair of the data is a tie"
    return None


def both_kinds_are_there(plan: Plan, rows: Rows) -> str | None:
    """A loss of good and bad completions needs some of each, and prompts to exchange completions between."""
    threshold, how = hyperparameters(plan.loss).get("threshold"), plan.algo.reward_offset
    if "kl_estimate" not in plan.needs:
        return None
    if len(np.unique(rows.prompt_number)) < 2:
        return f"algo={plan.name} puts completions behind other prompts, but all trajectories answer one; add prompts"
    if threshold is None:
        return None
    offset = reward_offsets(rows, how, offset_center(rows, how))
    level, size = rows.returns - offset, np.abs(rows.returns) + np.abs(offset) + abs(threshold)
    good = int((level - threshold > ROUNDING * size).sum())
    if good in (0, len(rows)):
        kind, low, high = "undesirable" if good else "desirable", level.min(), level.max()
        between = "set it between them, or algo.reward_offset=mean" if high > low else "add rows with other rewards"
        return (
            f"algo={plan.name} needs desirable and undesirable trajectories, but none of {len(rows)} is {kind}: "
            f"returns are from {low:.4g} to {high:.4g}, and desirable is what is larger than "
            f"algo.threshold={threshold:g}; {between}"
        )
    return None


RULES = (
    every_trajectory_has_a_reward,
    actions_are_the_policys,
    group_means_leave_rewards,
    some_pair_is_decided,
    both_kinds_are_there,
)
"""The rules of every training split, in the order in which they are checked."""


def warning_of_levels(plan: Plan, rows: Rows) -> str | None:
    """Return a warning where no return is positive and the method is ShiQ, else None.

    The level of rewards changes what finite data teach ShiQ about actions that they never show.
    """
    level = rows.returns
    if plan.name.startswith("shiq") and plan.algo.reward_offset == "none" and level.max() <= 0 and level.min() < 0:
        return (
            f"no return is above 0 (mean {level.mean():.3g}): negative returns push the probability of {plan.name} to "
            "tokens without data; think of algo.reward_offset=mean or algo.anchor, and watch train/logratio_mean"
        )
    return None


# ------------------------------------------------------------------ rules of prompt values and value targets
def prompts_have_values(rows: Rows, known: Mapping[str, PromptRewards]) -> str | None:
    """Every row's prompt needs a value, estimated for the same prompt tokens."""
    lacking = [t for t in rows.trajectories if t.prompt_id not in known]
    if lacking:
        return (
            f"algo.values: {len(lacking)} of {len(rows)} trajectories have a prompt without value, first "
            f"{lacking[0].source} (prompt {lacking[0].prompt_id}); make values of the same data with `shiqrun values`"
        )
    other = [t for t in rows.trajectories if tokens_key(t.input_ids[: t.action_index[0]]) != known[t.prompt_id].tokens]
    if other:
        return (
            f"algo.values: {len(other)} of {len(rows)} trajectories have another prompt than the one that was valued "
            f"under its prompt_id, first {other[0].source} (prompt {other[0].prompt_id}); make values of the same "
            "data, and give each prompt an id of its own"
        )
    return None


def answered_prompts_have_values(prompts: Sequence[Prompt], values: Mapping[str, float] | None) -> str | None:
    """Every prompt that the policy will answer needs a value, where the method reads values."""
    lacking = [p for p in prompts if values is not None and p.prompt_id not in values]
    if lacking:
        return (
            f"algo.values: {len(lacking)} of {len(prompts)} prompts that would be answered have no value, first "
            f"{lacking[0].source}; make values of the same data with `shiqrun values`"
        )
    return None


def returns_have_the_unit_of_values(
    plan: Plan, tables: Sequence[Rows], known: Mapping[str, PromptRewards]
) -> str | None:
    """Logged returns need the unit of the rewards behind prompt values, and must not exceed `algo.top`."""
    logged = {float(r) for rows in tables for r in np.unique(rows.returns)}
    sampled = {float(r) for found in known.values() for r in np.unique(found.rewards)}
    wrong = None if plan.reward is None else wrong_of(plan.reward)
    if plan.reward is not None and plan.reward.right is not None and wrong is not None:
        possible = {plan.reward.right, wrong}
        if not logged <= possible and not plan.algo.same_unit:
            return (
                f"the data's rewards are {listed(logged)}, those of the values {listed(possible)}: Q0 would be of "
                "another unit. Set data.rewards where the data set has it, or reward.right and reward.wrong (in "
                "training eval.reward.right=..., eval.reward.wrong=...), so that they agree, or algo.same_unit=true "
                "if they have one unit all the same"
            )
    elif unit_of_values(plan, tables, known) == "other":
        return (
            f"the data's rewards are {listed(logged)}, those of algo.values {listed(sampled)}; make them agree, or set "
            "algo.same_unit=true if they have one unit all the same"
        )
    largest = max(logged | sampled)
    if (plan.link == "cross_entropy" or plan.algo.monte_carlo) and largest > plan.top:
        return (
            f"a reward is {largest:g}, but the cross-entropy takes {plan.top:g} for the largest there can be: set "
            f"algo.top={largest:g}, or rewards of at most 0 (data.rewards=[0,-1] eval.reward.right=0 "
            "eval.reward.wrong=-1)"
        )
    return None


def unit_of_values(plan: Plan, tables: Sequence[Rows], known: Mapping[str, PromptRewards]) -> Verdict:
    """Return whether logged returns have the unit of the rewards behind prompt values."""
    if plan.algo.same_unit:
        return "same"
    logged = of_source(plan.names["data"], plan.source, np.concatenate([rows.returns for rows in tables]))
    values = None if plan.algo.values is None else scored_by(plan.algo.values)
    by = values if plan.reward is None else plan.reward.fingerprint()
    return compare_with_sampled(logged, {float(r) for found in known.values() for r in np.unique(found.rewards)}, by)


def warning_of_values(plan: Plan, tables: Sequence[Rows], known: Mapping[str, PromptRewards]) -> str | None:
    """Return a warning where logged returns may have another unit than the rewards behind prompt values, else None."""
    if unit_of_values(plan, tables, known) != "unknown":
        return None
    returns = listed(float(r) for rows in tables for r in np.unique(rows.returns))
    return (
        f"the data's rewards are {returns}, those of the prompt values "
        f"{listed(float(r) for found in known.values() for r in found.rewards)}: they cannot be known to have one "
        "unit; score the data with the reward of the values (`shiqrun score`), or set algo.same_unit=true if they agree"
    )


def some_action_has_a_target(plan: Plan, number: int) -> str | None:
    """At least one action of the training data needs a value target; `number` of them have one."""
    if not number:
        return (
            f"algo.targets={plan.algo.targets}: none of its trajectories is in the training data, so that there is "
            "nothing to regress to; search the same data with `shiqrun pivotal`"
        )
    return None


def rewards_stay_within_top(plan: Plan, rows: Rows) -> str | None:
    """No sampled trajectory may earn more than `algo.top`, which the cross-entropy takes to be the largest reward."""
    largest = float(rows.returns.max())
    if plan.link == "cross_entropy" and largest > plan.top:
        return (
            f"a sampled trajectory earned {largest:g}, but the cross-entropy takes {plan.top:g} for the largest there "
            f"can be: set algo.top to the largest reward of {plan.names['data']}"
        )
    return None
