"""The frozen reference, three ways: scores cached on disk, a second copy, or the policy without its adapter."""

import contextlib
import copy
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import nn

from shiqrun.data.batches import Batches, Rows, Scores
from shiqrun.models.policy import Policy
from shiqrun.types import ActionScores, Trajectories

Kind = Literal["cached", "frozen", "adapter", "none"]
Reference = Callable[[Trajectories], ActionScores]


def cached(batch: Trajectories) -> ActionScores:
    """The scores that came with the batch.

    Raises:
        ValueError: the batch carries none.
    """
    if batch.reference is None:
        raise ValueError("the batch carries no cached reference scores")
    return batch.reference


class Frozen:
    """A second copy of the model; not a module, so that no checkpoint and no optimiser sees it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = Policy(copy.deepcopy(policy.model), autocast=policy.autocast).eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Moves the copy."""
        self.policy.to(device)

    @torch.no_grad()
    def __call__(self, batch: Trajectories) -> ActionScores:
        """Scores of the copy."""
        return self.policy(batch)

    @contextlib.contextmanager
    def acting(self) -> Iterator[Policy]:
        """Inside, a policy that acts as the reference."""
        yield self.policy


class AdapterOff:
    """The policy itself with its LoRA adapter switched off."""

    def __init__(self, policy: Policy) -> None:
        self._policy = [policy]  # in a list: not a sub-module

    @torch.no_grad()
    def __call__(self, batch: Trajectories) -> ActionScores:
        """Scores without the adapter."""
        with self._policy[0].as_reference():
            return self._policy[0](batch)

    def to(self, device: torch.device) -> None:
        """Nothing: the policy is where it is."""

    @contextlib.contextmanager
    def acting(self) -> Iterator[Policy]:
        """Inside, the policy acts as the reference."""
        with self._policy[0].as_reference():
            yield self._policy[0]


Live = Frozen | AdapterOff
"""References that can be asked about any tokens, and made to answer."""


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of every parameter's name, shape, dtype and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_key(policy: Policy, rows: Rows, weights: str) -> str:
    """Equal keys give equal scores: weights, model and config, attention, dtypes, tokens and actions, anchor tokens.

    Tokenizer, template and truncation act through the tokens and need no entry of their own.
    """
    config: Any = policy.causal_lm.config
    digest = hashlib.blake2b(digest_size=16)
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    for part in (weights, type(policy.causal_lm).__name__, config._attn_implementation, policy.autocast):
        digest.update(f"{part} ".encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for t in rows.trajectories:
        digest.update(t.input_ids.tobytes() + b"|" + t.action_index.tobytes() + b",")
    if rows.anchor is not None:
        digest.update(repr(rows.anchor).encode())
    return digest.hexdigest()


class CachedScores(NamedTuple):
    """What `cached_scores` found or computed.

    Attributes:
        scores: for each row its arrays.
        found: whether they were there.
        seconds: what computing them took when they were computed; NaN if the file does not say.
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
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda x: x,
) -> CachedScores:
    """Both numbers of every action under the policy as it is now, from `directory` or computed and stored there.

    Written to a temporary file and renamed, under a lock, so that ranks and jobs that start together compute once.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"reference-{key}.arrow"
    with FileLock(path.with_suffix(".lock")):
        found = path.is_file()
        if not found:
            began = time.perf_counter()
            scores = _score(policy, rows, tokens, device, progress)
            _store(path, scores, seconds=time.perf_counter() - began)
    return CachedScores(_read(path, rows), found, _seconds(path))


@torch.no_grad()
def _score(policy: Policy, rows: Rows, tokens: int, device: torch.device, progress: Any) -> Scores:
    mode = policy.training
    policy.to(device).eval()
    scores: list[Any] = [None] * len(rows)
    for numbers, batch in progress(Batches(rows, tokens=tokens)):
        out = policy(batch.to(device))
        for i, row in enumerate(numbers):
            n = rows.actions[row]
            numbers_of = (out.logit, out.log_partition, *(() if out.further is None else (out.further,)))
            scores[row] = tuple(x[i, :n].float().cpu().numpy() for x in numbers_of)
    policy.train(mode)
    return scores


COLUMNS = ("logit", "log_partition", "further")
"""`further` is there with an anchor only: K numbers an action, one action after the other."""
SECONDS = b"seconds"
"""What computing the scores took, in the file's metadata."""


def _store(path: Path, scores: Scores, *, seconds: float) -> None:
    width = len(scores[0]) if len(scores) else 2
    columns = {
        name: pa.array([s[k].reshape(-1) for s in scores], pa.list_(pa.float32()))
        for k, name in enumerate(COLUMNS[:width])
    }
    table = pa.table(columns).replace_schema_metadata({SECONDS: str(seconds)})
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    os.replace(partial, path)


def _seconds(path: Path) -> float:
    with pa.memory_map(str(path)) as file:
        metadata = pa.ipc.open_file(file).schema.metadata or {}
    return float(metadata.get(SECONDS, "nan"))


def _read(path: Path, rows: Rows) -> Scores:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    parts = []
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        offsets, flat = column.offsets.to_numpy(), column.values.to_numpy()
        shape = (lambda n: (n, rows.anchor[0])) if name == "further" and rows.anchor else (lambda n: (n,))
        spans = zip(itertools.pairwise(offsets), rows.actions, strict=True)
        parts.append([np.array(flat[a:b]).reshape(shape(n)) for (a, b), n in spans])
    return list(zip(*parts, strict=True))
