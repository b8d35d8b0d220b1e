"""This benchmark compares a whole sweep with that of a script of TRL's: `python -m bench.sweep`.

shiqrun's side is one command, `shiqrun sweep`, of several methods, betas and seeds, with its report. TRL's side trains
as many policies by DPO (bench/sweep_peer.py), `--jobs` processes of one thread at a time as shiqrun has them; a process
starts once and trains its share of the jobs one after the other. Both train on the same pairs, of `bench.work`, for as
many steps, in float32, with each side's best settings (TRL: no activation checkpointing, reference scored before the
steps, pairs sorted by length, allocator tuned), and both evaluate before the first step, every `--eval-every` steps and
at the end: a completion for each of the same prompts, which a reward model scores. shiqrun also measures the KL and
writes samples and credits. Printed are wall time, and CPU time (user and system), which other work on the machine
disturbs little. sweep.json is written into --out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.clock import tuned_allocator
from bench.work import SHAPES, hh_file, hh_pairs, make_pairs, prepare
from shiqrun.console import console

NEW_TOKENS = 64
"""Largest length of an evaluation's completion."""
PAIRS = 8
"""Of an optimiser step."""


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="shiq,copg,dpo,dro", help="of shiqrun's side (default: shiq,copg,dpo,dro)")
    parser.add_argument("--betas", default="0.03,0.1,0.3,1", help="values of algo.beta (default: 0.03,0.1,0.3,1)")
    parser.add_argument("--seeds", default="1,2,3", help="seeds of every run (default: 1,2,3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    parser.add_argument("--pairs", type=int, default=96, help="pairs of a run, 8 in a step (default: 96)")
    parser.add_argument("--prompts", type=int, default=64, help="completed in an evaluation (default: 64)")
    parser.add_argument("--eval-every", type=int, default=6, help="optimiser steps (default: 6)")
    parser.add_argument("--shape", choices=("A", "B"), default="A", help="of the models (default: A)")
    parser.add_argument("--sides", default="ours,trl", help="what is measured (default: ours,trl)")
    parser.add_argument("--out", type=Path, default=Path("bench/out"), help="directory of sweep.json")
    return parser.parse_args(words)


def save_reward_model(folder: Path) -> None:
    """Write a reward model of the policy's shape with a random head, for both sides to score completions by."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    model.save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(folder / "reward")


def run_ours(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run `shiqrun sweep`, and return the summaries of its runs.

    Raises:
        SystemExit: a run failed.
    """
    steps = options.pairs // PAIRS
    words = [
        *(f"algo={options.methods}", f"algo.beta={options.betas}", f"seed={options.seeds}", "data=jsonl"),
        *(f"data.path={folder}/train.jsonl", f"data.val_path={folder}/val.jsonl", "model=hf"),
        *(f"model.path={folder}/model", "reward@eval.reward=model", f"eval.reward.path={folder}/reward"),
        *(f"trainer.max_steps={steps}", f"trainer.batch_size={2 * PAIRS}", "trainer.prompts_together=true"),
        *("trainer.learning_rate=1e-4", "trainer.warmup_steps=0", f"eval.every={options.eval_every}"),
        *(f"eval.max_prompts={options.prompts}", f"eval.max_new_tokens={NEW_TOKENS}", "logger=none"),
        *(f"sweep.parallel={options.jobs}", f"cache_dir={folder}/cache", f"run_dir={folder}/sweep"),
    ]
    command = [sys.executable, "-m", "shiqrun", "sweep", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"shiqrun sweep failed: {done.stderr[-2000:]}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("sweep/*/summary.json"))]


def run_peer(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train as many policies by TRL's script, in `--jobs` processes, and return what each of the jobs measured.

    Raises:
        SystemExit: a process failed.
    """
    betas, seeds = options.betas.split(","), options.seeds.split(",")
    jobs = [(float(beta), int(seed)) for _ in options.methods.split(",") for beta in betas for seed in seeds]
    spec = {"folder": str(folder), "pairs": options.pairs, "per_step": PAIRS, "prompts": options.prompts}
    spec |= {"new_tokens": NEW_TOKENS, "eval_every": options.eval_every}
    environment = os.environ | tuned_allocator() | {"OMP_NUM_THREADS": "1"}
    running = []
    for first in range(options.jobs):
        words = json.dumps({**spec, "jobs": jobs[first :: options.jobs]})
        command = [sys.executable, "-m", "bench.sweep_peer", words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    found: list[dict[str, Any]] = []
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"TRL's script failed with code {process.returncode}")
        found += json.loads(said.splitlines()[-1])
    return found


def measure(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the wall and CPU seconds of a side's sweep, the number of its runs and their steps."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    runs = {"ours": run_ours, "trl": run_peer}[side](folder, options)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "jobs": len(runs), "steps": sorted({run["steps"] for run in runs})}


def main(words: Sequence[str] | None = None) -> None:
    """Measure both sides, print the table and write sweep.json."""
    options = arguments(words)
    file, number = hh_file(), options.pairs + options.prompts
    talks = hh_pairs(file) if file else make_pairs(4 * number)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        prepare(folder, SHAPES[options.shape], talks, pairs=number, longest=512)
        lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join(lines[: options.pairs]), encoding="utf-8")
        (folder / "val.jsonl").write_text("".join(lines[options.pairs :]), encoding="utf-8")
        save_reward_model(folder)
        found = {side: measure(side, folder, options) for side in options.sides.split(",")}
    table = Table(title="a sweep from start to end", title_justify="left")
    for name in ("side", "runs", "wall s", "CPU s", "CPU s a run", "wall, ratio", "CPU, ratio"):
        table.add_column(name, justify="left" if name == "side" else "right")
    for side, row in found.items():
        ratios = [f"{row[of] / found['ours'][of]:.2f}" if "ours" in found else "" for of in ("wall", "cpu")]
        cells = (
            str(row["jobs"]),
            f"{row['wall']:.0f}",
            f"{row['cpu']:.0f}",
            f"{row['cpu'] / row['jobs']:.1f}",
            *ratios,
        )
        table.add_row({"ours": "shiqrun sweep", "trl": "a script of TRL's, DPO alone"}[side], *cells)
    console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    told = {key: str(value) for key, value in vars(options).items()}
    (options.out / "sweep.json").write_text(json.dumps({"options": told, "sides": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
