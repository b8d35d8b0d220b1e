"""`ExtraTerms` adds terms to any method's loss: the anchor, and SPO's Monte-Carlo term.

Each term is divided by units of its own. A step divides its whole gradient once, by the units of the loss, so a term's
sum is multiplied by (loss units / term units) before it is added: one division then normalises both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from shiqrun.losses.anchor import anchor
from shiqrun.losses.requirements import hyperparameters
from shiqrun.losses.residual import action_count
from shiqrun.losses.soft_policy import annotated_action_count, monte_carlo
from shiqrun.settings import AlgoSettings
from shiqrun.training.step.sums import Sums
from shiqrun.types import ActionScores, LossTerms, Trajectories


class TermWeights(NamedTuple):
    """A `TermWeights` holds a step's loss units per action, and per annotated action, `[]` each."""

    per_action: Tensor
    per_annotated: Tensor


@dataclass(frozen=True)
class ExtraTerms:
    """An `ExtraTerms` adds the terms of `algo.anchor` and `algo.monte_carlo` to the loss; falsy where both are 0.

    Attributes:
        loss: the method's, bound to its hyperparameters; the Monte-Carlo term takes `top` and `eps` from it.
        algo: the weights of the terms.
        beta: KL temperature, reward units per nat.
    """

    loss: Callable[..., LossTerms]
    algo: AlgoSettings
    beta: float

    def __bool__(self) -> bool:
        return bool(self.algo.anchor or self.algo.monte_carlo)

    @staticmethod
    def counts(batch: Trajectories, loss_units: Tensor) -> Sums:
        """Return a batch's units that weigh the terms: (loss units, actions) and (loss units, annotated actions)."""
        return {
            "actions": (loss_units, action_count(batch)),
            "annotated": (loss_units, annotated_action_count(batch)),
        }

    @staticmethod
    def weights(counts: Sums) -> TermWeights:
        """Return the weights of the terms in a step, from counts summed over its micro-batches and ranks."""
        return TermWeights(*(units / number.clamp(min=1) for units, number in (counts["actions"], counts["annotated"])))

    def tokens_to_sample(self, weights: TermWeights | None) -> int:
        """Return how many anchor tokens the policy must sample at every action's state; 0 without weights."""
        wanted = weights is not None and self.algo.anchor and self.algo.anchor_from == "policy"
        return self.algo.anchor_tokens if wanted else 0

    def add_to(
        self,
        terms: LossTerms,
        batch: Trajectories,
        policy: ActionScores,
        reference: ActionScores,
        weights: TermWeights,
    ) -> tuple[LossTerms, Sums]:
        """Return the loss with the extra terms added, and the metrics of these terms."""
        metrics: Sums = {}
        if self.algo.anchor:
            extra = anchor(batch, policy, reference, kappa=self.algo.anchor, beta=self.beta)
            terms = _plus(terms, extra, weights.per_action)
            metrics |= extra.metrics
        if self.algo.monte_carlo:
            own = hyperparameters(self.loss)
            shared = {name: own[name] for name in ("top", "eps") if name in own}
            extra = monte_carlo(batch, policy, reference, beta=self.beta, **shared)
            terms = _plus(terms, extra, self.algo.monte_carlo * weights.per_annotated)
            metrics |= extra.metrics
        return terms, metrics


def _plus(terms: LossTerms, extra: LossTerms, weight: Tensor) -> LossTerms:
    """Return the loss with a weighted term added to its sum; the count of units does not change."""
    return replace(terms, total=terms.total + weight.to(extra.total.dtype) * extra.total)
