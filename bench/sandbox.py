"""This benchmark measures the sandboxes that work here, in programs per second: `python -m bench.sandbox`.

The program reads a line and prints a sum of 1000 squares. The rounds of the backends alternate, after one that starts
the workers. A fresh interpreter for each program, without any limit, is measured beside them. Time is wall time: every
program is a process, and what counts is how many end; the spread shows how busy the machine was.
"""

import argparse
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from typing import Any, get_args

from rich.table import Table

from shiqrun.console import console
from shiqrun.sandbox.backends import Backend, Name
from shiqrun.sandbox.choice import why_unusable
from shiqrun.sandbox.pool import Pool
from shiqrun.sandbox.worker import Limits, Program

CODE = "n = int(input())\nprint(sum(i * i for i in range(n)))"
GIVEN, RIGHT = b"1000\n", b"332833500\n"
LIMITS = Limits(cpu=10, wall=60.0, memory=512 << 20, output=1 << 20)
FRESH = "fresh interpreter, unconfined"


def in_pool(pool: Pool, programs: int, tests: int) -> list[float]:
    """Return the wall seconds of each round of programs in a sandbox."""
    each = (Program(f"{CODE} # {i // tests}", GIVEN) for i in range(programs))
    outcomes = [*pool.map(lambda run, program: run(program, LIMITS), each)]
    assert all(outcome.output == RIGHT for outcome in outcomes), outcomes[0]
    return [outcome.wall for outcome in outcomes]


def fresh(workers: int, programs: int) -> list[float]:
    """Return the wall seconds of each round of programs in fresh interpreters without a sandbox."""

    def run(_: int) -> float:
        began = time.monotonic()
        command = [Backend("rlimits").interpreter, "-I", "-S", "-c", CODE]
        assert subprocess.run(command, input=GIVEN, capture_output=True, check=True).stdout == RIGHT
        return time.monotonic() - began

    with ThreadPoolExecutor(workers) as threads:
        return [*threads.map(run, range(programs))]


def measure(workers: int, programs: int, repeats: int, tests: int) -> dict[str, dict[str, Any]]:
    """Return, for every backend, programs per second by round and the median wall time of one program, ms."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as open_:
        working = [name for name in get_args(Name) if why_unusable(name) is None]
        pools = {name: open_.enter_context(Pool(Backend(name), workers)) for name in working}
        for pool in pools.values():
            in_pool(pool, 2 * workers, 1)
        for _ in range(repeats):
            for name in (*pools, FRESH):
                began = time.perf_counter()
                each = in_pool(pools[name], programs, tests) if name in pools else fresh(workers, programs)
                row = found.setdefault(name, {"rates": [], "milliseconds": []})
                row["rates"].append(programs / (time.perf_counter() - began))
                row["milliseconds"].append(1000 * median(each))
    return found


def main() -> None:
    """Measure the sandbox backends and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--programs", type=int, default=500, help="runs in one round")
    parser.add_argument("--tests", type=int, default=1, help="runs of a program, one after the other, as on its tests")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    found = measure(given.workers, given.programs, given.repeats, given.tests)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    table = Table(title=f"programs a second, {given.workers} workers, {given.tests} runs of each", title_justify="left")
    for column in ("", "median", "least", "most", "one takes, ms"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in found.items():
        numbers = (median(row["rates"]), min(row["rates"]), max(row["rates"]), median(row["milliseconds"]))
        table.add_row(name, *(f"{number:.0f}" for number in numbers[:3]), f"{numbers[3]:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
