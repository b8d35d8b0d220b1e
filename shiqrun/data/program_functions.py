"""Every function that pipelines of a few steps compute: its programs, and the inputs that tell it from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product

import numpy as np

from shiqrun.data.program_language import Digits, Program, Step, apply, probes, spell, steps_of

Ints = np.ndarray
"""int64 (or a smaller kind of integer)."""


@dataclass(frozen=True)
class Functions:
    """The functions of pipelines of at most `steps` steps, numbered; number 0 is the identity, of no step.

    Attributes:
        outputs: `[functions, probes]`, number of the list that a function makes of a probe.
        lists: the list of each number.
        least: `[functions]`, steps of the shortest program.
        programs: of each function, all programs without idle steps that compute it, shortest first.
    """

    base: int
    outputs: Ints
    lists: Sequence[Digits]
    least: Ints
    programs: Sequence[Sequence[Program]]
    number: dict[Program, int]

    def dull(self) -> Ints:
        """`[functions]` bool: the empty list on half of the probes or more, as all constants; or the identity."""
        empty = np.array([not xs for xs in self.lists])
        found = empty[self.outputs].mean(1) >= 0.5
        found[0] = True
        return np.asarray(found)

    def telling(self, function: int, count: int, rng: np.random.Generator) -> list[int]:
        """Numbers of at least `count` probes on which no other of the functions agrees with this one on all.

        `count` are drawn; then those are added that tell most of the functions apart that are still left.
        """
        other = self.outputs != self.outputs[function]
        chosen = rng.choice(other.shape[1], count, replace=False).tolist()
        left = ~other[:, chosen].any(1)
        left[function] = False
        while left.any():
            best = int(other[left].sum(0).argmax())
            chosen.append(best)
            left &= ~other[:, best]
        return [int(i) for i in chosen]

    def output(self, function: int, probe: int) -> Digits:
        """What a function makes of a probe."""
        return self.lists[self.outputs[function, probe]]


@lru_cache(maxsize=4)
def functions(base: int, primitives: tuple[str, ...], steps: int) -> Functions:
    """All functions of pipelines of at most `steps` of these primitives' steps.

    Two programs are one function if they agree on all probes. A step is a function of the list it is given, so what a
    step makes of a function depends on that function alone, whichever program computes it.
    """
    table = _Table(base)
    known, least, outputs = {table.start.tobytes(): 0}, [0], [table.start]
    number: dict[Program, int] = {(): 0}
    made: dict[tuple[int, Step], int] = {}
    all_steps = [step for name in primitives for step in steps_of(name, base)]
    longest: list[Program] = [()]
    for length in range(1, steps + 1):
        programs = [(*program, step) for program, step in product(longest, all_steps)]
        for program in programs:
            before, step = number[program[:-1]], program[-1]
            if (before, step) not in made:
                row = table.after(outputs[before], step)
                made[before, step] = known.setdefault(row.tobytes(), len(outputs))
                if made[before, step] == len(outputs):
                    outputs.append(row)
                    least.append(length)
            number[program] = made[before, step]
        longest = programs
    spelled: list[list[Program]] = [[] for _ in outputs]
    for program, function in number.items():
        if not _idle(program, number):
            spelled[function].append(program)
    return Functions(base, np.stack(outputs), table.lists, np.array(least), spelled, number)


def _idle(program: Program, number: dict[Program, int]) -> bool:
    """Whether some steps can be left out: a shorter subsequence computes the same."""
    masks = product((False, True), repeat=len(program))
    parts = (tuple(s for s, keep in zip(program, mask, strict=True) if keep) for mask in masks if not all(mask))
    return any(number[part] == number[program] for part in parts)


class _Table:
    """Lists by number, and what each step makes of each, computed once."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.lists: list[Digits] = []
        self._number: dict[Digits, int] = {}
        self._after: dict[Step, dict[int, int]] = {}
        self.start = np.array([self._of(xs) for xs in probes(base)], np.int32)

    def _of(self, xs: Digits) -> int:
        if xs not in self._number:
            self._number[xs] = len(self.lists)
            self.lists.append(xs)
        return self._number[xs]

    def after(self, row: Ints, step: Step) -> Ints:
        """`[probes]`: the numbers of the lists that a step makes of these."""
        made = self._after.setdefault(step, {})
        result = []
        for n in row.tolist():
            if n not in made:
                made[n] = self._of(apply(step, self.lists[n], self.base))
            result.append(made[n])
        return np.array(result, np.int32)


def split_of(known: Functions, share: float, seed: int) -> Ints:
    """`[functions]`: 0 for train, 1 for val, 2 for test, -1 for those that are no problem, being dull.

    By a hash of the shortest program's text, so that a function keeps its side when others are added. Functions of one
    step belong to train: nothing else says what a word means.
    """
    side = np.zeros(len(known.least), np.int64)
    for function in np.flatnonzero(known.least > 1).tolist():
        text = f"{seed} {spell(known.programs[function][0])}"
        drawn = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
        side[function] = 1 if drawn < share else 2 if drawn < 2 * share else 0
    side[known.dull()] = -1
    return side
