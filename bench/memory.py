"""This benchmark compares the memory that a dry run prints with what runs take at their peak: `python -m bench.memory`.

Each run has a process of its own: `shiqrun train` for a few steps of several micro-batches, with checkpoint and saved
policy, on a model with random weights. Its peak is the high-water mark of resident memory above what was resident
after the imports; the estimate is that of `dry_run=true` without the part of the program. memory.json is written into
--out beside what it held before. The largest run needs 12 GB of memory and 10 GB of disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench.big import prepare_big
from bench.clock import environment, forget_peak, resident
from bench.show import keep_row
from shiqrun.console import console

RUNS = {
    "tiny": ("tiny", ()),
    "0.5B": ("0.5B", ()),
    "0.5B, checkpointing": ("0.5B", ("model.gradient_checkpointing=true",)),
    "0.5B, lora_r=16": ("0.5B", ("model.lora_r=16",)),
    "1.2B, lora_r=16": ("1.2B", ("model.lora_r=16",)),
}
"""Runs by name: the shape, and settings beside those that all have."""
TOKENS, PAIRS, STEPS, LONGEST = 256, 4, 2, 256


def measure(folder: str, name: str, device: str = "cpu", precision: str = "fp32") -> dict[str, Any]:
    """Train in this process; return estimate and peak in bytes, and the parts of the estimate.

    Args:
        folder: of `prepare_big`.
        name: of the run.
        device: cpu (its peak is that of resident memory) or cuda (what torch allocated).
        precision: fp32 or bf16.
    """
    from bench.ours import Settings, load_run
    from shiqrun.training import run as training
    from shiqrun.training.memory import PROGRAM, estimate
    from shiqrun.training.memory_of_run import needs

    before = forget_peak()
    same: dict[str, Any] = {"folder": folder, "steps": STEPS, "pairs": PAIRS, "algo": "shiq"}
    extra = (*RUNS[name][1], f"trainer.micro_batch_tokens={TOKENS}")
    settings = Settings(**same, device=device, precision=precision, extra=extra)
    with tempfile.TemporaryDirectory() as directory:
        run = load_run(settings, Path(directory) / "run")
        loading = resident("VmHWM") - before
        shape, use = needs(run)
        parts = estimate(shape, use)
        training.execute(run, resume=False)
    peak = (resident("VmHWM") - before) * 2**20 if device == "cpu" else torch.cuda.max_memory_allocated()
    return {
        "estimate": sum(parts.values()) - PROGRAM[use.device],
        "peak": peak,
        "loading": loading * 2**20,
        "tokens": use.tokens,
        "actions": use.actions,
        "parts": parts,
    }


def ask(folder: Path, name: str) -> dict[str, Any]:
    """Return the measurement of one run, made in a process of its own.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    command = [sys.executable, "-m", "bench.memory", "--measure", str(folder), name]
    done = subprocess.run(command, env=environment(1, tuned=False), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure runs and print estimate and peak of each, or measure one in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=[name for name in RUNS if name != "tiny"], choices=RUNS)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    args = parser.parse_args()
    if args.measure:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        print("\n" + json.dumps(measure(*args.measure)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "memory.json"
    for shape in dict.fromkeys(RUNS[name][0] for name in args.runs):
        with tempfile.TemporaryDirectory() as folder:
            prepare_big(Path(folder), shape, pairs=PAIRS * STEPS + 2, longest=LONGEST)
            for name in (name for name in args.runs if RUNS[name][0] == shape):
                found = keep_row(file, name, ask(Path(folder), name))
    table = Table("run, fp32 on a CPU", "tokens", "estimate, GB", "peak, GB", "ratio")
    for name, row in found.items():
        sizes = (f"{row[key] / 1e9:.2f}" for key in ("estimate", "peak"))
        table.add_row(name, str(row["tokens"]), *sizes, f"{row['estimate'] / row['peak']:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
