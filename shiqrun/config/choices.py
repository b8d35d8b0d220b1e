"""A data set or a reward is built here from its config node; a user's own class needs only its essential method."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

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
