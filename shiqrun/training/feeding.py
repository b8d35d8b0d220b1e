"""This module says which methods a data set can feed, and why not others, by the checks that training makes."""

from dataclasses import replace
from typing import Any

import numpy as np

from shiqrun.batching.logged_data import EncodedData, of_method
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError
from shiqrun.losses.requirements import hyperparameters
from shiqrun.training.checks import check_settings
from shiqrun.training.checks_data import check_data
from shiqrun.training.plan import Plan

LOOKED_AT = 2000
"""The number of trajectories whose rewards are looked at to find where they fall."""


def refusal(plan: Plan, encoded: EncodedData) -> str | None:
    """Return why training refuses a plan on a data set, in the words of training; None where it takes them.

    Args:
        plan: of a run with the method.
        encoded: the plan's data, loaded for no method in particular.
    """
    try:
        check_settings(plan)
        check_data(plan, of_method(encoded, plan.compared_by))
    except InputError as error:
        return str(error)
    return None


def repeated_losses(plans: dict[str, Plan]) -> dict[str, str]:
    """Return each method whose loss, with its hyperparameters, an earlier one has too, and the name of that one."""
    first: dict[str, str] = {}
    found = {}
    for name, plan in plans.items():
        loss: Any = plan.loss
        while hasattr(loss, "func"):
            loss = loss.func
        bound = {key: value for key, value in hyperparameters(plan.loss).items() if key != "beta"}
        same = repr((loss, sorted(bound.items(), key=str), replace(plan.algo, grid={})))
        before = first.setdefault(same, name)
        if before != name:
            found[name] = before
    return found


def facts_of(encoded: EncodedData) -> list[str]:
    """Return what decides which methods a data set can feed: pairs or groups, their sizes, and where rewards fall."""
    rows = encoded.train
    sizes = np.unique(rows.group, return_counts=True)[1]
    of_group = _range(sizes)
    paired = len(rows) and bool((sizes == 2).all()) and rows.trajectories[0].group != rows.trajectories[0].prompt_id
    shape = "pairs" if paired else "single trajectories" if sizes.max(initial=0) < 2 else "groups of trajectories"
    return [shape, f"{of_group} a {'pair' if paired else 'prompt'}", *_rewards(rows)]


def _range(sizes: np.ndarray) -> str:
    low, high = int(sizes.min()), int(sizes.max())
    return f"{low}" if low == high else f"{low} to {high} (median {np.median(sizes):g})"


def _rewards(rows: Rows) -> list[str]:
    """Return where rewards fall and how many levels returns have."""
    rewarded = int(rows.rewarded.sum())
    if not rewarded:
        return ["no rewards"]
    missing = [] if rewarded == len(rows) else [f"no reward on {len(rows) - rewarded} of {len(rows)}"]
    early = any(
        bool(np.any(t.rewards[:-1]))
        for t in map(rows.trajectories.__getitem__, range(min(len(rows), LOOKED_AT)))
        if t.rewards is not None
    )
    if early:
        return ["rewards per turn", *missing]
    levels = np.unique(np.round(rows.returns[rows.rewarded], 6))
    which = {1: ", all the same", 2: f" ({' and '.join(f'{level:g}' for level in levels)})"}.get(len(levels), "")
    return [f"terminal rewards{which}", *missing]
