"""A `FinishedRun` is a run directory whose model is complete and unchanged, as everything that leaves it requires."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shiqrun.errors import InputError
from shiqrun.models.pretrained import load_pretrained
from shiqrun.models.reference import weights_fingerprint
from shiqrun.models.saved_files import check_saved_files, expected_fingerprint, has_checksums
from shiqrun.report.run_files import as_number, read_config, read_table
from shiqrun.util.hub import is_cached
from shiqrun.util.summary import read_summary

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class FinishedRun:
    """A `FinishedRun` holds what a run wrote about itself.

    Attributes:
        directory: the run directory.
        config: its settings by dotted keys.
        summary: its final metrics, fingerprints and versions.
    """

    directory: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def is_reward_model(self) -> bool:
        """Return whether the run trained a reward model instead of a policy."""
        return (self.directory / "reward_model").is_dir()

    @property
    def model(self) -> Path:
        """Return the directory of the trained model, with an adapter merged into it."""
        return self.directory / ("reward_model" if self.is_reward_model else "policy")

    @property
    def trusts_remote_code(self) -> bool:
        """Return whether the run's user let Python code that comes with the model run."""
        return bool(self.config.get("model.trust_remote_code"))

    def before(self) -> dict[str, float]:
        """Return the metrics of the reference, `val/NAME`, which the run measured before its first step."""
        file = self.directory / "metrics.csv"
        rows = read_table(file, "step") if file.is_file() else []
        first = rows[0] if rows and as_number(rows[0]["step"]) == 0 else {}
        return {name: number for name, value in first.items() if (number := as_number(value)) is not None}


def finished_run(directory: Path) -> FinishedRun:
    """Return a finished run whose model is the one that the run saved.

    Raises:
        InputError: the run is not finished, or has no model, or its model or its summary has changed since.
    """
    run = FinishedRun(directory, read_config(directory / ".hydra" / "config.yaml"), read_summary(directory))
    if not run.summary:
        raise InputError(f"{directory}: the run is not finished; go on with shiqrun train resume={directory}")
    if not (run.model / "config.json").is_file():
        raise InputError(f"{run.model}: no model in it; give the directory of a finished shiqrun train")
    check_saved_files(str(run.model), "RUN")
    if not has_checksums(run.model):
        print(f"{directory}: an older version saved this run without checksums of its files")
        _expect_fingerprint(run)
    return run


def _expect_fingerprint(run: FinishedRun) -> None:
    """Compare the weights of a run of an older version with the fingerprint in its summary, where it has one.

    Raises:
        InputError: they differ.
    """
    before = expected_fingerprint(str(run.model))
    if before is not None and before != (now := weights_fingerprint(load_model(run))):
        raise InputError(f"{run.model}: its weights have changed since the run saved them ({before} then, {now} now)")


def load_model(run: FinishedRun, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the trained model on the CPU, in eval mode."""
    auto = AutoModelForSequenceClassification if run.is_reward_model else AutoModelForCausalLM
    options = {"trust_remote_code": run.trusts_remote_code, "dtype": dtype}
    model: PreTrainedModel = load_pretrained(auto, str(run.model), "weights", "RUN", **options)
    return model.eval()


def load_tokenizer(run: FinishedRun) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the trained model, with the chat template that it was trained with."""
    options = {"trust_remote_code": run.trusts_remote_code}
    found: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, str(run.model), "tokenizer", "RUN", **options)
    return found


def public(value: Any) -> str:
    """Return what a card says of a setting: the id of a model or data set, but of a path its name alone."""
    text = str(value)
    return text if "/" not in text or hub_id(text) else Path(text).name


def hub_id(value: Any) -> str | None:
    """Return the id on the Hub that a setting names, or None where it is a path on this machine, or nothing."""
    text = str(value or "")
    return text if HUB_ID.fullmatch(text) and not Path(text).exists() and is_cached(text) else None
