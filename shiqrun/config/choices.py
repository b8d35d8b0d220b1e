"""A data set, a reward or a tracker is built here from its config node; a user's own class needs one method."""

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from shiqrun.config.sources import CONFIG_MODULE
from shiqrun.config.validate import build, target

if TYPE_CHECKING:
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.data.source import Source
    from shiqrun.rewards.reward import Reward


def build_data(node: DictConfig) -> "tuple[Source, DataSettings]":
    """Return the data set of a checked `data` node and the settings that every data set has.

    Raises:
        InputError: what the class itself raised, or it has no method `load`.
    """
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.data.source import as_source

    made, data = build(node, DataSettings)
    return as_source(made), data


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
