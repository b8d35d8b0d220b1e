"""What may be set beside `run=RUN_DIR`: the run brings its own model, its data and how it was evaluated by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.config import run_directory as rundir
from shiqrun.config.validate import Schema, check
from shiqrun.errors import InputError
from shiqrun.util.quoting import as_override, unquote


def evaluation_beside(config: DictConfig, former: DictConfig) -> DictConfig:
    """The config with the run's own settings of `eval:` and its reward, where the command line sets nothing else."""
    given, merged = {key for _, key in _words()}, config.copy()
    with open_dict(merged):
        for key in set(config.eval) & set(former.eval):
            if f"eval.{key}" not in given:
                merged.eval[key] = former.eval[key]
        if not any(key == "reward" or key.startswith("reward.") for key in given):
            merged.reward = former.eval.get("reward")
    return merged


def _words() -> list[tuple[str, str]]:
    """What the command line sets: (the word, its key)."""
    words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return [(word, word.lstrip("+~").partition("=")[0]) for word in words]


def with_data_of_run(overrides: Sequence[str]) -> list[str]:
    """The overrides, led by the run's data and its settings where `run=DIR` stands beside `data.KEY` but no `data`.

    Hydra knows the keys of one data set only, which would be the command's own.
    """
    asked = {key: unquote(value) for key, _, value in (word.partition("=") for word in overrides)}
    keys = {key.lstrip("+~") for key in asked}
    folder = Path(asked.get("run", ""))
    saved = folder / ".hydra" / "hydra.yaml"
    if "run" not in asked or "data" in keys or not any(k.startswith("data.") for k in keys) or not saved.is_file():
        return list(overrides)
    choice = OmegaConf.select(OmegaConf.load(saved), "hydra.runtime.choices.data")
    settings = OmegaConf.to_container(rundir.load(folder).data, resolve=True)
    if choice is None or not isinstance(settings, dict):
        return list(overrides)
    own = {f"data.{key!s}": value for key, value in settings.items() if key not in ("_target_", "name")}
    return [f"data={choice}", *(f"{k}={_value(v)}" for k, v in own.items() if k not in keys), *overrides]


def _value(value: Any) -> str:
    """As an override says it, so that it is read as what it is."""
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return as_override(value) if isinstance(value, str) else "null" if value is None else str(value).lower()


def data_beside(config: DictConfig, former: DictConfig, schema: Schema) -> DictConfig:
    """The data node to look at: the run's with what the command line sets of it, or another choice altogether.

    Args:
        config: of this command, with `run` set.
        former: of the run.
        schema: of this command.

    Raises:
        InputError: a model is set beside the run, or a key that the run's data set does not have.
    """
    asked = dict(_words())
    models = [word for word, key in asked.items() if key == "model" or key.startswith("model.")]
    if models:
        raise InputError(f"run={Path(config.run)} brings its own model; leave out {', '.join(models)}")
    if "data" in asked.values():
        return config.data
    merged = config.copy()
    with open_dict(merged):
        merged.data = former.data.copy()
        for key in asked.values():
            if key.startswith("data."):
                OmegaConf.update(merged, key, OmegaConf.select(config, key), force_add=True)
    check(merged, schema)
    return merged.data
