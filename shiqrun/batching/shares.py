"""A mixture gives each of its data sets a share of the optimiser steps: a weight says how often an epoch visits it.

A unit is what no step separates: a row, or all rows of a prompt. An epoch visits `weight` times as many units as a part
has. The visits follow shuffled passes over the part, so that a weight of 2 visits every unit twice, and of a weight of
0.5 the second epoch visits the units that the first has left out. Nothing here depends on earlier epochs.
"""

import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from shiqrun.errors import InputError


class Shares(NamedTuple):
    """`Shares` holds, part by part, how many units there are, and how many visits of them make an epoch.

    Attributes:
        names: of the parts.
        units: of each part; those of the first part are numbered first.
        visits: of each part's units in an epoch.
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    visits: tuple[int, ...]

    def epoch_units(self, seed: int, epoch: int) -> np.ndarray:
        """Return the numbers of the units that an epoch visits, in increasing order, `[visits]` int64."""
        found, before = [], 0
        for name, units, visits in zip(*self, strict=True):
            found.append(before + np.sort(_visited(name, units, visits, seed, epoch)))
            before += units
        return np.concatenate(found)

    def of_unit(self) -> np.ndarray:
        """Return how often an epoch visits each unit on average, `[units]`."""
        return np.repeat(np.array(self.visits) / np.array(self.units), self.units)


def _visited(name: str, units: int, visits: int, seed: int, epoch: int) -> np.ndarray:
    """Return the units that an epoch visits of a part: its section of an endless row of shuffled passes."""
    start, end = epoch * visits, (epoch + 1) * visits
    passes = range(start // units, -(-end // units))
    stream = zlib.crc32(name.encode())
    row = np.concatenate([np.random.default_rng([seed, stream, number]).permutation(units) for number in passes])
    return row[start - passes.start * units :][:visits]


@dataclass(frozen=True, eq=False)
class Parts:
    """`Parts` says of which data set of a mixture each row is.

    Attributes:
        names: of the parts.
        weights: of each part, passes over it in an epoch.
        number: `[rows]` int64, the part of each row, in increasing order.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    number: np.ndarray

    def shares(self, unit: np.ndarray) -> Shares:
        """Return the shares of the parts.

        Args:
            unit: `[rows]` int64, the unit of each row, from 0 without gaps; those of the first part come first.

        Raises:
            InputError: a weight leaves no unit of a part.
        """
        first = np.searchsorted(self.number, range(len(self.names) + 1))
        ends = [0, *(int(unit[a:b].max(initial=-1)) + 1 for a, b in pairwise(first))]
        units = [max(0, end - before) for before, end in pairwise(ends)]
        visits = [int(weight * count + 0.5) for weight, count in zip(self.weights, units, strict=True)]
        for name, weight, count, left in zip(self.names, self.weights, units, visits, strict=True):
            if not left:
                raise InputError(
                    f"data.parts.{name}.weight={weight:g}: an epoch would visit none of its {count} units; give at "
                    f"least {0.5 / max(count, 1):.3g}, or leave the part out"
                )
        return Shares(self.names, tuple(units), tuple(visits))

    def name(self, row: int) -> str:
        """Return the name of a row's part."""
        return self.names[self.number[row]]
