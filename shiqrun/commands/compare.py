"""`shiqrun compare` runs several methods as a sweep, by `config.compare_plan`; `candidates` says which it can rank."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le, MinLen
from omegaconf import DictConfig

from shiqrun.commands import sweep, train
from shiqrun.errors import InputError

if TYPE_CHECKING:
    from shiqrun.training.plan import Plan


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Compare settings are the keys of `compare:` in `conf/compare.yaml`.

    Attributes:
        seeds: of every setting of a method.
    """

    seeds: Annotated[list[Annotated[int, Ge(0), Le(2**32 - 1)]], MinLen(1)]


SCHEMA = replace(sweep.SCHEMA, nodes={**sweep.SCHEMA.nodes, "compare": "shiqrun.commands.compare.CompareSettings"})
IMPORTS = 8.0
"""Seconds that a process takes to load PyTorch, Lightning and transformers."""
run = train.run
"""Hydra calls `run` for each job for which one of its other launchers was chosen."""


@dataclass(frozen=True)
class Candidates:
    """`Candidates` are the methods that a comparison may run, on one data set.

    Attributes:
        refused: why a method cannot be compared on these data, by its name.
        repeated: the name of an earlier method with the same loss, by a method's name.
    """

    refused: Mapping[str, str]
    repeated: Mapping[str, str]


def candidates(configs: Mapping[str, DictConfig]) -> Candidates:
    """Return which methods the data can feed and a comparison can rank.

    Args:
        configs: the checked config of a run with each method; they differ in `algo` alone.

    Raises:
        InputError: the data cannot be read, or nothing would rank methods on them.
    """
    from shiqrun.training.feeding import refusal, repeated_losses
    from shiqrun.training.prepare import load_for_any

    first = next(iter(configs.values()))
    base = train.plan(first, Path())
    _expect_ranking(base)
    encoded = load_for_any(base, keeps_rows=not first.dry_run)
    plans = {name: train.with_method(base, config) for name, config in configs.items()}
    refused = {name: why for name, plan in plans.items() if (why := _unranked(plan) or refusal(plan, encoded))}
    return Candidates(refused, repeated_losses({name: plan for name, plan in plans.items() if name not in refused}))


def seconds_of_run(config: DictConfig) -> float:
    """Return about how many seconds a run with this config takes, its start and end included."""
    from shiqrun.training import time_estimate
    from shiqrun.training.prepare import prepare_run

    began = time.perf_counter()
    run = prepare_run(train.plan(config, Path()), keeps_rows=False)
    start = time.perf_counter() - began + IMPORTS
    return start + time_estimate.seconds_of_run(run)


def _expect_ranking(plan: "Plan") -> None:
    """Check that the policies' answers will be scored, on validation and on test prompts.

    Raises:
        InputError: they will not.
    """
    from shiqrun.batching.splits import examples_of

    source = plan.source
    if plan.reward is None and not source.evaluated_exactly and source.environment() is None:
        raise InputError(
            "eval.reward: a comparison ranks methods by the reward of their answers, since losses of different methods "
            "have different units; give eval.reward=NAME, or the directory of a reward model"
        )
    for split in ("selection", "test"):
        if not any(True for _ in examples_of(source, split, plan.data)):
            what = "chooses" if split == "selection" else "reports"
            raise InputError(f"data.val_fraction={plan.data.val_fraction:g} holds out no prompt that {what}; raise it")
    for key in ("every", "max_prompts", "test_prompts"):
        if not getattr(plan.eval, key):
            raise InputError(f"eval.{key}=0: a comparison chooses on validation prompts and reports on test prompts")


def _unranked(plan: "Plan") -> str | None:
    """Return why the policies of a method cannot be ranked by reward; None where they can."""
    if "score" in plan.needs:
        return f"algo={plan.name} trains a reward model, which answers nothing"
    if plan.source.evaluated_exactly and plan.beta is None:
        return f"algo={plan.name} has no beta, and data={plan.names['data']} is evaluated exactly at one"
    return None
