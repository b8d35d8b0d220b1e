"""This benchmark measures start-up, the time `shiqrun` takes to answer: `python -m bench.start`.

The commands run in turn, after a round that warms the file cache. Printed are the median wall time with minimum and
maximum, the CPU time (user and system), and the large packages that were imported on the way. start.json is written
into --out. Options: `--json`, `--repeats N`.

`--big` measures the dry run of a model with the shape of Qwen2.5-0.5B and random weights instead: the first one with an
empty cache, and later ones.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from bench.big import prepare_big
from shiqrun.console import console

SHIQRUN = str(Path(sys.executable).parent / "shiqrun")
BARE = "python -c pass"
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    BARE: (["-c", "pass"], None),
    "shiqrun --help": ([SHIQRUN, "--help"], 0.1),
    "shiqrun --version": ([SHIQRUN, "--version"], 0.1),
    "shiqrun train --help": ([SHIQRUN, "train", "--help"], 0.5),
    "shiqrun train --cfg job": ([SHIQRUN, "train", "--cfg", "job"], 0.5),
    "shiqrun train dry_run=true": ([SHIQRUN, "train", "dry_run=true", "logger=none"], None),
}
"""What the interpreter is given, and the most seconds over the bare interpreter that issue D asks for."""
LARGE = ("torch", "transformers", "lightning", "hydra", "datasets", "wandb", "peft", "matplotlib")


def time_command(words: Sequence[str]) -> tuple[float, float]:
    """Return (wall, CPU) seconds of one run of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def heavy_imports(words: Sequence[str]) -> list[str]:
    """Return the large packages that a command imports."""
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in LARGE if name in names]


def measure(repeats: int) -> dict[str, dict[str, Any]]:
    """Return the start-up times and large imports of every command."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(repeats + 1):
        for name, (words, _) in COMMANDS.items():
            times[name].append(time_command(words))
    found = {}
    for name, (words, most) in COMMANDS.items():
        wall, cpu = zip(*times[name][1:], strict=True)
        clocks = {"wall": median(wall), "least": min(wall), "most": max(wall), "cpu": median(cpu)}
        found[name] = {**clocks, "allowed_over_bare": most, "imports": heavy_imports(words)}
    return found


def measure_big(repeats: int) -> dict[str, dict[str, Any]]:
    """Return the times of the first and of later dry runs of a model of half a billion parameters.

    The model, about 1 GB, was just written, so that all of them read its files from memory.

    Args:
        repeats: number of later dry runs.
    """
    with tempfile.TemporaryDirectory() as directory:
        return _dry_runs(Path(directory), repeats)


def _dry_runs(folder: Path, repeats: int) -> dict[str, dict[str, Any]]:
    prepare_big(folder, "0.5B", pairs=200)
    words = [SHIQRUN, "train", "dry_run=true", "logger=none", "algo=shiq", "data=jsonl", "data.val_fraction=0.1"]
    words += [f"data.path={folder / 'pairs.jsonl'}", "model=hf", f"model.path={folder / 'model'}", "hardware=cpu"]
    words += [f"cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}"]
    first, *later = [time_command(words) for _ in range(1 + repeats)]
    found = {}
    for name, times in (("0.5B, first dry run", [first]), ("0.5B, later dry runs", later)):
        wall, cpu = zip(*times, strict=True)
        clocks = {"wall": median(wall), "least": min(wall), "most": max(wall), "cpu": median(cpu)}
        found[name] = {**clocks, "allowed_over_bare": None, "imports": []}
    return found


def main() -> None:
    """Time the start-up of every command and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--big", action="store_true", help="dry runs of a model of half a billion parameters")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    args = parser.parse_args()
    found = measure_big(args.repeats) if args.big else measure(args.repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / ("start_big.json" if args.big else "start.json")).write_text(
        json.dumps(found, indent=1), encoding="utf-8"
    )
    if args.json:
        print(json.dumps(found))
        return
    table = Table("command", title=f"milliseconds, median of {args.repeats} runs")
    for column in ("wall", "CPU", "wall over bare", "allowed"):
        table.add_column(column, justify="right")
    table.add_column("imports")
    for name, row in found.items():
        allowed = "" if row["allowed_over_bare"] is None else f"{1000 * row['allowed_over_bare']:.0f}"
        over = 1000 * (row["wall"] - found[BARE]["wall"]) if BARE in found else math.nan
        wall = f"{1000 * row['wall']:.0f} ({1000 * row['least']:.0f}-{1000 * row['most']:.0f})"
        table.add_row(name, wall, f"{1000 * row['cpu']:.0f}", f"{over:.0f}", allowed, ", ".join(row["imports"]))
    console.print(table)


if __name__ == "__main__":
    main()
