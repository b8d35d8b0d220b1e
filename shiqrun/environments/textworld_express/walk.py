"""`solution` returns the actions that solve a text game, the same ones in every run.

The games say what solves them, but in some of them the way there is a random walk that is drawn anew each time. What
is done to things is the same each time: those actions are kept, and a fixed walk through the rooms does each of them
where it can be done.
"""

from abc import abstractmethod
from collections.abc import Collection

from shiqrun.environments.text_games.states import Game

WANDERING = ("coin", "twc")
"""The games whose own solution walks at random."""
MOVE, DOOR = "move ", "open door to "
NO_DEEDS = (MOVE, DOOR, "close door to ", "look around", "inventory")
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
LONGEST_WALK = 400
"""Actions after which a fixed walk is given up; the largest games have 11 rooms."""


class SolvedGame(Game):
    """A solved game says itself what solves it."""

    @abstractmethod
    def own_solution(self) -> list[str]:
        """Begin the game anew and return the actions that it says solve it; walks in it may be drawn at random."""


def solution(name: str, game: SolvedGame) -> list[str]:
    """Return the actions that solve a game of this name, freshly begun."""
    own = game.own_solution()
    if name not in WANDERING:
        return own
    return FixedWalk(game, {action for action in own if not action.startswith(NO_DEEDS)}).actions()


class FixedWalk:
    """A fixed walk searches rooms depth first, ways by name, and does each deed where it is valid.

    Args:
        game: freshly begun.
        deeds: actions on things that together solve the game.
    """

    def __init__(self, game: Game, deeds: Collection[str]) -> None:
        self._game, self._deeds = game, set(deeds)
        self._taken: list[str] = []
        self._here = _room(game.state.observation)
        self._tried: dict[str, set[str]] = {self._here: set()}
        self._way_back: list[str] = []

    def actions(self) -> list[str]:
        """Walk until the game is over, and return the actions taken."""
        while self._going():
            self._do_deeds()
            if self._going() and not self._go_on() and not self._go_back():
                self._tried = {self._here: set()}  # another tour: hands were full, or a lid was closed
        return self._taken

    def _going(self) -> bool:
        return not self._game.state.over and len(self._taken) < LONGEST_WALK

    def _take(self, action: str) -> None:
        self._taken.append(action)
        self._game.step(action)

    def _do_deeds(self) -> None:
        """Do what can be done here: open before put, put before take; a deed without an effect is left for later."""
        idle = set[str]()
        while self._going() and (able := self._deeds.intersection(self._game.state.actions) - idle):
            deed = min(able, key=lambda a: (not a.startswith("open"), not a.startswith("put"), a))
            before = self._game.state
            self._take(deed)
            after = self._game.state
            if after.actions == before.actions and after.score == before.score:
                idle.add(deed)
            else:
                self._deeds.remove(deed)

    def _go_on(self) -> bool:
        """Go the first way that was not tried here; return whether there was one."""
        for way, back in BACK.items():
            if MOVE + way in self._game.state.actions and way not in self._tried[self._here]:
                self._tried[self._here].add(way)
                if DOOR + way in self._game.state.actions:
                    self._take(DOOR + way)
                known = set(self._tried)
                if self._move(way):
                    self._way_back.append(back)
                    self._tried.setdefault(self._here, set()).add(back)
                    if self._here in known:
                        self._go_back()
                return True
        return False

    def _go_back(self) -> bool:
        """Go back the way that led here; return whether this is not where the walk began."""
        if not self._way_back:
            return False
        self._move(self._way_back.pop())
        return True

    def _move(self, way: str) -> bool:
        """Move to another room; return whether it is another."""
        before = self._here
        self._take(MOVE + way)
        self._here = _room(self._game.state.observation) or before
        return self._here != before


def _room(observation: str) -> str:
    """Return the name of the room that an observation describes; empty if it describes none."""
    words = observation.partition(".")[0]
    return words if words.startswith("You are in ") else ""
