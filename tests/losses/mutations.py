"""`python -m tests.losses.mutations [LOSS ...]` changes one operator of a loss at a time; it counts what no test finds.

A mutant is a loss function, or a helper in its file, with one change: another arithmetic, comparing or logical
operator, a number one larger, a `detach()` or a `masked_fill` left out, an absolute value for a square. It gets a
process of its own. First the loss is compared with its naive loop, in value, count and gradient, which finds most; the
others run under the quick tests of this folder until one fails. What is logged beside the loss (`metrics`) is not
changed. Survivors are printed with their lines; --out keeps the counts of earlier calls.
"""

import argparse
import ast
import contextlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType

import torch

from shiqrun import losses
from shiqrun.losses import pairs, residual
from tests.losses.naive import LOSSES, gradients, numbers, ragged
from tests.losses.rows import rows_of

HERE = Path(__file__).parent
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
DESCENDS = ("descending", "minimis", "arriv", "certain_labels", "stays_nearer", "finite_differences")
"""Words in the names of tests that take seconds."""
SHARED = "shared"
"""Stands for residual.py and pairs.py, which hold what several losses share."""
OWN = {"spo": "soft_policy", "spo_nonterminal": "soft_policy", "spo_advantage": "soft_policy", "ppo": "policy_gradient"}
"""Test files that hold a loss's naive loops, where naive.py does not; they are run first."""
LEFT_OUT = ("detach", "masked_fill")
LOGGED = (
    "metrics",
    "_metrics",
    "preference_metrics",
    "update_metrics",
    "_share_without_contrast",
    "_sum_with_q_metrics",
)
"""Names whose values are logged; the loss does not depend on them."""


class Mutator(ast.NodeTransformer):
    """Makes change number `wanted` of those that are possible; counts them in `seen`, and says what it did."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.seen, self.did = wanted, 0, ""

    def _now(self, node: ast.AST, what: str) -> bool:
        self.seen += 1
        if self.seen - 1 != self.wanted:
            return False
        self.did = f"line {getattr(node, 'lineno', 0)}: {what}"
        return True

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        return node if names & {*LOGGED} else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        """What refuses a batch is tested by its message, not here."""
        return node if any(isinstance(n, ast.Raise) for n in node.body) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in LOGGED:
            return node
        if name in LEFT_OUT and self._now(node, f"without .{name}()"):
            return node.func.value
        if name == "square" and self._now(node, "abs for square"):
            node.func.attr = "abs"
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        return self._swap(node, node.op, "op")

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        return self._swap(node, node.op, "op")

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        other = SWAPS.get(type(node.ops[0]))
        if other and self._now(node, f"{other.__name__} for {type(node.ops[0]).__name__}"):
            node.ops[0] = other()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        axis = isinstance(node.operand, ast.Constant) and node.operand.value == 1  # the last of two is the second
        if not axis and self._now(node, f"without {type(node.op).__name__}"):
            return node.operand
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        if number and self._now(node, f"{node.value + 1} for {node.value}"):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def _swap(self, node: ast.AST, op: ast.AST, field: str) -> ast.AST:
        other = SWAPS.get(type(op))
        if other and self._now(node, f"{other.__name__} for {type(op).__name__}"):
            setattr(node, field, other())
        return self.generic_visit(node)


def body_of(function: FunctionType) -> ast.FunctionDef:
    """The function's tree, without decorators, docstring and defaults, which stay as they are."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    tree.decorator_list = []
    tree.body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    for argument in [*tree.args.args, *tree.args.kwonlyargs]:
        argument.annotation = None
    tree.args.defaults, tree.args.kw_defaults, tree.returns = [], [None] * len(tree.args.kwonlyargs), None
    return tree


def mutants(function: FunctionType) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield (what changes, what changes it) for every mutant of a function; the function object stays the same."""
    counter = Mutator()
    counter.visit(body_of(function))
    for n in range(counter.seen):
        made = Mutator(n)
        tree = made.visit(body_of(function))
        module = ast.fix_missing_locations(ast.Module([tree], []))
        scope: dict[str, object] = {}
        exec(compile(module, function.__code__.co_filename, "exec"), function.__globals__, scope)
        yield f"{function.__name__}, {made.did}", lambda new=scope[function.__name__]: _become(function, new)


def _become(function: FunctionType, other: FunctionType) -> None:
    function.__code__ = other.__code__


def functions_of(name: str) -> list[FunctionType]:
    """The loss and the helpers of its file that it calls, and what those call; or all that several losses share."""
    if name == SHARED:
        both = [(f, module.__name__) for module in (residual, pairs) for f in vars(module).values()]
        return [f for f, module in both if inspect.isfunction(f) and f.__module__ == module]
    loss = inspect.unwrap(getattr(losses, name))
    found, new = [loss], [loss]
    while new:
        called = {n.id for f in new for n in ast.walk(body_of(f)) if isinstance(n, ast.Name)} - {*LOGGED}
        own = [f for n, f in vars(sys.modules[loss.__module__]).items() if n in called and inspect.isfunction(f)]
        own = [inspect.unwrap(f) for f in own]  # the code of a decorated function is its decorator's
        new = [f for f in own if f.__module__ == loss.__module__ and f not in found]
        found += new
    return found


def differs_from_naive(name: str) -> bool:
    """Whether a form of the loss differs from its naive loop, or fails."""
    for form, (loss, naive) in LOSSES.items():
        if name not in (form.partition("-")[0].removesuffix("_group_mean"), SHARED):
            continue
        batch, policy, reference = ragged()
        total, count = naive(rows_of(batch, policy, reference))
        expected = torch.autograd.grad(total, numbers(policy), materialize_grads=True)
        try:
            terms = loss(batch, policy, reference)
            found = gradients(terms, policy)
        except Exception:
            return True
        same = torch.allclose(terms.total, total) and abs(float(terms.count) - float(count)) < 1e-9
        if not (same and all(map(torch.allclose, found, expected))):
            return True
    return False


def noticed(name: str, change: Callable[[], None], alone: bool = False) -> bool:
    """Whether a mutant is found, in a process of its own, by the naive loop or, unless that is alone, by a test."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            change()
            found = differs_from_naive(name) or (not alone and fails_a_test(name))
        os._exit(int(found))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def fails_a_test(name: str) -> bool:
    """Whether a test of this folder fails; those that descend, or need further packages, are left out."""
    import pytest

    out = ("against_trl", "kto_against_trl", "turns", "math_page", "policy_gradient_optimum")
    ignored = [f"--ignore={HERE / f'test_{name}.py'}" for name in out]
    quick = " and ".join(f"not {word}" for word in DESCENDS)
    own = [str(HERE / f"test_{OWN[name]}.py")] if name in OWN else []
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", quick, *ignored]
    return any(pytest.main([*options, *paths]) for paths in (own, [str(HERE)]) if paths)


def main() -> None:
    """Print, for each loss, the number of mutants and those that nothing noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loss", nargs="*", default=[*losses.__all__, SHARED])
    parser.add_argument("--naive", action="store_true", help="compare with the naive loops alone; half a minute")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    if noticed(asked.loss[0], lambda: None, asked.naive):
        raise SystemExit("a test fails although nothing was changed; run pytest tests/losses")
    for name in asked.loss:
        changes = [mutant for function in functions_of(name) for mutant in mutants(function)]
        alive = [what for what, change in changes if not noticed(name, change, asked.naive)]
        known[name] = {"mutants": len(changes), "survivors": alive}
        print(f"{name}: {len(changes)} mutants, {len(alive)} survive", *alive, sep="\n    ", flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(known, indent=1))
    total = sum(row["mutants"] for row in known.values())
    left = sum(len(row["survivors"]) for row in known.values())
    print(f"{len(known)} losses: {total} mutants, {left} survive")


if __name__ == "__main__":
    main()
