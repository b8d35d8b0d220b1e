"""Prompts are read so that what several of them begin with is read once.

A prompt that begins another one is not read by itself. Prompts with a long common beginning are a family: the beginning
is read once, and behind it what each of them goes on with.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from shiqrun.sampling.decoding_rows import Reader, prompt_tokens
from shiqrun.sampling.shared_cache import SharedCache

COMMON = 0.75
"""Prompts are one family if their common beginning is at least this share of each of them."""
COPIED = 8
"""Columns of copied beginnings that one forward pass attends to, as a multiple of the tokens that it may read."""


class Family(NamedTuple):
    """A family is a beginning and the prompts that start with it.

    Attributes:
        stem: number of tokens of the beginning.
        members: numbers of prompts that begin no other prompt, the longest first.
        prompts: numbers of all prompts that a member begins with, and of that member.
    """

    stem: int
    members: list[int]
    prompts: list[tuple[int, int]]


def read_once(reader: Reader, prompts: Sequence[np.ndarray]) -> tuple[SharedCache, Tensor]:
    """Read prompts; return the cache of all, and the hidden states of their last tokens, `[P, D]`.

    Args:
        reader: of the model.
        prompts: `[T]` token ids each, longest first.
    """
    found = _Reading([len(p) for p in prompts])
    for some in _portions(families(prompts), prompt_tokens(reader.device)):
        stems = [prompts[f.members[0]][: f.stem] for f in some]
        read, hidden = reader.read_prompts(stems)
        width, device = len(stems[0]), reader.device
        within = [
            (n, row, width - f.stem) for row, f in enumerate(some) for n, _ in f.prompts if found.lengths[n] <= f.stem
        ]
        found.take(within, read, hidden, 0)
        tails = [(row, f, m) for row, f in enumerate(some) for m in f.members if found.lengths[m] > f.stem]
        for part in _parts(tails, prompts, width, prompt_tokens(device)):
            copied, mask, ids = _behind(part, prompts, read, width, device)
            hidden = reader.read(ids, mask, copied)
            place = {m: (k, f) for k, (_, f, m) in enumerate(part)}
            beyond = [
                (n, place[m][0], width - f.stem)
                for f in {id(f): f for _, f, _ in part}.values()
                for n, m in f.prompts
                if found.lengths[n] > f.stem and m in place
            ]
            found.take(beyond, copied, hidden, width)
    return found.result()


class _Reading:
    """What was read so far: the cache of prompts, and the hidden states of their last tokens."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.cache = lengths, None
        self.numbers, self.last = list[int](), list[Tensor]()

    cache: SharedCache | None

    def take(self, places: Sequence[tuple[int, int, int]], read: DynamicCache, hidden: Tensor, before: int) -> None:
        """Take prompts from a forward pass.

        Args:
            places: for each prompt its number, its row and its first column.
            read: the cache after the pass.
            hidden: `[rows, T, D]`, of the tokens read.
            before: number of columns that the cache had before.
        """
        if not places:
            return
        self.cache = self.cache or SharedCache(self.lengths, read)
        numbers, rows, starts = ([*x] for x in zip(*places, strict=True))
        row, start = torch.tensor(rows, device=hidden.device), torch.tensor(starts, device=hidden.device)
        self.cache.write(numbers, read, row, start)
        ends = start + torch.tensor([self.lengths[n] - 1 - before for n in numbers], device=hidden.device)
        self.last.append(hidden[row, ends])
        self.numbers += numbers

    def result(self) -> tuple[SharedCache, Tensor]:
        """Return the cache and the hidden states in the order of the prompts."""
        assert self.cache is not None
        last = torch.cat(self.last)
        return self.cache, last[torch.tensor(np.argsort(self.numbers), device=last.device)]


def _behind(
    part: Sequence[tuple[int, Family, int]],
    prompts: Sequence[np.ndarray],
    read: DynamicCache,
    width: int,
    device: torch.device,
) -> tuple[DynamicCache, Tensor, Tensor]:
    """Return copies of beginnings, the mask of all columns, and the tokens that go on behind, padded on the right."""
    tails = [prompts[m][f.stem :] for _, f, m in part]
    most = max(map(len, tails))
    ids = torch.from_numpy(np.stack([np.pad(t, (0, most - len(t))) for t in tails])).to(device)
    columns = torch.arange(width + most, device=device)
    first = torch.tensor([width - f.stem for _, f, _ in part], device=device)[:, None]
    stop = torch.tensor([width + len(t) for t in tails], device=device)[:, None]
    rows, copied = torch.tensor([row for row, _, _ in part], device=device), DynamicCache()
    for layer, (keys, values, _) in enumerate(read):
        copied.update(keys[rows], values[rows], layer)
    return copied, ((columns >= first) & (columns < stop)).long(), ids


def families(prompts: Sequence[np.ndarray]) -> list[Family]:
    """Return the families of prompts, those with the longest beginnings first; a family may have one member."""
    home = homes(prompts)
    begun: dict[int, list[int]] = {}
    for n, member in enumerate(home):
        begun.setdefault(member, []).append(n)
    found: list[Family] = []
    for member in sorted(begun, key=lambda m: prompts[m].tobytes()):
        own = [(n, member) for n in begun[member]]
        before = found[-1] if found else Family(0, [], [])
        common = _common(prompts[before.members[0]][: before.stem], prompts[member]) if found else 0
        longest = max(len(prompts[m]) for m in [*before.members, member])
        if found and common >= COMMON * longest:
            members = sorted([*before.members, member], key=lambda m: -len(prompts[m]))
            found[-1] = Family(common, members, before.prompts + own)
        else:
            found.append(Family(len(prompts[member]), [member], own))
    return sorted(found, key=lambda f: -f.stem)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Return the number of tokens with which both begin."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


def homes(prompts: Sequence[np.ndarray]) -> list[int]:
    """Return for each prompt the number of one that begins with it and begins no other: itself, or a longer one."""
    texts = [p.tobytes() for p in prompts]
    order = sorted(range(len(texts)), key=lambda n: texts[n])
    home = list(range(len(texts)))
    for one, following in zip(order[-2::-1], order[:0:-1], strict=True):
        if texts[following].startswith(texts[one]):
            home[one] = home[following]
    return home


def _portions(found: Sequence[Family], tokens: int) -> Iterator[list[Family]]:
    """Yield families whose beginnings one forward pass reads, at most so many padded tokens or one beginning."""
    some: list[Family] = []
    for family in found:
        if some and (len(some) + 1) * some[0].stem > tokens:
            yield some
            some = []
        some.append(family)
    yield some


def _parts(
    tails: Sequence[tuple[int, Family, int]], prompts: Sequence[np.ndarray], width: int, tokens: int
) -> Iterator[list[tuple[int, Family, int]]]:
    """Yield members that one forward pass reads behind their beginnings, as many as the tokens and copies allow."""
    order = sorted(tails, key=lambda tail: tail[1].stem - len(prompts[tail[2]]))
    while order:
        most = len(prompts[order[0][2]]) - order[0][1].stem
        count = max(1, min(tokens // most, COPIED * tokens // (width + most)))
        yield order[:count]
        order = order[count:]
