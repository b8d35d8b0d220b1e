"""`explain` words errors for configs that Hydra cannot compose: the wrong key or choice, and the nearest one."""

from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from shiqrun.config.mixture_parts import unknown_parts
from shiqrun.config.other_names import NEEDED, choice_here
from shiqrun.config.suggest import nearest, unknown_key

EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Hydra's launchers, each with the extra of this package that installs it."""


def explain(error: Exception, command: str, overrides: Sequence[str]) -> str:
    """Return a message that says what was wrong with the overrides; Hydra must be initialised.

    Args:
        error: what Hydra raised.
        command: the name of the command, which is the name of its config.
        overrides: what Hydra was given.
    """
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}, expected key=value: {_first_lines(error)}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and option in EXTRAS:
            return f"{group}={option}: not installed; pip install 'shiqrun[{EXTRAS[option]}]'"
        known = nearest(option, error.options)
        near = choice_here(group, option) or (f"; did you mean {group}={known}?" if known else "")
        return f"{group}={option}: no such choice{near} ({group}: {', '.join(error.options) or 'none there'})"
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    parts = unknown_parts(overrides, hydra.config_loader.get_group_options("data"))
    rewards = _rewards_of_training(command, overrides)
    unknown = [*_null_groups(overrides), *rewards, *parts, *_unknown_keys(command, overrides)]
    return "\n".join(unknown) or _first_lines(error)


def _first_lines(error: Exception) -> str:
    """Return Hydra's message, without its search path and its links, with the reason beneath it."""
    text = str(error).split("\nConfig search path:")[0].split("\nSee https:")[0].strip()
    reason = str(error.__cause__ or "").partition("\n")[0]
    return "\n".join(part for part in (text, reason) if part) or type(error).__name__


def _null_groups(overrides: Sequence[str]) -> Iterator[str]:
    """Yield one line for every config group that was set to null, which Hydra does not allow."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    for group in hydra.config_loader.list_groups(""):
        if f"{group}=null" in overrides or f"{group}=" in overrides:
            options = ", ".join(hydra.config_loader.get_group_options(group))
            yield f"{group}: cannot be null; leave it out, or choose one of {options or 'none there'}"


def _rewards_of_training(command: str, overrides: Sequence[str]) -> Iterator[str]:
    """Yield one line where training is given the reward as other commands take it."""
    for word in overrides:
        if command in ("train", "sweep") and word.startswith("reward="):
            yield f"{word}: training evaluates by a reward of the node eval; give eval.{word}"


def _unknown_keys(command: str, overrides: Sequence[str]) -> Iterator[str]:
    """Yield one line for every override without `+` whose key is not in the config of the chosen groups."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    groups = hydra.config_loader.list_groups("")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except ValueError:  # an integer of thousands of digits: the first error says so
        return
    choices = [o for o in parsed if o.package is not None or "/" in o.key_or_group or o.key_or_group in groups]
    try:
        lines = [str(override.input_line) for override in choices]
        config = hydra.compose_config(command, lines, RunMode.RUN, validate_sweep_overrides=False)
    except Exception:  # a choice is wrong by itself: the first error says so
        return
    known = [*groups, *_dotted_keys("", config)]
    for override in parsed:
        key = override.key_or_group
        if override not in choices and not override.is_add() and not override.is_force_add() and key not in known:
            of_sweep = key.partition(".")[0] == "sweep" != command
            if of_sweep:
                yield f"{key}: belongs to shiqrun sweep, not to shiqrun {command}"
            else:
                yield _of_other_choice(command, key, groups) or unknown_key(key, known)


def _of_other_choice(command: str, key: str, groups: Sequence[str]) -> str | None:
    """Return one line that names the choices of a key's group that have the key, or None where none has it."""
    group, hydra = key.partition(".")[0], GlobalHydra.instance().hydra
    if group not in groups or "." not in key:
        return None
    assert hydra is not None
    having = []
    for option in hydra.config_loader.get_group_options(group):
        try:
            config = hydra.compose_config(command, [f"{group}={option}"], RunMode.RUN, validate_sweep_overrides=False)
        except Exception:  # it needs further choices
            continue
        if key in _dotted_keys("", config):
            having.append(f"{group}={option}")
    if not having:
        return None
    first = NEEDED[group] if NEEDED.get(group) in having else having[0]
    others = [choice for choice in having if choice != first]
    return f"{key}: not a key of the chosen {group}; {first} has it" + f" (so have {', '.join(others)})" * bool(others)


def _dotted_keys(prefix: str, node: DictConfig) -> Iterator[str]:
    for key, value in node.items_ex(resolve=False):
        name = f"{prefix}{key!s}"
        yield name
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from _dotted_keys(f"{name}.", value)
