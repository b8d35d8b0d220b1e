"""`place_rewards` puts the rewards of a completion on its actions; `rewards_of_turns` says which turn each is of."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from shiqrun.data.chats import trained
from shiqrun.errors import InputError
from shiqrun.types import Example, Message


def place_rewards(example: Example, completion: int, turns: list[tuple[int, int]], positions: np.ndarray) -> np.ndarray:
    """Return the reward of every action, `[A]`: one number falls on the last action, one per turn on its last.

    Args:
        example: has rewards.
        completion: number of the completion.
        turns: (start, end) of each turn that is trained on.
        positions: of the actions, `[A]`.
    """
    assert example.rewards is not None
    reward, source = rewards_of_turns(example.rewards[completion], example.completions[completion]), example.source
    values = [float(reward)] if isinstance(reward, int | float) else [float(r) for r in reward]
    if isinstance(reward, int | float):
        at = [turns[-1][1] - 1]
    elif len(values) == len(turns):
        at = [end - 1 for _, end in turns]
    else:
        at = [i for start, end in turns for i in range(start, end)]
    if len(values) != len(at):
        raise InputError(
            f"{source}: {len(values)} rewards for {len(turns)} assistant turns and {len(at)} action tokens; "
            "give one number, one a turn, or one a token"
        )
    placed = np.zeros(len(positions), np.float32)
    if len(at) == 1 and at[0] == positions[-1]:
        placed[-1] = values[0]
        return placed
    placed[np.searchsorted(positions, at)] = values
    return placed


def rewards_of_turns(reward: float | Sequence[float], completion: Sequence[Message]) -> float | Sequence[float]:
    """Return the rewards of a completion without those of turns that are state (`"train": false`).

    Where there is one reward for each assistant message, that of a message which is state is what the environment paid
    after the action before it, and is added there. Before the first action it depends on none, and is left out.
    """
    spoken = [m for m in completion if m["role"] == "assistant"]
    if isinstance(reward, int | float) or len(reward) != len(spoken) or len(trained(spoken)) == len(spoken):
        return reward
    starts = [i for i, message in enumerate(spoken) if trained([message])]
    return [float(sum(reward[start:end])) for start, end in pairwise([*starts, len(spoken)])]
