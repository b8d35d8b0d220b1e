"""`python -m bench.gpu_check` checks in at most 8 minutes on one GPU what a CPU cannot show: `make gpu-check`.

Each section (`bench.gpu_sections`) has a process of its own and a limit of time, so that one that fails, hangs or runs
out of memory leaves the others alone. gpu_check.json is written into --out after each section. The exit code is 1 if a
section failed. `--device cpu --small` rehearses it without a GPU: sections that need one say so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.show import keep_row
from shiqrun.cli import ENVIRONMENT
from shiqrun.console import console

LIMIT = 480.0
"""Seconds of all sections together."""
MARK = "gpu_check: "


def run_section(name: str, device: str, small: bool) -> dict[str, Any]:
    """Run one section in this process; return its outcome, its figures and its seconds."""
    from bench.gpu_sections import SECTIONS, Failed, Skipped

    began, figures = time.perf_counter(), {}
    try:
        figures = SECTIONS[name][0](device, small)
        outcome = "passed"
    except Skipped as why:
        outcome = f"skipped: {why}"
    except Failed as why:
        outcome = f"failed: {why}"
    except Exception as error:  # any library may raise anything, and the other sections are to run
        outcome = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {"outcome": outcome, "figures": figures, "seconds": time.perf_counter() - began}


def ask(name: str, device: str, small: bool, limit: float) -> dict[str, Any]:
    """Run one section in a process of its own, which is killed with its children after `limit` seconds."""
    command = [sys.executable, "-m", "bench.gpu_check", "--device", device, "--section", name, *["--small"] * small]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **os.environ},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"outcome": f"failed: took more than {limit:.0f} s", "figures": {}, "seconds": limit}
    said = [line for line in out.splitlines() if line.startswith(MARK)]
    if said:
        found: dict[str, Any] = json.loads(said[-1].removeprefix(MARK))
        return found
    last = (err.strip().splitlines() or ["nothing was said"])[-1]
    seconds = time.perf_counter() - began
    return {"outcome": f"failed: ended with code {process.returncode}: {last}", "figures": {}, "seconds": seconds}


def check(names: Sequence[str], device: str, small: bool, file: Path) -> dict[str, dict[str, Any]]:
    """Run sections one after the other and write the outcome of each into a file; return all outcomes."""
    from bench.gpu_sections import SECTIONS

    began, found = time.perf_counter(), {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    for name in names:
        left = LIMIT - (time.perf_counter() - began)
        row = {"outcome": f"skipped: the {LIMIT:.0f} s are over", "figures": {}, "seconds": 0.0}
        if left > 5:
            row = ask(name, device, small, min(left, SECTIONS[name][1]))
        found = keep_row(file, name, row)
        console.print(f"{name}: {row['outcome']}, {row['seconds']:.0f} s", highlight=False)
    return found


def table_of(found: dict[str, dict[str, Any]]) -> Table:
    """Return the outcomes and figures as a table."""
    table = Table("section", "outcome", "figure", "value")
    for name, row in found.items():
        lines = list(row["figures"].items()) or [("", "")]
        for k, (figure, value) in enumerate(lines):
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            table.add_row(*((name, row["outcome"]) if k == 0 else ("", "")), figure, shown)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that are asked for, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small models, for a rehearsal")
    parser.add_argument("--sections", nargs="+", help="only these")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    import torch

    from bench.gpu_sections import SECTIONS

    if unknown := set(args.sections or []) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --small rehearses the sections")
    if args.section:
        print("\n" + MARK + json.dumps(run_section(args.section, args.device, args.small)))
        return 0
    found = check(args.sections or list(SECTIONS), args.device, args.small, args.out / "gpu_check.json")
    console.print(table_of(found))
    return int(any(row["outcome"].startswith("failed") for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
