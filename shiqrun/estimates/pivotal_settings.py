"""`PivotalSettings` holds the settings of a search for pivotal tokens (`pivotal:` in `conf/pivotal.yaml`)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len

from shiqrun.errors import InputError
from shiqrun.estimates.bisection import Split
from shiqrun.estimates.prompt_values import DECODING
from shiqrun.rewards.reward import Reward


@dataclass(frozen=True, kw_only=True)
class PivotalSettings:
    """A `PivotalSettings` holds the settings of a search for pivotal tokens.

    Rollouts are drawn at temperature 1, because the chances of success are the reference's.

    Attributes:
        split: split whose trajectories are searched.
        only: "right" (trajectories that the reward calls right, as in the SPO paper) or "all".
        max_trajectories: the most trajectories to search, the first in file order; None for all.
        between: [low, high]; a prompt whose chance of success lies outside is not searched.
        rollouts: K, completions from each position.
        gap: smallest difference of chances, 0 to 1, at which an interval is divided.
        bisect: where an interval is divided: "logp" (half of its log-probability) or "index" (half of its tokens).
        again: fresh rollouts from both sides of each token found, which decide whether it is pivotal; 0 for none.
        max_new_tokens: tokens of a completion, its prefix included.
        together: trajectories searched side by side.
        batch_size: completions sampled together.
        seed: of the sampling alone.

    Raises:
        InputError: `between` is no interval of chances.
    """

    split: Literal["train", "val"]
    only: Literal["right", "all"]
    max_trajectories: Annotated[int, Gt(0)] | None
    between: Annotated[list[float], Len(2, 2)]
    rollouts: Annotated[int, Gt(0)]
    gap: Annotated[float, Gt(0), Le(1)]
    bisect: Split
    again: Annotated[int, Ge(0)]
    max_new_tokens: Annotated[int, Gt(0)]
    together: Annotated[int, Gt(0)]
    batch_size: Annotated[int, Gt(0)]
    seed: Annotated[int, Ge(0)]

    def __post_init__(self) -> None:
        low, high = self.between
        if not 0 <= low <= high <= 1:
            raise InputError(f"pivotal.between={list(self.between)}: expected [low, high], chances from 0 to 1")

    def made_with(self, reference: str, reward: Reward) -> dict[str, Any]:
        """Return the header of a cache: files with an equal header hold the same searches."""
        names = ("rollouts", "gap", "bisect", "again", "between", "max_new_tokens", "seed")
        own = {name: getattr(self, name) for name in names}
        return {
            "reference": reference,
            "reward": reward.fingerprint(),
            **own,
            "between": list(self.between),
            "decoding": DECODING,
        }
