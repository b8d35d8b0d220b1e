"""A `PrefixSampler` lets the reference complete prefixes of trajectories to estimate their chance of success.

Rollouts continue the token ids of a prefix, not its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.estimates.pivotal_settings import PivotalSettings
from shiqrun.estimates.prompt_values import prompt_key
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Answered, Reward
from shiqrun.sampling.generate import Completion, sample_completions
from shiqrun.sampling.prompts import Prompt, padding_id, stop_tokens


@dataclass(frozen=True)
class SearchedTrajectory:
    """A `SearchedTrajectory` is a trajectory to be searched for pivotal actions, with its log-probabilities.

    Attributes:
        prompt: the prompt that it answers.
        tokens: `[T]` int64, its actions.
        logp: `[T]`, nats, log-probabilities of the actions under the reference.
        text: text of the actions.
        reward: of the whole trajectory, reward units.
        source: where it came from, for messages.
    """

    prompt: Prompt
    tokens: np.ndarray
    logp: np.ndarray
    text: str
    reward: float
    source: str

    @property
    def name(self) -> str:
        """Return a key that is equal for equal actions after a prompt of equal tokens and answer, not by prompt id."""
        return f"{prompt_key(self.prompt)} {tokens_key(self.tokens)}"


@dataclass(frozen=True)
class PrefixRollouts:
    """A `PrefixRollouts` holds the completions of one prefix: their texts, prefix included, and their rewards."""

    texts: list[str]
    rewards: list[float]

    def rate(self, right: float) -> float:
        """Return the share of completions that earned the reward of a right one."""
        return sum(r == right for r in self.rewards) / len(self.rewards)


class PrefixSampler:
    """A `PrefixSampler` samples rollouts behind prefixes; a prefix that many searches ask for is sampled once.

    Args:
        policy: the reference, on its device.
        tokenizer: of the policy.
        reward: scores a whole completion, and says what is right.
        settings: see `PivotalSettings`.

    Attributes:
        rollouts: number of completions sampled so far.
        tokens: number of tokens sampled so far.
        positions: number of prefixes sampled so far.
    """

    def __init__(
        self, policy: Policy, tokenizer: PreTrainedTokenizerBase, reward: Reward, settings: PivotalSettings
    ) -> None:
        self.policy, self.tokenizer, self.reward, self.settings = policy, tokenizer, reward, settings
        self._stop, self._pad = stop_tokens(tokenizer, policy.causal_lm), padding_id(tokenizer)
        self._known: dict[tuple[int, str, str], PrefixRollouts] = {}
        self.rollouts, self.tokens, self.positions = 0, 0, 0

    def rollouts_behind(
        self, places: Sequence[tuple[SearchedTrajectory, int]], *, stream: int, number: int
    ) -> list[PrefixRollouts]:
        """Return `number` rollouts behind each (trajectory, position), sampled now where they are not known yet."""
        names = [
            (stream, prompt_key(trajectory.prompt), tokens_key(trajectory.tokens[:at])) for trajectory, at in places
        ]
        new = {name: place for name, place in zip(names, places, strict=True) if name not in self._known}
        if new:
            self._sample(new, number)
        return [self._known[name] for name in names]

    def forget(self) -> None:
        """Delete all rollouts to free memory, since no prompt occurs in two portions of a search."""
        self._known.clear()

    def _sample(self, new: dict[tuple[int, str, str], tuple[SearchedTrajectory, int]], number: int) -> None:
        begun = [np.concatenate([trajectory.prompt.tokens, trajectory.tokens[:at]]) for trajectory, at in new.values()]
        keys = [[self.settings.seed, name[0], new[name][0].prompt.key, int(name[2], 16)] for name in new]
        completions = sample_completions(
            self.policy,
            [tokens for tokens in begun for _ in range(number)],
            [[*key, k] for key in keys for k in range(number)],
            stop=self._stop,
            pad=self._pad,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=1.0,
            top_p=1.0,
            batch_size=self.settings.batch_size,
            description="",
        )
        places = [place for place in new.values() for _ in range(number)]
        texts = [self._text(trajectory, at, c) for (trajectory, at), c in zip(places, completions, strict=True)]
        rewards = self.reward.score(
            [_answered(trajectory.prompt, t) for (trajectory, _), t in zip(places, texts, strict=True)]
        )
        for n, name in enumerate(new):
            part = slice(n * number, (n + 1) * number)
            self._known[name] = PrefixRollouts(texts[part], rewards[part])
        self.rollouts += len(texts)
        self.tokens += sum(len(c.tokens) for c in completions)
        self.positions += len(new)

    def _text(self, trajectory: SearchedTrajectory, at: int, completion: Completion) -> str:
        """Return the text of a prefix and its completion, cut where a whole completion would have been."""
        said = completion.tokens[:-1] if completion.ended else completion.tokens
        ids = np.concatenate([trajectory.tokens[:at], said])[: self.settings.max_new_tokens]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _answered(prompt: Prompt, text: str) -> Answered:
    return Answered(prompt.messages, [{"role": "assistant", "content": text}], prompt.answer, prompt.source)
