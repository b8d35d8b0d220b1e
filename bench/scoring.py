"""Peak memory and time of chunked against dense scoring, forward and backward, each in a process of its own.

`python -m bench.scoring [--json]`. Memory is the high-water mark (VmHWM) above that of the finished inputs, so the
gradients of hidden states and weight count in both.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from shiqrun.models.scoring import chunk_rows, score_actions

WAYS = ("chunked", "dense")


def high_water_mark() -> float:
    """Largest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def dense(
    hidden: torch.Tensor, weight: torch.Tensor, bias: None, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logit, log_partition) from the logits of all actions at once."""
    logits = hidden @ weight.t()
    return logits.gather(-1, targets[:, None]).squeeze(-1), logits.logsumexp(-1)


def measured(way: str, actions: int, vocabulary: int, width: int) -> dict[str, float]:
    """Peak memory above the inputs (MiB) and wall time (s) of one forward and backward pass in this process."""
    torch.manual_seed(0)
    hidden = torch.randn(actions, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (actions,))
    base, start = high_water_mark(), time.perf_counter()
    logit, log_partition = (score_actions if way == "chunked" else dense)(hidden, weight, None, targets)
    (logit - log_partition).sum().backward()
    return {"seconds": time.perf_counter() - start, "peak_mib": high_water_mark() - base}


def main() -> None:
    """Runs both ways and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("actions", 4096), ("vocabulary", 128_256), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    args = parser.parse_args()
    size = {name: getattr(args, name) for name in ("actions", "vocabulary", "width")}
    if args.way:
        print(json.dumps(measured(args.way, **size)))
        return
    found = {}
    for way in WAYS:
        words = [f"--{name}={value}" for name, value in size.items()]
        command = [sys.executable, "-m", "bench.scoring", f"--way={way}", *words]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if args.json:
        print(json.dumps({**size, "threads": torch.get_num_threads(), **found}))
        return
    rows = chunk_rows(args.vocabulary, "cpu")
    table = Table(title=f"{args.actions} actions, vocabulary {args.vocabulary}, width {args.width}, float32 on the CPU")
    for column in ("scoring", "peak MiB", "seconds"):
        table.add_column(column, justify="left" if column == "scoring" else "right")
    for way, numbers in found.items():
        label = f"{way} ({rows} rows)" if way == "chunked" else way
        table.add_row(label, f"{numbers['peak_mib']:.0f}", f"{numbers['seconds']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
