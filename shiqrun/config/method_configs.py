"""`method_configs` composes the config of `shiqrun train` with each method in turn, reading all but `algo` once."""

from collections.abc import Sequence
from typing import Any

from hydra.core.default_element import ConfigDefault
from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.config.compose import compose, initialised_hydra

COMMAND, GROUP = "train", "algo"


def method_names() -> list[str]:
    """Return the choices of `algo=`, those of the user's folders among them."""
    with initialised_hydra(COMMAND) as hydra:
        return sorted(hydra.config_loader.get_group_options(GROUP))


def method_configs(overrides: Sequence[str], command: str = COMMAND) -> dict[str, DictConfig]:
    """Return the config of a training run with each method by its name, as `compose` gives it for `algo=NAME`.

    The `hydra` node is that of the first method.

    Args:
        overrides: of all but `algo`.
        command: `train`, or one that builds on its config.
    """
    found: dict[str, DictConfig] = {}
    with initialised_hydra(COMMAND) as hydra:
        repository = hydra.config_loader.repository  # type: ignore[attr-defined]
        shared = repository.load_config(COMMAND).config[GROUP]
        nodes = {name: _node(repository, name) for name in sorted(hydra.config_loader.get_group_options(GROUP))}
    for name, node in nodes.items():
        if not found or node is None:
            found[name] = compose(command, [*overrides, f"{GROUP}={name}"])
            continue
        found[name] = next(iter(found.values())).copy()
        with open_dict(found[name]):
            found[name][GROUP] = OmegaConf.merge(shared, node)
    return found


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a config less its `hydra` node, of which a job alone knows all values."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _node(repository: Any, name: str) -> Any:
    """Return the node of a method's YAML over its bases; None where it uses more of Hydra than bases beside it."""
    loaded = repository.load_config(f"{GROUP}/{name}")
    if loaded is None or loaded.header.get("package") not in (None, GROUP):
        return None
    defaults = list(loaded.defaults_list or ())
    if any(not isinstance(d, ConfigDefault) or d.path is None or d.path.startswith("/") for d in defaults):
        return None
    own = [loaded.config if d.is_self() else _node(repository, d.path) for d in defaults]
    own += [] if any(d.is_self() for d in defaults) else [loaded.config]
    return None if any(node is None for node in own) else OmegaConf.merge(*own)
