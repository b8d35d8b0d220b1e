"""What a fork of the zygote does: runs a program as its main module, or defines its functions and calls one.

Its descriptors are input 0, output 1, errors 2 and, for what calls give, 3. Nothing it says is believed: it hands
over text and values, and whoever asked compares.
"""

import atexit
import json
import os
import random
import sys
import threading
import traceback
from types import ModuleType
from typing import Any, NoReturn

from shiqrun.sandbox.values import decode, encode

VALUES = 3
FAILED, NO_PROGRAM, OUT_OF_MEMORY = 1, 96, 98
"""Exit codes besides a program's own, which may be the same: they only choose a word."""


def run(request: dict[str, Any]) -> NoReturn:
    """Runs the program of a request and ends the process."""
    random.seed(0)  # a score depends on the program alone
    code = FAILED
    try:
        code = _ran(request)
    finally:  # also where telling of an error fails
        os._exit(code)


def _ran(request: dict[str, Any]) -> int:
    try:
        code = _run(request)
        return _end() or code
    except SystemExit as left:
        return _end() or _code(left.code)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        traceback.print_exc(limit=-3)
        return _end() or FAILED


def _run(request: dict[str, Any]) -> int:
    calls = request["calls"]
    try:
        code = compile(request["code"], "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return NO_PROGRAM
    module = ModuleType("__main__" if calls is None else "program")
    sys.modules[module.__name__] = module
    exec(code, module.__dict__)
    if calls is not None:
        _give([_called(module, request["entry_point"], *call) for call in calls])
    return 0


def _called(module: ModuleType, name: str, arguments: Any, keywords: Any) -> list[Any]:
    """`[True, form of the value]`, or `[False, name of the exception]`."""
    function = getattr(module, name, None)
    if function is None and hasattr(module, "Solution"):
        function = getattr(module.Solution(), name)  # the form of LeetCode's starter code
    if function is None:
        raise NameError(f"the program defines no {name}")
    try:
        return [True, encode(function(*decode(arguments), **decode(keywords)))]
    except MemoryError:
        raise
    except Exception as error:
        traceback.print_exc(limit=-3)
        return [False, type(error).__name__]


def _give(found: list[Any]) -> None:
    left = json.dumps(found).encode()
    while left:
        left = left[os.write(VALUES, left) :]


def _end() -> int:
    """What the interpreter does at its end: waits for threads, runs what was registered, prints what is left."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        return FAILED
    return 0


def _code(code: Any) -> int:
    if code is None:
        return 0
    return int.__and__(code, 0xFF) if isinstance(code, int) else FAILED
