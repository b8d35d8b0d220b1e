"""`shiqrun sweep` runs a grid or a search of training runs by `config.sweep_grid`; every job is `shiqrun train`."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from shiqrun.commands import train


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Sweep settings are the keys of `sweep:` in `conf/sweep.yaml`.

    Attributes:
        parallel: jobs that run at a time.
        resume: the directory of a sweep to go on with.
        search: grid (all combinations of values), optuna (searches intervals and values), or wandb (writes what W&B's
            agents search).
        trials: points that a search tries, each with all values of `seed`.
        metric: what a search optimises; None for the run's own.
        direction: max or min, or auto: by the metric's name.
        seed: of the sampler of a search.
    """

    parallel: Annotated[int, Gt(0)]
    resume: Annotated[str, MinLen(1)] | None
    search: Literal["grid", "optuna", "wandb"] = "grid"
    trials: Annotated[int, Gt(0)] = 30
    metric: Annotated[str, MinLen(1)] | None = None
    direction: Literal["auto", "max", "min"] = "auto"
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0


SCHEMA = replace(train.SCHEMA, nodes={**train.SCHEMA.nodes, "sweep": "shiqrun.commands.sweep.SweepSettings"})
RANKS = train.RANKS
run = train.run
"""Hydra calls `run` for each job of a sweep for which one of its other launchers was chosen."""
