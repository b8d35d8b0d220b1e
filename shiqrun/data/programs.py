"""The data set `programs` generates small program-synthesis problems from a seed; no Python code is run to check them.

prompt      what a hidden function does to a few lists: `3 1 2 -> 4 2 3 ; 9 0 -> 0 1 ;`
completion  a program in the language of `program_language`: `add 1`, or any other that computes the same
answer      further lists with their outputs; a completion is right if its program is right on all of them. No other
            function of as many steps is right on all, so that guessing from the shown lists does not pay

Functions are split, not problems: no logged program of the training split, right or wrong and however it is spelled,
computes a function of val or test.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Len, Lt

from shiqrun.data.program_functions import enumerate_functions, split_of
from shiqrun.data.program_language import (
    LONGEST_LIST,
    PRIMITIVES,
    SHORTEST_LIST,
    Digits,
    Program,
    fixed_lists,
    run,
    spell,
    steps_of,
)
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example, UnitInterval

Primitive = Literal[
    "reverse",
    "sort",
    "rotate",
    "unique",
    "sums",
    "evens",
    "odds",
    "add",
    "times",
    "cap",
    "above",
    "below",
    "take",
    "drop",
]  # equal to PRIMITIVES, spelled out so that settings are checked
SIDES = ("train", "val", "test")
TRIES = 50
_SPECIAL = ("<pad>", "<bos>", "<eos>")
_TEMPLATE = (
    "<bos>{% for message in messages %}{{ ' ' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' <eos>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class SynthesisProblem:
    """A `SynthesisProblem` asks for a program that computes a hidden function, of which the prompt shows examples.

    Attributes:
        function: number of the function.
        shown: the examples of the prompt, (input, output).
        hidden: the examples that decide whether a program is right.
    """

    function: int
    shown: Sequence[tuple[Digits, Digits]]
    hidden: Sequence[tuple[Digits, Digits]]

    def prompt(self) -> str:
        """Return the text of the prompt: the shown examples, `3 1 -> 4 2 ; ...`."""
        return " ".join(f"{_words(xs)} -> {_words(ys)} ;".replace("  ", " ") for xs, ys in self.shown)


class Programs(Source):
    """A `Programs` data set yields program-synthesis problems with logged right and wrong programs.

    Args:
        base: digits of the language, 0 to base - 1.
        primitives: which words programs are made of.
        steps: most steps of the function that is asked for.
        shown: examples of a prompt.
        fixed: examples, of those shown, whose lists are the same in every prompt, `fixed_lists`. They are learnt from
            far sooner, since nothing has to be found in them: each place means the same each time.
        longest: elements of the other shown lists at most; SHORTEST_LIST at least.
        hidden: examples that decide at least; more where that many fit another function.
        problems, val_problems: number of problems of train, and of each of val and test.
        val_fraction: share of the functions of two steps or more that is held out for val, and as much for test.
        split: which held-out functions are validated on; with test there is no test split beside it.
        per_problem: logged programs of a problem.
        right: share of them that is right, rounded to a whole number.
        rewards: of a right and of a wrong program.
        data_seed: everything above is a function of it.

    Raises:
        InputError: a primitive named twice, more fixed than shown, too few functions for the splits, or rewards in the
            wrong order.
    """

    suggested: ClassVar[Mapping[str, int]] = {"values.samples": 32}  # its prompts are many and short

    def __init__(
        self,
        *,
        base: Annotated[int, Ge(4), Le(10)],
        primitives: Annotated[list[Primitive], Len(1)],
        steps: Annotated[int, Ge(2), Le(3)],
        shown: Annotated[int, Ge(1), Le(8)],
        fixed: Annotated[int, Ge(0), Le(8)],
        longest: Annotated[int, Ge(SHORTEST_LIST), Le(LONGEST_LIST)],
        hidden: Annotated[int, Ge(1), Le(32)],
        problems: Annotated[int, Ge(1)],
        val_problems: Annotated[int, Ge(1)],
        val_fraction: Annotated[float, Gt(0), Lt(0.5)],
        split: Literal["val", "test"],
        per_problem: Annotated[int, Ge(1)],
        right: UnitInterval,
        rewards: Annotated[list[float], Len(2, 2)],
        data_seed: Annotated[int, Ge(0)],
    ):
        if len(set(primitives)) < len(primitives):
            raise InputError(f"data.primitives={primitives}: a word is named twice; name each of them once")
        if fixed >= shown:
            raise InputError(
                f"data.fixed={fixed}: at least one of the data.shown={shown} examples must differ by prompt"
            )
        if rewards[0] <= rewards[1]:
            raise InputError(f"data.rewards={rewards}: expected [right, wrong] with right above wrong, as [0, -1]")
        self.splits: tuple[str, ...] = ("train", "val", "test") if split == "val" else ("train", "val")
        self.chat_template = _TEMPLATE
        self.vocabulary = [*_SPECIAL, "->", ";", "|", *PRIMITIVES, *map(str, range(base))]
        self.functions = enumerate_functions(base, tuple(primitives), steps)
        self.side = split_of(self.functions, val_fraction, data_seed)
        self._sizes = {"train": problems, "val": val_problems, "test": val_problems}
        self._shown, self._longest, self._hidden, self._validated = shown, longest, hidden, split
        self._fixed = fixed_lists(base, fixed)
        self._per_problem, self._right = per_problem, round(right * per_problem)
        self._rewards, self._seed = rewards, data_seed
        self.right_and_wrong = (float(rewards[0]), float(rewards[1]))
        self._single = [(step,) for name in primitives for step in steps_of(name, base)]
        self._on_fixed = {p: [run(p, xs, base) for xs in self._fixed] for p in ((), *self._single)}
        self._expect_functions(len(primitives), val_fraction)

    def _expect_functions(self, words: int, fraction: float) -> None:
        found = {side: int((self.side == number).sum()) for number, side in enumerate(SIDES)}
        if found["train"] < 2 or not (found["val"] and found["test"]):
            count = ", ".join(f"{number} of {side}" for side, number in found.items())
            raise InputError(
                f"data.primitives of {words} words with data.val_fraction={fraction} give too few functions: {count}; "
                "name more primitives, or raise data.steps or data.val_fraction"
            )

    def load(self, split: str) -> Iterator[Example]:
        """Yield one example per problem; "val" stands for the split that `data.split` names.

        `Example.columns` holds `steps`, those of the shortest solution, and `solutions`, the number of programs of at
        most `data.steps` steps, none of them idle, that solve it.
        """
        side = self._validated if split == "val" else split
        rng = np.random.default_rng([self._seed, 7, SIDES.index(side)])
        for index, problem in enumerate(self.problems(side)):
            f = problem.function
            right = [True] * self._right + [False] * (self._per_problem - self._right)
            right = rng.permutation(right).tolist()
            solutions = iter(self._solutions(f, rng))
            said = [next(solutions) if ok else self._mistake(f, side, rng) for ok in right]
            prompt = problem.prompt()
            tests = [{"input": list(xs), "output": list(ys)} for xs, ys in problem.hidden]
            yield Example(
                messages=[{"role": "user", "content": prompt}],
                completions=[[{"role": "assistant", "content": spell(program)}] for program in said],
                rewards=[float(self._rewards[0 if ok else 1]) for ok in right],
                prompt_id=prompt,
                answer={"base": self.functions.base, "tests": tests},
                source=f"programs:{side}:{index}",
                columns={"steps": int(self.functions.least[f]), "solutions": len(self.functions.programs[f])},
            )

    def problems(self, side: str) -> Iterator[SynthesisProblem]:
        """Yield the problems of train, val or test, each split drawn on its own so that sizes do not affect each other.

        The number of steps is drawn first, n with a chance proportional to n squared, then one of the functions that
        need so many: there are few functions of one step, and they are soon learnt.
        """
        number = SIDES.index(side)
        rng = np.random.default_rng([self._seed, number])
        least = self.functions.least
        by_steps = [np.flatnonzero((self.side == number) & (least == n)) for n in np.unique(least)]
        by_steps = [several for several in by_steps if len(several)]
        weights = np.array([least[several[0]] ** 2 for several in by_steps], np.float64)
        for _ in range(self._sizes[side]):
            function = int(rng.choice(by_steps[int(rng.choice(len(by_steps), p=weights / weights.sum()))]))
            probes = self.functions.telling_probes(function, self._hidden, rng)
            lists = [self.functions.output(0, i) for i in probes]
            hidden = [(xs, self.functions.output(function, i)) for xs, i in zip(lists, probes, strict=True)]
            yield SynthesisProblem(function, self._examples(function, set(lists), rng), hidden)

    def _examples(self, function: int, hidden: set[Digits], rng: np.random.Generator) -> list[tuple[Digits, Digits]]:
        """Return the examples that a prompt shows: none is hidden, and if possible no other single step fits them."""
        program, base = self.functions.programs[function][0], self.functions.base
        fixed = [run(program, xs, base) for xs in self._fixed]
        rivals = [p for p, out in self._on_fixed.items() if out == fixed and self.functions.number[p] != function]
        for _ in range(TRIES):
            lists = list(self._fixed)
            while len(lists) < self._shown:
                xs = tuple(rng.integers(0, base, rng.integers(SHORTEST_LIST, self._longest + 1)).tolist())
                if xs not in hidden and xs not in lists:
                    lists.append(xs)
            made = [*fixed, *(run(program, xs, base) for xs in lists[len(fixed) :])]
            if not any(all(run(p, xs, base) == ys for xs, ys in zip(lists, made, strict=True)) for p in rivals):
                break
        return list(zip(lists, made, strict=True))

    def _solutions(self, function: int, rng: np.random.Generator) -> Iterator[Program]:
        """Yield the programs that compute a function in random order, over and over."""
        programs = self.functions.programs[function]
        while True:
            yield from (programs[int(i)] for i in rng.permutation(len(programs)))

    def _mistake(self, function: int, side: str, rng: np.random.Generator) -> Program:
        """Return a wrong program: a right one with one step exchanged, or a program of another function.

        In the training split it computes no held-out function.
        """
        allowed = self.side <= 0 if side == "train" else np.ones(len(self.side), bool)
        if rng.random() < 0.5:
            for _ in range(TRIES):
                program = list(self._one(self.functions.programs[function], rng))
                program[int(rng.integers(len(program)))] = self._one(self._single, rng)[0]
                other = self.functions.number[tuple(program)]
                if other != function and allowed[other]:
                    return tuple(program)
        others = np.flatnonzero((self.side == SIDES.index(side)) | (self.side == 0))
        other = int(rng.choice(others[others != function]))
        return self._one(self.functions.programs[other], rng)

    @staticmethod
    def _one(programs: Sequence[Program], rng: np.random.Generator) -> Program:
        return programs[int(rng.integers(len(programs)))]


def _words(xs: Digits) -> str:
    return " ".join(map(str, xs))
