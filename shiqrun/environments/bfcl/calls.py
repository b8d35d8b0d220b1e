"""`calls_in` parses the function calls in a policy's text, which are never evaluated as Python.

A message is a list of calls, `[f(a=1), g()]`, or one call; anything else is prose. A call runs only if its function is
documented and its arguments are literals; any other is refused and answered by an error, like a call that fails.
"""

import ast
import warnings
from collections.abc import Set
from dataclasses import dataclass

LONGEST_MESSAGE = 16_384  # characters
MOST_CALLS = 64  # in a message; the longest reference answer of a turn has 7


@dataclass(frozen=True)
class Call:
    """A call is a function call that may run; its `text` parses to the same call."""

    name: str
    text: str


@dataclass(frozen=True)
class Refusal:
    """A refusal is a function call that may not run, and why; the policy gets its `answer` instead of a result."""

    text: str
    why: str

    @property
    def answer(self) -> str:
        """Return the refusal in the backends' form of an error."""
        return f"Error during execution: {self.why}"


def calls_in(text: str, documented: Set[str]) -> list[Call | Refusal] | None:
    """Return the function calls of a message in order; None for prose, that is for any text that parses to no call.

    A message that is too long or has too many calls becomes one refusal: nothing of it runs.
    """
    if len(text) > LONGEST_MESSAGE:
        why = f"the message has {len(text)} characters, the limit is {LONGEST_MESSAGE}"
        return [Refusal(text[:40] + "...", why)] if text.lstrip()[:1] == "[" or "(" in text[:200] else None
    try:
        with warnings.catch_warnings(action="ignore"):  # the policy's text may hold invalid escapes
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    if not nodes or not all(isinstance(node, ast.Call) for node in nodes):
        return None
    if len(nodes) > MOST_CALLS:
        return [Refusal(text[:40] + "...", f"{len(nodes)} calls in a message, the limit is {MOST_CALLS}")]
    return [_check_call(node, documented) for node in nodes if isinstance(node, ast.Call)]


def _check_call(node: ast.Call, documented: Set[str]) -> Call | Refusal:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):  # Python writes no integer of more than 4300 digits
        return Refusal("...", "the call is nested too deeply, or a number in it is too long")
    if not isinstance(node.func, ast.Name):
        return Refusal(text, "only a plain function name can be called")
    if node.func.id not in documented:
        return Refusal(text, f"there is no function {node.func.id}")
    try:
        arguments(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return Refusal(text, f"the arguments of {node.func.id} must be literal values, each given once")
    return Call(node.func.id, text)


def arguments(node: ast.Call) -> tuple[list[object], dict[str, object]]:
    """Return the values of a call's arguments, (positional, by keyword).

    Raises:
        ValueError: an argument is no literal, or a keyword is given twice.
    """
    keywords: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in keywords:
            raise ValueError("unpacked or repeated keyword")
        keywords[keyword.arg] = ast.literal_eval(keyword.value)
    return [ast.literal_eval(value) for value in node.args], keywords
