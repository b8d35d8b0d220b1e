"""The study of starts: what a run's data cost at its first start and at later ones, over the number of rows.

Each start has a process of its own, which reads a made file of pairs as `shiqrun train` does, and collates a first step
without a model. Rows have the lengths of hh-rlhf; each prompt begins with its number, so that no two are equal.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from bench.clock import environment, forget_peak, resident
from bench.work import CONTEXT, Shape, make_pairs, prepare
from shiqrun.batching.encode import with_template
from shiqrun.batching.logged_data import DataSettings, load
from shiqrun.batching.row_store import RowStore
from shiqrun.batching.steps import Steps
from shiqrun.data.jsonl import Jsonl

SMALL = Shape(hidden=64, layers=1, heads=2, intermediate=128, vocabulary=8_192, pairs=0)
DIFFERENT = 400
"""Pairs whose texts differ; beyond, only the numbers of their prompts do."""
JOBS = 8
"""Of a sweep."""


def write_pairs(path: Path, pairs: int) -> None:
    """Write a file of numbered pairs."""
    draw = random.Random(1)
    texts = [(p["prompt"][0]["content"], *(c[0]["content"] for c in p["completions"])) for p in make_pairs(DIFFERENT)]
    draw.shuffle(texts)
    with path.open("w", encoding="utf-8") as file:
        for number, (prompt, chosen, rejected) in enumerate(islice(cycle(texts), pairs)):
            row = {"prompt": f"{number} {prompt}", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row) + "\n")


def measure_start(folder: Path) -> dict[str, Any]:
    """Return CPU and wall seconds up to the first collated step in this process, and the memory that they took."""
    tokenizer = with_template(AutoTokenizer.from_pretrained(folder / "model"))
    settings = DataSettings(limit=None, max_length=CONTEXT, val_fraction=0.02, completions="all", train_on="assistant")
    source = Jsonl(path=str(folder / "rows.jsonl"), val_path=None, pair_rewards=[1, -1])
    before, began, wall = forget_peak(), time.process_time(), time.perf_counter()
    data = load(source, tokenizer, settings, context=CONTEXT, store=RowStore(folder / "cache"))
    steps = Steps(data.train, batch_size=64, micro_batch_tokens=8192, seed=0, start=0, rank=0, world=1)
    first = next(iter(steps))
    return {
        "rows": len(data.train) + len(data.val),
        "cpu_seconds": time.process_time() - began,
        "wall_seconds": time.perf_counter() - wall,
        "peak_mib": resident("VmHWM") - before,
        "private_mib": resident("RssAnon"),
        "tokens_a_row": float(np.mean(data.train.lengths)),
        "first_step": sum(int(batch.input_ids.sum()) for batch in first),
    }


def over_starts(quick: bool) -> list[dict[str, Any]]:
    """Measure first and second starts over 10k to 1M rows."""
    points = []
    for rows in (2_000, 10_000) if quick else (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            prepare(folder, SMALL, make_pairs(DIFFERENT), pairs=DIFFERENT // 2)
            write_pairs(folder / "rows.jsonl", rows // 2)
            command = [sys.executable, "-m", "bench.store", str(folder)]
            starts = [
                json.loads(
                    subprocess.check_output(command, env=environment(1, tuned=False), text=True).splitlines()[-1]
                )
                for _ in range(2)
            ]
            if starts[0]["first_step"] != starts[1]["first_step"]:
                raise SystemExit(f"the first steps differ: {starts}")
            store = sum(path.stat().st_size for path in (folder / "cache").glob("*.rows")) / 2**20
            for name, start in zip(("first", "later"), starts, strict=True):
                point = {key: value for key, value in start.items() if key != "first_step"}
                points.append({"start": name, **point, "store_mib": store})
    return points


def over_shared(quick: bool) -> list[dict[str, Any]]:
    """Measure a sweep of 8 seeds over one file of rows, with one store for all jobs and with a store for each job."""
    rows, points = 10_000 if quick else 100_000, []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(folder, SMALL, make_pairs(DIFFERENT), pairs=DIFFERENT // 2)
        write_pairs(folder / "rows.jsonl", rows // 2)
        for name, cache in (("one for all", "cache"), ("one each", "caches/${seed}")):
            points.append({"store": name, "rows": rows, **_swept_seeds(folder, cache)})
    return points


def _swept_seeds(folder: Path, cache: str) -> dict[str, Any]:
    """Return what a sweep of 8 jobs costs: jobs, files of encoded rows, CPU and wall seconds of all processes."""
    words = ["data=jsonl", f"data.path={folder}/rows.jsonl", "model=hf", f"model.path={folder}/model", "algo=sft"]
    words += ["data.completions=best", "trainer.max_steps=1", "trainer.batch_size=8", "eval.every=0", "logger=none"]
    words += ["seed=" + ",".join(map(str, range(JOBS))), f"run_dir={folder}/{cache.partition('/')[0]}-runs"]
    command = [sys.executable, "-m", "shiqrun", "train", "-m", *words, f"cache_dir={folder}/{cache}"]
    before, wall = os.times(), time.perf_counter()
    done = subprocess.run(
        command, env=environment(1, tuned=False), capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = os.times()
    return {
        "jobs": sum(1 for _ in folder.glob(f"{cache.partition('/')[0]}-runs/**/summary.json")),
        "row_files": sum(1 for _ in folder.glob(f"{cache.partition('/')[0]}/**/*.rows")),
        "cpu_seconds": after.children_user - before.children_user + after.children_system - before.children_system,
        "wall_seconds": time.perf_counter() - wall,
    }


if __name__ == "__main__":
    print(json.dumps(measure_start(Path(sys.argv[1]))))
