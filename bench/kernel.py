"""This benchmark compares scoring actions in chunks with scoring from all logits at once: `python -m bench.kernel`.

Losses and gradients of every way are first compared with float64, with unrelated upstream gradients for both scores
(for the log-probability alone with TRL, whose kernel returns no log-partition). Then every measurement has a process of
its own, the ways in turn, `--repeats` times; printed are medians with minimum and maximum. A process runs once
unmeasured, so that a step in training is measured, not the first one. Time is CPU time (user and system) and wall time;
memory is the high-water mark above the inputs, gradients included. `--json` prints JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.clock import MIB, environment, forget_peak, resident
from shiqrun.models.scoring import chunk_rows, score_actions

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
"""Of losses, and of gradients against their largest entry; bfloat16 gradients are rounded to 8 bits."""
console = Console(width=None if sys.stdout.isatty() else 140)


class Problem(NamedTuple):
    """A Problem is the input of scoring: hidden states, the head of the model, and the tokens to score.

    Hidden states `[P, D]` are of all positions, the head is `[V, D]`; the tokens after the positions `[P]` are actions.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    action: Tensor


def problem(args: argparse.Namespace) -> Problem:
    """Return a random Problem whose logits have the spread of a trained model's: a variance of about four."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.positions, args.width)
    weight = 4 * torch.randn(args.vocabulary, args.width) / args.width**0.5
    action = torch.zeros(args.positions, dtype=torch.bool)
    action[torch.randperm(args.positions)[: args.actions]] = True
    made = (hidden.to(dtype), weight.to(dtype), torch.randint(args.vocabulary, (args.positions,)), action)
    return Problem(*(x.to(args.device) for x in made))


Scores = tuple[Tensor, Tensor | None]


def naive(p: Problem) -> Scores:
    """Return (log-probability, log-partition) of the actions from the logits of every position."""
    logits = (p.hidden @ p.weight.t()).to(torch.promote_types(p.hidden.dtype, torch.float32))
    logp = logits.log_softmax(-1).gather(-1, p.targets[:, None])[:, 0]
    return logp[p.action], logits.logsumexp(-1)[p.action]


def naive_at_actions(p: Problem) -> Scores:
    """Return (log-probability, log-partition) of the actions from the logits of the positions before them."""
    return naive(Problem(p.hidden[p.action], p.weight, p.targets[p.action], p.action[p.action]))


def ours(p: Problem, **options: Any) -> Scores:
    """Return (log-probability, log-partition) of the actions by `score_actions`."""
    logit, partition = score_actions(p.hidden[p.action], p.weight, None, p.targets[p.action], **options)
    return logit - partition, partition


def trl(p: Problem) -> Scores:
    """Return the log-probability of the actions by TRL's kernel.

    As in TRL's trainers, it is computed at every position on a CPU and at the actions on a GPU.
    """
    from trl.kernels import ChunkedLogProbFunction

    at = p.action if p.hidden.is_cuda else torch.ones_like(p.action)
    scored = ChunkedLogProbFunction.apply(p.hidden[at], p.weight, None, p.targets[at], 1.0, 32_768, None, 1.0, ())
    return scored[0][p.action[at]], None


class Way(NamedTuple):
    """A `Way` is one way to score the actions, with a head that takes a gradient or a frozen one."""

    label: str
    score: Callable[[Problem], Scores]
    frozen: bool = False


WAYS = {
    "naive": Way("all logits, float32", naive),
    "actions": Way("logits of actions only", naive_at_actions),
    "recomputed": Way("shiqrun, recomputed", lambda p: ours(p, keep=False)),
    "kept": Way("shiqrun, kept", lambda p: ours(p, keep=True)),
    "frozen": Way("shiqrun, head frozen", ours, frozen=True),
    "naive-frozen": Way("all logits, head frozen", naive, frozen=True),
    "trl": Way("TRL's kernel", trl),
}


def gradients(way: Way, p: Problem, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return (loss, gradients to hidden states and, unless it is frozen, the head); upstream is `[2, actions]`."""
    leaves = [x.detach().requires_grad_() for x in (p.hidden, p.weight)[: 1 if way.frozen else 2]]
    logp, partition = way.score(Problem(*leaves, *p[len(leaves) :]))
    loss = (upstream[0] * logp).sum()
    if partition is not None:
        loss = loss + (upstream[1] * partition).sum()
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def check(args: argparse.Namespace, ways: list[str]) -> dict[str, dict[str, float]]:
    """Return the error of each way's loss and gradients against float64, relative to the largest entry.

    Raises:
        SystemExit: an error exceeds `TOLERANCE`.
    """
    p, found = problem(args), {}
    upstream = torch.randn(2, args.actions, device=args.device)
    exact = Problem(p.hidden.double(), p.weight.double(), p.targets, p.action)
    for name in ways:
        kept = torch.tensor([[1.0], [0.0 if name == "trl" else 1.0]], device=args.device)
        loss, got = gradients(WAYS[name], p, upstream * kept)
        true, expected = gradients(WAYS[name]._replace(score=naive), exact, (upstream * kept).double())
        error = {"loss": float((loss - true).abs() / true.abs())}
        for of, g, e in zip(("hidden", "weight"), got, expected, strict=False):
            error[of] = float((g - e).abs().max() / e.abs().max())
        if name not in ("naive", "actions", "trl") and not max(error.values()) <= TOLERANCE[args.dtype]:
            raise SystemExit(f"{name} differs from float64 by {error}")
        found[name] = error
    return found


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Return CPU and wall time (ms) and peak memory above the inputs (MiB) of a forward and backward pass."""
    p, way, cuda = problem(args), WAYS[args.way], args.device == "cuda"
    upstream = torch.randn(2, args.actions, device=args.device)
    gradients(way, p, upstream)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated() / MIB if cuda else forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    gradients(way, p, upstream)
    if cuda:
        torch.cuda.synchronize()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = torch.cuda.max_memory_allocated() / MIB if cuda else resident("VmHWM")
    return {"cpu_ms": 1000 * cpu, "wall_ms": 1000 * wall, "memory_mib": peak - base}


def measure_in_turn(args: argparse.Namespace, ways: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the ways of scoring in turn, each in a process of its own; return {way: {quantity: median, min, max}}."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    words = [f"--{k}={getattr(args, k)}" for k in ("actions", "positions", "vocabulary", "width", "dtype", "device")]
    for _ in range(args.repeats):
        for name in ways:
            command = [sys.executable, "-m", "bench.kernel", f"--way={name}", *words, f"--threads={args.threads}"]
            env = environment(args.threads, tuned=False)
            runs[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env).stdout))
    return {
        name: {
            k: {"median": median(values), "min": min(values), "max": max(values)}
            for k in found[0]
            for values in [[run[k] for run in found]]
        }
        for name, found in runs.items()
    }


def show(args: argparse.Namespace, errors: dict[str, Any], found: dict[str, Any]) -> None:
    """Print a table with a row for each way of scoring, compared with the first."""
    rows = chunk_rows(args.vocabulary, args.device)
    table = Table(
        title=f"{args.actions} actions of {args.positions} positions, V {args.vocabulary}, D {args.width}, "
        f"{args.dtype}, {args.device}, {args.threads} thread(s), tiles of {rows} rows, {args.repeats} repeats"
    )
    table.add_column("scoring")
    for column in ("CPU ms", "wall ms", "speed-up", "MiB", "of naive", "loss error", "gradient error"):
        table.add_column(column, justify="right")
    clock = "wall_ms" if args.threads > 1 or args.device == "cuda" else "cpu_ms"
    for name, one in found.items():
        time_ratio = found["naive"][clock]["median"] / one[clock]["median"]
        memory = one["memory_mib"]["median"]
        spreads = [f"{v['median']:.0f} ({v['min']:.0f}-{v['max']:.0f})" for v in (one["cpu_ms"], one["wall_ms"])]
        share = f"{100 * memory / found['naive']['memory_mib']['median']:.1f} %"
        gradient = max(e for of, e in errors[name].items() if of != "loss")
        cells = [
            *spreads,
            f"{time_ratio:.2f}",
            f"{memory:.0f}",
            share,
            f"{errors[name]['loss']:.0e}",
            f"{gradient:.0e}",
        ]
        table.add_row(WAYS[name].label, *cells)
    console.print(table)


def main() -> None:
    """Check and measure all ways of scoring, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"actions": 1024, "positions": 2048, "vocabulary": 32_000, "width": 256, "threads": 1, "repeats": 5}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of hidden states and head")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.way:
        print(json.dumps(measure(args)))
        return
    ways = [name for name in WAYS if name != "trl" or find_spec("trl")]
    errors = check(args, ways)
    found = measure_in_turn(args, ways)
    if args.json:
        print(json.dumps({**vars(args), "errors": errors, "ways": found}))
        return
    show(args, errors, found)
    if "trl" not in ways:
        console.print("TRL is not installed (the extra `bench`): its kernel is left out")


if __name__ == "__main__":
    main()
