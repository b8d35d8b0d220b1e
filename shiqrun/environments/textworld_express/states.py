"""`GameState` is where a text game stands after an action; a `Game` is what takes actions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FOLDS = {"train": "train", "val": "dev", "test": "test"}
"""The name of each split's seeds in TextWorldExpress."""


@dataclass(frozen=True)
class GameState:
    """A game state is what a text game says after an action.

    Attributes:
        observation: what the player sees.
        actions: those that are valid here, sorted.
        score: of the game so far; a won game has 1, a lost one -1.
        won, lost: whether the game has ended so.
    """

    observation: str
    actions: Sequence[str]
    score: float
    won: bool
    lost: bool

    @property
    def over(self) -> bool:
        """Return whether the game has ended."""
        return self.won or self.lost

    def facts(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return asdict(self)


class Game(ABC):
    """A game takes one action after the other; `state` is where it stands."""

    state: GameState

    @abstractmethod
    def step(self, action: str) -> GameState:
        """Take an action and return where the game stands then."""

    @abstractmethod
    def own_solution(self) -> list[str]:
        """Begin the game anew and return the actions that it says solve it; walks in it may be drawn at random."""
