"""`play_logged` plays a text game several times, by its solution and at random: the logged trajectories of a prompt."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shiqrun.environments.text_games.environment import GameRules, earned
from shiqrun.environments.text_games.harness import GameName, GameServer, GameSession, GameStopped
from shiqrun.types import Message


@dataclass(frozen=True)
class Players:
    """Players are the trajectories that are made of each game.

    Attributes:
        gold: number by the actions that solve the game.
        half: number by the first half of those, then at random.
        random: number by valid actions at random.
        seed: of what is drawn.
    """

    gold: int
    half: int
    random: int
    seed: int

    def shares(self) -> list[float]:
        """Return the share of the solution that each trajectory begins with."""
        return [1.0] * self.gold + [0.5] * self.half + [0.0] * self.random


@dataclass
class LoggedGame:
    """A logged game holds the trajectories made of one game, with the reward that each action earned.

    Attributes:
        opening: messages before the first action.
        played: messages from the first action on, and a reward for each action.
        stopped: of each trajectory that could not be played to its end, why, and what the game says of it.
    """

    opening: list[Message] = field(default_factory=list)
    played: list[tuple[list[Message], list[float]]] = field(default_factory=list)
    stopped: list[tuple[str, str]] = field(default_factory=list)


def play_logged(server: GameServer, name: GameName, rules: GameRules, players: Players) -> LoggedGame:
    """Return the trajectories of a game; a game that stops is left out and says why."""
    made = LoggedGame()
    shares = players.shares()
    solution: list[str] = []
    try:
        if any(shares):
            solution = server.solution(name)
    except GameStopped as stopped:
        made.stopped += [(stopped.why, stopped.detail)] * len(shares)
        return made
    for number, share in enumerate(shares):
        rng = np.random.default_rng([players.seed, zlib.crc32(name.game.encode()), name.seed, number])
        script = solution[: int(share * len(solution))]
        try:
            session = GameSession(server, name)
            made.opening = rules.opening(session)
            made.played.append(_play(session, script, rng if share < 1 else None, rules))
            session.close()
        except GameStopped as stopped:
            made.stopped.append((stopped.why, stopped.detail))
    return made


def _play(
    session: GameSession, script: Sequence[str], rng: np.random.Generator | None, rules: GameRules
) -> tuple[list[Message], list[float]]:
    """Play a script, then at random if there is a generator, until the game is over or the steps are used up."""
    messages: list[Message] = []
    rewards: list[float] = []
    steps = rules.max_steps if rng is not None else min(len(script), rules.max_steps)
    while len(rewards) < steps and not session.state.over:
        if messages:
            messages.append(rules.message(session.state))
        before = session.state
        at_random = rng is not None and len(rewards) >= len(script)
        action = str(rng.choice(before.actions)) if at_random and rng is not None else script[len(rewards)]
        messages.append({"role": "assistant", "content": action})
        rewards.append(earned([session.step(action).score, -before.score]))
    return messages, rewards
