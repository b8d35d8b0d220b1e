"""This benchmark traces steps of models with 7 and 8 billion parameters on up to 512 ranks: `python -m bench.scale`.

Nothing is allocated: `bench.traced` has fake tensors and a fake process group. Printed are the GB that a rank holds at
the peak of a micro-batch, by category, what fits a GPU of 80 GB, and the bytes that collectives pass, which must be
those of arithmetic. scale.json is written into --out after each trace; what it holds with as many tokens is not traced
again.

Traced are forward pass, scoring with a GPU's tiles, ShiQ's loss, backward pass, and the optimiser's first step, whose
own temporary memory is not counted. Not traced: gradient norms' exchange (a number), references other than cached
ones, evaluations, fragmentation of the allocator, NCCL's buffers, and the order in which a GPU overlaps collectives.

`--check` compares a small model on two real processes with its trace instead.
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.big import CONFIGS
from bench.show import keep_row
from bench.traced import CATEGORIES, Setting, Traced, trace
from bench.two_ranks import SMALL, SMALL_SETTING, measured
from shiqrun.console import console

SETTINGS = {
    "fp32": Setting(checkpointing=False),
    "fp32, checkpointing": Setting(),
    "weights=bf16": Setting(half=True, checkpointing=False),
    "weights=bf16, checkpointing": Setting(half=True),
}
"""Ways to train, by the words that set them; `fp32` computes in bfloat16 from float32 weights."""
CARD, PROGRAM = 80e9, 0.5 * 2**30
"""Bytes of a GPU, of which a tenth is left free, and of a process before it trains."""


def row_of(traced: Traced, seconds: float) -> dict[str, Any]:
    """Return a trace as JSON holds it.

    Raises:
        SystemExit: collectives passed other bytes than arithmetic says.
    """
    if traced.sent != traced.expected:
        raise SystemExit(f"collectives passed {traced.sent}, expected {traced.expected}")
    peak = sum(traced.held.values()) + PROGRAM
    return {"peak": peak, "fits": peak < 0.9 * CARD, "seconds": seconds, **traced._asdict()}


def check() -> dict[str, dict[str, float]]:
    """Return peak bytes of two real processes and those traced, for each way to train a small model.

    Raises:
        SystemExit: collectives passed other bytes than were traced.
    """
    found = {}
    for name, changes in (("fp32", {}), ("fp32, checkpointing", {"checkpointing": True})):
        setting = replace(SMALL_SETTING, **changes)
        traced, ranks = trace(SMALL, 2, setting), measured(setting)
        if any(rank["sent"] != traced.sent for rank in ranks):
            raise SystemExit(f"collectives passed {[rank['sent'] for rank in ranks]}, traced {traced.sent}")
        peaks = [float(rank["peak"]) for rank in ranks]
        found[name] = {"traced": float(sum(traced.held.values())), "measured": sum(peaks) / len(peaks)}
    return found


def tables(found: dict[str, Any], ranks: list[int]) -> list[Table]:
    """Return the tables of peaks, of categories and of communication."""
    peaks = Table("GB a rank at the peak", *(f"{n} ranks" if n > 1 else "1" for n in ranks))
    parts = Table("GB a rank, by category", "ranks", *CATEGORIES)
    sent = Table("GB through collectives a micro-batch", *next(iter(found.values()))["sent"])
    for name in dict.fromkeys(key.rpartition(" on ")[0] for key in found):
        rows = {n: found[f"{name} on {n}"] for n in ranks if f"{name} on {n}" in found}
        cells = (f"{row['peak'] / 1e9:.0f}" + " *" * (not row["fits"]) for row in rows.values())
        peaks.add_row(name, *cells)
        for n, row in rows.items():
            parts.add_row(name, str(n), *(f"{row['held'][part] / 1e9:.1f}" for part in CATEGORIES))
        last = list(rows.values())[-1]
        sent.add_row(name, *(f"{size / 1e9:.1f}" for size in last["sent"].values()))
    peaks.caption = "* does not fit 80 GB with a tenth left free"
    return [peaks, parts, sent]


def main() -> None:
    """Trace models on numbers of ranks, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["7B", "8B", "R7B"], choices=CONFIGS)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--check", action="store_true", help="compare with two real processes")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.check:
        checked = check()
        (args.out / "scale_check.json").write_text(json.dumps(checked, indent=1), encoding="utf-8")
        table = Table("small model on 2 ranks", "traced, MB", "measured, MB", "ratio")
        for name, row in checked.items():
            ratio = row["traced"] / row["measured"]
            table.add_row(name, f"{row['traced'] / 1e6:.0f}", f"{row['measured'] / 1e6:.0f}", f"{ratio:.2f}")
        console.print(table)
        return
    file, found = args.out / "scale.json", {}
    held = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for (model, (words, setting)), world in product(product(args.models, SETTINGS.items()), args.ranks):
        name = f"{model}, {words} on {world}"
        if held.get(name, {}).get("tokens") != args.tokens:
            began = time.perf_counter()
            row = row_of(
                trace(CONFIGS[model], world, replace(setting, tokens=args.tokens)), time.perf_counter() - began
            )
            held = keep_row(file, name, row | {"tokens": args.tokens})
        found[name] = held[name]
    for table in tables(found, args.ranks):
        console.print(table)


if __name__ == "__main__":
    main()
