"""A session runs calls on the real backends of `bfcl-eval`: some instances for the policy, others for the reference.

This module runs inside `bfcl.worker`. It calls the instances by `getattr` with literal arguments. The package's own
executor would evaluate text, and it keeps its instances in module globals that tell sessions apart by name only.
"""

import ast
import contextlib
import copy
import importlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from shiqrun.environments.bfcl.calls import arguments

LONGEST_RESULT = 16_384
"""Most characters of a result; longer ones are cut off there, and no result of a reference answer is that long."""
EMPTY = "no call"
NO_GROUND_TRUTH = "no reference answer"


class Session:
    """A session holds the backends of one episode, in the state that the calls so far have made.

    Args:
        sample: `initial_config`, `involved_classes`, `ground_truth` of the data set.
    """

    def __init__(self, sample: dict[str, Any]) -> None:
        self.truth: list[list[str]] = sample["ground_truth"]
        self.model, self.reference = _instances(sample), _instances(sample)
        self.results: list[str] = []  # of the policy's calls, all turns so far
        self.turn, self.called = 0, 0

    def run(self, call: str) -> str:
        """Run one of the policy's calls and return its result."""
        result = _execute(self.model, call)
        self.results.append(result)
        self.called += 1
        return result

    def end_turn(self) -> dict[str, Any]:
        """Judge the policy's turn as `multi_turn_checker` does, by states and results; return why it is wrong.

        A turn without reference answer is not counted: the official checker skips it.
        """
        from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import response_checker, state_checker

        calls = self.truth[self.turn]
        expected = [_execute(self.reference, call) for call in calls]
        self.turn, called, self.called = self.turn + 1, self.called, 0
        if not calls:
            return {"counted": False, "right": False, "why": NO_GROUND_TRUTH}
        if not called:
            return {"counted": True, "right": False, "why": EMPTY}
        found = state_checker(self.model, self.reference)
        if found["valid"]:
            found = response_checker(self.results, expected, self.turn - 1)
        why = found.get("error_type", "").removeprefix("multi_turn:").replace("_", " ")
        return {"counted": True, "right": bool(found["valid"]), "why": why}


def _instances(sample: dict[str, Any]) -> dict[str, Any]:
    """Return new instances of a BFCL sample's backend classes, in its initial state."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import CLASS_FILE_PATH_MAPPING, STATELESS_CLASSES

    made = {}
    for name in sample["involved_classes"]:
        made[name] = getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)()
        if name not in STATELESS_CLASSES:
            state = copy.deepcopy(sample["initial_config"].get(name, {}))
            made[name]._load_scenario(state, long_context=False)
    return made


def _execute(instances: dict[str, Any], call: str) -> str:
    """Run a function call and return its result as the official executor writes it."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    positional, keywords = arguments(node)
    name = node.func.id
    # If two classes have a function of one name, the later class answers, as in the official executor.
    owner = next(instance for instance in reversed([*instances.values()]) if callable(getattr(instance, name, None)))
    try:
        return _write_result(getattr(owner, name)(*positional, **keywords))[:LONGEST_RESULT]
    except MemoryError:
        raise
    except Exception as error:  # any other error of a backend is its answer
        return f"Error during execution: {error}"


def _write_result(result: Any) -> str:
    if isinstance(result, dict):
        with contextlib.suppress(TypeError, ValueError):
            return json.dumps(result)
    return str(result)


def official(sample: dict[str, Any], turns: Sequence[Sequence[Sequence[str]]]) -> bool:
    """Return the verdict of the official `multi_turn_checker` on calls by turn and step.

    The official checker evaluates text: the calls must have passed `bfcl.calls`.
    """
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    if len(turns) != len(sample["ground_truth"]):
        return False  # the official runner calls such an episode force-terminated
    with _reserve_name() as name:
        found = multi_turn_checker([*turns], sample["ground_truth"], sample, "multi_turn_base", name)
    return bool(found["valid"])


@contextlib.contextmanager
def _reserve_name() -> Iterator[str]:
    """Yield a unique model name for the module globals of `bfcl-eval`, and clear them of it afterwards."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils

    name = f"m{uuid.uuid4().hex}"
    try:
        yield name
    finally:
        for key in [key for key in vars(multi_turn_utils) if key.startswith(name)]:
            delattr(multi_turn_utils, key)
