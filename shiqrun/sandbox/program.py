"""A process forked for one program runs the code of a request as its main module, or calls a function defined there.

Its descriptors are 0 for input, 1 for output, 2 for errors and 3 for the values of calls. Nothing that it reports is
trusted: it sends text and values, and the process that asked compares them.
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
"""Exit codes that choose a verdict; a program may exit with the same ones."""


def run(request: dict[str, Any]) -> NoReturn:
    """Run the program of a request in this forked process, then end the process."""
    random.seed(0)  # so that a score depends on the program alone
    code = FAILED
    try:
        code = _run_to_exit_code(request)
    finally:  # also where reporting an error fails
        os._exit(code)


def _run_to_exit_code(request: dict[str, Any]) -> int:
    try:
        code = _run(request)
        return _end_interpreter() or code
    except SystemExit as left:
        return _end_interpreter() or _exit_code(left.code)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        traceback.print_exc(limit=-3)
        return _end_interpreter() or FAILED


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
        _send_values([_call_function(module, request["entry_point"], *call) for call in calls])
    return 0


def _call_function(module: ModuleType, name: str, arguments: Any, keywords: Any) -> list[Any]:
    """Call a function of the program; return `[True, encoded value]`, or `[False, name of the exception]`."""
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


def _send_values(found: list[Any]) -> None:
    left = json.dumps(found).encode()
    while left:
        left = left[os.write(VALUES, left) :]


def _end_interpreter() -> int:
    """Do what an interpreter does at its end (wait for threads, run exit functions, flush); return 0, or FAILED."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        return FAILED
    return 0


def _exit_code(code: Any) -> int:
    if code is None:
        return 0
    return int.__and__(code, 0xFF) if isinstance(code, int) else FAILED
