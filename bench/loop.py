"""This benchmark measures the training loop's cost beside the model, loss and optimiser: `python -m bench.loop`.

`Method` under Lightning's Trainer is compared with a bare loop over the same batches. Every measurement has a process
of its own, in turn; printed are medians over the repeats, for a step, with one computing thread: CPU time of all
threads, CPU time of the main thread (another one makes the batches) and wall time. The bare loop finds its batches
ready. The weights after the last step are compared first. With `--model none` two numbers stand for the policy, so that
the loop is most of a step. Options: `--model none|tiny|A`, `--json`, `--profile`.
"""

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Steps
from shiqrun.losses import shiq
from shiqrun.models.policy import Policy
from shiqrun.models.reference import scores_in_batch
from shiqrun.settings import AlgoSettings, TrainerSettings
from shiqrun.training.callbacks import Checkpoints
from shiqrun.training.live_view import LiveView
from shiqrun.training.metrics_csv import MetricsFile
from shiqrun.training.signals import Signals
from shiqrun.training.step.method import Method
from shiqrun.types import ActionScores, Trajectories

WAYS = ("bare", "method")
CLOCKS = ("cpu", "main", "wall")
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "heads": 2},
    "none": {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "heads": 2},
    "A": {"vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "heads": 4},
}
TOKENS = {"tiny": (8, 16), "none": (8, 16), "A": (100, 300)}
"""Shortest and longest row."""
STEPS = {"tiny": 300, "none": 1000, "A": 10}
WARM_UP = 0.2
"""Share of the steps that is not timed."""
BATCH, LOG_EVERY, RATE, CLIP, BETA = 16, 10, 1e-4, 1.0, 0.5


class TwoNumbers(Policy):
    """A `TwoNumbers` gives every action the same logit and log-partition, its first two weights, and reads no token."""

    def _scores(self, batch: Trajectories, *_: Any) -> Any:
        two, actions = next(self.parameters()).flatten(), batch.action_mask.float()
        return ActionScores(actions * two[0], actions * two[1]), None


def model_of(name: str) -> Policy:
    """Return the policy of the benchmark, initialised from a seed."""
    shape = dict(SHAPES[name])
    heads = shape.pop("heads")
    torch.manual_seed(0)
    config = LlamaConfig(**shape, num_attention_heads=heads, tie_word_embeddings=True, max_position_embeddings=512)
    return (TwoNumbers if name == "none" else Policy)(AutoModelForCausalLM.from_config(config)).train()


def rows_of(name: str, policy: Policy) -> Rows:
    """Return 256 random trajectories, half of their tokens actions, with the policy's own scores as the reference's."""
    rng, (low, high) = np.random.default_rng(0), TOKENS[name]
    made = []
    for n in range(256):
        length = int(rng.integers(low, high))
        index = np.arange(length // 2, length, dtype=np.int32)
        ids = rng.integers(1, SHAPES[name]["vocab_size"], length).astype(np.int32)
        rewards = rng.normal(size=len(index)).astype(np.float32)
        made.append(EncodedTrajectory(ids, index, rewards, f"p{n}", n, 0, f"file:{n}", f"p{n}"))
    rows = Rows(made, pad=0)
    scores = []
    with torch.no_grad():
        for n in range(len(rows)):
            out = policy(rows.collate([n]))
            scores.append((out.logit[0].numpy(), out.log_partition[0].numpy()))
    rows = rows.with_column("reference", scores)
    return rows


def clocks() -> np.ndarray:
    """Return the seconds on every clock: CPU time of all threads and of the main thread, wall time."""
    return np.array([time.process_time(), time.thread_time(), time.perf_counter()])


def bare(name: str, steps: int, start: int) -> tuple[np.ndarray, Policy]:
    """Train in a loop without Lightning; return the seconds after step `start` on every clock, and the policy."""
    policy = model_of(name)
    rows = rows_of(name, policy)
    cut = Steps(rows, batch_size=BATCH, micro_batch_tokens=2**20, seed=0, start=0, rank=0, world=1)
    batches = list(islice(cut, steps))
    parameters = [next(policy.parameters())] if name == "none" else list(policy.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    began = clocks()
    for step, micro in enumerate(batches):
        if step == start:
            began = clocks()
        count = 0
        for batch in micro:
            terms = shiq(batch, policy(batch), scores_in_batch(batch), beta=BETA)
            terms.total.backward()
            count += int(terms.count)
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / count)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return clocks() - began, policy


class Clock(Callback):
    """The Clock callback reads the clocks after step `start` and after the last step."""

    def __init__(self, start: int) -> None:
        self.start, self.at = start, dict[int, np.ndarray]()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Read the clocks at the first and the last step of the measurement."""
        if trainer.global_step in (self.start, trainer.max_steps):
            self.at[trainer.global_step] = clocks()


def method(name: str, steps: int, start: int) -> tuple[np.ndarray, Policy]:
    """Train by `Method` under Lightning with callbacks, logger and data loading; return what `bare` returns."""
    policy = model_of(name)
    rows = rows_of(name, policy)
    settings = TrainerSettings(
        max_steps=steps,
        max_epochs=None,
        batch_size=BATCH,
        micro_batch_tokens=2**20,
        prompts_together=False,
        learning_rate=RATE,
        weight_decay=0.0,
        warmup_steps=0,
        lr_schedule="constant",
        grad_clip=CLIP,
        log_every=LOG_EVERY,
        checkpoint_every=10 * steps,
    )
    algo = AlgoSettings(reference="cached", reward_offset="none")
    loss = partial(shiq, beta=BETA)
    made = Method(policy, scores_in_batch, loss, settings, max_steps=steps, seed=0, algo=algo, beta=BETA)
    data = LoggedData(EncodedData(rows, rows, {}, "x"), batch_size=BATCH, micro_batch_tokens=2**20, seed=0)  # type: ignore[arg-type]
    clock = Clock(start)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), 10 * steps)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            logger=[MetricsFile(Path(folder) / "metrics.csv")],
            callbacks=[clock, LiveView("bench"), checkpoints, Signals(checkpoints)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        trainer.fit(made, datamodule=data)
    return clock.at[steps] - clock.at[start], policy


def child(way: str, name: str, steps: int, profile: bool) -> dict[str, float]:
    """Return a measurement of one way of training: seconds per step, and a sum of weights that tells the ways apart."""
    torch.set_num_threads(1)
    start = int(steps * WARM_UP)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    seconds, policy = {"bare": bare, "method": method}[way](name, steps, start)
    if profile:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(90)
    weights = sum(float(p.detach().double().square().sum()) for p in policy.parameters())
    return dict(zip(CLOCKS, seconds / (steps - start), strict=True)) | {"weights": weights}


def main() -> None:
    """Measure `Method` and the bare loop in turn and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    parser.add_argument("--profile", action="store_true", help="profile the loop under the Trainer")
    args = parser.parse_args()
    if args.way or args.profile:
        print(json.dumps(child(args.way or "method", args.model, STEPS[args.model], args.profile)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way in WAYS:
            command = [sys.executable, "-m", "bench.loop", f"--way={way}", f"--model={args.model}"]
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
            found[way].append(json.loads(done.stdout.decode().splitlines()[-1]))
    weights = [one["weights"] for runs in found.values() for one in runs]
    if max(weights) - min(weights) > 1e-5 * max(weights):
        raise SystemExit(f"the two ways end at different weights: {weights}")
    shown = {way: {k: 1000 * median(one[k] for one in runs) for k in CLOCKS} for way, runs in found.items()}
    beside = {k: shown["method"][k] - shown["bare"][k] for k in CLOCKS}
    if args.json:
        print(json.dumps({"model": args.model, **shown, "beside": beside}))
        return
    table = Table("loop", title=f"model {args.model}: ms a step, one thread, median of {args.repeats}")
    for column in ("CPU", "of the main thread", "wall"):
        table.add_column(column, justify="right")
    for name, numbers in (*shown.items(), ("the loop's own share", beside)):
        table.add_row(name, *(f"{numbers[k]:.2f}" for k in CLOCKS))
    Console().print(table)


if __name__ == "__main__":
    main()
