"""This module plays the text games of TextWorldExpress in a confined process; `GameServer` starts it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiqrun.environments.text_games.java_process import Player
from shiqrun.environments.text_games.states import GameState
from shiqrun.environments.textworld_express.walk import SolvedGame, solution

FOLDS = {"train": "train", "val": "dev", "test": "test"}
"""The name of each split's seeds in TextWorldExpress."""
FORGETFUL = ("sorting",)
"""Kinds of games that keep their state outside the game: to begin one spoils the others of its kind in one Java."""


class ExpressGame(SolvedGame):
    """An express game is one game of an episode, begun from its seed; `state` is where it stands.

    Args:
        player: whose Java holds it.
        request: `game`, `parameters`, `seed` and `fold`.
    """

    def __init__(self, player: "ExpressPlayer", request: Mapping[str, Any]) -> None:
        self._player, self._kind = player, str(request["game"])
        self._game = player.made(self._kind, request["parameters"])
        self._seed, self._fold = request["seed"], FOLDS[request["fold"]]
        self._taken: list[str] = []
        self.state = self._begun()
        self.task = str(self._game.getTaskDescription())

    def step(self, action: str) -> GameState:
        """Take an action and return where the game stands then."""
        if self._kind in FORGETFUL and self._player.in_use[self._kind] is not self:
            self._begun()
            for former in self._taken:
                self._game.stepJSON(former)
        self._taken.append(action)
        self.state = self._state(self._game.stepJSON(action))
        return self.state

    def own_solution(self) -> list[str]:
        """Begin the game anew and return the actions that it says solve it."""
        self._taken, self.state = [], self._begun(solved=True)
        return [str(action) for action in self._game.getGoldActionSequence()]

    def _begun(self, *, solved: bool = False) -> GameState:
        """Begin the game, anew if it was played, and return where it stands."""
        self._player.in_use[self._kind] = self
        return self._state(self._game.generateNewGameJSON(self._seed, self._fold, solved))

    def _state(self, answer: str) -> GameState:
        found = json.loads(answer)
        return GameState(
            observation=found["observation"].strip(),
            actions=sorted(set(found["validActions"])),  # the games list some twice, in the order of a hash
            score=float(found["score"]),
            won=bool(found["tasksuccess"]),
            lost=bool(found["taskfailure"]),
        )


class ExpressPlayer(Player):
    """An express player answers requests about games of TextWorldExpress."""

    def __init__(self) -> None:
        super().__init__()
        self.in_use: dict[str, ExpressGame] = {}  # by kind, the game that was played last

    def jar(self) -> Path:
        """Return the file of the games."""
        import textworld_express.constants as package

        return Path(package.JAR_PATH)

    def load_games(self) -> None:
        """Make a game once."""
        self.made("coin", {})

    def made(self, name: str, parameters: Mapping[str, int]) -> Any:
        """Return a game of this name and size, not yet begun.

        Raises:
            ValueError: the games do not know the name or a parameter, or a parameter is out of bounds.
        """
        made = self.java.gateway.jvm.textworldexpress.runtime.PythonInterface()
        complaint = made.load(name, ",".join(f"{key}={value}" for key, value in parameters.items()))
        if complaint:
            raise ValueError(" ".join(complaint.split()))
        return made

    def seeds(self, game: str, parameters: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the seeds of a kind of game by fold.

        Raises:
            ValueError: the games do not know the name or a parameter, or a parameter is out of bounds.
        """
        made = self.made(game, parameters)
        folds = {"train": made.getSeedsTrain(), "val": made.getSeedsDev(), "test": made.getSeedsTest()}
        return {fold: list(seeds) for fold, seeds in folds.items()}

    def begin(self, request: Mapping[str, Any]) -> ExpressGame:
        """Return the game that a request names, begun."""
        return ExpressGame(self, request)

    def solve(self, request: Mapping[str, Any]) -> list[str]:
        """Return the actions that solve the game that a request names."""
        return solution(request["game"], ExpressGame(self, request))


if __name__ == "__main__":
    ExpressPlayer().serve()
