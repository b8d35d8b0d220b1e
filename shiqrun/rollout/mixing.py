"""A run that samples while it trains mixes trajectories of several sources in the batch of each optimiser step.

Sources are trajectories sampled for this step (`online`), those of earlier steps (`replay`), the data set (`logged`),
its rows with value targets (`annotated`) and another file (`further`). Every micro-batch has rows of one source.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np

from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import NumberedBatch, Steps, batches_of_rank
from shiqrun.rollout.engine import Engine
from shiqrun.rollout.episode_metrics import episode_metrics
from shiqrun.rollout.replay import ReplayPool
from shiqrun.rollout.settings import ONLINE, RolloutSettings
from shiqrun.rollout.staleness import staleness_metrics
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.types import Trajectories
from shiqrun.util import ranks

log = logging.getLogger("shiqrun")
Annotate = Callable[[Rows], Rows]
"""Returns rows with what a run's losses read beside tokens and rewards."""

NamedBatch = tuple[Trajectories, list[str]]
"""A micro-batch, and where each of its rows came from, for messages."""


class StepSource(Protocol):
    """A step source contributes micro-batches of its trajectories to every optimiser step."""

    def batches_of(self, step: int) -> list[NamedBatch]:
        """Return this rank's micro-batches of the source in an optimiser step, counted from 0.

        Where one rank has some every rank has, if need be without actions, so that all log the same metrics.
        """
        ...


class FixedRows:
    """Fixed rows are a source whose trajectories are known before training; each epoch visits every row once.

    Args:
        rows: annotated rows.
        batch_size: trajectories of a step, over all ranks.
        tokens: of one forward pass.
        seed: of the order of rows.
        even: see `Steps`.
    """

    def __init__(self, rows: Rows, *, batch_size: int, tokens: int, seed: int, even: bool = False) -> None:
        self.rows = rows
        self.steps = Steps(
            rows,
            batch_size=batch_size,
            micro_batch_tokens=tokens,
            seed=seed,
            start=0,
            rank=ranks.rank(),
            world=ranks.world(),
            even=even,
        )
        self.per_epoch = rows.steps_per_epoch(batch_size)

    def batches_of(self, step: int) -> list[NamedBatch]:
        """Return the micro-batches of an optimiser step; see `StepSource`."""
        return _named(self.rows, self.steps.batches_of(step))


class SampledRows:
    """Sampled rows are a source of trajectories that the policy sampled, for this step or for earlier ones.

    Args:
        trajectories_of: returns the trajectories of an optimiser step, counted from 0.
        source: name of the source, online or replay.
        tokens: of one forward pass.
        annotate: see `Annotate`.
        pad, together: as for `Rows`.
        even: see `Steps`.
    """

    def __init__(
        self,
        trajectories_of: Callable[[int], Sequence[SampledTrajectory]],
        source: str,
        *,
        tokens: int,
        annotate: Annotate,
        pad: int,
        together: bool,
        even: bool = False,
    ) -> None:
        self.trajectories_of, self.source, self.tokens, self.annotate = trajectories_of, source, tokens, annotate
        self.pad, self.together, self.even = pad, together, even

    def batches_of(self, step: int) -> list[NamedBatch]:
        """Return the micro-batches of an optimiser step; see `StepSource`."""
        found = self.trajectories_of(step)
        if not found:
            return []
        rows = self.annotate(as_rows(found, self.pad, together=self.together, source=self.source))
        world = ranks.world()

        def cut(rank: int) -> list[list[int]]:
            return rows.micro_batches(rows.share(rows.units, rank, world), self.tokens)

        return _named(rows, batches_of_rank(rows, cut, ranks.rank(), world * self.even))


def _named(rows: Rows, batches: Sequence[NumberedBatch]) -> list[NamedBatch]:
    return [(batch, [rows.trajectories[i].source for i in numbers]) for batch, numbers in batches]


def as_rows(found: Sequence[SampledTrajectory], pad: int, *, together: bool, source: str) -> Rows:
    """Return sampled trajectories as rows, with the log-probabilities they were sampled with.

    Args:
        found: the trajectories.
        pad, together, source: as for `Rows`.
    """
    made = []
    for number, t in enumerate(found):
        index, rewards = t.action_index, t.action_rewards
        made.append(EncodedTrajectory(t.input_ids, index, rewards, t.prompt_id, number, 0, t.uid, t.group))
    return Rows(made, pad, together=together, source=source).with_columns(
        behaviour_logp=[t.behaviour_logp for t in found],
        acting_logp=[t.policy_logp for t in found],
    )


class OnlineData(LoggedData):
    """Online data make the batches of a run that samples while it trains, when a step asks for them and never ahead.

    Args:
        encoded: the data set, annotated.
        engine: samples trajectories and hands them out.
        settings: of sampling and mixing.
        others: annotated rows of the sources `annotated` and `further`.
        annotate: applied to sampled rows; see `Annotate`.
        together: completions of a prompt stay in one micro-batch.
        batch_size: trajectories of an optimiser step, over all sources.
        micro_batch_tokens: tokens of one forward pass.
        seed: of the order of rows and of the replay pool.
        max_steps: optimiser steps of the run.
        even: see `Steps`.
    """

    def __init__(
        self,
        encoded: EncodedData,
        *,
        engine: Engine,
        settings: RolloutSettings,
        others: dict[str, Rows],
        annotate: Annotate,
        together: bool,
        batch_size: int,
        micro_batch_tokens: int,
        seed: int,
        max_steps: int,
        even: bool = False,
    ) -> None:
        super().__init__(encoded, batch_size=batch_size, micro_batch_tokens=micro_batch_tokens, seed=seed)
        self.even = even
        self.engine, self.settings, self.max_steps = engine, settings, max_steps
        self.shares = settings.shares(batch_size)
        self.staleness: Counter[int] = Counter()  # optimiser steps, of all trajectories sampled for a step
        self.fresh: list[SampledTrajectory] = []  # sampled for the current step
        self._unlogged: list[tuple[int, SampledTrajectory]] = []  # (staleness, trajectory) since the last logged step
        self._replayed: list[int] = []  # staleness of the replayed trajectories since the last logged step
        self._names: dict[int, list[list[str]]] = {}  # by step since the last logged one: names of the rows
        self._replay = ReplayPool(settings, self.shares.get("replay", 0), seed)
        of_run = partial(SampledRows, annotate=annotate, pad=encoded.train.pad, together=together, even=even)
        sampled = partial(of_run, tokens=micro_batch_tokens)
        self.step_sources: dict[str, StepSource] = {ONLINE: sampled(self._sample, ONLINE)}
        if "replay" in self.shares:
            self.step_sources["replay"] = sampled(self._replay_some, "replay")
        for name, rows in {"logged": encoded.train, **others}.items():
            if name in self.shares:
                if len(rows) < self.shares[name]:
                    log.warning(
                        "rollout.sources.%s: a step takes %d, but there are %d", name, self.shares[name], len(rows)
                    )
                self.step_sources[name] = FixedRows(
                    rows, batch_size=self.shares[name], tokens=micro_batch_tokens, seed=seed, even=even
                )

    def train_dataloader(self) -> "OnlineData":  # type: ignore[override]
        """Return this object, an iterable of optimiser steps; it has a length, so that Lightning fetches none ahead.

        Staleness and replay pool are first restored from what the engine says was trained on before.
        """
        for step, of_step in groupby(self.engine.trained_trajectories(), key=lambda pair: pair[0]):
            found = [trajectory for _, trajectory in of_step]
            self.staleness.update(step - 1 - t.version for t in found)
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
            yield self.batches_of(step)

    def batches_of(self, step: int) -> list[Trajectories]:
        """Return the micro-batches of an optimiser step, counted from 0; each has rows of one source."""
        made = [named for source in self.step_sources.values() for named in source.batches_of(step)]
        self._names[step] = [names for _, names in made]
        return [batch for batch, _ in made]

    def _sample(self, step: int) -> Sequence[SampledTrajectory]:
        """Return the trajectories sampled for a step, and count their staleness."""
        self.fresh = self.engine.next_batch(self.shares[ONLINE], step=step + 1)
        self.staleness.update(step - t.version for t in self.fresh)
        self._unlogged += [(step - t.version, t) for t in self.fresh]
        return self.fresh

    def _replay_some(self, step: int) -> Sequence[SampledTrajectory]:
        """Return the trajectories that a step replays, and note their staleness."""
        found = self._replay.draw(step)
        self._replayed += [step - t.version for t in found]
        return found

    def finish_step(self, step: int) -> None:
        """Tell the engine and the replay pool that an optimiser step, counted from 1, is finished."""
        self.engine.acknowledge(step)
        if "replay" in self.shares:
            self._replay.add(self.fresh)

    def sampling_metrics(self) -> dict[str, float]:
        """Return means over the trajectories sampled for the steps since the last call, and forget those.

        Rewards in reward units, lengths in tokens, staleness in optimiser steps; `replayed` is the number of replayed
        trajectories for each sampled one.
        """
        (unlogged, self._unlogged), (replayed, self._replayed) = (self._unlogged, []), (self._replayed, [])
        self._names.clear()  # the losses of all these steps have been read by now
        if not unlogged:
            return {}
        found = [t for _, t in unlogged]
        return {
            "reward": float(np.mean([t.reward for t in found])),
            "mean_length": float(np.mean([len(t.behaviour_logp) for t in found])),
            "ended": float(np.mean([t.ended for t in found])),
            "temperature": float(np.mean([t.temperature for t in found])),
            **episode_metrics([t.turns for t in found if t.turns is not None]),
            **staleness_metrics(Counter(steps for steps, _ in unlogged)),
            **(
                {"replayed": len(replayed) / len(unlogged), "replay_staleness": float(np.mean(replayed))}
                if replayed
                else {}
            ),
        }

    def total_staleness(self) -> dict[str, float]:
        """Return the staleness of all trajectories sampled for a step of this run; replaying is not counted."""
        return staleness_metrics(self.staleness)

    def passes(self, step: int) -> float:
        """Return the number of passes over the logged trajectories after so many optimiser steps."""
        logged = self.step_sources.get("logged")
        return step / logged.per_epoch if isinstance(logged, FixedRows) else 0.0

    def sources(self, step: int, micro_batch: int) -> list[str]:
        """Return where the rows of a micro-batch came from, for a step since the last call of `sampling_metrics`."""
        return self._names[step][micro_batch]
