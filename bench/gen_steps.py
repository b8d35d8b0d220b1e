"""This benchmark divides generation into reading prompts and a step: `python -m bench.gen_steps`.

One process draws from 128 prompts of 73 tokens by our generation and by `generate` of transformers, greedily and by
sampling, in turn, so that other work on the machine meets all of them: 2 tokens, then `--new` tokens. Printed are the
CPU seconds of the first, the CPU time of a further step, and what 64 tokens take at that rate.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table

from bench.gen import SAMPLED, build, by_generate, console, ours

FIRST, ALL = 2, 64
"""Tokens of the first measurement, and those that the table extrapolates to."""


def seconds(work: Callable[[int], Any], new: int) -> float:
    """Return the CPU time of drawing so many tokens for each prompt, seconds."""
    began = time.process_time()
    work(new)
    return time.process_time() - began


def main() -> None:
    """Measure the four ways in turn and print a table for each repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("A", "B"), default="A")
    for name, value in (("new", 10), ("repeats", 2), ("threads", 1), ("prompts", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.spread, args.device = 0.0, "cpu"
    torch.set_num_threads(args.threads)
    model, prompts = build(args)
    ways: dict[str, Callable[[int], Any]] = {
        "generate, greedy": lambda new: by_generate(model, prompts, new, len(prompts)),
        "shiqrun, greedy": lambda new: ours(model, prompts, new, 0.0),
        "generate, sampled": lambda new: by_generate(model, prompts, new, len(prompts), **SAMPLED),
        "shiqrun, sampled": lambda new: ours(model, prompts, new, 1.0),
    }
    for work in ways.values():
        work(FIRST)
    for _ in range(args.repeats):
        table, peer = Table(), 0.0
        for name in ("way", "first 2 tokens, s", "a step, ms", "64 tokens, s", "x generate"):
            table.add_column(name, justify="left" if name == "way" else "right")
        for number, (label, work) in enumerate(ways.items()):
            first = seconds(work, FIRST)
            step = (seconds(work, args.new) - first) / (args.new - FIRST)
            whole = first + (ALL - FIRST) * step
            peer = whole if number % 2 == 0 else peer
            table.add_row(label, f"{first:.2f}", f"{1e3 * step:.1f}", f"{whole:.1f}", f"{peer / whole:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
