"""`Environment` is the contract of environments: they answer a policy over several turns and pay rewards.

An `Environment` begins an `Episode` from an example of a data set. The episode opens with the first messages, takes
each message of the policy and answers with a `Step`: the next messages, the message's reward and whether the episode
is over. Any number of episodes of one environment may be open at once. Nothing here knows a model or a tokenizer:
`shiqrun.sampling.play` lets a policy play, `shiqrun.evaluation.episodes` measures what it earned.

A data set names its environment by the method `Source.environment`. An environment that runs untrusted or unbounded
code confines it in a `confined.ConfinedProcess`, which `close` ends, and reports a spent limit as the reason of a
truncation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shiqrun.errors import TrainingError
from shiqrun.types import Example, Message

NO_ROOM = "no room"
SPECIAL_TOKEN = "special token"
TOO_MANY_STEPS = "too many steps"
OUT_OF_RESOURCES = "too much time or memory"
"""Why an episode is truncated: the dialogue outgrew the policy's context; its text spells a special token of the
tokenizer; the policy sent more messages than allowed; a limit of the confined process was reached."""


class EpisodeFailed(TrainingError):
    """EpisodeFailed says that an episode cannot go on through no fault of the policy, as where its process died."""


@dataclass(frozen=True)
class Step:
    """A step is an environment's answer to one message of the policy.

    Attributes:
        messages: the next messages of the dialogue (tool results, the user's next turn); may be empty at the end.
        reward: what the policy's message earned, reward units.
        terminated: the episode reached its own end.
        truncated: why the environment cut the episode off before its end; empty if it did not.
    """

    messages: Sequence[Message] = ()
    reward: float = 0.0
    terminated: bool = False
    truncated: str = ""


@dataclass(frozen=True)
class EpisodeInfo:
    """Episode info is what an environment reports of a finished episode beside rewards; every part may be left out.

    Attributes:
        metrics: numbers by name (an official score, say); an evaluation shows the mean over tasks with its 95 %
            interval. A name that only some episodes have is averaged over those.
        part_metrics: metrics of one part of the tasks, by names that the other parts' episodes do not have. They are
            left out where every episode has them, since they would repeat the metrics of all.
        shares: (amount, whole) by name; an evaluation shows the sum of amounts over the sum of wholes.
        totals: numbers by name that an evaluation adds up.
        record: further columns of the episode's row in `episodes.jsonl`; JSON values.
        label: stands behind the task's name in `episodes.md`.
        remarks: (number of a message, text to show before it) for the readable dialogue in `episodes.md`; the number
            of messages stands for its end. Without remarks the reward is shown behind each message of the policy.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    part_metrics: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    remarks: Sequence[tuple[int, str]] = ()


class Episode(ABC):
    """An episode is one dialogue between a policy and an environment.

    Attributes:
        opening: the messages before the policy's first; set by the constructor.
        failed: why the episode could not be begun or played on through no fault of the policy; empty if it could.
            Nothing is trained on such an episode.
    """

    opening: Sequence[Message]
    failed: str = ""

    @abstractmethod
    def step(self, text: str) -> Step:
        """Take the policy's next message and return the environment's answer.

        Raises:
            EpisodeFailed: the episode cannot go on.
        """

    def truncate(self, why: str) -> float:
        """End the episode from outside; return what this adds to the reward of the policy's last message."""
        return 0.0

    def scripted_message(self, policy: str) -> str:
        """Return the next message of a scripted policy, one of `Environment.scripted_policies`."""
        raise NotImplementedError(f"no scripted policy {policy!r}")

    def info(self) -> EpisodeInfo:
        """Return the report on the finished episode; called once, before `close`."""
        return EpisodeInfo()

    def close(self) -> None:  # noqa: B027 - a hook that not every environment needs
        """Release processes, files and memory that the episode holds."""


class Environment(ABC):
    """An environment is a world that answers policies; as a context manager it is closed at the end.

    The constructor must start nothing: a process or a game starts with the first episode.

    Attributes:
        scripted_policies: names of the policies that every episode can play by itself, for `eval.policy=NAME`.
        max_messages: messages of the policy after which an episode is truncated; None where episodes end by themselves.
    """

    scripted_policies: tuple[str, ...] = ()
    max_messages: int | None = None

    @abstractmethod
    def begin(self, task: Example) -> Episode:
        """Open an episode of a task; the same task may be open several times.

        Args:
            task: an example of `Source.tasks`; `prompt_id` names it, `answer` may hold what the environment needs.

        Raises:
            InputError: the task cannot be played.
            EpisodeFailed: it cannot be begun now.
        """

    def close(self) -> None:  # noqa: B027 - the same
        """End processes and release memory; a later episode starts them anew."""

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
