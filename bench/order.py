"""`pairs_in_order` returns preference pairs in shiqrun's training order, so that a peer gets the same batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.work import Talk, read_pairs
from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.steps import step_units


@dataclass(frozen=True)
class Pair:
    """A `Pair` is two answers to a prompt, as chats and in tokens: (prompt, chosen, rejected)."""

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    ids: tuple[list[int], list[int], list[int]]

    @property
    def padded_length(self) -> int:
        """Return the number of tokens of the longer of a pair's two rows."""
        return len(self.ids[0]) + max(len(self.ids[1]), len(self.ids[2]))


def pairs_in_order(folder: Path, encoded: EncodedData, *, seed: int, pairs: int, steps: int) -> list[Pair]:
    """Return the preference pairs of the first steps of a run, in the order of its steps.

    Args:
        folder: of `bench.work.prepare`.
        encoded: what shiqrun made of it, pairs as units.
        seed: of the run.
        pairs: of a step.
        steps: of the run.
    """
    rows, talks = encoded.train, read_pairs(folder)
    made = []
    for step in range(steps):
        for unit in step_units(len(rows.units), rows.units_per_step(2 * pairs), seed, step):
            made.append(_pair(rows, rows.units[unit], talks))
    return made


def _pair(rows: Any, unit: Any, talks: list[Talk]) -> Pair:
    chosen, rejected = sorted((rows.trajectories[i] for i in unit), key=lambda t: -float(t.rewards.sum()))
    talk, start = talks[chosen.example], int(chosen.action_index[0])
    prompt = chosen.input_ids[:start].tolist()
    assert prompt == rejected.input_ids[: int(rejected.action_index[0])].tolist()
    ids = (prompt, chosen.input_ids[start:].tolist(), rejected.input_ids[start:].tolist())
    return Pair(talk["prompt"], talk["completions"][0], talk["completions"][1], ids)


def sort_by_length(pairs: list[Pair], per_step: int, warmup: int) -> list[Pair]:
    """Return the pairs sorted by length, shortest first, but those of the warm-up as they come.

    With batches of a fixed number of pairs this order has the least padding.
    """
    first = warmup * per_step
    return pairs[:first] + sorted(pairs[first:], key=lambda p: p.padded_length)


def counts(pairs: list[Pair], per_step: int) -> dict[str, int]:
    """Return the number of tokens of all pairs, without padding and when padded batch by batch."""
    steps = [pairs[i : i + per_step] for i in range(0, len(pairs), per_step)]
    return {
        "pairs": len(pairs),
        "useful": sum(2 * len(p.ids[0]) + len(p.ids[1]) + len(p.ids[2]) for p in pairs),
        "shared_prompt": sum(sum(map(len, p.ids)) for p in pairs),
        "actions": sum(len(p.ids[1]) + len(p.ids[2]) for p in pairs),
        "padded": sum(2 * len(step) * max(p.padded_length for p in step) for step in steps),
    }
