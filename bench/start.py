"""How long `shiqrun` takes to answer, against the bare interpreter: median wall time of a few runs.

`python -m bench.start [--json]`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

RUNS = 5
SHIQRUN = str(Path(sys.executable).parent / "shiqrun")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "shiqrun --help": [SHIQRUN, "--help"],
    "shiqrun --version": [SHIQRUN, "--version"],
    "shiqrun train --help": [SHIQRUN, "train", "--help"],
    "shiqrun train --cfg job": [SHIQRUN, "train", "--cfg", "job"],
}


def seconds(command: list[str]) -> float:
    """Median wall time of a command, seconds; one run before warms the file cache."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    """Times every command and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    found = {name: seconds(command) for name, command in COMMANDS.items()}
    if args.json:
        print(json.dumps(found))
        return
    table = Table("command", title=f"median wall time of {RUNS} runs")
    table.add_column("ms", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{1000 * value:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
