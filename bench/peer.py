"""`measure` measures a run of TRL's DPOTrainer in this process, on shiqrun's rows, weights and order."""

import time
from dataclasses import dataclass
from typing import Any

import datasets
import transformers
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from bench.clock import StepClock
from bench.order import Pair


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Settings` describe one measured run of TRL's trainer.

    Attributes:
        model: directory of the model.
        steps: optimiser steps, the warm-up included.
        warmup: of these, steps before the clock starts.
        pairs: of a step.
        default: as TRL comes: activation checkpointing and a live reference; else neither.
        precision: fp32 or bf16.
        device: cpu or cuda.
        log_every: steps between logged rows.
    """

    model: str
    steps: int
    warmup: int = 1
    pairs: int = 8
    default: bool = False
    precision: str = "fp32"
    device: str = "cpu"
    log_every: int = 10


class Timed(DPOTrainer):
    """The Timed trainer notes the time of the reference's log-probabilities where they are computed beforehand."""

    once: dict[str, float]

    def _precompute_ref_logps(self, *arguments: Any) -> Any:
        began = time.perf_counter(), time.process_time()
        made = super()._precompute_ref_logps(*arguments)
        self.once = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}
        return made


class Begin(TrainerCallback):
    """The Begin callback starts the clock before the first step."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock, after everything that TRL prepares."""
        self.clock.begin()


def measure(settings: Settings, pairs: list[Pair], tokenizer: Any, out: str) -> dict[str, Any]:
    """Train by TRL; return times, memory and tokens, and `losses` and `grad_norms` of the logged steps.

    Args:
        settings: see there.
        pairs: in the order in which they are trained on.
        tokenizer: with the chat template that made the pairs' tokens.
        out: directory for what TRL writes.

    Raises:
        SystemExit: TRL's tokens are others than the pairs'.
    """
    transformers.utils.logging.set_verbosity_error()
    clock = StepClock(warmup=settings.warmup, steps=settings.steps, device=settings.device)
    model = AutoModelForCausalLM.from_pretrained(settings.model)
    clock.watch(model.get_input_embeddings())
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    trainer = Timed(
        model=model,
        args=_arguments(settings, out),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Begin(clock)],
    )
    _expect_equal_tokens(trainer.train_dataset, pairs)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return {
        **clock.result(),
        "once": getattr(trainer, "once", {"wall": 0.0, "cpu": 0.0}),
        "losses": [row["loss"] for row in logged],
        "grad_norms": [row["grad_norm"] for row in logged],
    }


def _arguments(settings: Settings, out: str) -> DPOConfig:
    """Return TRL's arguments: what every side shares, what tells its default from its best; else TRL's defaults."""
    best = {} if settings.default else {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
    return DPOConfig(
        output_dir=out,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.pairs,
        train_sampling_strategy="sequential",
        beta=0.1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=settings.precision == "bf16",
        use_cpu=settings.device == "cpu",
        dataloader_pin_memory=settings.device != "cpu",
        logging_steps=settings.log_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **best,
    )


def _expect_equal_tokens(dataset: Any, pairs: list[Pair]) -> None:
    for row, pair in zip(dataset, pairs, strict=True):
        if (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) != pair.ids:
            raise SystemExit(f"TRL reads other tokens than shiqrun: {row['prompt_ids'][-5:]} ... {pair.ids[0][-5:]}")
