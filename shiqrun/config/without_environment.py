"""`without_environment` resolves a config but for what depends on environment variables, which may hold secrets."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shiqrun.config.process import environment

_READS = re.compile(r"oc\.env:\s*['\"]?([A-Za-z_]\w*)")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_DEEPEST = 8
"""The largest number of references to keys that lead from a value to its end."""
_OTHER = "another-value-of-this-variable"


def environment_variables(config: DictConfig) -> set[str]:
    """Return the names of the environment variables that a config reads by `${oc.env:NAME}`."""
    return set(_READS.findall(OmegaConf.to_yaml(config, resolve=False)))


def without_environment(config: DictConfig) -> DictConfig:
    """Return the config with its interpolations resolved, but for those that an environment variable changes.

    They stay as `${oc.env:NAME}`, or as what refers to it, and are resolved when the config is used again.

    Raises:
        omegaconf.errors.OmegaConfBaseException: an interpolation cannot be resolved.
    """
    names = environment_variables(config)
    if not names:
        return config
    raw, now = (OmegaConf.to_container(config, resolve=resolve) for resolve in (False, True))
    try:
        with environment(**dict.fromkeys(names, _OTHER)):
            other = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:  # a resolver that wants a number: then every interpolation stays as it is
        other = raw
    return OmegaConf.create(_merge(raw, now, other))


def standalone(config: DictConfig, node: str) -> Any:
    """Return a node of a saved config as plain values that say the same in another config.

    What depends on an environment variable stays unresolved, and a reference to another key is replaced by what that
    says, as often as it takes.

    Raises:
        omegaconf.errors.OmegaConfBaseException: an interpolation cannot be resolved.
    """
    raw = OmegaConf.to_container(OmegaConf.create(without_environment(config)), resolve=False)

    def expand(value: Any, depth: int = 0) -> Any:
        if isinstance(value, dict):
            return {key: expand(inner, depth) for key, inner in value.items()}
        if isinstance(value, list):
            return [expand(inner, depth) for inner in value]
        if not isinstance(value, str) or depth > _DEEPEST:
            return value
        if whole := _REFERENCE.fullmatch(value):
            return expand(_value_at(raw, whole[1]), depth + 1)
        replaced = _REFERENCE.sub(lambda found: str(_value_at(raw, found[1])), value)
        return value if replaced == value else expand(replaced, depth + 1)

    return expand(_value_at(raw, node))


def _value_at(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw[part]
    return raw


def _merge(raw: Any, now: Any, other: Any) -> Any:
    """Return `now` where it equals `other`, and `raw` where it does not."""
    if isinstance(raw, dict) and isinstance(now, dict):
        return {key: _merge(raw[key], now[key], other[key]) for key in raw}
    if isinstance(raw, list) and isinstance(now, list):
        return [_merge(*each) for each in zip(raw, now, other, strict=True)]
    return now if now == other else raw
