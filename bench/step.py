"""This benchmark compares a DPO step with that of TRL's DPOTrainer on the same pairs: `python -m bench.step [--quick]`.

Losses are compared first: both sides train in float32 on the same batches in the same order, and the loss and gradient
norm of every step must agree. Then every measurement has a process of its own, the sides in turn, `--repeats` times;
printed are medians with minimum and maximum. Time is CPU time (user and system) on one thread, which other processes of
the machine disturb little, and wall time on two. Memory is the high-water mark above what was resident before the first
step: gradients, moments, activations.

TRL is measured with its defaults (bfloat16, activation checkpointing, live reference), and at its best (neither, pairs
sorted by length by hand, allocator tuned; also with the default allocator). step.json and step.png are written into
--out.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.clock import environment
from bench.show import picture, print_tables
from bench.work import SHAPES, hh_file, hh_pairs, make_pairs, prepare
from shiqrun.cli import ENVIRONMENT
from shiqrun.console import console

PAIRS = 8
"""Of an optimiser step."""
WARMUP = 1
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 5e-5
"""Of a step's loss, absolute, and of its gradient norm, relative; both float32."""


@dataclass(frozen=True)
class Side:
    """A `Side` is a trainer (shiqrun or TRL) with its settings, measured against the other sides.

    Attributes:
        trainer: ours or trl.
        precision: fp32 or bf16.
        tuned: glibc's allocator keeps large tensors.
        default: TRL as it comes.
        presort: TRL is given the pairs sorted by length.
        checkpointing: ours recomputes activations.
        algo: of ours.
    """

    trainer: str
    precision: str
    tuned: bool = False
    default: bool = False
    presort: bool = False
    checkpointing: bool = False
    algo: str = "dpo"

    @property
    def label(self) -> str:
        """Return the name of the side in tables and pictures."""
        if self.trainer == "ours":
            further = ", allocator tuned" * self.tuned + ", checkpointing" * self.checkpointing
            return f"shiqrun {self.algo}, {self.precision}{further}"
        kind = "default" if self.default else "best" if self.presort else "unsorted"
        return f"TRL {kind}, {self.precision}" + ", allocator tuned" * self.tuned

    def spec(self, folder: Path, steps: int, device: str, log_every: int = 10) -> dict[str, Any]:
        """Return the specification of a measurement by `bench.one`."""
        same = {"folder": str(folder), "steps": steps, "warmup": WARMUP, "pairs": PAIRS, "log_every": log_every}
        extra = [f"model.gradient_checkpointing={str(self.checkpointing).lower()}"]
        ours, trl = {"algo": self.algo, "extra": extra}, {"default": self.default, "presort": self.presort}
        own = ours if self.trainer == "ours" else trl
        return {"side": self.trainer, **same, "precision": self.precision, "device": device, **own}


SIDES = [
    Side("trl", "bf16", default=True),
    *(Side("trl", p, presort=True) for p in ("fp32", "bf16")),
    *(Side("trl", p, presort=True, tuned=True) for p in ("fp32", "bf16")),
    *(Side("ours", p) for p in ("fp32", "bf16")),
    *(Side("ours", p, tuned=True) for p in ("fp32", "bf16")),
    *(Side("ours", p, checkpointing=True) for p in ("fp32", "bf16")),
    *(Side("ours", "fp32", algo=algo) for algo in ("shiq", "copg", "dro")),
]


def ask(spec: dict[str, Any], *, threads: int, tuned: bool = False) -> dict[str, Any]:
    """Return a measurement of a training run, made in a process of its own.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    command = [sys.executable, "-m", "bench.one", json.dumps({**spec, "threads": threads})]
    ours = ENVIRONMENT if spec["side"] == "ours" else {}  # variables that the command line of shiqrun sets
    env = {**ours, **environment(threads, tuned=tuned)}  # those that the user set come last and win
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{spec}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def expect_equality(folder: Path, steps: int, device: str, threads: int) -> dict[str, float]:
    """Return the largest differences between TRL's and our losses and gradient norms on the same batches.

    Raises:
        SystemExit: they are larger than rounding explains.
    """
    sides = Side("trl", "fp32", tuned=True), Side("ours", "fp32")
    trl, ours = (ask(s.spec(folder, steps, device, 1), threads=threads, tuned=s.tuned) for s in sides)
    if not len(trl["losses"]) == len(ours["losses"]) == steps:
        raise SystemExit(f"{len(trl['losses'])} losses of TRL, {len(ours['losses'])} of ours, {steps} steps")
    found = {
        "loss": max(abs(a - b) for a, b in zip(trl["losses"], ours["losses"], strict=True)),
        "grad_norm": max(abs(a / b - 1) for a, b in zip(trl["grad_norms"], ours["grad_norms"], strict=True)),
        "first_loss": ours["losses"][0],
        "last_loss": ours["losses"][-1],
    }
    if not (found["loss"] <= LOSS_TOLERANCE and found["grad_norm"] <= NORM_TOLERANCE):
        raise SystemExit(f"the two trainers do not do the same: {found}\n{trl}\n{ours}")
    return found


def measure_sides(folder: Path, args: argparse.Namespace, sides: Sequence[Side], steps: int) -> dict[str, Any]:
    """Return every side's measurements by label and number of threads; each turn begins with another side."""
    found: dict[str, Any] = {side.label: {"side": asdict(side)} for side in sides}
    for repeat in range(args.repeats):
        turn = [*sides[repeat % len(sides) :], *sides[: repeat % len(sides)]]
        for threads in args.threads:
            for side in turn:
                result = ask(side.spec(folder, steps, args.device), threads=threads, tuned=side.tuned)
                found[side.label].setdefault(str(threads), []).append(result)
                took = f"{result['cpu']:6.1f} s CPU {result['wall']:6.1f} s wall {result['memory_mib']:6.0f} MiB"
                console.print(f"{side.label:32} {threads} thread(s) {took}", highlight=False)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of repeated measurements."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def summary_rows(
    shape: str, tokens: dict[str, int], found: dict[str, Any], peak: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each side: medians, and the share of the matrix-product peak that minimal flops are."""
    rows, flops = [], SHAPES[shape].minimal_flops(tokens["shared_prompt"], tokens["actions"])
    for label, kept in found.items():
        row: dict[str, Any] = {"label": label, **kept["side"]}
        for threads in (key for key in kept if key != "side"):
            clock, results = "cpu" if threads == "1" else "wall", kept[threads]
            row[f"seconds_{threads}"] = summary([r[clock] for r in results])
            row[f"wall_{threads}"] = summary([r["wall"] for r in results])
            row[f"once_{threads}"] = summary([r["once"][clock] for r in results])
            row[f"memory_{threads}"] = summary([r["memory_mib"] for r in results])
            row["body_tokens"] = results[0]["body_tokens"]
            speed = flops / row[f"seconds_{threads}"]["median"]
            row[f"peak_share_{threads}"] = speed / peak[threads][row["precision"]][clock]
        rows.append(row)
    return rows


def bench(shape: str, args: argparse.Namespace, sides: Sequence[Side], folder: Path) -> dict[str, Any]:
    """Measure all sides on one model and return their comparison."""
    pairs = args.pairs_number or SHAPES[shape].pairs
    steps = WARMUP + pairs // PAIRS
    needed = steps * PAIRS
    given = hh_pairs(args.pairs) if args.pairs else list(make_pairs(2 * needed))
    prepare(folder, SHAPES[shape], given, pairs=needed)
    tokens = ask({"side": "tokens", "folder": str(folder), "steps": steps, "warmup": WARMUP, "pairs": PAIRS}, threads=1)
    console.print(f"model {shape}: {tokens}", highlight=False)
    equality = None if args.unchecked else expect_equality(folder, steps, args.device, max(args.threads))
    console.print(f"equality of losses, largest difference: {equality}", highlight=False)
    peak = {str(n): ask({"side": "peak", "device": args.device}, threads=n) for n in args.threads}
    found = measure_sides(folder, args, sides, steps)
    return {
        "shape": asdict(SHAPES[shape]),
        "tokens": tokens,
        "equality": equality,
        "peak": peak,
        "rows": summary_rows(shape, tokens, found, peak),
        "measurements": found,
    }


def main() -> None:
    """Measure all sides on every model, print tables, and write JSON and a picture."""
    args = arguments()
    sides = [side for side in SIDES if not args.sides or any(part in side.label for part in args.sides)]
    result: dict[str, Any] = {
        "machine": {"cpu": _processor(), "torch": torch.__version__, "python": platform.python_version()},
        "device": args.device,
        "pairs": args.pairs.name if args.pairs else "made from a seed",
        "repeats": args.repeats,
        "models": {},
    }
    if args.device == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for shape in args.models:
            result["models"][shape] = bench(shape, args, sides, Path(work) / shape)
            (args.out / "step.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print_tables(console, result)
    picture(result, args.out / "step.png")
    console.print(f"{args.out / 'step.json'}, {args.out / 'step.png'}")


def arguments() -> argparse.Namespace:
    """Parse the command line; `--quick` is one repeat of fewer pairs on one thread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda s: s.split(","), help=f"of {', '.join(SHAPES)}; default A,B, gpu: gpu")
    parser.add_argument("--pairs", type=Path, default=hh_file(), help="a file of hh-rlhf; default: test data or made")
    parser.add_argument("--pairs-number", type=int, help=f"measured pairs, a multiple of {PAIRS}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=lambda s: [int(n) for n in s.split(",")], default=[1, 2])
    parser.add_argument("--sides", nargs="*", help="only sides whose name holds one of these")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda was not measured yet")
    parser.add_argument("--unchecked", action="store_true", help="leave out the check that losses are equal")
    parser.add_argument("--quick", action="store_true", help="one repeat, 24 pairs, one thread")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    args = parser.parse_args()
    args.models = args.models or (["gpu"] if args.device == "cuda" else ["A", "B"])
    if args.quick:
        args.repeats, args.threads, args.pairs_number = 1, [1], args.pairs_number or 24
    if args.pairs_number and args.pairs_number % PAIRS:
        parser.error(f"--pairs-number must be a multiple of {PAIRS}")
    return args


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
