"""`measure` measures a training run of shiqrun in this process, with the objects and loop of `shiqrun train`."""

import csv
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from bench.clock import StepClock
from bench.work import read_pairs
from shiqrun.batching.logged_data import EncodedData, load
from shiqrun.commands.train import plan
from shiqrun.config.compose import compose
from shiqrun.training import run as training
from shiqrun.training.plan import Plan, Run
from shiqrun.training.prepare import prepare_run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Settings` describe one measured run of shiqrun.

    Attributes:
        folder: of `bench.work.prepare`.
        steps: optimiser steps, the warm-up included.
        warmup: of these, steps before the clock starts.
        pairs: of a step; a pair is all completions of a prompt.
        algo: of shiqrun.
        precision: fp32 or bf16.
        device: cpu or cuda.
        log_every: steps between logged rows.
        extra: further overrides.
    """

    folder: str
    steps: int
    warmup: int = 1
    pairs: int = 8
    algo: str = "dpo"
    precision: str = "fp32"
    device: str = "cpu"
    log_every: int = 10
    extra: tuple[str, ...] = ()


def overrides(settings: Settings, run_dir: Path, completions: int) -> list[str]:
    """Return the settings as overrides on the command line of `shiqrun train`."""
    folder = Path(settings.folder)
    return [
        f"algo={settings.algo}",
        *([] if settings.algo in ("sft", "reward_model") else ["algo.beta=0.1"]),
        "data=jsonl",
        f"data.path={folder / 'pairs.jsonl'}",
        "data.val_fraction=0",
        "model=hf",
        f"model.path={folder / 'model'}",
        f"hardware={'gpu' if settings.device == 'cuda' else 'cpu'}",
        f"hardware.precision={settings.precision}",
        f"trainer.max_steps={settings.steps}",
        f"trainer.batch_size={settings.pairs * completions}",
        "trainer.prompts_together=true",
        "trainer.learning_rate=1e-4",
        "trainer.warmup_steps=0",
        "trainer.grad_clip=1.0",
        f"trainer.log_every={settings.log_every}",
        f"trainer.checkpoint_every={10 * settings.steps}",
        "eval.every=0",
        "logger=none",
        f"cache_dir={run_dir / 'cache'}",
        f"run_dir={run_dir}",
        *settings.extra,
    ]


def load_run(settings: Settings, run_dir: Path) -> Run:
    """Return the run that the settings describe, ready to train."""
    completions = len(read_pairs(Path(settings.folder))[0]["completions"])
    return prepare_run(_plan(settings, run_dir, completions))


def _plan(settings: Settings, run_dir: Path, completions: int) -> Plan:
    config = compose("train", overrides(settings, run_dir, completions))
    return plan(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), run_dir)


def encode_rows(settings: Settings) -> EncodedData:
    """Return the encoded rows of the run, without its model."""
    with tempfile.TemporaryDirectory() as directory:
        made = _plan(settings, Path(directory), 2)
        tokenizer = made.choice.tokenizer(made.source, ())
        return load(made.source, tokenizer, made.data, context=made.choice.context(), compared_by=settings.algo)


def measure(settings: Settings) -> dict[str, Any]:
    """Train as the settings say; return times, memory and tokens, and `losses` and `grad_norms` of the logged steps.

    `once` is the time before the first step that is spent once: scoring the rows by the reference.
    """
    clock = StepClock(warmup=settings.warmup, steps=settings.steps, device=settings.device)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory)
        run = load_run(settings, run_dir)
        clock.watch(run.policy.causal_lm.get_input_embeddings())
        began, once = (time.perf_counter(), time.process_time()), {}

        def first_step() -> list[Logger]:  # called when the reference is there and nothing but training is left
            once.update(wall=time.perf_counter() - began[0], cpu=time.process_time() - began[1])
            clock.begin()
            return []

        training.execute(replace(run, plan=replace(run.plan, trackers=first_step)), resume=False)
        rows = list(csv.DictReader((run_dir / "metrics.csv").open(encoding="utf-8")))
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    curves = {
        name: [float(row[key]) for row in rows if row.get(key)]
        for name, key in (("losses", "train/loss"), ("grad_norms", "train/grad_norm"))
    }
    return {**clock.result(), "once": once, **curves, "reference_seconds": summary.get("seconds/reference")}
