"""Optimiser steps whose trajectories come from several sources: sampled now, sampled before, logged."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.logged_data import Encoded, LoggedData
from shiqrun.batching.rows import Rows, Steps
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.settings import ONLINE, RolloutSettings
from shiqrun.rollout.trajectory import Trajectory
from shiqrun.types import Trajectories

log = logging.getLogger("shiqrun")
STREAM = 6
"""Of the draws from the replay pool."""
AGES = (0, 10, 20, 50, 100)
"""Optimiser steps at which the bins of the staleness histogram begin."""
Dressed = Callable[[Rows], Rows]
"""Gives rows what a run's losses read beside tokens and rewards."""


Named = tuple[Trajectories, list[str]]
"""A micro-batch, and where its rows came from, for messages."""


class Part(Protocol):
    """One source of a step."""

    def at(self, step: int) -> list[Named]:
        """Its micro-batches of optimiser step `step` (from 0)."""
        ...


class Logged:
    """Rows of a data set, by epochs without replacement."""

    def __init__(self, rows: Rows, *, batch_size: int, tokens: int, seed: int) -> None:
        self.rows = rows
        shape = {"micro_batch_tokens": tokens, "start": 0, "rank": 0, "world": 1}
        self.steps = Steps(rows, batch_size=batch_size, seed=seed, **shape)
        self.per_epoch = rows.steps_per_epoch(batch_size)

    def at(self, step: int) -> list[Named]:
        """See `Part`."""
        return [_named(self.rows, batch) for batch in self.steps.rows_of(step)]


class Sampled:
    """Trajectories of an engine: the next ones, or draws from those of earlier steps.

    Args:
        picked: the trajectories of a step.
        source: their name.
        tokens: of one forward pass.
        dressed: see `Dressed`.
        pad, together: as for `Rows`.
    """

    def __init__(
        self,
        picked: Callable[[int], Sequence[Trajectory]],
        source: str,
        *,
        tokens: int,
        dressed: Dressed,
        pad: int,
        together: bool,
    ) -> None:
        self.picked, self.source, self.tokens, self.dressed = picked, source, tokens, dressed
        self.pad, self.together = pad, together

    def at(self, step: int) -> list[Named]:
        """See `Part`."""
        found = self.picked(step)
        if not found:
            return []
        rows = self.dressed(rows_of(found, self.pad, together=self.together, source=self.source))
        return [_named(rows, batch) for batch in rows.micro_batches(rows.units, self.tokens)]


def _named(rows: Rows, batch: Sequence[int]) -> Named:
    return rows.collate(batch), [rows.trajectories[i].source for i in batch]


def rows_of(found: Sequence[Trajectory], pad: int, *, together: bool, source: str) -> Rows:
    """Sampled trajectories as rows of a batch; the reward falls on the last action."""
    made = []
    for number, t in enumerate(found):
        index = np.arange(t.start, len(t.input_ids), dtype=np.int32)
        rewards = np.zeros(len(index), np.float32)
        rewards[-1] = t.reward
        made.append(EncodedTrajectory(t.input_ids, index, rewards, t.prompt_id, number, 0, t.uid, t.group))
    rows = Rows(made, pad, together=together)
    rows.source = source
    rows.behaviour_logp = [t.behaviour_logp for t in found]
    rows.acting_logp = [t.policy_logp for t in found]
    return rows


class Replay:
    """The last trajectories that were trained on, in groups of a prompt."""

    def __init__(self, settings: RolloutSettings, n: int, seed: int) -> None:
        self.settings, self.n, self.seed = settings, n, seed
        self.pool: deque[list[Trajectory]] = deque(maxlen=settings.replay_size // settings.samples_per_prompt or 1)

    def add(self, found: Sequence[Trajectory]) -> None:
        """The trajectories of a step that is done, by group."""
        groups: dict[str, list[Trajectory]] = {}
        for t in found:
            groups.setdefault(t.group, []).append(t)
        self.pool.extend(groups.values())

    def draw(self, step: int) -> list[Trajectory]:
        """So many of them without repetition, a function of seed, step and what is there."""
        oldest = -1 if self.settings.max_staleness is None else step - self.settings.max_staleness
        there = [group for group in self.pool if group[0].version >= oldest]
        groups = min(len(there), self.n // self.settings.samples_per_prompt)
        if not groups:
            return []
        picked = np.random.default_rng([self.seed, STREAM, step]).choice(len(there), groups, replace=False)
        return [t for i in picked for t in there[int(i)]]


class OnlineData(LoggedData):
    """The batches of a run that samples while it learns; made when the step asks for them, never ahead.

    Args:
        encoded: the data set.
        engine: that samples.
        settings: of the mixing.
        others: rows of the sources `annotated` and `further`.
        dressed: see `Dressed`.
        together: completions of a prompt stay in one micro-batch.
        max_steps: optimiser steps of the run.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        engine: Engine,
        settings: RolloutSettings,
        others: dict[str, Rows],
        dressed: Dressed,
        together: bool,
        batch_size: int,
        micro_batch_tokens: int,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__(encoded, batch_size=batch_size, micro_batch_tokens=micro_batch_tokens, seed=seed)
        self.engine, self.settings, self.max_steps = engine, settings, max_steps
        self.shares = settings.shares(batch_size)
        self.ages: Counter[int] = Counter()  # staleness in steps of all that was sampled for a step
        self.fresh: list[Trajectory] = []
        self._told: list[tuple[int, Trajectory]] = []  # (staleness, trajectory) since the last logged step
        self._replayed: list[int] = []  # staleness of those since the last logged step
        self._sources: dict[int, list[list[str]]] = {}  # of the micro-batches of those steps
        self._replay = Replay(settings, self.shares.get("replay", 0), seed)
        sampled = partial(Sampled, tokens=micro_batch_tokens, dressed=dressed, pad=encoded.train.pad, together=together)
        encoded.val.source = "val"
        self.parts: dict[str, Part] = {ONLINE: sampled(self._next, ONLINE)}
        if "replay" in self.shares:
            self.parts["replay"] = sampled(self._again, "replay")
        for name, rows in {"logged": encoded.train, **others}.items():
            if name in self.shares:
                rows.source = name
                if len(rows) < self.shares[name]:
                    log.warning(
                        "rollout.sources.%s: a step takes %d, but there are %d", name, self.shares[name], len(rows)
                    )
                self.parts[name] = Logged(rows, batch_size=self.shares[name], tokens=micro_batch_tokens, seed=seed)

    def train_dataloader(self) -> "OnlineData":  # type: ignore[override]
        """Itself: an iterable of optimiser steps. It has a length, so that Lightning fetches none ahead."""
        for step, of_step in groupby(self.engine.trained(), key=lambda pair: pair[0]):
            found = [trajectory for _, trajectory in of_step]
            self.ages.update(step - 1 - t.version for t in found)
            if "replay" in self.shares:
                self._replay.add(found)
        return self

    @property
    def _start(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[list[Trajectories]]:
        for step in range(self._start, self.max_steps):
            yield self.at(step)

    def at(self, step: int) -> list[Trajectories]:
        """The micro-batches of optimiser step `step` (from 0), each of one source."""
        made = [named for part in self.parts.values() for named in part.at(step)]
        self._sources[step] = [sources for _, sources in made]
        return [batch for batch, _ in made]

    def _next(self, step: int) -> Sequence[Trajectory]:
        self.fresh = self.engine.next_batch(self.shares[ONLINE], step=step + 1)
        self.ages.update(step - t.version for t in self.fresh)
        self._told += [(step - t.version, t) for t in self.fresh]
        return self.fresh

    def _again(self, step: int) -> Sequence[Trajectory]:
        found = self._replay.draw(step)
        self._replayed += [step - t.version for t in found]
        return found

    def done(self, step: int) -> None:
        """The optimiser step (counted from 1) is done."""
        self.engine.acknowledge(step)
        if "replay" in self.shares:
            self._replay.add(self.fresh)

    def told(self) -> dict[str, float]:
        """Of the trajectories sampled for the steps since the last call: rewards, lengths in tokens, staleness.

        `replayed` is how many were replayed for each of them.
        """
        (told, self._told), (replayed, self._replayed) = (self._told, []), (self._replayed, [])
        self._sources.clear()  # no step is left that was not looked at
        if not told:
            return {}
        found = [t for _, t in told]
        return {
            "reward": float(np.mean([t.reward for t in found])),
            "mean_length": float(np.mean([len(t.behaviour_logp) for t in found])),
            "ended": float(np.mean([t.ended for t in found])),
            "temperature": float(np.mean([t.temperature for t in found])),
            **staleness(Counter(age for age, _ in told)),
            **(
                {"replayed": len(replayed) / len(told), "replay_staleness": float(np.mean(replayed))}
                if replayed
                else {}
            ),
        }

    def all_ages(self) -> dict[str, float]:
        """Staleness of all that was sampled for a step; replaying is not counted."""
        return staleness(self.ages)

    def passes(self, step: int) -> float:
        """Of the logged trajectories."""
        logged = self.parts.get("logged")
        return step / logged.per_epoch if isinstance(logged, Logged) else 0.0

    def sources(self, step: int, micro_batch: int) -> list[str]:
        """Where the rows of a micro-batch came from, of the steps since the last call of `told`."""
        return self._sources[step][micro_batch]


def staleness(ages: Counter[int]) -> dict[str, float]:
    """Mean, greatest and histogram of ages in optimiser steps: shares of trajectories from each of `AGES` on."""
    if not ages:
        return {}
    age, number = np.array(list(ages)), np.array(list(ages.values()))
    found = {"staleness_mean": float((age * number).sum() / number.sum()), "staleness_max": float(age.max())}
    for low, high in zip(AGES, (*AGES[1:], np.inf), strict=True):
        found[f"staleness_from_{low}"] = float(number[(age >= low) & (age < high)].sum() / number.sum())
    return found
