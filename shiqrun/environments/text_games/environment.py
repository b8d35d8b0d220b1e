"""`GameEnvironment` plays text games: the policy says an action, the game what comes of it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shiqrun.environments import environment
from shiqrun.environments.environment import EpisodeInfo, Step
from shiqrun.environments.text_games.harness import (
    DIED,
    FAILED,
    GameMaker,
    GameName,
    GameServer,
    GameSession,
    GameStopped,
)
from shiqrun.environments.text_games.states import GameState
from shiqrun.types import Example, Message

GOLD, RANDOM = "gold", "random"
Rewards = Literal["step", "final"]
NO_ACTION = "That is no action. Say one, in words."
LONGEST_ACTION = 500
"""Characters of a message that a game reads; the longest valid actions have some 60."""


@dataclass(frozen=True)
class GameRules:
    """Game rules say how text games are played, shown and paid.

    Attributes:
        rewards: step (what each action changes in the score), or final (their sum at the last action).
        max_steps: most actions of an episode.
        show_valid_actions: whether the valid actions stand under what the policy sees.
        step_seconds: most processor time of a step.
    """

    rewards: Rewards
    max_steps: int
    show_valid_actions: bool
    step_seconds: float

    def opening(self, session: GameSession) -> list[Message]:
        """Return the messages before the policy's first action."""
        return [self.message(session.state, f"{session.task}\n\n")]

    def message(self, state: GameState, before: str = "") -> Message:
        """Return the message in which a game says where it stands."""
        text = before + state.observation
        if self.show_valid_actions and not state.over:
            text += "\n\nValid actions: " + "; ".join(state.actions)
        return {"role": "user", "content": text}

    def paid(self, rewards: list[float]) -> list[float]:
        """Return the rewards of an episode's actions as they are written down."""
        if self.rewards == "step" or not rewards:
            return rewards
        return [0.0] * (len(rewards) - 1) + [earned(rewards)]


class GameEnvironment(environment.Environment):
    """A game environment opens text games; a task's `answer` has the parts of its `GameName`.

    Args:
        maker: whose games are played.
        rules: how games are played, shown and paid.
        seed: of the scripted policy that plays at random.
    """

    scripted_policies = (GOLD, RANDOM)

    def __init__(self, maker: GameMaker, rules: GameRules, seed: int = 0) -> None:
        self.rules, self.seed, self.max_messages = rules, seed, rules.max_steps
        self.server = GameServer(maker, rules.step_seconds)

    def begin(self, task: Example) -> "GameEpisode":
        """Open the game of a task; one that cannot be begun opens an episode that its first action ends."""
        return GameEpisode(GameName(**task.answer), self.server, self.rules, self.seed)

    def close(self) -> None:
        """End the process that plays the games."""
        self.server.close()


class GameEpisode(environment.Episode):
    """A game episode is one played text game.

    Args:
        name: which game it is.
        server: where it is played.
        rules: how it is played, shown and paid.
        seed: of the scripted policy that plays at random.
    """

    def __init__(self, name: GameName, server: GameServer, rules: GameRules, seed: int = 0) -> None:
        self.name, self.server, self.rules = name, server, rules
        self.rewards: list[float] = []
        self.stopped: GameStopped | None = None
        self.not_valid = self.no_text = 0
        self._session: GameSession | None = None
        self._random = np.random.default_rng([seed, name.seed])
        self._script: list[str] | None = None
        try:
            self._session = GameSession(server, name)
            self.opening = rules.opening(self._session)
        except GameStopped as stopped:
            self.stopped, self.failed = stopped, f"{name}: {stopped}"
            self.opening = [{"role": "user", "content": f"The game {name} cannot be begun: {stopped}."}]

    def step(self, text: str) -> Step:
        """Take an action and answer with what the game says; a message without words changes nothing."""
        if self.stopped is not None or self._session is None:
            self.rewards.append(0.0)
            return Step(truncated=self.stopped.why if self.stopped else "")
        before = self._session.state
        action = as_action(text, before)
        self.no_text += not action
        self.not_valid += action not in before.actions
        try:
            state = self._session.step(action) if action else before
        except GameStopped as stopped:
            self.stopped = stopped
            self.failed = f"{self.name}: {stopped}" if stopped.why in (DIED, FAILED) else ""
            self.rewards.append(0.0)
            return Step(reward=self._pay_at_end(), truncated=stopped.why)
        self.rewards.append(earned([state.score, -before.score]))
        said = self.rules.message(state) if action else self.rules.message(state, f"{NO_ACTION}\n\n")
        reward = self.rewards[-1] if self.rules.rewards == "step" else self._pay_at_end() if state.over else 0.0
        return Step([said], reward, terminated=state.over)

    def truncate(self, why: str) -> float:
        """End the episode early; with `final` rewards its last action is paid now."""
        return self._pay_at_end()

    def _pay_at_end(self) -> float:
        """Return what the last action is paid for the whole episode beside its own reward."""
        return earned(self.rewards) if self.rules.rewards == "final" else 0.0

    def scripted_message(self, policy: str) -> str:
        """Return the next action of the solution, or a random valid one."""
        if self._session is None or self.stopped is not None:
            return ""
        if policy == RANDOM:
            return str(self._random.choice(self._session.state.actions))
        if self._script is None:
            try:
                self._script = self.server.solution(self.name)
            except GameStopped as stopped:
                self.stopped, self._script = stopped, []
        return self._script.pop(0) if self._script else ""

    def info(self) -> EpisodeInfo:
        """Report whether the game was won, its return by kind of game, and what was no valid action."""
        won = self._session is not None and self._session.state.won
        total, steps = earned(self.rewards), len(self.rewards)
        return EpisodeInfo(
            metrics={"success": float(won), "reward_per_turn": total / steps if steps else 0.0},
            part_metrics={f"reward/{self.name.game}": total, f"success/{self.name.game}": float(won)},
            shares={"actions/not_valid": (self.not_valid, steps)},
            totals={"actions/no_text": self.no_text, "games/stopped": float(self.stopped is not None)},
            record={"game": self.name.facts(), "won": won, "stopped": str(self.stopped or "")},
            label="won" if won else "",
        )

    def close(self) -> None:
        """Let the process of the games forget this one."""
        if self._session is not None:
            self._session.close()


def as_action(text: str, state: GameState) -> str:
    """Return the action that a message says: its first line with words, as the game writes it; empty without words."""
    printable = text.encode("utf-8", "ignore").decode("utf-8")[:LONGEST_ACTION]
    lines = (" ".join(line.split()) for line in printable.splitlines())
    said = next((line for line in lines if any(map(str.isalnum, line))), "").removesuffix(".")
    return {action.lower(): action for action in state.actions}.get(said.lower(), said)


def earned(rewards: list[float]) -> float:
    """Return a sum of rewards."""
    return math.fsum(rewards)
