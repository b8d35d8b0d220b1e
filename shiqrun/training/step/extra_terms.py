"""What any method's loss may get added: the anchor, and SPO's Monte-Carlo term; each divided by units of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from shiqrun.losses.anchor import anchor
from shiqrun.losses.soft_policy import annotated, monte_carlo
from shiqrun.settings import AlgoSettings
from shiqrun.training.step.loss_by_source import units
from shiqrun.training.step.sums import Tally
from shiqrun.types import ActionScores, LossTerms, Trajectories


class Weights(NamedTuple):
    """`[]` each: units of the loss per action and per annotated action of a step.

    A term's sum times its weight is divided by the loss's units with the rest, and so by the term's own.
    """

    per_action: Tensor
    per_annotated: Tensor


@dataclass(frozen=True)
class Additions:
    """The terms of `algo.anchor` and `algo.monte_carlo`.

    Attributes:
        loss: bound to its hyperparameters; where it has `top` and `eps`, the Monte-Carlo term has the same.
        algo: their weights.
        beta: reward units per nat.
    """

    loss: Callable[..., LossTerms]
    algo: AlgoSettings
    beta: float

    def __bool__(self) -> bool:
        return bool(self.algo.anchor or self.algo.monte_carlo)

    @staticmethod
    def counts(batch: Trajectories, loss: Callable[..., LossTerms]) -> Tally:
        """The units of a step's loss, actions and annotated actions, known before any score is."""
        number = units(loss, batch)
        return {"actions": (number, batch.action_mask.sum()), "annotated": (number, annotated(batch).sum())}

    @staticmethod
    def weights(summed: Tally) -> Weights:
        """Of a whole step, whose counts are summed over micro-batches and ranks."""
        per = [units / number.clamp(min=1) for units, number in (summed["actions"], summed["annotated"])]
        return Weights(*per)

    def drawn(self, weights: Weights | None) -> int:
        """Tokens a state that the policy is to draw for the anchor."""
        wanted = weights is not None and self.algo.anchor and self.algo.anchor_from == "policy"
        return self.algo.anchor_tokens if wanted else 0

    def added(
        self, terms: LossTerms, batch: Trajectories, policy: ActionScores, reference: ActionScores, weights: Weights
    ) -> tuple[LossTerms, Tally]:
        """The loss with its additions, and their metrics."""
        tally: Tally = {}
        if self.algo.anchor:
            held = anchor(batch, policy, reference, kappa=self.algo.anchor, beta=self.beta)
            terms = _plus(terms, held, weights.per_action)
            tally |= held.metrics
        if self.algo.monte_carlo:
            own = getattr(self.loss, "keywords", {})
            same = {name: own[name] for name in ("top", "eps") if name in own}
            told = monte_carlo(batch, policy, reference, beta=self.beta, **same)
            terms = _plus(terms, told, self.algo.monte_carlo * weights.per_annotated)
            tally |= told.metrics
        return terms, tally


def _plus(terms: LossTerms, more: LossTerms, weight: Tensor) -> LossTerms:
    return replace(terms, total=terms.total + weight.to(more.total.dtype) * more.total)
