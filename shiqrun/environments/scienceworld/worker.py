"""This module plays the tasks of ScienceWorld in a confined process; `GameServer` starts it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiqrun.environments.text_games.java_process import Player
from shiqrun.environments.text_games.states import Game, GameState

FIRST = "look around"
"""The action with which ScienceWorld's own interface begins a task."""
MOST_WORLDS = 64
"""Worlds that Java holds at a time, of some 15 MB each; the game that was played longest ago is played again from its
beginning when it is its turn."""
SAME_ORDER = ("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
"""Options of Java without which ScienceWorld names things in the order of their addresses, another one each time."""


class ScienceGame(Game):
    """A science game is one task of an episode, begun from its variation; `state` is where it stands.

    Args:
        player: whose Java holds it.
        request: `game`, the name of the task; `seed`, its variation; `parameters`, its simplifications.
        solved: whether the task's solution is found too, which takes a second for the longest.
    """

    def __init__(self, player: "SciencePlayer", request: Mapping[str, Any], *, solved: bool = False) -> None:
        self._player, self._request, self._taken = player, request, [FIRST]
        self._world: Any = self._begun(solved=solved)
        self.state = self._state(str(self._world.step(FIRST)))
        self.task = str(self._world.getTaskDescription())

    def step(self, action: str) -> GameState:
        """Take an action and return where the task stands then."""
        self._player.use(self)
        if self._world is None:
            self._world = self._begun()
            for former in self._taken:
                self._world.step(former)
        self._taken.append(action)
        self.state = self._state(str(self._world.step(action)))
        return self.state

    def own_solution(self) -> list[str]:
        """Return the actions that the task says solve it."""
        return [str(action) for action in self._world.getGoldActionSequence()]

    def leave(self) -> None:
        """Let Java forget the world; the next action makes it again."""
        self._world = None

    def _begun(self, *, solved: bool = False) -> Any:
        """Return the task's world, before the first action."""
        self._player.use(self)
        world, request = self._player.made(), self._request
        world.load(request["game"], request["seed"], simplifications(request["parameters"]), solved)
        world.reset()
        return world

    def _state(self, observation: str) -> GameState:
        """Return where the task stands; one whose score falls below 0 is lost, as in ScienceWorld's own interface."""
        score, completed = round(float(self._world.getScore()), 2), bool(self._world.getCompleted())
        won = completed and score >= 1
        over = completed or score < 0
        return GameState(
            observation=observation.strip(),
            actions=[] if over else self._actions(),
            score=score,
            won=won,
            lost=over and not won,
        )

    def _actions(self) -> list[str]:
        """Return the actions that are valid now, without the one that begins the task anew."""
        found = json.loads(self._world.getValidActionObjectCombinationsJSON())["validActions"]
        return sorted({str(one["action"]) for one in found} - {"reset task"})


class SciencePlayer(Player):
    """A science player answers requests about tasks of ScienceWorld."""

    java_options = ("-Xmx1280m", *SAME_ORDER)
    memory = 3 << 30

    def __init__(self) -> None:
        super().__init__()
        self._in_use: dict[ScienceGame, None] = {}  # the games whose worlds Java holds, the one played last at the end

    def use(self, game: ScienceGame) -> None:
        """Note that a game is played now; the one that was played longest ago leaves if there are too many."""
        self._in_use.pop(game, None)
        self._in_use[game] = None
        if len(self._in_use) > MOST_WORLDS:
            first = next(iter(self._in_use))
            self.close(first)
            first.leave()

    def close(self, game: Game) -> None:
        """Forget what belongs to a game that is over."""
        if isinstance(game, ScienceGame):
            self._in_use.pop(game, None)

    def jar(self) -> Path:
        """Return the file of the tasks."""
        import scienceworld.constants as package

        return Path(package.JAR_PATH)

    def load_games(self) -> None:
        """Begin a task once."""
        self.names = [str(name) for name in self.made().getTaskNames()]
        ScienceGame(self, {"game": "find-plant", "seed": 0, "parameters": {}})

    def made(self) -> Any:
        """Return a world without a task."""
        return self.java.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

    def seeds(self, game: str, parameters: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the variations of a task by fold.

        Raises:
            ValueError: there is no such task, or it cannot be simplified so.
        """
        if game not in self.names:
            raise ValueError(f"{game} is no task; there are {', '.join(self.names)}")
        world = self.made()
        known = ["easy", *str(world.getPossibleSimplifications()).split(", ")]
        if unknown := [name for name in parameters if name not in known]:
            raise ValueError(f"{', '.join(unknown)}: unknown; there are {', '.join(known)}")
        world.load(game, 0, simplifications(parameters), False)
        folds = {
            "train": world.getVariationsTrain(),
            "val": world.getVariationsDev(),
            "test": world.getVariationsTest(),
        }
        return {fold: list(variations) for fold, variations in folds.items()}

    def begin(self, request: Mapping[str, Any]) -> ScienceGame:
        """Return the task that a request names, begun."""
        return ScienceGame(self, request)

    def solve(self, request: Mapping[str, Any]) -> list[str]:
        """Return the actions that solve the task that a request names."""
        return ScienceGame(self, request, solved=True).own_solution()


def simplifications(parameters: Mapping[str, int]) -> str:
    """Return the simplifications of a task as ScienceWorld reads them."""
    return ",".join(name for name, wanted in parameters.items() if wanted)


if __name__ == "__main__":
    SciencePlayer().serve()
