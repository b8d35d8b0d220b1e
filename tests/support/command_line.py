"""Runs through the real command line, in this process or in one of its own, and reads what a run left."""

import csv
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

from shiqrun.cli import main
from shiqrun.evaluation.checkpoint_files import load_content
from tests.support.forks import Forked

Process = subprocess.Popen | Forked

SMALL = (
    "logger=none",
    "data.maps=40",
    "data.val_maps=4",
    "model.hidden_size=32",
    "model.num_layers=2",
    "trainer.batch_size=8",
    "trainer.log_every=3",
    "eval.every=5",
)


def train(*words: str) -> int:
    """Exit code of `shiqrun train` on a small problem, in this process."""
    return main(["train", *SMALL, *words])


def start(*words: str, **environment: str) -> Process:
    """The same in a process of its own."""
    return command("train", *SMALL, *words, **environment)


def command(*words: str, **environment: str) -> Process:
    """Any command in a process of its own."""
    if environment or words[0] == "sweep" or {"hardware=ddp", "hardware=fsdp"} & set(words):
        return started_anew(*words, **environment)
    return Forked(tuple(str(word) for word in words))


def started_anew(*words: str, **environment: str) -> subprocess.Popen:
    """Any command in a new interpreter, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "shiqrun", *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: Process, seconds: float = 240) -> tuple[int, str]:
    """(exit code, output)."""
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def wait_for_rows(run_dir: Path, rows: int, process: Process, seconds: float = 120) -> None:
    """Returns once `metrics.csv` has that many rows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if (run_dir / "metrics.csv").is_file() and len(metrics(run_dir)) >= rows:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {rows} rows of metrics: {process.communicate(timeout=30)[0] if process.poll() else ''}")


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Rows of `metrics.csv`, empty cells left out."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def timeless(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows without what depends on the clock."""
    clock = ("per_second", "seconds", "eval_share")
    return [{k: v for k, v in row.items() if not any(part in k for part in clock)} for row in rows]


def summary(run_dir: Path) -> dict:
    """`summary.json` without its digest."""
    return {k: v for k, v in json.loads((run_dir / "summary.json").read_text()).items() if k != "sha256"}


def edit_config(run_dir: Path, old: str, new: str, *, sealed: bool = True) -> None:
    """Change the saved config of a run as a person does who means it: without the checksum in its first line."""
    file = run_dir / ".hydra/config.yaml"
    lines = file.read_text()
    lines = lines.partition("\n")[2] if sealed else lines
    assert old in lines
    file.write_text(lines.replace(old, new))


def checkpoint(run_dir: Path, name: str = "last") -> dict:
    """A checkpoint's contents."""
    return load_content(run_dir / "checkpoints" / f"{name}.ckpt")


def largest_difference(a: Path, b: Path) -> float:
    """Between the weights of two runs' last checkpoints."""
    first, second = checkpoint(a)["state_dict"], checkpoint(b)["state_dict"]
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max()) for k in first)


def on_a_terminal(*words: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """(exit code, output) of a command whose output is a terminal."""
    reader, writer = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    env |= {"TERM": "xterm-256color", **environment}
    program = [sys.executable, "-m", "shiqrun", *words]
    chunks = []
    with subprocess.Popen(program, stdout=writer, stderr=writer, cwd=cwd, env=env) as process:
        os.close(writer)
        try:
            while chunk := os.read(reader, 65536):
                chunks.append(chunk)
        except OSError:  # how a Linux terminal says that the other side is gone
            pass
    os.close(reader)
    return process.returncode, b"".join(chunks).decode()
