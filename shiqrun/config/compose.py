"""Overrides to a composed config: where YAML is looked for, the jobs of a sweep, and what went wrong in words."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from shiqrun.config import resolvers  # noqa: F401  # registers what the YAML uses
from shiqrun.config.sources import CONFIG_MODULE
from shiqrun.config.suggest import did_you_mean, unknown_key
from shiqrun.errors import InputError

EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Hydra's launchers that we know, and what brings each."""


def composed(name: str, overrides: Sequence[str], *, multirun: bool = False) -> DictConfig:
    """The config of one job with its `hydra` node; with `multirun`, that of the sweep as a whole.

    Raises:
        InputError: the overrides or a YAML file cannot be composed; every unknown key is named.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    with _hydra(name) as hydra:
        try:
            return hydra.compose_config(name, list(overrides), mode)
        except Exception as error:
            raise InputError(explained(error, name, overrides)) from error


def jobs(name: str, sweep: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a composed sweep, in the order in which Hydra runs them."""
    asked = [f"{key}={value}" for key, value in (sweep.hydra.sweeper.get("params") or {}).items()]
    with _hydra(name) as hydra:
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides([*asked, *overrides])
        ours = [override for override in parsed if not override.is_hydra_override()]
        fixed = [str(override.input_line) for override in parsed if override.is_hydra_override()]
        return [fixed + list(job) for job in BasicSweeper.split_arguments(ours, None)[0]]


@contextmanager
def _hydra(name: str) -> Iterator[Hydra]:
    with initialize_config_module(version_base="1.3", config_module=CONFIG_MODULE, job_name=name):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra


def quoted(override: str) -> str:
    """The override with its value quoted where that holds `=`, which Hydra reads in quotes only: paths do."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if "=" in value and not re.search(r"""['"$,()\[\]{}\\]""", value) else override


def spelled(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra reads them: `reward=DIR` as a choice and its path, and values with `=` in quotes."""
    return [quoted(word) for override in overrides for word in _reward_words(override)]


def _reward_words(override: str) -> list[str]:
    key, _, value = override.partition("=")
    plain = value.strip("'\"")
    if key not in ("reward", "eval.reward") or plain in ("", "null"):
        return [override]
    group = "reward" if key == "reward" else "reward@eval.reward"
    is_path = "/" in plain or Path(plain).is_dir()
    return [f"{group}=model", f"{key}.path={value}"] if is_path else [f"{group}={value}"]


def explained(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """What was wrong in words: the key or choice, the nearest that exists, or what Hydra says."""
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}, expected key=value: {_first_lines(error)}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and option in EXTRAS:
            return f"{group}={option}: not installed; pip install 'shiqrun[{EXTRAS[option]}]'"
        near = did_you_mean(f"{group}={option}", [f"{group}={known}" for known in error.options])
        return f"{group}={option}: no such choice{near} ({group}: {', '.join(error.options) or 'none there'})"
    unknown = [*_null_groups(overrides), *_unknown_keys(name, overrides)]
    return "\n".join(unknown) or _first_lines(error)


def _first_lines(error: Exception) -> str:
    """What Hydra says, without its search path and its links, with the reason beneath it."""
    text = str(error).split("\nConfig search path:")[0].split("\nSee https:")[0].strip()
    reason = str(error.__cause__ or "").partition("\n")[0]
    return "\n".join(part for part in (text, reason) if part) or type(error).__name__


def _null_groups(overrides: Sequence[str]) -> Iterator[str]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    for group in hydra.config_loader.list_groups(""):
        if f"{group}=null" in overrides or f"{group}=" in overrides:
            options = ", ".join(hydra.config_loader.get_group_options(group))
            yield f"{group}: cannot be null; leave it out, or choose of {options or 'none there'}"


def _unknown_keys(name: str, overrides: Sequence[str]) -> Iterator[str]:
    """One line for every override without `+` whose key is not in the config that the groups make."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    groups = hydra.config_loader.list_groups("")
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    chosen = [o for o in parsed if o.package is not None or "/" in o.key_or_group or o.key_or_group in groups]
    try:
        lines = [str(override.input_line) for override in chosen]
        config = hydra.compose_config(name, lines, RunMode.RUN, validate_sweep_overrides=False)
    except Exception:  # a group choice is wrong by itself: the first error says so
        return
    known = [*groups, *_dotted("", config)]
    for override in parsed:
        key = override.key_or_group
        if override not in chosen and not override.is_add() and not override.is_force_add() and key not in known:
            of_sweep = key.partition(".")[0] == "sweep" != name
            yield f"{key}: belongs to shiqrun sweep, not to shiqrun {name}" if of_sweep else unknown_key(key, known)


def _dotted(prefix: str, node: DictConfig) -> Iterator[str]:
    for key, value in node.items_ex(resolve=False):
        name = f"{prefix}{key!s}"
        yield name
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from _dotted(f"{name}.", value)
