"""`train` and `evaluate` run the commands `shiqrun train` and `shiqrun eval` in this process."""

import json
from pathlib import Path
from typing import Any

from shiqrun.api.run import Run
from shiqrun.api.words import command_words
from shiqrun.errors import InputError


def train(*overrides: str, **settings: Any) -> Run:
    """Train a policy as `shiqrun train` does, in this process, and return its finished run.

        run = shiqrun.train("algo=shiq", "data=jsonl", data_path="rows.jsonl", trainer_max_steps=100)

    Args:
        overrides: as on the command line: `"algo=shiq"`, `"resume=DIR"`.
        settings: keys by name, with an underscore for the dot: `data_path`, `trainer_max_steps`, `run_dir`.

    Raises:
        InputError: a setting, file or row that cannot work; nothing is left of the run directory.
        TrainingError: the run failed; its message says why, and `resume=` goes on where it stood.
        KeyboardInterrupt: the kernel was interrupted; the run has saved a checkpoint.
    """
    return Run(_run("train", "shiqrun.commands.train", overrides, settings))


def evaluate(run: "Run | str | Path", *overrides: str, **settings: Any) -> dict[str, Any]:
    """Evaluate the policy of a run as `shiqrun eval run=DIR` does, and return what it writes into `eval.json`.

    Args:
        run: a run, or its directory.
        overrides: as on the command line: `"reward=DIR"`, `"checkpoint=best"`.
        settings: keys by name, as in `train`.

    Raises:
        InputError: as `train`.
        TrainingError: the evaluation failed.
    """
    directory = run.directory if isinstance(run, Run) else Path(run)
    folder = _run("eval", "shiqrun.commands.eval", overrides, {"run": directory, **settings})
    found: dict[str, Any] = json.loads((folder / "eval.json").read_bytes())
    return found


def _run(name: str, module: str, overrides: tuple[str, ...], settings: dict[str, Any]) -> Path:
    words = command_words(overrides, settings)
    if any(word.partition("=")[0] == "dry_run" for word in words):
        raise InputError(f"dry_run: it writes no run to return; print it by `shiqrun {name} dry_run=true` in a shell")
    from shiqrun.config.launch import launch_in_process

    return launch_in_process(name, words, module=module)
