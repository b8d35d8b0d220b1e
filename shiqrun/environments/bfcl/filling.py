"""Arguments taken from the reference answer make BFCL easier, for policies too small to copy names and numbers.

With `data.arguments=reference` the policy chooses functions and their order, and the reference answer fills in the
arguments. Results are no results of the benchmark: it is a smaller problem on the same dialogues and backends.
"""

import ast
from collections.abc import Sequence


class Filler:
    """A filler gives the calls of one episode their arguments, taken from the reference answer.

    Args:
        truth: calls of the reference answer, by turn.
    """

    def __init__(self, truth: Sequence[Sequence[str]]) -> None:
        self.truth = truth
        self._turn, self._used = 0, set[int]()

    def fill(self, name: str, turn: int) -> str:
        """Return the reference's next call of a function in a turn, else in another, else a call without arguments."""
        if turn != self._turn:
            self._turn, self._used = turn, set()
        for n, call in enumerate(self.truth[turn]):
            if n not in self._used and function_of(call) == name:
                self._used.add(n)
                return call
        others = (call for calls in self.truth for call in calls if function_of(call) == name)
        return next(others, f"{name}()")


def function_of(call: str) -> str:
    """Return the name of the function in a call."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return node.func.id


def without_arguments(call: str) -> str:
    """Return a function call without its arguments."""
    return f"{function_of(call)}()"
