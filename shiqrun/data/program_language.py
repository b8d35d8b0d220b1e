"""This module parses, runs and compares the programs of data=programs: short pipelines of list primitives.

    program     step | step | ...
    step        reverse, sort, rotate (the first element goes to the end), unique (first occurrences), sums (running),
                evens, odds (what is kept), or a word and a digit: add k, times k, cap k (the smaller of both), above k,
                below k (what is kept), take k, drop k

Lists hold digits below `base`, and arithmetic is modulo `base`, so that every value is one word. The language has no
conditions, so that no program can hold a table of answers, and no loops, so that each ends after its few steps.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, combinations, cycle

import numpy as np

Digits = tuple[int, ...]
Step = tuple[str, int | None]
"""A primitive and its digit, None where it has none."""
Program = tuple[Step, ...]

PLAIN: dict[str, Callable[[Digits, int], Digits]] = {
    "reverse": lambda xs, base: xs[::-1],
    "sort": lambda xs, base: tuple(sorted(xs)),
    "rotate": lambda xs, base: xs[1:] + xs[:1],
    "unique": lambda xs, base: tuple(dict.fromkeys(xs)),
    "sums": lambda xs, base: tuple(total % base for total in accumulate(xs)),
    "evens": lambda xs, base: tuple(x for x in xs if x % 2 == 0),
    "odds": lambda xs, base: tuple(x for x in xs if x % 2 == 1),
}
WITH_DIGIT: dict[str, Callable[[Digits, int, int], Digits]] = {
    "add": lambda xs, k, base: tuple((x + k) % base for x in xs),
    "times": lambda xs, k, base: tuple(x * k % base for x in xs),
    "cap": lambda xs, k, base: tuple(min(x, k) for x in xs),
    "above": lambda xs, k, base: tuple(x for x in xs if x > k),
    "below": lambda xs, k, base: tuple(x for x in xs if x < k),
    "take": lambda xs, k, base: xs[:k],
    "drop": lambda xs, k, base: xs[k:],
}
PRIMITIVES = (*PLAIN, *WITH_DIGIT)

LONGEST_PROGRAM = 8
"""Most steps of a program; a longer text is no program, so that checking one takes bounded time."""
SHORTEST_LIST, LONGEST_LIST = 3, 6
"""Fewest and most digits of an input."""
PROBES = 256


def steps_of(name: str, base: int) -> list[Step]:
    """Return the steps of a primitive: one for every digit below `base` that changes lists but seldom empties them.

    Many steps give many pairs of steps: a model learns a few hundred functions by heart and then solves no other.
    """
    if name in PLAIN:
        return [(name, None)]
    digits = {
        "add": range(1, base),
        "times": range(2, base),
        "cap": range(1, base - 1),
        "above": range(base // 2),
        "below": range(base - base // 2, base),
    }
    return [(name, k) for k in digits.get(name, range(1, min(base, LONGEST_LIST - 1)))]


def parse(text: str) -> Program | None:
    """Return the program that a text spells, whatever its white space; None where it spells none."""
    parts = [part.split() for part in text.split("|")]
    if len(parts) > LONGEST_PROGRAM:
        return None
    steps: list[Step] = []
    for words in parts:
        match words:
            case [name] if name in PLAIN:
                steps.append((name, None))
            case [name, digit] if name in WITH_DIGIT and re.fullmatch("[0-9]", digit):
                steps.append((name, int(digit)))
            case _:
                return None
    return tuple(steps)


def spell(program: Program) -> str:
    """Return the text of a program, one space between words."""
    return " | ".join(name if digit is None else f"{name} {digit}" for name, digit in program)


def apply(step: Step, xs: Digits, base: int) -> Digits:
    """Return the list that one step makes of a list of digits below `base`."""
    name, digit = step
    return PLAIN[name](xs, base) if digit is None else WITH_DIGIT[name](xs, digit, base)


def run(program: Program, xs: Digits, base: int) -> Digits:
    """Return the output of a program for a list of digits below `base`."""
    for step in program:
        xs = apply(step, xs, base)
    return xs


@lru_cache(maxsize=8)
def probes(base: int) -> tuple[Digits, ...]:
    """Return the PROBES fixed lists by which programs are compared: two that agree on all compute one function.

    They have SHORTEST_LIST to LONGEST_LIST digits, half of them the most. The digits are in turn any, few, even but for
    one or two, odd but for one or two, and all different, so that filters and cuts show what they do. Shorter lists are
    no input: a few examples could not tell what a program does to them.
    """
    rng = np.random.default_rng(base)
    kinds = [np.arange(base), np.arange(3), np.array([*range(0, base, 2), 1]), np.array([*range(1, base, 2), 0])]
    found: dict[Digits, None] = {}
    for turn in cycle(range(5)):
        if len(found) == PROBES:
            break
        length = LONGEST_LIST if rng.random() < 0.5 else rng.integers(SHORTEST_LIST, LONGEST_LIST)
        digits = rng.permutation(base)[:length] if turn == 4 else rng.choice(kinds[turn], length)
        found[tuple(digits.tolist())] = None
    return tuple(found)


@lru_cache(maxsize=8)
def fixed_lists(base: int, count: int) -> tuple[Digits, ...]:
    """Return `count` fixed input lists that all prompts may share; none of them is a probe.

    They have LONGEST_LIST digits, one of them twice, and together all digits in turn. The seed is chosen so that two of
    them tell every step from every other.
    """
    rng = np.random.default_rng([base, 3])
    digits: list[int] = []
    found: list[Digits] = []
    while len(found) < count:
        while len(digits) < LONGEST_LIST - 1:
            digits += rng.permutation(base).tolist()
        several, digits = digits[: LONGEST_LIST - 1], digits[LONGEST_LIST - 1 :]
        xs = tuple(rng.permutation([*several, several[0]]).tolist())
        if xs not in found and xs not in probes(base):
            found.append(xs)
    return tuple(found)


def signature(program: Program, base: int) -> tuple[Digits, ...]:
    """Return the outputs of a program on all probes; programs that compute one function have equal signatures."""
    return tuple(run(program, xs, base) for xs in probes(base))


def canonical(program: Program, base: int) -> Program:
    """Return a program without its idle steps: its shortest (and first) subsequence of steps with the same signature.

    Two right programs count as different if their canonical forms differ: `sort | reverse | reverse` is `sort`, but
    `add 1 | reverse` and `reverse | add 1` are two ways. A program that changes nothing is `()`.
    """
    whole = signature(program, base)
    for length in range(len(program)):
        for kept in combinations(program, length):
            if signature(kept, base) == whole:
                return kept
    return program
