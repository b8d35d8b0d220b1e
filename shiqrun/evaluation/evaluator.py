"""`CompletionEvaluator` evaluates a policy by sampled completions; all evaluators share the protocols beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.rows import Rows
from shiqrun.evaluation.completion_metrics import completion_metrics, metrics_by_part
from shiqrun.evaluation.kept_answers import KeptAnswers
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference, Live, same_weights
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.endpoint import Endpoint
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion, score_completions
from shiqrun.settings import SamplingSettings

REFERENCE_STREAM = 1
"""The stream of the reference's completions: a win rate compares them with independent ones of the policy."""


class EvaluationResult(Protocol):
    """An `EvaluationResult` is the result of an evaluation of a policy."""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, without a prefix."""

    @property
    def samples(self) -> list[SampledCompletion]:
        """Return what was sampled from the policy."""

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Return the rows of `samples.jsonl`."""


class PolicyEvaluator(Protocol):
    """An evaluator samples from a policy: completions (`CompletionEvaluator`) or episodes (`EpisodeEvaluator`)."""

    def description(self) -> str:
        """Return a text that says what would be sampled, for a dry run."""
        ...

    def begin(self, reference: Live | None, device: torch.device, rank: int = 0, world: int = 1) -> None:
        """Prepare the evaluator on every rank, before the first evaluation."""

    def run(self, policy: Policy) -> EvaluationResult:
        """Evaluate a policy; all ranks together, with the same result on each."""

    def trajectories(self, answers: EvaluationResult, most: int) -> Rows:
        """Return the first few completions or episodes as trajectories with rewards, for the token view."""


@dataclass(frozen=True)
class CompletionEvaluation:
    """A `CompletionEvaluation` is the result of an evaluation by completions.

    Attributes:
        metrics: by name without a prefix, see `completion_metrics`.
        samples: the policy's completions.
        reference: the reference's completions of the same prompts, in the same order; None without a reference.
        on_policy: drawn from the policy's own distribution, so that log-ratios are draws of a KL.
    """

    metrics: dict[str, float]
    samples: list[SampledCompletion]
    reference: list[SampledCompletion] | None
    on_policy: bool

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Return the rows of `samples.jsonl`, one a completion."""
        others: Sequence[SampledCompletion | None] = self.reference or [None] * len(self.samples)
        return [
            {
                "step": step,
                "prompt_id": s.prompt.prompt_id,
                "prompt": s.prompt.text,
                "completion": s.text,
                "tokens": len(s.tokens),
                "ended": s.ended,
                "reward": s.reward,
                "kl": s.log_ratio if self.on_policy else None,
                "reference_completion": other and other.text,
                "reference_reward": other and other.reward,
            }
            for s, other in zip(self.samples, others, strict=True)
        ]


class CompletionEvaluator:
    """A completion evaluator has a policy complete fixed prompts and compares its completions with the reference's.

    Args:
        prompts: to complete.
        tokenizer: of the policy.
        settings: of the sampling.
        tokens: tokens of one forward pass when completions are measured.
        reward: scores completions, or None.
        beta: KL temperature, reward units per nat, or None.
        endpoint: a server that samples in place of the policy; None to sample here.

    Attributes:
        kept: answers of the weights that the run starts from, which runs share; None to sample them anew.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        tokens: int,
        reward: Reward | None,
        beta: float | None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.prompts, self.tokenizer, self.settings, self.tokens = prompts, tokenizer, settings, tokens
        self.reward, self.beta, self.endpoint = reward, beta, endpoint
        self.reference: Live | None = None
        self.sampler = CompletionSampler(prompts, tokenizer, settings, tokens)
        self.world = 1
        self.kept: KeptAnswers | None = None
        self._answers: list[SampledCompletion] | None = None

    def description(self) -> str:
        """Return a text that says what would be sampled, for a dry run."""
        return f"{len(self.prompts)} prompts, {self.settings.samples_per_prompt} completions each"

    def begin(self, reference: Live | None, device: torch.device, rank: int = 0, world: int = 1) -> None:
        """Take this rank's share of the prompts, and have the reference, moved to the device, complete them."""
        self.sampler = CompletionSampler(self.prompts[rank::world], self.tokenizer, self.settings, self.tokens)
        self.world, self.reference = world, reference
        if self.reward is not None:
            self.reward.to(device)
        if reference is not None:
            reference.to(device)
            with reference.as_policy() as policy:
                self._answers = self._keeping("reference", policy, lambda: self._of_reference(policy))

    def _of_reference(self, policy: Policy) -> list[SampledCompletion]:
        told = "completions of the reference"
        return self._score(self.sampler.sample(policy, stream=REFERENCE_STREAM, description=told))

    def _of_policy(self, policy: Policy) -> list[SampledCompletion]:
        samples = self.sampler.sample(policy, endpoint=self.endpoint)
        return self._score(self.sampler.measure(samples, policy, self.reference))

    def _keeping(
        self, who: str, policy: Policy, make: Callable[[], list[SampledCompletion]]
    ) -> list[SampledCompletion]:
        """Return the completions that `make` returns, from an earlier run where they are kept."""
        if self.kept is None or self.world > 1 or self.endpoint is not None:
            return make()
        return self.kept.answers(who, policy, self.sampler, self.reward, make)

    def run(self, policy: Policy) -> CompletionEvaluation:
        """Sample, measure and score completions; all ranks together, with the same result on each."""
        copy = self.reference.policy if isinstance(self.reference, FrozenReference) else None
        if copy is not None and self.kept is not None and same_weights(policy, copy):
            samples = self._keeping("policy", policy, lambda: self._of_policy(policy))
        else:
            samples = self._of_policy(policy)
        samples = self._gather(samples)
        reference = None if self._answers is None else self._gather(self._answers)
        on_policy = self.settings.temperature == 1 and self.settings.top_p == 1
        right = None if self.reward is None else self.reward.right
        asked: dict[str, Any] = {"beta": self.beta, "on_policy": on_policy, "right": right}
        metrics = completion_metrics(samples, reference, **asked)
        metrics |= metrics_by_part(samples, reference, **asked)
        return CompletionEvaluation(metrics, samples, reference, on_policy)

    def trajectories(self, answers: EvaluationResult, most: int) -> Rows:
        """Return the first few completions as trajectories, in the tokens that were sampled."""
        return self.sampler.as_trajectories(answers.samples[:most])

    def _score(self, samples: list[SampledCompletion]) -> list[SampledCompletion]:
        return samples if self.reward is None or not samples else score_completions(samples, self.reward)

    def _gather(self, mine: list[SampledCompletion]) -> list[SampledCompletion]:
        """Return the completions of all ranks, in the order of the prompts."""
        if self.world == 1:
            return mine
        shares: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(shares, mine)
        place = {prompt.name: n for n, prompt in enumerate(self.prompts)}
        return sorted((s for share in shares for s in share), key=lambda s: (place[s.prompt.name], s.index))
