"""Beside `run=RUN_DIR` the run brings its model, data and evaluation settings, of which some may be changed."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.config import run_directory as rundir
from shiqrun.config.locate import locate
from shiqrun.config.process import SAVED_BY_HYDRA, saved_by_hydra
from shiqrun.config.validate import Schema, check
from shiqrun.config.without_environment import standalone
from shiqrun.errors import InputError
from shiqrun.util.quoting import override_value, unquote


def with_evaluation_of_run(config: DictConfig, former: DictConfig) -> DictConfig:
    """Return the config of `shiqrun eval` with the run's own `eval:` settings and reward where none were given.

    Args:
        config: of this command, with `run` set.
        former: the saved config of the run.
    """
    given, merged = {key for _, key in _given_overrides()}, config.copy()
    with open_dict(merged):
        for key in set(config.eval) & set(former.eval):
            if f"eval.{key}" not in given:
                merged.eval[key] = former.eval[key]
        if not any(key == "reward" or key.startswith("reward.") for key in given):
            merged.reward = former.eval.get("reward")
    return merged


def _given_overrides() -> list[tuple[str, str]]:
    """Return every override of the command line with its key."""
    words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return [(word, word.lstrip("+~").partition("=")[0]) for word in words]


def with_data_of_run(overrides: Sequence[str]) -> list[str]:
    """Put the data set of the run before the overrides if `run=DIR` and `data.KEY` are given, but no `data`.

    Hydra knows only the keys of one data set, which would be the default one of the command. What the run reads from an
    environment variable stays `${oc.env:NAME}`, because the overrides are written into the new run's directory.
    """
    given = {key: unquote(value) for key, _, value in (word.partition("=") for word in overrides)}
    keys = {key.lstrip("+~") for key in given}
    folder = Path(given.get("run", ""))
    if "run" not in given or "data" in keys or not any(k.startswith("data.") for k in keys):
        return list(overrides)
    former = rundir.load(folder)
    settings = standalone(former, "data") if "data" in former else None
    if not isinstance(settings, dict):
        return list(overrides)
    hydra = saved_by_hydra(folder / SAVED_BY_HYDRA)
    choice = OmegaConf.select(hydra, "hydra.runtime.choices.data") if hydra is not None else None
    own = {f"data.{key!s}": value for key, value in settings.items() if key not in ("_target_", "name")}
    # ++: the parts of a mixture have keys that the YAML of the choice lacks
    given_values = [f"{'++' * (k == 'data.parts')}{k}={override_value(v)}" for k, v in own.items() if k not in keys]
    return [f"data={choice or settings['name']}", *given_values, *overrides]


def beta_of_run(former: DictConfig) -> float | None:
    """Return the KL temperature of a run's method, reward units per nat: as configured, or as its loss has by default.

    Raises:
        InputError: the run's config has no beta, and its loss cannot be imported.
    """
    if "beta" in former.algo:
        return former.algo.beta
    from shiqrun.losses.requirements import hyperparameters

    return hyperparameters(locate("algo._target_", former.algo._target_)).get("beta")


def data_node(config: DictConfig, former: DictConfig, schema: Schema) -> DictConfig:
    """Return the data node to use beside a run: the run's with the given changes, or another data set altogether.

    Args:
        config: of this command, with `run` set.
        former: the saved config of the run.
        schema: of this command.

    Raises:
        InputError: a model was given beside the run, or a key that the run's data set does not have.
    """
    given = dict(_given_overrides())
    models = [word for word, key in given.items() if key == "model" or key.startswith("model.")]
    if models:
        raise InputError(f"run={Path(config.run)} brings its own model; leave out {', '.join(models)}")
    if "data" in given.values():
        return config.data
    merged = config.copy()
    with open_dict(merged):
        merged.data = standalone(former, "data")
        for key in given.values():
            if key.startswith("data."):
                OmegaConf.update(merged, key, OmegaConf.select(config, key), force_add=True)
    check(merged, schema)
    return merged.data
