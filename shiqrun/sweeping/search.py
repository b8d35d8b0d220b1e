"""A search is a sweep whose jobs are not known beforehand: a space of settings, and the metric that is to be best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shiqrun.errors import InputError
from shiqrun.util.metric_directions import direction_of
from shiqrun.util.quoting import as_override

SEED = "seed"
METRICS = ("val/regularised_return", "val/reward", "val/loss", "train/loss")
"""The metrics that a search optimises unless it is told otherwise, the first that its jobs measure."""
ACROSS_BETAS = METRICS[1:]
"""Where beta is searched: the regularised return contains it, and those of two betas are returns of two problems."""
Value = str | int | float
SIGNS = {"max": 1, "min": -1}


@dataclass
class Dimension:
    """A dimension holds the values that a search may give to one key.

    Attributes:
        kind: choice (of texts), int or float.
        values: of a choice, as they stand on a command line.
        low: least number, itself possible.
        high: largest number, itself possible.
        step: distance of numbers from one to the next; None for any number between the ends.
        log: numbers are searched by their logarithms.
    """

    kind: Literal["choice", "int", "float"]
    values: list[str] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    def text(self) -> str:
        """Return the possible values as a person reads them."""
        if self.kind == "choice":
            return ", ".join(self.values)
        parts = [f"{self.low:g} to {self.high:g}"]
        if self.step not in (None, 1):
            parts.append(f"in steps of {self.step:g}")
        return " ".join([*parts, *["logarithmic"] * self.log]) + ", whole" * (self.kind == "int")

    def ends(self) -> list[str]:
        """Return the values that stand for all in a check: every choice, or both ends."""
        return (
            self.values if self.kind == "choice" else [as_text(self.number(self.low)), as_text(self.number(self.high))]
        )

    def number(self, value: float) -> Value:
        """Return a number in the type of the dimension."""
        return int(value) if self.kind == "int" else float(value)


@dataclass
class Search:
    """A search holds what Optuna looks for, and what every job of it gets.

    Attributes:
        space: the searched keys.
        trials: points of the space that are tried; each is one job for every seed.
        seeds: of the jobs of a trial, whose mean is the trial's value; empty where no seeds were given.
        seed: of the sampler.
        metric: what is optimised; None until a job has shown which metrics there are.
        direction: 1 if more of it is better, -1 if less is; 0 until it is known.
        words: overrides that all jobs share, behind those of the space.
        tags: W&B's, beside those of the values; None where the tracker has no tags.
        max_steps: optimiser steps of a job, None where epochs are counted.
        max_epochs: passes over the data.
        gpus: number of GPUs that a job asks for.
    """

    space: dict[str, Dimension]
    trials: int
    seeds: list[str]
    seed: int
    metric: str | None = None
    direction: int = 0
    words: list[str] = field(default_factory=list)
    tags: list[str] | None = None
    max_steps: int | None = None
    max_epochs: int | None = None
    gpus: int = 0

    @property
    def jobs_per_trial(self) -> int:
        """Return the number of jobs of a trial, one for each seed."""
        return len(self.seeds) or 1

    @property
    def metrics(self) -> Sequence[str]:
        """Return the metrics of which the first that is measured is optimised."""
        if self.metric is not None:
            return (self.metric,)
        return ACROSS_BETAS if "algo.beta" in self.space else METRICS

    def settings(self, values: Mapping[str, Value]) -> list[dict[str, str]]:
        """Return the settings of a trial's jobs by key, as texts: the trial's values, and a seed for each job."""
        texts = {key: as_text(value) for key, value in values.items()}
        return [{**texts, SEED: seed} for seed in self.seeds] or [texts]

    def words_of(self, settings: Mapping[str, str]) -> list[str]:
        """Return the overrides of a job with these settings, W&B's tags among them."""
        words = [f"{key}={value}" for key, value in settings.items()]
        if self.tags is not None:
            tags = [*self.tags, *(f"{key}={short(value)}" for key, value in settings.items())]
            words.append(f"logger.tags={as_override(tags)}")
        return [*words, *self.words]


def as_text(value: Value) -> str:
    """Return a value as it stands on a command line; numbers are written exactly."""
    return value if isinstance(value, str) else repr(value)


def short(text: str) -> str:
    """Return a value for names of folders and tags: numbers to four digits."""
    try:
        return text if text.lstrip("-").isdecimal() else f"{float(text):.4g}"
    except ValueError:
        return text


def direction(metric: str | None, asked: str) -> int:
    """Return 1 where more of a search's metric is better, -1 where less is, 0 where the metric is not known yet.

    Raises:
        InputError: the metric is none of a summary, or its name does not say which.
    """
    if metric is not None and metric.partition("/")[0] not in ("val", "train"):
        raise InputError(f"sweep.metric={metric}: expected a metric of summary.json, val/... or train/...")
    found = SIGNS.get(asked) or (direction_of(metric) if metric is not None else 0)
    if found is None:
        raise InputError(f"sweep.metric={metric}: its name does not say what is better; set sweep.direction=max or min")
    return found
