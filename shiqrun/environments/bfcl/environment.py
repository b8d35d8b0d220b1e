"""`BfclEnvironment` plays BFCL multi-turn: the benchmark's functions run in a confined process, which judges turns."""

from collections.abc import Iterable
from typing import Any

from shiqrun.environments import environment
from shiqrun.environments.bfcl.corruptions import turn_messages
from shiqrun.environments.bfcl.dialogue import Dialogue, Rules
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.samples import BfclSample
from shiqrun.environments.environment import EpisodeInfo, Step
from shiqrun.types import Example

GROUND_TRUTH = "ground_truth"


class BfclEnvironment(environment.Environment):
    """A BFCL environment plays the samples of BFCL multi-turn against its real backends.

    Args:
        samples: those that may be played; the `prompt_id` of a task is the id of its sample.
        rules: how episodes are played and paid.
    """

    scripted_policies = (GROUND_TRUTH,)

    def __init__(self, samples: Iterable[BfclSample], rules: Rules) -> None:
        self.samples, self.rules = {s.id: s for s in samples}, rules
        self.harness = Harness()

    def begin(self, task: Example) -> "BfclEpisode":
        """Open new backends for the sample of a task."""
        return BfclEpisode(Dialogue(self.samples[task.prompt_id], self.harness, self.rules))

    def close(self) -> None:
        """End the confined process of the backends."""
        self.harness.close()


class BfclEpisode(environment.Episode):
    """A BFCL episode is one played sample; a turn's reward falls on the policy's last message in the turn.

    Args:
        dialogue: the dialogue with its backends.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue, self.opening = dialogue, list(dialogue.messages)
        truth = (text for calls in dialogue.sample.truth for text in turn_messages(calls, "one"))
        self._truth = [dialogue.rules.message(dialogue.sample, text) for text in truth]
        self._remarks: list[tuple[int, str]] = []

    def step(self, text: str) -> Step:
        """Run the function calls of a message and return their results; a message without a call ends the turn."""
        dialogue = self.dialogue
        before, turn = len(dialogue.messages) + 1, len(dialogue.verdicts)
        dialogue.say(text)
        reward = self._remark(turn)
        terminated = dialogue.done and not dialogue.ended
        return Step(dialogue.messages[before:], reward, terminated=terminated, truncated=dialogue.ended)

    def truncate(self, why: str) -> float:
        """End the episode early; the turn that it ends in is judged by its calls so far, later turns are wrong."""
        turn, begun = len(self.dialogue.verdicts), self.dialogue.turn_begun
        self.dialogue.give_up(why)
        reward = self._remark(turn)
        return reward if begun else 0.0

    def _remark(self, turn: int) -> float:
        """Note the verdicts on the turns that have ended from this one on; return the reward of this turn."""
        dialogue = self.dialogue
        ended, rewards = dialogue.verdicts[turn:], dialogue.rewards()[turn:]
        place = len(dialogue.messages) if dialogue.done else len(dialogue.messages) - 1  # before the user's next turn
        for verdict, reward in zip(ended, rewards, strict=True):
            text = f"reward {reward:g}" if verdict.counted else "not counted"
            self._remarks.append((place, f"{text}: {verdict.why}" if verdict.why else text))
        return rewards[0] if rewards else 0.0

    def scripted_message(self, policy: str) -> str:
        """Return the next message of the sample's reference answer."""
        assert policy == GROUND_TRUTH
        return self._truth.pop(0)

    def info(self) -> EpisodeInfo:
        """Report the verdicts of our checker and of the official one, by class of backend and by side of the split."""
        dialogue, sample = self.dialogue, self.dialogue.sample
        rewards, counted = dialogue.rewards(), dialogue.counted_turns()
        why = [verdict.why for verdict in dialogue.verdicts]
        paid = [reward for reward, counts in zip(rewards, counted, strict=True) if counts]
        per_turn, official = sum(paid) / len(paid), dialogue.official()
        metrics = {"reward_per_turn": per_turn, "official_score": float(official)}
        metrics["official_agreement"] = float(official == dialogue.right)
        metrics |= {f"reward_per_turn/{name}": per_turn for name in sample.classes}
        side = "test" if sample.is_test else "train"
        record: dict[str, Any] = {"turn_rewards": rewards, "counted": counted, "why": why}
        record |= {"refused": dialogue.refused, "official": official, "classes": sample.classes}
        return EpisodeInfo(
            metrics=metrics,
            part_metrics={f"reward_per_turn/{side}": per_turn, f"official_score/{side}": float(official)},
            shares={"turns/empty": (why.count("no call"), len(why))},
            totals={"calls/refused": len(dialogue.refused), "calls/stopped": dialogue.stopped_calls},
            record=record,
            label=", ".join(sample.classes),
            remarks=self._remarks,
        )

    def close(self) -> None:
        """Release the episode's backends."""
        self.dialogue.close()
