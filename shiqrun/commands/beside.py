"""What may be set beside `run=RUN_DIR`: the run brings its own model, its data and how it was evaluated by itself."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.commands.validate import Schema, check
from shiqrun.errors import InputError


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
