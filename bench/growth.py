"""This benchmark measures how a step's time and memory grow with sizes: `python -m bench.growth [STUDY...] [--quick]`.

The studies tokens, vocabulary and completions are shiqrun's own training on made texts, a process for each point; a
step has the same number of trajectories everywhere (with more completions, of fewer prompts). The study rows runs the
loop over 1,000 to 1,000,000 encoded trajectories that lie in flat arrays, so that the growth beside the arrays, and the
cost of a step, belong to the loop. The study sweep runs a grid of betas by the command line, in which the reference is
scored once and then read from the cache. The study starts reads files of 10,000 to 1,000,000 rows twice: what encoding
costs at first, and what it costs once the rows are stored. The study shared runs 8 jobs of a sweep over one file, with
one cache_dir and with one each, so that each encodes for itself. growth.json is written into --out.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench.clock import environment, forget_peak, resident
from bench.step import ask
from bench.store import over_shared, over_starts
from bench.work import SHAPES, Shape, prepare, talk
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Steps
from shiqrun.console import console

STEPS, WARMUP, TRAJECTORIES = 6, 1, 16
"""Of a point; trajectories of a step."""
SMALL = Shape(hidden=128, layers=4, heads=4, intermediate=344, vocabulary=8_192, pairs=0)
Point = dict[str, Any]


def measure_training(shape: Shape, prompt: int, answers: int, words: int, algo: str = "shiq") -> Point:
    """Return seconds, memory and tokens of a training step for prompts and answers of the given numbers of words."""
    draw, steps = random.Random(0), STEPS + WARMUP
    groups = steps * TRAJECTORIES // answers
    with tempfile.TemporaryDirectory() as work:
        talks = [talk(prompt, [words] * answers, draw) for _ in range(groups)]
        prepare(Path(work), shape, talks, pairs=groups, longest=8192)
        spec = {"side": "ours", "folder": work, "steps": steps, "pairs": TRAJECTORIES // answers, "algo": algo}
        extra = ["trainer.micro_batch_tokens=8192"]
        found = ask({**spec, "extra": extra}, threads=1)
    return {
        "ms_a_step": 1000 * found["cpu"] / STEPS,
        "memory_mib": found["memory_mib"],
        "tokens_read": found["body_tokens"] // STEPS,
    }


def over_tokens(quick: bool) -> list[Point]:
    """Measure training on trajectories of 64 to 2048 words, half of which are the answer."""
    lengths = (64, 256) if quick else (64, 128, 256, 512, 1024, 2048)
    return [{"words": n, **measure_training(SMALL, n // 2, 2, n // 2)} for n in lengths]


def over_vocabulary(quick: bool) -> list[Point]:
    """Measure training with vocabularies of 4k to 128k tokens."""
    sizes = (4_096, 32_768) if quick else (4_096, 16_384, 32_768, 65_536, 131_072)
    return [{"vocabulary": v, **measure_training(replace(SMALL, vocabulary=v), 64, 2, 32)} for v in sizes]


def over_completions(quick: bool) -> list[Point]:
    """Measure training on 1 to 16 completions of a prompt of 128 words, with 16 trajectories a step."""
    numbers = (2, 16) if quick else (2, 4, 8, 16)
    return [{"completions": g, **measure_training(SMALL, 128, g, 32, "copg")} for g in numbers]


class FlatTrajectories(Sequence[EncodedTrajectory]):
    """Flat trajectories are views of flat arrays: 24 tokens, 8 of them actions; no object is kept for any of them."""

    def __init__(self, rows: int) -> None:
        draw = np.random.default_rng(0)
        self.ids = draw.integers(3, 1000, (rows, 24), dtype=np.int32)
        self.rewards = np.zeros((rows, 8), np.float32)
        self.rewards[:, -1] = draw.normal(size=rows)
        self.index = np.arange(16, 24, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return EncodedTrajectory(
            self.ids[row], self.index, self.rewards[row], f"p{row}", row, 0, f"made:{row}", f"p{row}"
        )

    def nbytes(self) -> int:
        """Return the number of bytes of the arrays."""
        return self.ids.nbytes + self.rewards.nbytes


def over_rows(quick: bool) -> list[Point]:
    """Measure the training loop over 1k to 1M trajectories, a process for each number."""
    numbers = (1_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    command = [sys.executable, "-m", "bench.growth", "--loop"]
    return [
        json.loads(subprocess.check_output([*command, str(n)], env=environment(1, tuned=False), text=True))
        for n in numbers
    ]


def measure_loop(number: int, steps: int = 300) -> Point:
    """Return memory and time of the training loop over some trajectories: batches of 64 rows, without a model."""
    torch.set_num_threads(1)
    flat = FlatTrajectories(number)
    before, began = forget_peak(), time.process_time()
    rows = Rows(flat, pad=0, packed=True)
    assert len(rows.group) == len(rows.units) == number  # the index is computed when it is first asked for
    made = time.process_time() - began
    loop = Steps(rows, batch_size=64, micro_batch_tokens=8192, seed=0, start=0, rank=0, world=1)
    batches = iter(loop)
    next(batches)
    kept, began = forget_peak(), time.process_time()
    for _ in range(steps):
        next(batches)
    return {
        "rows": number,
        "arrays_mib": flat.nbytes() / 2**20,
        "kept_beside_mib": kept - before,
        "grown_in_loop_mib": resident("VmHWM") - kept,
        "seconds_to_index": made,
        "ms_a_step": 1000 * (time.process_time() - began) / steps,
    }


def over_sweep(quick: bool) -> list[Point]:
    """Measure sweeps over 1 and 8 betas: CPU seconds in all, jobs, and the number of jobs that scored the reference."""
    points, shape = [], replace(SHAPES["B"], vocabulary=4096, layers=2)
    with tempfile.TemporaryDirectory() as work:
        draw, folder = random.Random(0), Path(work)
        prepare(folder, shape, [talk(64, [32, 32], draw) for _ in range(16 if quick else 64)], pairs=16)
        for betas in (1, 8):
            points.append({"betas": betas, **_swept(folder, betas)})
    return points


def _swept(folder: Path, betas: int) -> Point:
    out = folder / f"sweep{betas}"
    values = ",".join(str(round(0.01 * 2**k, 2)) for k in range(betas))
    words = [f"data.path={folder}/pairs.jsonl", "data=jsonl", "data.val_fraction=0", "model=hf", "eval.every=0"]
    words += [f"model.path={folder}/model", "trainer.batch_size=8", "trainer.max_steps=2", "logger=none", "algo=dpo"]
    words += [f"algo.beta={values}", f"run_dir={out}", f"cache_dir={out}/cache"]
    began = os.times()
    command = [sys.executable, "-m", "shiqrun", "train", *(["-m"] if betas > 1 else []), *words]
    done = subprocess.run(
        command, env=environment(1, tuned=False), capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    ended = os.times()
    summaries = [json.loads(path.read_text()) for path in out.rglob("summary.json")]
    return {
        "cpu_seconds": ended.children_user - began.children_user + ended.children_system - began.children_system,
        "jobs": len(summaries),
        "reference_passes": sum(not s["reference_cached"] for s in summaries),
        "reference_seconds": sum(s["seconds/reference"] for s in summaries),
        "step_seconds": sum(s["seconds/steps"] for s in summaries),
    }


STUDIES: dict[str, Callable[[bool], list[Point]]] = {
    "tokens": over_tokens,
    "vocabulary": over_vocabulary,
    "completions": over_completions,
    "rows": over_rows,
    "sweep": over_sweep,
    "starts": over_starts,
    "shared": over_shared,
}


def _shown(value: Any) -> str:
    """Return an entry of a point as text."""
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    """Run the chosen studies of growth, print a table for each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--loop", type=int, help="measure the loop over so many rows in this process")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    args = parser.parse_args()
    if args.loop:
        print(json.dumps(measure_loop(args.loop)))
        return
    result = {}
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.studies:
        result[name] = STUDIES[name](args.quick)
        table = Table(*result[name][0], title=f"growth over {name}")
        for point in result[name]:
            table.add_row(*map(_shown, point.values()))
        console.print(table)
        (args.out / "growth.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
