"""The four types that pass between data, scoring and losses. Frozen, shapes checked when built.

Losses live in action time, `[B, A]`: column t of a row is the t-th token that the policy chose. Prompts, user
turns and tool replies are gone, and the next state is the next column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, device

from shiqrun.layout import Layout, moved

Message = dict[str, Any]
"""One chat message: `role` (system, user, assistant, tool) and `content`."""

Positive = Annotated[float, Gt(0)]
UnitInterval = Annotated[float, Ge(0), Le(1)]
HalfInterval = Annotated[float, Ge(0), Lt(0.5)]


@dataclass(frozen=True)
class Example:
    """One prompt with its logged completions, as a data set hands it over.

    Attributes:
        messages: the prompt, a chat list; no token of it is an action.
        completions: G completions; each a list of messages in which the assistant's turns are actions.
        rewards: one entry a completion, or None where the data has none. An entry is one number for the whole
            completion (it falls on the last action), or a list with one number per assistant turn (each falls on
            its turn's last action), or a list with one number per action token.
        prompt_id: equal for rows that answer the same prompt; decides the validation split.
        answer: whatever a verifier needs.
        source: where the row came from (`file:line`), for error messages.
        alone: its completions are compared with each other only, not with those of other rows of the prompt: a logged
            pair says which of two is better, and nothing of a third.
        columns: what else the row holds, for those that write it again.
    """

    messages: Sequence[Message]
    completions: Sequence[Sequence[Message]]
    rewards: Sequence[float | Sequence[float]] | None
    prompt_id: str
    answer: Any = None
    source: str = ""
    alone: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rewards is not None and len(self.rewards) != len(self.completions):
            raise ValueError(f"{self.source}: {len(self.completions)} completions but {len(self.rewards)} rewards")


def _require(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(shape)}")


@dataclass(frozen=True)
class ActionScores:
    """What any loss needs of a model, per action: two numbers in nats, float32 (float64 in proofs).

    Attributes:
        logit: `[B, A]`, logit of the action taken, l(s_t, a_t).
        log_partition: `[B, A]`, v(s_t) = logsumexp l(s_t, .).
        value: `[B, A]`, a value head's output in reward units, where there is one.
        further: `[B, A, K]`, logits of K further tokens at each action's state, where the anchor asks for them.
        further_tokens: `[B, A, K]` int64, which tokens, where the policy chose them.
        entropy: `[B, A]`, of the policy at each action's state, without gradient, on logged steps.
        hits: `[B, A]` bool, whether the action was the most likely token, on logged steps.
    """

    logit: Tensor
    log_partition: Tensor
    value: Tensor | None = None
    further: Tensor | None = None
    further_tokens: Tensor | None = None
    entropy: Tensor | None = None
    hits: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("log_partition", "value", "entropy", "hits"):
            _require(name, getattr(self, name), tuple(self.logit.shape))
        if self.further is not None:
            _require("further", self.further, (*self.logit.shape, self.further.shape[-1]))
            _require("further_tokens", self.further_tokens, tuple(self.further.shape))

    @property
    def logp(self) -> Tensor:
        """log pi(a_t | s_t) = logit - log_partition, `[B, A]`, nats."""
        return self.logit - self.log_partition

    def fixed(self) -> "ActionScores":
        """Logit, log-partition and value without gradient."""
        value = None if self.value is None else self.value.detach()
        return ActionScores(self.logit.detach(), self.log_partition.detach(), value)

    def to(self, where: "device | str") -> "ActionScores":
        """The same scores on another device."""
        return moved(self, where)


@dataclass(frozen=True)
class Trajectories:
    """A batch of B trajectories of at most T tokens and A actions.

    Attributes:
        input_ids: `[B, T]` int64, padded on the right.
        attention_mask: `[B, T]` bool, True on tokens, False on padding.
        action_index: `[B, A]` int64, position of each action in `input_ids`, at least 1.
        action_mask: `[B, A]` bool, True on a prefix of each row.
        rewards: `[B, A]` float, reward earned by that action.
        group: `[B]` int64, rows with equal numbers answer the same prompt.
        reference: the frozen reference's scores, where they are cached.
        prompt_value: `[B]`, reward units.
        behaviour_logp: `[B, A]`, nats, log-probability under the distribution that was sampled from.
        acting_logp: `[B, A]`, nats, under the same weights at temperature 1 without top-p.
        source: where the trajectories came from: logged, online, replay, annotated, further or val.
        proximal: the policy's scores, with its value, when the batch came to be trained on; without gradient.
        value_target: `[B, A]`, reward units, NaN where not annotated.
        offset: `[B]`, reward units, what `algo.reward_offset` has taken from the reward of the last action.
        anchor_tokens: `[B, A, K]` int64, tokens whose logits are held at the reference's at each action's state.
        layout: how the body of a model reads the batch, as it stands where None; `replace` leaves it out, for it is of
            these very tokens and actions.

    Raises:
        ValueError: a shape that does not fit the others.
    """

    input_ids: Tensor
    attention_mask: Tensor
    action_index: Tensor
    action_mask: Tensor
    rewards: Tensor
    group: Tensor
    reference: ActionScores | None = None
    prompt_value: Tensor | None = None
    behaviour_logp: Tensor | None = None
    acting_logp: Tensor | None = None
    proximal: ActionScores | None = None
    value_target: Tensor | None = None
    offset: Tensor | None = None
    anchor_tokens: Tensor | None = None
    source: str = "logged"
    layout: Layout | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        tokens, actions = tuple(self.input_ids.shape), tuple(self.action_index.shape)
        if len(tokens) != 2 or len(actions) != 2 or tokens[0] != actions[0]:
            raise ValueError(f"input_ids {list(tokens)} and action_index {list(actions)} must be [B, T] and [B, A]")
        _require("attention_mask", self.attention_mask, tokens)
        for name in ("action_mask", "rewards", "behaviour_logp", "acting_logp", "value_target"):
            _require(name, getattr(self, name), actions)
        _require("group", self.group, actions[:1])
        _require("prompt_value", self.prompt_value, actions[:1])
        _require("offset", self.offset, actions[:1])
        if self.anchor_tokens is not None:
            _require("anchor_tokens", self.anchor_tokens, (*actions, self.anchor_tokens.shape[-1]))
        for name in ("reference", "proximal"):
            scores = getattr(self, name)
            _require(name, scores and scores.logit, actions)

    def laid_out(self, layout: Layout | None) -> "Trajectories":
        """The same batch with a layout that was made of its tokens and actions."""
        made = replace(self)
        object.__setattr__(made, "layout", layout)
        return made

    def to(self, where: "device | str") -> "Trajectories":
        """The same batch on another device."""
        return moved(self, where).laid_out(self.layout and self.layout.to(where))


@dataclass(frozen=True)
class LossTerms:
    """What a loss returns: a sum and a count, never a mean, so that a step does not depend on how it was cut.

    Attributes:
        total: `[]`, sum over units, differentiable.
        count: `[]`, number of units: actions, trajectories or pairs.
        metrics: name -> (sum, count), detached scalars.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("total", self.total, ())
        _require("count", self.count, ())
