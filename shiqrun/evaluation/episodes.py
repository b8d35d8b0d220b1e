"""One evaluation of a policy by the episodes that it plays, inside training and in `shiqrun eval`."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import encode
from shiqrun.batching.rows import Rows
from shiqrun.environments.bfcl.episode import Episode, Rules
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.samples import BfclSample as Dialogue
from shiqrun.errors import InputError
from shiqrun.evaluation.evaluator import EvaluationResult
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Live
from shiqrun.sampling.play import Playing, PolicyVoice, Script, Voice, play
from shiqrun.sampling.prompts import padding_id
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion
from shiqrun.settings import SamplingSettings
from shiqrun.types import Example
from shiqrun.util.intervals import interval

log = logging.getLogger("shiqrun")


@dataclass(frozen=True)
class EpisodeResult:
    """A finished episode, in plain numbers.

    Attributes:
        sample: id.
        classes: backends that took part.
        test: whether the sample is one of the 40.
        rewards: of every counted turn.
        right: whether every counted turn is right.
        official: the official checker's verdict on the calls that ran.
        log_ratio: sum of log pi / pi_ref over the policy's tokens, nats; None without a reference, or a token.
        record: the line of `episodes.jsonl`.
        samples: the policy's messages.
        stopped: calls that a limit ended.
    """

    sample: str
    classes: tuple[str, ...]
    test: bool
    rewards: list[float]
    right: bool
    official: bool
    log_ratio: float | None
    record: dict[str, Any]
    samples: list[SampledCompletion]
    stopped: int


@dataclass(frozen=True)
class EpisodeEvaluation:
    """What the episodes say; see `episode_metrics` for the metrics."""

    metrics: dict[str, float]
    played: list[EpisodeResult]
    on_policy: bool

    @property
    def samples(self) -> list[SampledCompletion]:
        """The policy's messages."""
        return [sample for p in self.played for sample in p.samples]

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`, one an episode."""
        rows = []
        for p in self.played:
            messages = p.record["messages"]
            start = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
            rows.append(
                {
                    "step": step,
                    "prompt_id": p.sample,
                    "prompt": _text(messages[:start]),
                    "completion": _text(messages[start:]),
                    "tokens": sum(len(s.tokens) for s in p.samples),
                    "ended": not p.record["ended"],
                    "reward": sum(p.rewards),
                    "kl": p.log_ratio if self.on_policy else None,
                    "reference_completion": None,
                    "reference_reward": None,
                }
            )
        return rows


def _text(messages: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


class EpisodeEvaluator:
    """Lets a policy play the samples and counts the turns that are right.

    Args:
        dialogues: to play.
        rules: how.
        tokenizer: of the policy.
        settings: of the sampling.
        tokens: of one forward pass when messages are measured.
        context: tokens that the policy reads.
        beta: KL temperature, reward units per nat, or None.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        rules: Rules,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        tokens: int,
        context: int | None,
        beta: float | None,
    ) -> None:
        self.dialogues, self.rules, self.tokenizer, self.settings = dialogues, rules, tokenizer, settings
        self.tokens, self.context, self.beta = tokens, context, beta
        self.reference: Live | None = None
        self.mine, self.world = list(dialogues), 1

    def described(self) -> str:
        """What would be played, for a dry run."""
        return f"{len(self.dialogues)} samples, {self.settings.samples_per_prompt} episodes each"

    def begin(self, reference: Live | None, device: torch.device, rank: int = 0, world: int = 1) -> None:
        """Moves the reference to the device and takes this rank's share of the samples."""
        self.mine, self.world, self.reference = list(self.dialogues[rank::world]), world, reference
        if reference is not None:
            reference.to(device)

    def run(self, policy: Policy) -> EpisodeEvaluation:
        """Plays and measures; all ranks together, with the same result on each.

        Raises:
            InputError: no dialogue has room for a message.
        """
        voice = PolicyVoice(policy, self.tokenizer, self.settings, tokens=self.tokens, context=self.context)
        played, error = list[EpisodeResult](), None
        try:
            played = played_by(voice, self.mine, self.rules, self.settings.samples_per_prompt, self._measuring(policy))
        except InputError as found:
            error = found
        if self.world > 1:
            shares: list[Any] = [None] * self.world
            torch.distributed.all_gather_object(shares, (played, error))
            place = {d.id: n for n, d in enumerate(self.dialogues)}
            played = sorted((p for share, _ in shares for p in share), key=lambda p: place[p.sample])
            error = next((found for _, found in shares if found), None)
        if error:
            raise error
        if not any(p.samples for p in played):
            raise InputError(
                f"no sample leaves room for a message of eval.max_new_tokens={self.settings.max_new_tokens} in the "
                f"policy's context of {self.context} tokens; show less (data.functions) or take a model that reads more"
            )
        on_policy = self.settings.temperature == 1 and self.settings.top_p == 1
        return EpisodeEvaluation(episode_metrics(played, beta=self.beta, on_policy=on_policy), played, on_policy)

    def _measuring(self, policy: Policy) -> Callable[[Sequence[SampledCompletion]], list[SampledCompletion]]:
        sampler = CompletionSampler([], self.tokenizer, self.settings, self.tokens)
        return lambda samples: sampler.measured(samples, policy, self.reference)

    def trajectories(self, answers: EvaluationResult, most: int) -> Rows:
        """The first few episodes as trajectories, written anew by the chat template."""
        assert isinstance(answers, EpisodeEvaluation)
        examples = []
        for p in answers.played[:most]:
            messages, rewards = p.record["messages"], p.record["rewards"]
            start = (
                len(messages) if not rewards else next(i for i, m in enumerate(messages) if m["role"] == "assistant")
            )
            said = [messages[start:]] if rewards else []
            examples.append(Example(messages[:start], said, [rewards] if rewards else [], p.sample))
        return Rows([*encode(examples, self.tokenizer, Counter(), max_length=self.context)], padding_id(self.tokenizer))


def chosen_dialogues(dialogues: Sequence[Dialogue], number: int, limit: int | None) -> list[Dialogue]:
    """At most `number` of the first `limit`, by a hash of their names: the same ones in every run. Said if not all.

    Raises:
        InputError: there is none.
    """
    there = list(dialogues)[:limit]
    if not there or not number:
        why = "eval.max_prompts=0" if there else "data.split: there are no samples on this side of data.samples"
        raise InputError(f"{why}; no episode would be played")
    ranked = sorted(there, key=lambda d: blake2b(d.id.encode(), digest_size=8).digest())[:number]
    if len(ranked) < len(dialogues):
        limits = f"eval.max_prompts={number}, data.limit={'null' if limit is None else limit}"
        log.warning("%d of %d samples are played (%s)", len(ranked), len(dialogues), limits)
    return sorted(ranked, key=lambda d: d.index)


def reference_answers(dialogues: Sequence[Dialogue], rules: Rules) -> EpisodeEvaluation:
    """The samples played by their own reference answers."""
    played = played_by(Script(), dialogues, rules, 1, lambda samples: [*samples])
    return EpisodeEvaluation(episode_metrics(played, beta=None, on_policy=False), played, False)


def played_by(
    voice: Voice,
    dialogues: Sequence[Dialogue],
    rules: Rules,
    each: int,
    measure: Callable[[Sequence[SampledCompletion]], list[SampledCompletion]],
) -> list[EpisodeResult]:
    """Every sample played `each` times."""
    with Harness() as harness:
        playing = [Playing(Episode(d, harness, rules), k) for d in dialogues for k in range(each)]
        play(playing, voice)
        measured = iter(measure([s for p in playing for s in p.samples]))
        return [_played(p, [next(measured) for _ in p.samples]) for p in playing]


def _played(p: Playing, samples: list[SampledCompletion]) -> EpisodeResult:
    episode = p.episode
    ratios = [s.log_ratio for s in samples]
    known = [r for r in ratios if r is not None]
    paid = [r for r, counted in zip(episode.rewards(), episode.counted(), strict=True) if counted]
    rewards = episode.message_rewards()[: len(samples)]
    return EpisodeResult(
        sample=episode.sample.id,
        classes=tuple(episode.sample.classes),
        test=episode.sample.is_test,
        rewards=paid,
        right=episode.right,
        official=episode.official(),
        log_ratio=sum(known) if samples and len(known) == len(ratios) else None,
        record=episode.record(),
        samples=[replace(s, reward=r) for s, r in zip(samples, rewards, strict=True)],
        stopped=episode.stopped,
    )


def episode_metrics(played: Sequence[EpisodeResult], *, beta: float | None, on_policy: bool) -> dict[str, float]:
    """What the episodes say of the policy, means over samples with 95 % intervals.

    reward             sum over the turns of an episode
    reward_per_turn    mean over the counted turns of an episode; also by class, and by side where both are played
    official_score     share of episodes that the official checker finds valid
    official_agreement share of episodes on which it agrees with ours (every counted turn right)
    kl                 E_pi[sum log pi / pi_ref] over the policy's tokens, at temperature 1 with top_p 1; else
                       `logratio_sum`
    """
    groups: dict[str, list[EpisodeResult]] = {}
    for p in played:
        groups.setdefault(p.sample, []).append(p)
    found = {"episodes": float(len(played))}

    def averaged(name: str, value: Callable[[EpisodeResult], float], among: Any = lambda p: True) -> None:
        means = [sum(map(value, g)) / len(g) for g in groups.values() if among(g[0])]
        if means:
            found[name], found[f"{name}_ci95"] = interval(means)

    averaged("reward", lambda p: sum(p.rewards))
    averaged("reward_per_turn", lambda p: sum(p.rewards) / len(p.rewards))
    averaged("official_score", lambda p: p.official)
    averaged("official_agreement", lambda p: p.official == p.right)
    if all(p.log_ratio is not None for p in played if p.samples) and any(p.samples for p in played):
        averaged("kl" if on_policy else "logratio_sum", lambda p: p.log_ratio or 0.0)
        if on_policy and beta is not None:
            averaged("regularised_return", lambda p: sum(p.rewards) - beta * (p.log_ratio or 0.0))
    for name in sorted({name for p in played for name in p.classes}):
        averaged(f"reward_per_turn/{name}", lambda p: sum(p.rewards) / len(p.rewards), lambda p: name in p.classes)  # noqa: B023
    if len({p.test for p in played}) == 2:
        for side, test in (("test", True), ("train", False)):
            averaged(f"reward_per_turn/{side}", lambda p: sum(p.rewards) / len(p.rewards), lambda p: p.test == test)  # noqa: B023
            averaged(f"official_score/{side}", lambda p: p.official, lambda p: p.test == test)  # noqa: B023
    return found | _counts(played)


def _counts(played: Sequence[EpisodeResult]) -> dict[str, float]:
    """How messages and episodes ended, as shares."""
    why = [reason for p in played for reason in p.record["why"]]
    ended = [p.record["ended"] for p in played]
    found = {
        "turns/empty": why.count("no call") / len(why),
        "episodes/too_many_steps": ended.count("too many steps") / len(ended),
        "episodes/no_room": ended.count("no room") / len(ended),
        "calls/refused": float(sum(len(p.record["refused"]) for p in played)),
        "calls/stopped": float(sum(p.stopped for p in played)),
    }
    samples = [s for p in played for s in p.samples]
    if samples:
        found["completions/mean_length"] = sum(len(s.tokens) for s in samples) / len(samples)
        found["completions/clipped_ratio"] = sum(not s.ended for s in samples) / len(samples)
    if samples and all(s.entropy is not None for s in samples):
        tokens = sum(len(s.tokens) for s in samples)
        found["entropy"] = sum((s.entropy or 0.0) * len(s.tokens) for s in samples) / tokens
    return found
