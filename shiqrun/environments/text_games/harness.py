"""`GameServer` is the confined process that plays text games; a `GameSession` is one game in it.

A game that takes more processor time or memory than allowed, or does not answer, ends the process. The other open
games are restored in a new one by taking their actions again: a game is a function of its seed and its actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shiqrun.environments.confined import ConfinedProcess, LimitReached, ProcessKilled
from shiqrun.environments.environment import OUT_OF_RESOURCES
from shiqrun.environments.replayed import ReplayedSession
from shiqrun.environments.text_games.states import GameState
from shiqrun.errors import InputError

WALL = 6
"""How many times its processor time a step may take on the clock: a game that sleeps is stopped, too."""
DIED = "the game died"
"""Why a game is stopped whose process something else than a limit ended, twice."""
FAILED = "the game failed"
"""Why a game is stopped that answered with an error of its own."""


class GameStopped(Exception):
    """GameStopped says that a game cannot go on; `why` is the reason, `detail` what the game says of it."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(f"{why}: {detail}" if detail else why)
        self.why, self.detail = why, detail


@dataclass(frozen=True)
class GameName:
    """A game name says which game is played: its kind, its size, and the seed of its rooms and things.

    Attributes:
        game: its kind, such as coin.
        seed: of its fold.
        fold: train, val or test.
        parameters: its size or its rules, by the names of its maker; those left out have the maker's defaults.
    """

    game: str
    seed: int
    fold: str
    parameters: Mapping[str, int] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.game, self.seed, self.fold))

    def __str__(self) -> str:
        return f"{self.game}-{self.seed}"

    def facts(self) -> dict[str, Any]:
        """Return the name as JSON values."""
        return {"game": self.game, "seed": self.seed, "fold": self.fold, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class GameMaker:
    """A game maker is where text games come from.

    Attributes:
        data: name of the data set that plays its games.
        title: of the games, such as TextWorldExpress.
        worker: the module that plays them, started by `GameServer`.
        kinds_key: the setting that names kinds of games.
        parameters_key: the setting of the parameters of a kind, `{game}` in the place of its name.
    """

    data: str
    title: str
    worker: str
    kinds_key: str
    parameters_key: str


class GameServer(ConfinedProcess):
    """A game server is the confined process that plays games; as a context manager it ends the process.

    Args:
        maker: whose games it plays.
        step_seconds: most processor time of a step.
    """

    def __init__(self, maker: GameMaker, step_seconds: float) -> None:
        self.maker = maker
        name = f"the process that plays the games of {maker.title}"
        super().__init__(maker.worker, name, step_seconds, WALL * step_seconds)

    def __enter__(self) -> "GameServer":
        return self

    def seeds(self, game: str, parameters: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the seeds of a game by fold.

        Raises:
            InputError: there is no such game, or none of this size.
        """
        try:
            found = self.request({"do": "seeds", "game": game, "parameters": dict(parameters)})
        except (LimitReached, ProcessKilled) as ended:
            key = self.maker.kinds_key
            raise InputError(f"{key}: {game} cannot be asked for its seeds: {ended or OUT_OF_RESOURCES}") from None
        if "error" in found:
            key = self.maker.parameters_key.format(game=game) if parameters else self.maker.kinds_key
            raise InputError(f"{key}: {found['error']}")
        return dict(found["seeds"])

    def solution(self, name: GameName) -> list[str]:
        """Return the actions that solve a game, the same ones every time.

        Raises:
            GameStopped: the game cannot be begun, or a limit ended it.
        """
        return list(_Requests(self).ask({"do": "solve", **name.facts()})["actions"])


class _Requests(ReplayedSession):
    """Requests are what is asked of the games; an answer that is no answer stops the game."""

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Return the game's answer to a request, in the state that the former requests have made.

        Raises:
            GameStopped: a limit ended the game, something else did so twice, or it answered with an error.
        """
        try:
            return super().ask(what)
        except LimitReached:
            raise GameStopped(OUT_OF_RESOURCES) from None
        except ProcessKilled as killed:
            raise GameStopped(DIED, str(killed)) from None

    def checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the game, unless it is an error."""
        if "error" in answer:
            raise GameStopped(FAILED, str(answer["error"]))
        return answer


class GameSession(_Requests):
    """A game session is one game in the process of a server.

    Args:
        server: where the game is played.
        name: which game it is.

    Attributes:
        task: what the player is told to do.
        state: where the game stands.

    Raises:
        GameStopped: the game cannot be begun.
    """

    def __init__(self, server: GameServer, name: GameName) -> None:
        super().__init__(server)
        found = self.ask({"do": "begin", **name.facts()})
        self.task = str(found["task"])
        self.state = _state(found)

    def step(self, action: str) -> GameState:
        """Take an action and return where the game stands then.

        Raises:
            GameStopped: the game ended otherwise than by its own rules.
        """
        self.state = _state(self.ask({"do": "step", "action": action}))
        return self.state


def _state(found: Mapping[str, Any]) -> GameState:
    return GameState(found["observation"], found["actions"], found["score"], found["won"], found["lost"])
