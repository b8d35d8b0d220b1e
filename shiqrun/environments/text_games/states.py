"""`GameState` is where a text game stands after an action; a `Game` is what takes actions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GameState:
    """A game state is what a text game says after an action.

    Attributes:
        observation: what the player sees.
        actions: those that are valid here, sorted.
        score: of the game so far; a won game has 1.
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
    """A game takes one action after the other.

    Attributes:
        task: what the player is told to do.
        state: where the game stands.
    """

    task: str
    state: GameState

    @abstractmethod
    def step(self, action: str) -> GameState:
        """Take an action and return where the game stands then."""
