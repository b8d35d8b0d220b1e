"""Arguments taken from the reference answer: BFCL for policies too small to copy names and numbers.

The policy chooses functions and their order; `data.arguments=reference` says what they are called with. No figure of
the benchmark: it is a smaller problem on the same dialogues, backends and checker.
"""

import ast
from collections.abc import Sequence


class Filler:
    """The calls that bare names stand for, in one episode.

    Args:
        truth: the reference answer's calls, by turn.
    """

    def __init__(self, truth: Sequence[Sequence[str]]) -> None:
        self.truth = truth
        self._turn, self._used = 0, set[int]()

    def filled(self, name: str, turn: int) -> str:
        """The reference answer's next call of that function in this turn; else its first in another turn, else bare."""
        if turn != self._turn:
            self._turn, self._used = turn, set()
        for n, call in enumerate(self.truth[turn]):
            if n not in self._used and function_of(call) == name:
                self._used.add(n)
                return call
        others = (call for calls in self.truth for call in calls if function_of(call) == name)
        return next(others, f"{name}()")


def function_of(call: str) -> str:
    """The name that a call begins with."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return node.func.id


def bare(call: str) -> str:
    """The call without its arguments."""
    return f"{function_of(call)}()"
