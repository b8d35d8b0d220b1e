"""`compose` composes a command's config from YAML and overrides with Hydra, for one job or the jobs of a sweep."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from shiqrun.config import resolvers  # noqa: F401  # registers the resolvers that the YAML uses
from shiqrun.config.explain import explain
from shiqrun.config.mixture_parts import expand_parts
from shiqrun.config.sources import CONFIG_MODULE
from shiqrun.errors import InputError


def compose(command: str, overrides: Sequence[str], *, multirun: bool = False) -> DictConfig:
    """Compose the config of one job, with its `hydra` node; with `multirun`, the config of the sweep as a whole.

    Raises:
        InputError: the overrides or a YAML file cannot be composed; the message names every unknown key.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    with initialised_hydra(command) as hydra:
        try:
            return hydra.compose_config(command, list(overrides), mode)
        except Exception as error:
            raise InputError(explain(error, command, overrides)) from error


def job_overrides(command: str, sweep: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job of a sweep, in the order in which Hydra runs them.

    Args:
        command: the name of the command.
        sweep: the config of the sweep as a whole, from `compose(..., multirun=True)`.
        overrides: the overrides of the command line, some of them with several values.
    """
    parsed = parsed_overrides(command, sweep, overrides)
    for override in parsed:
        if override.is_interval_sweep():
            raise InputError(
                f"{override.input_line}: a grid needs values; an interval is searched: sweep.search=optuna (or wandb)"
            )
    of_jobs = [override for override in parsed if not override.is_hydra_override()]
    of_hydra = [str(override.input_line) for override in parsed if override.is_hydra_override()]
    return [of_hydra + list(job) for job in BasicSweeper.split_arguments(of_jobs, None)[0]]


def parsed_overrides(command: str, sweep: DictConfig, overrides: Sequence[str]) -> list[Override]:
    """Return the overrides of a sweep as Hydra reads them, those of `hydra.sweeper.params` first."""
    from_yaml = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.get("params") or {}).items()]
    with initialised_hydra(command) as hydra:
        return OverridesParser.create(hydra.config_loader).parse_overrides([*from_yaml, *overrides])


@contextmanager
def initialised_hydra(command: str) -> Iterator[Hydra]:
    """Have Hydra read the project's YAML for a command, inside the context, also where a job of Hydra's is running."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(version_base="1.3", config_module=CONFIG_MODULE, job_name=command):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            yield hydra
    finally:
        GlobalHydra.instance().hydra = running


def as_hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """Rewrite the overrides that a user may type into those that Hydra reads.

    `reward=DIR` becomes the choice reward=model with its path, `logger=[A,B]` the choice logger=A with logger.also=[B],
    `data.parts={...}` the choice of each part's data set with its keys, and a value that contains `=` is quoted.
    """
    words = [word for override in overrides for each in expand_parts(override) for word in _expand_reward(each)]
    return [quote_value(word) for override in words for word in _expand_loggers(override)]


def quote_value(override: str) -> str:
    """Quote the value of an override if it contains `=`, as paths may: Hydra accepts that in quotes only."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if "=" in value and not re.search(r"""['"$,()\[\]{}\\]""", value) else override


def _expand_reward(override: str) -> list[str]:
    """Return `reward=NAME` or `reward=DIR_OR_HUB_ID`, of any node, as the choice of a group and a model's path."""
    key, _, value = override.partition("=")
    plain = value.strip("'\"")
    if key not in ("reward", "eval.reward") or plain in ("", "null"):
        return [override]
    group = "reward" if key == "reward" else "reward@eval.reward"
    is_path = "/" in plain or Path(plain).is_dir()
    return [f"{group}=model", f"{key}.path={value}"] if is_path else [f"{group}={value}"]


def _expand_loggers(override: str) -> list[str]:
    """Return `logger=[A,B,...]` as the choice of A and the list of the others: their settings would overwrite A's."""
    listed = re.fullmatch(r"logger=\[([^\[\]]+)\]", override)
    if listed is None:
        return [override]
    first, *others = (name.strip(" '\"") for name in listed[1].split(","))
    return [f"logger={first}", f"logger.also=[{','.join(others)}]"]
