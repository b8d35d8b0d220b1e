"""This benchmark measures what completions of one prompt share: `python -m bench.shared --model-path DIR`.

`shiqrun values` and `shiqrun pivotal` run on `data=programs`, and 64 completions of 8 tokens are drawn of each of 8
prompts of 512 tokens by a random Llama: with shared rows and with a row for each completion, each in a process of its
own, in turn. The process's CPU time of drawing alone is measured, and its memory above what it had before. Rewards of
both must be equal, but for random numbers that fall on the seam of two tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench.clock import environment, forget_peak, resident
from bench.gen import console, model_of
from shiqrun.estimates import prefix_sampler
from shiqrun.models.policy import Policy
from shiqrun.sampling import generate, sampler

PROGRAMS = ("data=programs", "reward=programs", "model=hf")
COMMANDS = {
    "values, 32 of each": ("values", "values.max_new_tokens=12", "values.batch_size=2560"),
    "values, 800 of each": ("values", "values.max_new_tokens=12", "values.batch_size=2560", "values.samples=800"),
    "pivotal": (
        "pivotal",
        *("pivotal.max_new_tokens=12", "pivotal.batch_size=2560", "pivotal.between=[0,1]", "pivotal.only=all"),
    ),
}
LONG = "512 tokens, then 8"
SAME = 0.99
"""Share of the rewards, or tokens, that must be equal."""


class Drawing:
    """A `Drawing` measures `sample_completions`: its CPU seconds, tokens, and peak memory."""

    def __init__(self) -> None:
        self.cpu, self.wall, self.tokens, self.base = 0.0, 0.0, 0, -1.0
        self.plain = generate.sample_completions

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Sample as `sample_completions` does."""
        self.base = forget_peak() if self.base < 0 else self.base
        cpu, wall = time.process_time(), time.perf_counter()
        found = self.plain(*args, **options)
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.tokens += sum(len(c.tokens) for c in found)
        return found

    def result(self) -> dict[str, Any]:
        """Return the measurements."""
        memory = resident("VmHWM") - self.base
        return {"cpu": self.cpu, "wall": self.wall, "tokens": self.tokens, "memory_mib": memory}


def by_command(words: tuple[str, ...], args: argparse.Namespace, drawing: Drawing) -> list[Any]:
    """Run a command on programs; return the rewards that it found."""
    from shiqrun.cli import main

    sampler.sample_completions = prefix_sampler.sample_completions = drawing
    with tempfile.TemporaryDirectory() as out:
        size = (f"data.problems={args.problems}", f"data.val_problems={args.problems // 8}")
        where = (f"model.path={args.model_path}", f"run_dir={out}/run", f"cache_dir={out}/cache")
        if main([*words, *PROGRAMS, *size, *where]):
            raise SystemExit(f"shiqrun {' '.join(words)} failed")
        rows = (Path(out) / "run" / f"{words[0]}.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    found = [json.loads(row) for row in rows]
    return [row["rewards"] if words[0] == "values" else row["rates"] for row in found]


def long_prompts(drawing: Drawing) -> list[Any]:
    """Draw short completions of long prompts; return their tokens."""
    model = model_of("A")
    prompts = [np.random.default_rng(n).integers(0, 32_000, 512) for n in range(8) for _ in range(64)]
    keys = [[n] for n in range(len(prompts))]
    options: dict[str, Any] = {"stop": [], "pad": 0, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0}
    found = drawing(Policy(model).eval(), prompts, keys, batch_size=128, **options)
    return [c.tokens.tolist() for c in found]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of one case in this process, and what was drawn."""
    torch.set_num_threads(args.threads)
    if args.apart:
        generate.share_refusal = lambda model: "asked for by the benchmark"
    drawing = Drawing()
    drawn = long_prompts(drawing) if args.case == LONG else by_command(COMMANDS[args.case], args, drawing)
    return drawing.result() | {"drawn": drawn}


def in_a_process(args: argparse.Namespace, case: str, apart: bool) -> dict[str, Any]:
    """Return the measurements of one case from a process of its own."""
    words = [f"--case={case}", f"--model-path={args.model_path}", f"--problems={args.problems}"]
    words += [f"--threads={args.threads}"] + ["--apart"] * apart
    out = subprocess.run(
        [sys.executable, "-m", "bench.shared", *words],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(args.threads, tuned=False),
    )
    if out.returncode:
        raise SystemExit(f"{case}: exit status {out.returncode}")
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    print(case, "apart" if apart else "shared", {k: v for k, v in found.items() if k != "drawn"}, file=sys.stderr)
    return found


def equal_share(one: list[Any], other: list[Any]) -> float:
    """Return the share of equal entries of two lists of lists."""
    pairs = [(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=False)]
    return sum(x == y for x, y in pairs) / max(sum(map(len, one)), sum(map(len, other)))


def main() -> None:
    """Measure all cases with and without sharing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", help="a policy of programs: RUN/policy of train experiment=programs_sft")
    for name, value in (("problems", 256), ("threads", 1), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cases", nargs="*", default=[*COMMANDS, LONG], help="which to measure")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args)))
        return
    table = Table(title=f"{args.threads} thread(s), data.problems={args.problems}")
    for name in ("drawn", "rows", "tokens", "CPU s", "tokens a CPU s", "MiB", "equal"):
        table.add_column(name, justify="left" if name in ("drawn", "rows") else "right")
    for case in args.cases:
        runs = [[in_a_process(args, case, apart) for apart in (True, False)] for _ in range(args.repeats)]
        same = equal_share(*(run["drawn"] for run in runs[0]))
        if same < SAME:
            raise SystemExit(f"{case}: only {same:.1%} are equal")
        for number, label in enumerate(("one for each completion", "shared")):
            cpu, memory = (median(run[number][key] for run in runs) for key in ("cpu", "memory_mib"))
            tokens = runs[0][number]["tokens"]
            table.add_row(
                case, label, f"{tokens:,}", f"{cpu:.2f}", f"{tokens / cpu:,.0f}", f"{memory:.0f}", f"{same:.2%}"
            )
    console.print(table)


if __name__ == "__main__":
    main()
