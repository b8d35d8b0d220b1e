"""`python -m bench.equality` compares runs of two ranks that share the weights with the same runs of one process.

For each kind of run the command line trains twice: by one process, and by `hardware=fsdp hardware.devices=2` on the
CPU. The table shows the largest differences of losses, gradient norms, evaluations and final weights. Batches are
uneven, so that ranks have different numbers of micro-batches. equality.json is written into --out.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from bench.models import FAMILIES, save_families
from shiqrun.cli import main as shiqrun

COMMON = (
    *("logger=none", "hardware.accelerator=cpu", "trainer.max_steps=6", "trainer.batch_size=7", "trainer.log_every=1"),
    *("trainer.warmup_steps=2", "eval.every=3"),
)
TREASURE = ("data.maps=12", "data.val_maps=3", "data.per_map=3", "trainer.micro_batch_tokens=60")
TINY = ("model.hidden_size=32", "model.num_layers=2", "trainer.learning_rate=2e-3")
KINDS: dict[str, tuple[str, ...]] = {
    "full": (),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "units=trajectory": ("algo.units=trajectory",),
    "padded": ("model.attn_implementation=eager",),
    "weights=bf16": ("hardware.weights=bf16",),
    "reference=frozen": ("algo.reference=frozen",),
    "LoRA, cached": ("model.lora_r=4",),
    "LoRA, frozen": ("model.lora_r=4", "algo.reference=frozen"),
    "LoRA, adapter": ("model.lora_r=4", "algo.reference=adapter"),
    "value head": ("algo=dro_v", "algo.value=head"),
    "value network": ("algo=dro_v", "algo.value=network"),
    "reward model": ("algo=reward_model",),
    **{f"algo={name}": (f"algo={name}",) for name in ("sft", "dpo", "ipo", "copg", "dro", "tbrm", "shiq_tk", "kto")},
    "algo=oreo": ("algo=oreo", "algo.kl_reg=0"),
}
"""Words of each kind of run on a Llama with random weights."""


class RunFailed(Exception):
    """`RunFailed` says that a run ended with an error, or left other metrics or weights than it should."""


def run(words: Sequence[str], folder: Path, *, ranks: int) -> Path:
    """Train in a folder by one process (this one), or by several that share the weights; return the folder.

    Raises:
        RunFailed: it failed.
    """
    if (folder / "summary.json").is_file():
        return folder
    words = ["train", *words, f"run_dir={folder}"]
    if ranks == 1:
        with redirect_stdout(StringIO()) as out, redirect_stderr(out):
            code, said = shiqrun(words), out.getvalue()
    else:
        command = [sys.executable, "-m", "shiqrun", *words, "hardware=fsdp", f"hardware.devices={ranks}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        code, said = done.returncode, done.stdout + done.stderr
    if code:
        raise RunFailed(f"exit code {code} of shiqrun {' '.join(words)}\n{said[-3000:]}")
    return folder


LEAST = 1e-2
"""Numbers below this are compared relative to it: at step 0 a divergence is rounding alone."""


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's `metrics.csv`."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a run saved: of its policy (adapters merged) or its reward model, float32."""
    files = [*folder.glob("policy/*.safetensors"), *folder.glob("reward_model/*.safetensors")]
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def differences(one: Path, many: Path) -> dict[str, float]:
    """Return the largest differences between two runs: relative ones of metrics, absolute ones of weights."""
    found: dict[str, float] = {"loss": 0.0, "gradient norm": 0.0, "evaluation": 0.0}
    for before, after in zip(rows(one), rows(many), strict=True):
        if before.keys() != after.keys():
            raise RunFailed(f"{many}: other metrics than {one}: {sorted(before.keys() ^ after.keys())}")
        for name, value in before.items():
            kind = {"train/loss": "loss", "train/grad_norm": "gradient norm"}.get(name, name.partition("/")[0])
            kind = "evaluation" if kind == "val" and name not in CLOCK else kind
            if kind in found:
                found[kind] = max(found[kind], abs(value - after[name]) / max(abs(value), LEAST))
    first, second = weights(one), weights(many)
    if first.keys() != second.keys() or not first:
        raise RunFailed(f"{many} saved other weights than {one}: {sorted(first.keys() ^ second.keys())[:5]}")
    found["weights"] = max(float((first[name] - second[name]).abs().max()) for name in first)
    return found


def compare(words: Sequence[str], one: Path, many: Path, ranks: int) -> dict[str, float]:
    """Return the differences between a run of one process and one of several ranks; nothing where one failed."""
    try:
        return differences(run(words, one, ranks=1), run(words, many, ranks=ranks))
    except RunFailed as error:
        print(error, flush=True)
        return {}


CLOCK = ("val/eval_share", "val/seconds_training")
"""Evaluated numbers that depend on the clock."""


def kinds(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the words of every kind of run, those on models of several families included, which are saved first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums()), encoding="utf-8")
    data = ("data=jsonl", f"data.path={path}", "trainer.micro_batch_tokens=100", "eval.max_prompts=0")
    start = run([*COMMON, *data, *TINY, "algo=sft", "trainer.max_steps=1"], folder / "start", ranks=1)
    saved = save_families(start / "policy", folder / "families")
    known = {kind: (*TREASURE, *TINY, *words) for kind, words in KINDS.items()}
    own = ("model=hf", "trainer.learning_rate=2e-3")
    return known | {name: (*data, *own, f"model.path={path}") for name, path in saved.items()}


def sums() -> Iterator[dict[str, Any]]:
    """Yield rows of `data=jsonl`: sums with three answers of several lengths each, the first of which is right."""
    for a in range(6):
        for b in range(4):
            answers = [str(a + b), str(a + b + 1), "I do not know"[: 3 + 2 * a]]
            yield {"prompt": f"What is {a} plus {b}?", "completions": answers, "rewards": [1.0, 0.0, 0.1 * b]}


def main() -> None:
    """Train each kind twice and print the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--out", type=Path, help="folder of equality.json")
    asked.add_argument("--ranks", type=int, default=2, help="processes that share the weights")
    asked.add_argument("--only", nargs="+", choices=[*KINDS, *FAMILIES], metavar="KIND", help="kinds, all by default")
    asked.add_argument("--keep", type=Path, help="folder of the runs, which are not made again if they are there")
    args = asked.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = args.keep or Path(place)
        for number, (kind, words) in enumerate(kinds(folder).items()):
            if args.only is None or kind in args.only:
                one, many = folder / f"one_{number}", folder / f"many_{number}"
                found[kind] = compare([*COMMON, f"cache_dir={folder / 'cache'}", *words], one, many, args.ranks)
    columns = ("loss", "gradient norm", "evaluation", "weights")
    table = Table("run", *columns, title=f"largest differences of {args.ranks} ranks from one process")
    for kind, gaps in found.items():
        table.add_row(kind, *(f"{gaps[name]:.1e}" if gaps else "failed" for name in columns))
    Console(width=120).print(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "equality.json").write_text(json.dumps(found, indent=2) + "\n")
    if not all(found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
