"""The reference scores every action of a split once; a disk cache serves all jobs, and resumes a killed pass.

The trajectories are scored in the micro-batches of `batching.steps.Batches`, which are dealt to the ranks of a run, so
that a score does not depend on their number. The scores go to disk every few seconds, as parts in
`reference-KEY.parts/`; once all parts exist rank 0 joins them to `reference-KEY.arrow`, which every job and rank maps
into memory.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shiqrun.batching.columns import Scores
from shiqrun.batching.micro_batches import deal
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Batches
from shiqrun.console import waiting
from shiqrun.errors import InputError
from shiqrun.models.policy import Policy
from shiqrun.models.reference_file import UNREADABLE, ExpectedScores, MappedScores, join_parts, read_part, write_part
from shiqrun.models.sharding import in_step, is_sharded
from shiqrun.types import ActionScores
from shiqrun.util import ranks
from shiqrun.util.atomic import remove_partials
from shiqrun.util.lock import lock_for_all_ranks

log = logging.getLogger("shiqrun")
FORMAT = "3"
"""The format's number is part of every key: raise it when the file layout or the computation of scores changes."""
WAITING = "waiting for the reference scores that another job computes"
PART_SECONDS = 5.0
"""Seconds of work between two parts: the most that a kill loses, beside one micro-batch."""

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def cache_key(policy: Policy, rows: Rows, weights: str) -> str:
    """Return a hash of all that the reference's scores depend on, so that equal keys mean equal scores.

    It covers weights, model class and config, attention, dtypes, tokens, actions and anchor tokens. Tokenizer, chat
    template and truncation act through the tokens and need no entry of their own.
    """
    config: Any = policy.causal_lm.config
    digest = hashlib.blake2b(digest_size=16)
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    computed = (type(policy.causal_lm).__name__, config._attn_implementation, rows.packed, rows.device)
    precision = (policy.autocast, torch.get_float32_matmul_precision())
    for part in (FORMAT, weights, *computed, *precision):
        digest.update(f"{part} ".encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(np.stack([rows.lengths, rows.actions]).tobytes())
    for t in rows.trajectories:  # the lengths hashed above say where each ends
        digest.update(t.input_ids.data)
        digest.update(t.action_index.data)
    if rows.anchor is not None:
        digest.update(repr(tuple(rows.anchor)).encode())
        drawn = rows.collate([0]).anchor_tokens if len(rows) else None  # changes if the way of drawing them changes
        digest.update(b"" if drawn is None else drawn.numpy().tobytes())
    return digest.hexdigest()


class CachedScores(NamedTuple):
    """A `CachedScores` holds the reference's scores of a split, as `cached_scores` found or computed them.

    Attributes:
        scores: for each row its arrays, on disk.
        found: whether the cache had all of them.
        seconds: wall time of computing them, over all sessions of a pass that was killed.
    """

    scores: Scores
    found: bool
    seconds: float


def cached_scores(
    policy: Policy,
    rows: Rows,
    directory: Path,
    *,
    key: str,
    tokens: int,
    device: torch.device,
    progress: Progress = lambda x: x,
) -> CachedScores:
    """Return the logits and log-partitions of all actions under the given policy, from the cache or computed now.

    All ranks of a run call it together and share the work. A lock makes jobs that start together compute them once.

    Args:
        policy: the reference.
        rows: the trajectories of the split.
        directory: `cache_dir`.
        key: from `cache_key`.
        tokens: tokens of a micro-batch, at most.
        device: where to compute.
        progress: wraps the micro-batches.

    Raises:
        InputError: `directory` cannot be written, is too small, or is not the same for all ranks; its file is damaged.
    """
    path = directory / f"reference-{key}.arrow"
    expected = ExpectedScores(key, rows.actions, rows.anchor.number if rows.anchor else 0)
    with _disk(directory), lock_for_all_ranks(path.with_suffix(".lock"), WAITING):
        is_main = ranks.rank() == 0
        if is_main:
            remove_partials(directory, path.name)
        found = ranks.broadcast_object(path.exists())
        parts = Parts(path.with_suffix(".parts"), expected)
        if not found:
            parts.open()
            batches = parts.missing(Batches(rows, tokens=tokens).cut)
            shares = _shares(batches, rows)
            calls = max(map(len, shares)) if is_sharded(policy) else 0
            _score(policy, rows, shares[ranks.rank()], parts, device, progress, calls=calls)
            with waiting("reference scores: waiting for the other ranks"):
                ranks.barrier()
            if is_main:
                join_parts(path, expected, parts.directory)
        if is_main:
            parts.remove()
    scores = MappedScores(path, expected)
    return CachedScores(scores, found, scores.seconds)


def _shares(batches: list[list[int]], rows: Rows) -> list[list[list[int]]]:
    """Return each rank's share of micro-batches, in their order."""
    work = [int(rows.lengths[batch].sum()) for batch in batches]
    dealt = deal(work, [[k] for k in range(len(batches))], ranks.world())
    return [[batches[k] for k in sorted(unit[0] for unit in own)] for own in dealt]


@torch.no_grad()
def _score(
    policy: Policy,
    rows: Rows,
    batches: list[list[int]],
    parts: "Parts",
    device: torch.device,
    progress: Progress,
    *,
    calls: int,
) -> None:
    """Score the given micro-batches with the policy, and add the scores to the parts on disk.

    Ranks that share the weights call the policy equally often, `calls` times: one that has no more repeats a short row.
    """
    mode = policy.training
    policy.to(device).eval()
    try:
        with in_step(policy):
            for numbers in progress(batches):
                batch = rows.collate(numbers)
                parts.add(numbers, _flat(policy(batch.to(device)), batch.action_mask.numpy()))
            for _ in range(calls - len(batches)):
                policy(rows.collate([int(rows.lengths.argmin())]).to(device))
    finally:
        policy.train(mode)
    parts.write()


def _flat(scores: ActionScores, mask: np.ndarray) -> np.ndarray:
    """Return the logit, log-partition and K further logits of the N unmasked actions, `[N, 2 + K]` float32, on the CPU.

    They come from the device in one transfer.
    """
    further = [] if scores.further is None else [scores.further]
    together = torch.cat([torch.stack([scores.logit, scores.log_partition], -1), *further], -1)
    picked: np.ndarray = together.float().cpu().numpy()[mask]
    return picked


class Parts:
    """A `Parts` holds the parts of a scoring pass that are on disk, and the scores that are still in memory.

    Args:
        directory: of the parts.
        expected: the scores of the whole file.

    Attributes:
        paths: the files of whole parts, in order.
    """

    def __init__(self, directory: Path, expected: ExpectedScores) -> None:
        self.directory, self.expected = directory, expected
        self.paths: list[Path] = []
        self._number = 0  # of the next part
        self._done = np.zeros(len(expected.actions), bool)
        self._rows: list[int] = []
        self._scores: list[np.ndarray] = []
        self._since = time.perf_counter()

    def open(self) -> None:
        """Find the parts that a killed scoring pass left on disk; rank 0 looks for all, and removes those damaged.

        Raises:
            InputError: the disk has no room for the missing scores.
        """
        if ranks.rank() == 0:
            self._find()
        self.paths, self._done = ranks.broadcast_object((self.paths, self._done))
        self._number = (int(self.paths[-1].stem) + 1 if self.paths else 0) + ranks.rank()

    def _find(self) -> None:
        with _disk(self.directory.parent):
            self.directory.mkdir(exist_ok=True)
            remove_partials(self.directory)
            for path in sorted(self.directory.glob("*.arrow")):
                self._take(path)
            if self._done.any():
                known, total = int(self._done.sum()), len(self._done)
                log.info("reference scores: %d of %d trajectories are there from before", known, total)
            stored = sum(path.stat().st_size for path in self.paths)
            room = shutil.disk_usage(self.directory).free
        needed = 2 * self.expected.size() - stored  # for the parts and for the file that they are joined to
        if room < needed:
            raise InputError(
                f"cache_dir={self.directory.parent}: {room / 1e9:.3g} GB free, but the reference scores of "
                f"{int(self.expected.actions.sum()):,} actions need {needed / 1e9:.3g} GB while they are computed; "
                "make room, or give another cache_dir"
            )

    def _take(self, path: Path) -> None:
        """Count the trajectories of a part on disk as scored; delete the part if it cannot be read."""
        try:
            rows, _ = read_part(path, self.expected)
            if self._done[rows].any():
                raise ValueError("it holds trajectories that another part holds")
        except UNREADABLE as error:
            log.warning("%s: %s; its trajectories are scored again", path, error)
            path.unlink()
            return
        self._done[rows] = True
        self.paths.append(path)

    def missing(self, cut: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the micro-batches `cut` without the rows that have been scored already."""
        left = ([row for row in batch if not self._done[row]] for batch in cut)
        return [batch for batch in left if batch]

    def add(self, rows: Sequence[int], scores: np.ndarray) -> None:
        """Add the scores of some rows, and write a part to disk every `PART_SECONDS`."""
        self._rows.extend(rows)
        self._scores.append(scores)
        if time.perf_counter() - self._since >= PART_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the scores that are still in memory to disk as a part.

        Raises:
            InputError: the disk does not take it.
        """
        if not self._rows:
            return
        path, rows = self.directory / f"{self._number:08d}.arrow", np.array(self._rows)
        with _disk(self.directory.parent):
            seconds = (time.perf_counter() - self._since) / ranks.world()  # the ranks work at the same time
            write_part(path, self.expected, rows, np.concatenate(self._scores), seconds=seconds)
        self.paths.append(path)
        self._number += ranks.world()  # the other ranks number theirs between
        self._done[rows] = True
        self._rows, self._scores, self._since = [], [], time.perf_counter()

    def remove(self) -> None:
        """Delete all parts from disk, also those of a pass that was killed after joining them."""
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError about `cache_dir`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cache_dir={directory}: {error}; the scores written so far are kept. Make room or give another cache_dir"
        ) from error
