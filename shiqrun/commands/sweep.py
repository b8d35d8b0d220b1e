"""`shiqrun sweep` runs a grid of training runs; `config.sweep_grid` does the work, and every job is `shiqrun train`."""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Gt, MinLen

from shiqrun.commands import train


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Sweep settings are the keys of `sweep:` in `conf/sweep.yaml`.

    Attributes:
        parallel: jobs that run at a time.
        resume: the directory of a sweep to go on with.
    """

    parallel: Annotated[int, Gt(0)]
    resume: Annotated[str, MinLen(1)] | None


SCHEMA = replace(train.SCHEMA, nodes={**train.SCHEMA.nodes, "sweep": "shiqrun.commands.sweep.SweepSettings"})
run = train.run
"""Hydra calls `run` for each job of a sweep for which one of its other launchers was chosen."""
