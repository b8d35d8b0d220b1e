"""The parts of `data=mixture` become choices of the group `data`, so that Hydra composes each from its own YAML."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from shiqrun.config.suggest import did_you_mean
from shiqrun.data.part_names import expect_part_name
from shiqrun.errors import InputError
from shiqrun.util.quoting import override_value

PARTS = re.compile(r"\+{0,2}data\.parts(?:\.([^.=]+))?=\s*\{")
CHOICE = re.compile(r"\+data@data\.parts\.(\w+)=\[_part,(.+)\]")
BASE = "_part"
"""The YAML that every part builds on."""


def expand_parts(override: str) -> list[str]:
    """Return an override that sets parts of a mixture as the choice of each part's data set, and its keys.

    `data.parts={NAME:{data:CHOICE,KEY:VALUE}}` and `data.parts.NAME={data:CHOICE,KEY:VALUE}` are rewritten; other
    overrides stay as they are.

    Raises:
        InputError: a part has no data set, a name that cannot be used, or is a mixture.
    """
    found = PARTS.match(override)
    if found is None:
        return [override]
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = None if parsed.is_sweep_override() else parsed.value()
    except (HydraException, OmegaConfBaseException):  # Hydra will say what is wrong with it
        return [override]
    if value is None:
        raise InputError("data.parts: one mixture at a time; sweep keys of a part, as in data.parts.NAME.weight=1,2")
    parts: Any = value if found[1] is None else {found[1]: value}
    if any(isinstance(part, Mapping) and "_target_" in part for part in parts.values()):  # of a run
        return [override]
    return [word for name, part in parts.items() for word in _words(name, part)]


def _words(name: Any, part: Any) -> list[str]:
    """Return the overrides of one part."""
    key = f"data.parts.{expect_part_name(name)}"
    if not isinstance(part, Mapping):
        raise InputError(f"{key}: met {part!r}, expected its data set and keys, as in {{data:jsonl,path:a.jsonl}}")
    if not isinstance(choice := part.get("data"), str):
        raise InputError(f"{key}: no data set; say which, as in {key}={{data:jsonl,path:a.jsonl}}")
    if choice == "mixture":
        raise InputError(f"{key}: a mixture cannot hold a mixture; give its parts beside the others")
    keys = {str(k): v for k, v in part.items() if k != "data"}
    return [f"+data@{key}=[{BASE},{choice}]", *(f"{key}.{k}={override_value(v)}" for k, v in keys.items())]


def unknown_parts(overrides: Sequence[str], choices: Sequence[str]) -> list[str]:
    """Return a line for each part whose data set is not among the choices of the group `data`."""
    named = [(found[1], found[2]) for word in overrides if (found := CHOICE.fullmatch(word))]
    return [
        f"data.parts.{name}: data:{choice} is no data set{did_you_mean(choice, choices)} ({', '.join(choices)})"
        for name, choice in named
        if choice not in choices
    ]
