"""What the rows of a run are given before training, for methods that read it: prompt values, targets at actions."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from shiqrun.errors import InputError
from shiqrun.estimates.prompt_values import set_prompt_values
from shiqrun.estimates.value_cache import given, made, prompts_of, put
from shiqrun.estimates.value_file import Valued
from shiqrun.estimates.value_targets import expect_targets, read_targets, set_value_targets
from shiqrun.losses.requirements import needs_of
from shiqrun.losses.soft_value import soft_value
from shiqrun.training.plan import Run

log = logging.getLogger("shiqrun")


def annotate(run: Run) -> dict[str, Any]:
    """Gives every row its prompt's value, and actions their targets, where the method reads them; what that took.

    Raises:
        InputError: values or targets that were made with another reference or reward, or of other data; rewards of
            another unit.
    """
    plan = run.plan
    if "prompt_value" not in needs_of(plan.loss):
        return {}
    began = time.perf_counter()
    known, new = _known(run)
    beta = plan.loss.keywords["beta"]
    put(run.encoded, known, beta)
    if run.further is not None:
        set_prompt_values(run.further, known, beta)
    run.prompt_values = {name: soft_value(found.rewards, beta).value for name, found in known.items()}
    _expect_one_unit(run, known)
    told = {
        "seconds/values": time.perf_counter() - began,
        "values/prompts": len(known),
        "values/prompts_computed": new,
    }
    return told | (_value_targets(run, Path(plan.algo.targets)) if plan.algo.targets else {})


def _known(run: Run) -> tuple[dict[str, Valued], int]:
    """The values of `algo.values`, or made now; and how many prompts were sampled for it."""
    plan = run.plan
    if plan.algo.values is not None:
        return given(Path(plan.algo.values), run.weights, plan.reward), 0
    assert plan.reward is not None
    room = (plan.values.max_new_tokens, plan.choice.context())
    splits = prompts_of(plan.source, plan.data, run.tokenizer, *room)
    found = made(
        run.policy,
        [prompt for prompts in splits.values() for prompt in prompts],
        run.tokenizer,
        plan.reward,
        plan.values,
        reference=run.weights,
        cache_dir=plan.cache_dir,
        device=plan.hardware.device(),
    )
    return found.known, found.new


def _expect_one_unit(run: Run, known: dict[str, Valued]) -> None:
    """Nothing, if the returns that are logged can be held against values of what was sampled.

    Raises:
        InputError: the reward of the values is of right and wrong answers, and something else is logged; or a reward is
            above the largest that the method takes to be possible.
    """
    plan = run.plan
    splits = [rows for rows in (run.encoded.train, run.encoded.val, run.further) if rows is not None]
    logged = {float(r) for rows in splits for r in np.unique(rows.returns)}
    sampled = {float(r) for found in known.values() for r in np.unique(found.rewards)}
    if plan.reward is not None and plan.reward.right is not None:
        possible = {plan.reward.right, float(plan.reward.about()["wrong"])}
        if not logged <= possible:
            raise InputError(
                f"the data's rewards are {_some(logged)}, those of the values {_some(possible)}: Q0 would be of "
                "another unit. Set data.rewards where the data set has it, or reward.right and reward.wrong (in "
                "training eval.reward.right=..., eval.reward.wrong=...), so that they agree"
            )
    elif len(sampled) == 2 and not logged <= sampled:
        raise InputError(
            f"the data's rewards are {_some(logged)}, those of algo.values {_some(sampled)}; make them agree"
        )
    top, largest = plan.loss.keywords.get("top", 0.0), max(logged | sampled)
    if (plan.loss.keywords.get("link") == "cross_entropy" or plan.algo.monte_carlo) and largest > top:
        raise InputError(
            f"a reward is {largest:g}, but the cross-entropy takes {top:g} for the largest there can be: set algo.top="
            f"{largest:g}, or rewards of at most 0 (data.rewards=[0,-1] eval.reward.right=0 eval.reward.wrong=-1)"
        )


def _some(rewards: set[float]) -> str:
    shown = [f"{r:g}" for r in sorted(rewards, reverse=True)]
    return " and ".join(shown) if len(shown) < 4 else f"{shown[0]} to {shown[-1]}"


def _value_targets(run: Run, path: Path) -> dict[str, Any]:
    """Gives the training actions that were searched their values; for the summary how many there are."""
    known = read_targets(path, run.weights, run.plan.reward)
    number = set_value_targets(run.encoded.train, known, run.plan.loss.keywords["beta"])
    expect_targets(path, number)
    log.info("%s: targets at %d of %d actions", path, number, run.encoded.train.actions.sum())
    return {"targets/actions": number}
