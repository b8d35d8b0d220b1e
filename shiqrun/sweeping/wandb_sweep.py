"""A search becomes the file that `wandb sweep` reads: W&B's server chooses the values, its agents run the jobs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from shiqrun.sweeping.search import SEED, Dimension, Search
from shiqrun.util.quoting import as_override

FILE = "sweep.yaml"
ARGUMENTS = "${args_no_hyphens}"
"""What an agent replaces by the words `key=value` of a run."""


def wandb_sweep(search: Search, folder: Path, project: str, extra: Sequence[str]) -> str:
    """Return the text of the file for `wandb sweep`.

    Args:
        search: what is searched. W&B takes no mean over seeds: they are one more parameter.
        folder: gets the run directories of the agents' jobs, so that `shiqrun report` finds them.
        project: of W&B.
        extra: further words of every job.
    """
    assert search.metric is not None
    place = as_override(f"{folder.absolute()}/${{now:%Y-%m-%d_%H-%M-%S}}")
    parameters = {key: _parameter(dimension) for key, dimension in search.space.items()}
    if search.seeds:
        parameters[SEED] = {"values": [_plain(seed) for seed in search.seeds]}
    content = {
        "name": folder.name,
        "project": project,
        "method": "bayes",
        "metric": {"name": search.metric, "goal": "maximize" if search.direction > 0 else "minimize"},
        "run_cap": search.trials * search.jobs_per_trial,
        "parameters": parameters,
        "command": ["shiqrun", "train", *search.words, *extra, f"run_dir={place}", ARGUMENTS],
    }
    return yaml.safe_dump(content, sort_keys=False, width=1000)


def _parameter(dimension: Dimension) -> dict[str, Any]:
    """Return a dimension as W&B describes it."""
    if dimension.kind == "choice":
        return {"values": [_plain(value) for value in dimension.values]}
    low, high = dimension.number(dimension.low), dimension.number(dimension.high)
    if dimension.step not in (None, 1):
        count = round((dimension.high - dimension.low) / dimension.step)
        return {"values": [dimension.number(dimension.low + k * dimension.step) for k in range(count + 1)]}
    whole = dimension.kind == "int"
    if dimension.log:
        found: dict[str, Any] = {"distribution": "q_log_uniform_values" if whole else "log_uniform_values"}
        return {**found, "min": low, "max": high, **({"q": 1} if whole else {})}
    return {"distribution": "int_uniform" if whole else "uniform", "min": low, "max": high}


def _plain(text: str) -> Any:
    """Return a choice as the number that it is, so that W&B draws it on an axis; any other one as the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
