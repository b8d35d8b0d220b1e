"""`enumerate_functions` finds every function that short programs of data=programs compute; `split_of` splits them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product

import numpy as np

from shiqrun.data.program_language import Digits, Program, Step, apply, probes, spell, steps_of

Ints = np.ndarray
"""An array of int64 or of smaller integers."""


@dataclass(frozen=True)
class Functions:
    """`Functions` holds the numbered functions that pipelines of a few steps compute; function 0 is the identity.

    Attributes:
        base: digits of the language are below it.
        outputs: `[functions, probes]`, the number of the list that a function returns for a probe.
        lists: the list of each number.
        least: `[functions]`, steps of the shortest program.
        programs: of each function, all programs without idle steps that compute it, shortest first.
        number: the function that each program computes.
    """

    base: int
    outputs: Ints
    lists: Sequence[Digits]
    least: Ints
    programs: Sequence[Sequence[Program]]
    number: dict[Program, int]

    def is_trivial(self) -> Ints:
        """Return which functions are too trivial to ask for, `[functions]` bool: the identity, and those mostly []."""
        empty = np.array([not xs for xs in self.lists])
        found = empty[self.outputs].mean(1) >= 0.5
        found[0] = True
        return np.asarray(found)

    def telling_probes(self, function: int, count: int, rng: np.random.Generator) -> list[int]:
        """Return the numbers of at least `count` probes whose outputs tell a function from all others.

        `count` probes are drawn; then, one at a time, the probe is added that excludes most of the functions left.
        """
        own = self.outputs[function]
        chosen = rng.choice(len(own), count, replace=False).tolist()
        left = np.flatnonzero((self.outputs[:, chosen] == own[chosen]).all(1))
        left = left[left != function]
        while len(left):
            other = self.outputs[left] != own
            best = int(other.sum(0).argmax())
            chosen.append(best)
            left = left[~other[:, best]]
        return [int(i) for i in chosen]

    def output(self, function: int, probe: int) -> Digits:
        """Return the output list of a function for a probe, both by number."""
        return self.lists[self.outputs[function, probe]]


@lru_cache(maxsize=4)
def enumerate_functions(base: int, primitives: tuple[str, ...], steps: int) -> Functions:
    """Return all functions that pipelines of at most `steps` steps of the given primitives compute.

    Two programs compute one function if they agree on all probes. What a further step makes of a function depends on
    the function alone, whichever program computes it; so each pair of a function and a step is computed once.
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
    """Return whether a program has idle steps: a shorter subsequence computes the same function."""
    masks = product((False, True), repeat=len(program))
    parts = (tuple(s for s, keep in zip(program, mask, strict=True) if keep) for mask in masks if not all(mask))
    return any(number[part] == number[program] for part in parts)


class _Table:
    """A `_Table` numbers lists, and computes once what each step makes of each list."""

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
        """Return the numbers of the lists that a step makes of some lists, `[probes]`."""
        made = self._after.setdefault(step, {})
        result = []
        for n in row.tolist():
            if n not in made:
                made[n] = self._of(apply(step, self.lists[n], self.base))
            result.append(made[n])
        return np.array(result, np.int32)


def split_of(known: Functions, share: float, seed: int) -> Ints:
    """Return the split of each function, `[functions]`: 0 train, 1 val, 2 test, -1 none where it is trivial.

    A hash of the shortest program's text decides, so that a function keeps its split when others are added. Functions
    of one step belong to train: nothing else teaches what a word means.
    """
    side = np.zeros(len(known.least), np.int64)
    for function in np.flatnonzero(known.least > 1).tolist():
        text = f"{seed} {spell(known.programs[function][0])}"
        drawn = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
        side[function] = 1 if drawn < share else 2 if drawn < 2 * share else 0
    side[known.is_trivial()] = -1
    return side
