"""`python -m bench.low_memory` trains one model with weights and moments of several precisions.

The learning rate is 1e-5. For each: bytes a parameter, the loss,
how much of float32's movement the weights make, and the share that never moves.
AdamW on bfloat16 weights without stochastic rounding, which shiqrun does not offer, is among them.
"""

import argparse
import csv
import importlib.util
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from shiqrun.cli import main as shiqrun

START = (
    *("algo=sft", "trainer.max_steps=20", "eval.every=0", "hardware.weights=bf16", "trainer.log_every=1"),
    *("model.hidden_size=128", "model.intermediate_size=256", "model.num_layers=4", "model.initializer_range=0.02"),
)
COMMON = ("logger=none", "data.maps=40", "data.val_maps=4", "trainer.batch_size=8")
KINDS = {
    "fp32, adamw": ("hardware.weights=fp32", "trainer.optimizer=adamw"),
    "bf16, no rounding (not offered)": ("hardware.weights=bf16",),
    "bf16, adamw": ("hardware.weights=bf16", "trainer.optimizer=adamw"),
    "fp32, adamw_8bit": ("hardware.weights=fp32", "trainer.optimizer=adamw_8bit"),
    "bf16, adamw_8bit": ("hardware.weights=bf16", "trainer.optimizer=adamw_8bit"),
}


def plain(policy, settings, **_):
    """Return torch's AdamW on whatever weights the policy has."""
    rate = {"lr": settings.learning_rate, "initial_lr": settings.learning_rate}
    return torch.optim.AdamW([{"params": list(policy.parameters()), **rate}], weight_decay=0.0, fused=True)


def tensors(x: object) -> list[Tensor]:
    """Return all tensors with more than one number inside nested dictionaries and lists."""
    if isinstance(x, Tensor):
        return [x] if x.numel() > 1 else []
    inside = x.values() if isinstance(x, dict) else x if isinstance(x, list) else ()
    return [t for value in inside for t in tensors(value)]


def main() -> None:
    """Train and print the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--steps", type=int, default=60)
    steps = asked.parse_args().steps
    table = Table(
        "weights and moments", "bytes a parameter", "loss, first 10 steps", "last 10", "moved as fp32", "never moved"
    )
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        cache = (*COMMON, f"cache_dir={run / 'cache'}")
        assert shiqrun(["train", *cache, *START, f"run_dir={run / 'start'}"]) == 0
        begun = torch.load(run / "start/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        exact: Tensor | None = None
        for name, words in KINDS.items():
            if "8bit" in name and importlib.util.find_spec("bitsandbytes") is None:
                continue
            trap = patch("shiqrun.training.step.method.adamw", plain) if "no rounding" in name else nullcontext()
            folder = run / f"run{len(table.rows)}"
            with trap:
                code = shiqrun(
                    [
                        *(
                            "train",
                            *cache,
                            "model=hf",
                            f"model.path={run / 'start/policy'}",
                            f"run_dir={folder}",
                            *words,
                        ),
                        *(
                            "algo=shiq",
                            "trainer.learning_rate=1e-5",
                            "trainer.warmup_steps=0",
                            f"trainer.max_steps={steps}",
                        ),
                        *("trainer.log_every=1", "eval.every=0"),
                    ]
                )
            assert code == 0
            saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
            moved = torch.cat([(x.float() - begun[k].float()).flatten() for k, x in saved["state_dict"].items()])
            exact = moved if exact is None else exact
            held = [sum(t.nbytes for t in tensors(saved[k])) / len(moved) for k in ("state_dict", "optimizer_states")]
            with (folder / "metrics.csv").open(newline="") as file:
                losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
            along = float(torch.dot(moved, exact) / exact.square().sum())
            table.add_row(
                name,
                f"{held[0]:.1f} + {held[1]:.1f}",
                f"{sum(losses[:10]) / 10:.4f}",
                f"{sum(losses[-10:]) / 10:.4f}",
                f"{along:.2f}",
                f"{float((moved == 0).float().mean()):.2f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
