"""A `Study` keeps a search's trials in Optuna's own storage, `optuna.db`, and asks Optuna for the next ones."""

import hashlib
import math
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from shiqrun.errors import InputError
from shiqrun.sweeping.search import Dimension, Search, Value, direction

STORAGE, NAME = "optuna.db", "search"
RANDOM = 5
"""The number of first trials, which are drawn at random."""


def expect_optuna() -> None:
    """Raise InputError if the package optuna is not installed."""
    if find_spec("optuna") is None:
        raise InputError("sweep.search=optuna: optuna is not installed; pip install 'shiqrun[optuna]'")


@dataclass(frozen=True)
class Trial:
    """A trial is one point of the searched space.

    Attributes:
        number: place in the search, from 0.
        values: of the searched keys.
        state: running, complete or fail.
        value: its metric, NaN unless it is complete.
    """

    number: int
    values: dict[str, Value]
    state: str
    value: float


class Study:
    """A study is Optuna's view of a search: trials with values of the searched keys, and what came out.

    A suggestion is a function of the sampler's seed, the number of the trial and the trials that have ended, so that a
    search that is killed and resumed goes on as if it had not been.

    Args:
        folder: the sweep's directory; its `optuna.db` is made or read.
        search: what is searched.
    """

    def __init__(self, folder: Path, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, self.optuna = search, optuna
        direction: Literal["minimize", "maximize"] = "minimize" if search.direction < 0 else "maximize"
        storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STORAGE).absolute()}")
        self.study = optuna.create_study(
            storage=storage, study_name=NAME, direction=direction, load_if_exists=True, sampler=self._sampler(0)
        )
        self.space = {key: _distribution(dimension) for key, dimension in search.space.items()}

    def trials(self) -> list[Trial]:
        """Return all trials, in their order."""
        found = self.study.get_trials(deepcopy=False)
        return [Trial(t.number, t.params, t.state.name.lower(), self._signed(t.value)) for t in found]

    def best(self) -> Trial | None:
        """Return the best trial so far, None where none has succeeded."""
        done = [trial for trial in self.trials() if trial.state == "complete"]
        return max(done, key=lambda trial: (self.search.direction or 1) * trial.value, default=None)

    def ask(self) -> Trial:
        """Return a new trial, which is in the storage already."""
        self.study.sampler = self._sampler(len(self.trials()))
        asked = self.study.ask(self.space)
        return Trial(asked.number, asked.params, "running", math.nan)

    def tell(self, number: int, value: float | None) -> None:
        """Record the metric of a trial; None if it failed."""
        if value is None:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(number, self._signed(value))

    def _signed(self, value: float | None) -> float:
        """Return a metric as the storage has it, or back.

        The storage is made before the metric is known where none was given, and then maximises: it has the negative of
        a metric of which less is better.
        """
        minimises = self.study.direction == self.optuna.study.StudyDirection.MINIMIZE
        sign = 1 if minimises == (self.search.direction < 0) else -1
        return math.nan if value is None else sign * value

    def _sampler(self, number: int) -> Any:
        digest = hashlib.blake2b(f"{self.search.seed}/{number}".encode(), digest_size=4).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return self.optuna.samplers.TPESampler(
                seed=int.from_bytes(digest, "big"), n_startup_trials=RANDOM, constant_liar=True
            )


def change_search(folder: Path, search: Search, given: dict[str, str]) -> None:
    """Take from the settings of a resume what a search may change: more trials, and a metric that it has not used yet.

    Raises:
        InputError: they are no such values.
    """
    expect_optuna()
    trials, metric = given.pop("sweep.trials", str(search.trials)), given.pop("sweep.metric", None)
    asked = given.pop("sweep.direction", "auto")
    if not trials.isdecimal() or not int(trials):
        raise InputError(f"sweep.trials: met {trials!r}, expected a whole number greater than 0")
    if metric not in (None, search.metric):
        if any(row.state == "complete" for row in Study(folder, search).trials()):
            raise InputError(
                f"sweep.metric={metric}: trials of this search were judged by {search.metric}; start another"
            )
        search.metric, search.direction = metric, direction(metric, asked)
    search.trials = int(trials)


def _distribution(dimension: Dimension) -> Any:
    """Return a dimension as Optuna's distribution."""
    import optuna

    if dimension.kind == "choice":
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if dimension.kind == "int":
        step = int(dimension.step or 1)
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), dimension.log, step)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)
