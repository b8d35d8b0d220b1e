"""Each loss declares its requirements: the data and scores that it reads, and how its units are counted.

A loss declares them with the decorator `needs` where it is defined. Training checks the needs before it loads a model,
and counts units before it scores a batch, because a step that mixes several losses must know every divisor in advance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import Any, Literal, TypeVar

from torch import Tensor, zeros_like

from shiqrun.types import ActionScores, LossTerms, Trajectories

Need = Literal[
    "rewards",
    "pairs",
    "order",
    "group",
    "value",
    "score",
    "prompt_value",
    "quantile",
    "kl_estimate",
    "vocabulary_kl",
    "behaviour",
    "proximal",
    "sampler_reference",
]
"""What a loss may need:

rewards: a reward for every trajectory.
pairs: completions of one prompt that are compared two by two.
order: pairs in which one completion has the larger return.
group: the mean over the completions of one prompt.
value: `policy.value` at every action's state.
score: `policy.value` behind every action, as a reward model has it.
prompt_value: the soft value Q0 of every prompt.
quantile: the share of the reference's returns on a prompt that are at or below a trajectory's.
kl_estimate: the step's KL estimate, from prompts with completions of other prompts.
vocabulary_kl: KL(pi || pi_ref) over the vocabulary at every action's state.
behaviour: log-probabilities of the actions under the distribution they were sampled from.
proximal: the policy's scores when the batch came to be trained on, where a batch is trained on more than once.
sampler_reference: a reference that is the policy which sampled the batch.
"""
Loss = TypeVar("Loss", bound=Callable[..., LossTerms])
UnitCount = Callable[..., Tensor]
"""Counts the units of a loss on a batch, `[]`; takes the batch, and by name those hyperparameters it depends on."""


OF_REFERENCE = frozenset({"prompt_value", "quantile"})
"""Needs that are computed from rewards of the reference's own completions, as `shiqrun values` samples them."""


@dataclass(frozen=True)
class Requirements:
    """A `Requirements` holds what one loss declares: the inputs that it reads, and how its units are counted.

    Attributes:
        needs: what it reads besides tokens.
        group_if: hyperparameters and the values with which the loss also needs the group.
        off_at_zero: needs that a hyperparameter of 0 takes away, by need.
        units: counts its units from a batch alone; None where the author of a loss declared no such function.
    """

    needs: frozenset[str] = frozenset({"rewards"})
    group_if: Mapping[str, Any] = field(default_factory=dict)
    off_at_zero: Mapping[str, str] = field(default_factory=dict)
    units: UnitCount | None = None


def needs(
    *what: Need,
    units: UnitCount | None = None,
    group_if: Mapping[str, Any] | None = None,
    off_at_zero: Mapping[str, str] | None = None,
) -> Callable[[Loss], Loss]:
    """Return a decorator that records the requirements of a loss.

    Args:
        what: see `Need`.
        units: counts the loss's units from a batch, without scores: `action_count`, `trajectory_count`, ...
        group_if: hyperparameters, with the values that make the loss compare the completions of a prompt.
        off_at_zero: needs, with the hyperparameter that takes each away where it is 0.
    """

    def mark(loss: Loss) -> Loss:
        loss.requirements = Requirements(frozenset(what), group_if or {}, off_at_zero or {}, units)  # type: ignore[attr-defined]
        return loss

    return mark


def needs_of(loss: Callable[..., LossTerms]) -> frozenset[str]:
    """Return the inputs that a loss (or the loss inside a partial) needs; rewards where it declares nothing."""
    requirements, bound = _unwrap(loss)
    compares = any(bound.get(key) == value for key, value in requirements.group_if.items())
    off = {need for need, key in requirements.off_at_zero.items() if bound.get(key) == 0}
    return (requirements.needs | {"group"} if compares else requirements.needs) - off


def compares_completions(loss: Callable[..., LossTerms]) -> bool:
    """Return whether a loss compares completions of one prompt, so that they must share a micro-batch."""
    return bool(needs_of(loss) & {"pairs", "group"})


def unit_count(loss: Callable[..., LossTerms], batch: Trajectories) -> Tensor:
    """Count the units by which a loss on this batch is divided, `[]`, before any model has scored the batch.

    The count is that of the function which the loss declares. A loss that declares none is evaluated on scores of
    zero, and the count it returns is taken.
    """
    requirements, bound = _unwrap(loss)
    if requirements.units is None:
        zero = zeros_like(batch.rewards)
        scores = ActionScores(zero, zero, value=zero)
        return loss(batch, scores, scores).count
    read = signature(requirements.units).parameters
    return requirements.units(batch, **{name: value for name, value in bound.items() if name in read})


def hyperparameters(loss: Callable[..., LossTerms]) -> dict[str, Any]:
    """Return a loss's hyperparameters by name: the defaults of its signature, under what partials around it bind."""
    return _unwrap(loss)[1]


def _unwrap(loss: Callable[..., LossTerms]) -> tuple[Requirements, dict[str, Any]]:
    """Return the requirements and the hyperparameters of the innermost loss in a chain of partials."""
    bound: dict[str, Any] = {}
    while isinstance(loss, partial):
        bound = loss.keywords | bound
        loss = loss.func
    found = getattr(loss, "requirements", None)
    parameters = signature(loss).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not Parameter.empty
    }
    return found if isinstance(found, Requirements) else Requirements(), defaults | bound
