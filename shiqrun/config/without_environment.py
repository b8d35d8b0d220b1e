"""`without_environment` resolves a config but for what depends on environment variables, which may hold secrets."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shiqrun.config.process import environment

_READS = re.compile(r"oc\.env:\s*['\"]?([A-Za-z_]\w*)")
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


def _merge(raw: Any, now: Any, other: Any) -> Any:
    """Return `now` where it equals `other`, and `raw` where it does not."""
    if isinstance(raw, dict) and isinstance(now, dict):
        return {key: _merge(raw[key], now[key], other[key]) for key in raw}
    if isinstance(raw, list) and isinstance(now, list):
        return [_merge(*each) for each in zip(raw, now, other, strict=True)]
    return now if now == other else raw
