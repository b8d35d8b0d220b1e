"""A data set, a reward or a tracker is built here from its config node; a user's own class needs one method."""

from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from shiqrun.config.sources import CONFIG_MODULE
from shiqrun.config.validate import build, settings, target

MIXTURE = "shiqrun.batching.mixture.Mixture"

if TYPE_CHECKING:
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.data.source import Source
    from shiqrun.rewards.reward import Reward


def build_data(node: DictConfig) -> "tuple[Source, DataSettings]":
    """Return the data set of a checked `data` node and the settings that every data set has.

    The parts of a mixture are built one after another; each applies its own settings, and the mixture none.

    Raises:
        InputError: what the class itself raised, or it has no method `load`.
    """
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.data.source import as_source

    if node.get("_target_") == MIXTURE:
        return _build_mixture(node)
    made, data = build(node, DataSettings)
    return as_source(made), data


def _build_mixture(node: DictConfig) -> "tuple[Source, DataSettings]":
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.batching.mixture import Mixture, Part, PartSettings
    from shiqrun.data.part_names import naming
    from shiqrun.data.source import as_source

    shared, parts = settings(node, DataSettings), {}
    for name, part in node.parts.items():
        with naming(str(name)):
            made, own = build(part, PartSettings)
            parts[str(name)] = Part(as_source(made), own.of_part(shared), own.weight)
    return Mixture(parts=parts), replace(shared, limit=None, completions="all")


def build_reward(node: DictConfig) -> "Reward":
    """Return the reward of a checked `reward` node.

    Raises:
        InputError: what the class itself raised, or it has no method `score`.
    """
    from shiqrun.rewards.reward import as_reward

    return as_reward(target(node))


def build_trackers(node: DictConfig) -> list[Any]:
    """Return the experiment trackers of a checked `logger` node, the one chosen and those of `logger.also`.

    Each has `open(run_dir, config) -> lightning.pytorch.loggers.Logger`.

    Raises:
        InputError: the library of one is not installed.
    """
    own = {key: value for key, value in node.items() if key not in ("_target_", "name", "also")}
    nodes: list[Any] = [node] if "_target_" in node else []  # logger=none and logger=csv run none
    for name in dict.fromkeys(node.get("also") or []):
        if name == node.name:
            continue
        text = files(CONFIG_MODULE).joinpath("logger", f"{name}.yaml").read_text(encoding="utf-8")
        further = OmegaConf.create(text)
        shared = {key: value for key, value in own.items() if key in further}
        nodes.append(OmegaConf.merge(further, shared))
    return [target(each) for each in nodes]
