"""`verdict_of` says in words which methods improved on the reference, and which stand on the frontier, as far as known.

A method stands at the setting that was chosen for it. Another one passes above it where its curve, at the same KL or
less, surely earns more on the same prompts with the same seeds. Between two points of a curve lies a mixture of both
policies, whose reward is the mean and whose KL is at most the mean of theirs; a curve begins at the reference, at KL 0.
The intervals of all comparisons of one method hold together (Bonferroni).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from shiqrun.report.answers import KL, REFERENCE, REWARD, Answers
from shiqrun.report.number_text import format_plus_minus
from shiqrun.util.intervals import LEAST_ROWS, crossed_interval

LEVEL = 0.95
NOTHING = 1e-9
"""Half of an interval that is a smaller share of the mean is written as 0."""
IMPROVED, UNSURE, WORSE = "Improved on the reference", "No sure difference", "Worse"


@dataclass(frozen=True)
class Curve:
    """A curve holds the answers of one method at each of its settings.

    Attributes:
        points: with reward and KL.
        chosen: the index of the chosen one.
    """

    points: Sequence[Answers]
    chosen: int

    @property
    def at(self) -> Answers:
        """Return the answers at the chosen setting."""
        return self.points[self.chosen]


@dataclass(frozen=True)
class Standing:
    """A standing says how a method's chosen setting compares, each difference with half of its interval.

    Attributes:
        gain: reward above the reference's; None where that is not known.
        under: the method whose curve passes surely above, and by how much; None on the frontier.
    """

    gain: tuple[float, float] | None
    under: tuple[str, float, float] | None


@dataclass(frozen=True)
class Verdict:
    """A verdict holds the standing of each method, and what it was found on.

    Attributes:
        standings: by method.
        prompts: number of prompts that all of them answered.
        seeds: number of seeds.
        unit: what the prompts are called.
    """

    standings: Mapping[str, Standing]
    prompts: int
    seeds: int
    unit: str

    def sentences(self) -> list[str]:
        """Return the verdict in words: against the reference, on the frontier, and what the intervals leave out."""
        said = [*self._against_reference(), *self._frontier()]
        if said and self.seeds < LEAST_ROWS:
            seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
            said.append(f"With {seeds} the intervals are over prompts alone: training again may turn this.")
        return said

    def _against_reference(self) -> Iterator[str]:
        gains = {name: s.gain for name, s in self.standings.items() if s.gain is not None}
        if not gains:
            return
        said: dict[str, list[str]] = {IMPROVED: [], UNSURE: [], WORSE: []}
        for name, (mean, half) in gains.items():
            sure = abs(mean) > half  # never sure without an interval
            kind = UNSURE if not sure else IMPROVED if mean > 0 else WORSE
            said[kind].append(f"{name} ({'+' * (mean > 0)}{_with_half(mean, half)})")
        where = f"on {self.prompts} {self.unit}" + f" over {self.seeds} seeds" * (self.seeds > 1)
        if not said[IMPROVED]:
            yield f"No method surely improved on the reference, {where}, by reward."
        for kind, names in said.items():
            if names:
                yield (
                    f"{kind}, {where}, by reward: {', '.join(names)}."
                    if kind == IMPROVED
                    else f"{kind}: {', '.join(names)}."
                )

    def _frontier(self) -> Iterator[str]:
        if len(self.standings) < 2:
            return
        on = [name for name, s in self.standings.items() if s.under is None]
        below = [(name, s.under) for name, s in self.standings.items() if s.under is not None]
        none_else = (
            "no other method surely earns more at its KL" if len(on) == 1 else "none surely earns more at their KL"
        )
        if not below:
            yield f"No method surely stands above another: {_listed(on)} are all on the frontier within the intervals."
            return
        under = [f"{name} ({_with_half(mean, half)} under {other} at its KL)" for name, (other, mean, half) in below]
        alone = f"{on[0]} alone stands" if len(on) == 1 else f"{_listed(on)} stand"
        yield f"{alone} on the frontier: {none_else}. Below it: {', '.join(under)}."


def verdict_of(curves: Mapping[str, Curve], unit: str = "test prompts") -> Verdict | None:
    """Return the verdict on methods; None where no prompt was answered, with a reward and a KL, by all of them.

    Args:
        curves: of each method.
        unit: what the prompts are called.
    """
    every = [point for curve in curves.values() for point in curve.points]
    known = all({REWARD, KL} <= set(point.values) for point in every)
    prompts = (
        [p for p in every[0].prompts if all(p in set(point.prompts) for point in every)] if every and known else []
    )
    if not prompts:
        return None
    seeds = [seed for seed in every[0].seeds if all(seed in point.seeds for point in every)]
    if not seeds:
        return None
    read = partial(_table, prompts=prompts, seeds=seeds)
    standings = {name: _standing(name, curves, read) for name in curves}
    return Verdict(standings, len(prompts), len(seeds), unit)


def _table(answers: Answers, name: str, *, prompts: Sequence[str], seeds: Sequence[str]) -> np.ndarray:
    """Return the values of the common seeds and prompts, `[S, P]`."""
    return answers.on(prompts, name)[[answers.seeds.index(seed) for seed in seeds]]


def _standing(name: str, curves: Mapping[str, Curve], read: "partial[np.ndarray]") -> Standing:
    own = curves[name].at
    reward, kl = read(own, REWARD), float(read(own, KL).mean())
    gain = crossed_interval(reward - read(own, REFERENCE)) if REFERENCE in own.values else None
    rivals = [(o, table) for o, curve in curves.items() if o != name for table in _rivals(curve, kl, read)]
    level = 1 - (1 - LEVEL) / max(len(rivals), 1)
    found = [(other, *crossed_interval(table - reward, level)) for other, table in rivals]
    above = [(mean - half, other, mean, half) for other, mean, half in found if mean > half]
    return Standing(gain, max(above)[1:] if above else None)


def _rivals(curve: Curve, kl: float, read: "partial[np.ndarray]") -> Iterator[np.ndarray]:
    """Yield what a method earns at some KL or less, `[S, P]`: on its curve, and at its chosen setting."""
    at = curve.at
    places = [(float(read(point, KL).mean()), read(point, REWARD)) for point in curve.points]
    places += [(0.0, read(at, REFERENCE))] if REFERENCE in at.values else []
    places.sort(key=lambda place: place[0])
    below = [place for place in places if place[0] <= kl]
    if below:
        (left, low), beyond = below[-1], places[len(below) :]
        share = (kl - left) / (beyond[0][0] - left) if beyond else 0.0
        yield low if not beyond else (1 - share) * low + share * beyond[0][1]
    if float(read(at, KL).mean()) <= kl:
        yield read(at, REWARD)


def _with_half(mean: float, half: float) -> str:
    """Return a mean with half of its interval as text, alone where the interval is unknown."""
    text, width = format_plus_minus(mean, 0.0 if half < NOTHING * abs(mean) else half)
    return f"{text} ± {width}" if width else text


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
