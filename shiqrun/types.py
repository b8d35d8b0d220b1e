"""Four types pass between data, models and losses: Example, Trajectories, ActionScores and LossTerms.

They are frozen, and check shapes when they are built. Losses work on actions alone, `[B, A]`: column t of a row is the
t-th token that the policy chose. Prompts, user turns and tool replies are no columns, and the next state is the next
column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, device

from shiqrun.layout import Layout, to_device

Message = dict[str, Any]
"""A chat message: `role` (system, user, assistant, tool) and `content`.

The first message of a prompt may hold tool schemas under `tools`, and any may say `"train": false`: then it is state.
"""

Positive = Annotated[float, Gt(0)]
"""A hyperparameter above 0."""
UnitInterval = Annotated[float, Ge(0), Le(1)]
"""A hyperparameter from 0 to 1."""
HalfInterval = Annotated[float, Ge(0), Lt(0.5)]
"""A hyperparameter from 0 to below 0.5."""


@dataclass(frozen=True)
class SampledTokens:
    """Sampled tokens are a completion as a policy drew it, with the tokens of its prompt.

    Attributes:
        prompt: token ids.
        completion: token ids, at least one, with the stop token where one ended it.
        ended: whether a stop token ended the completion, or every message of an episode; else some was cut off.
        spans: (start, end) of each of the policy's messages in an episode, counted from the first token of the prompt;
            what stands between them is state. None where the whole completion is one message.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    ended: bool
    spans: Sequence[tuple[int, int]] | None = None


@dataclass(frozen=True)
class Example:
    """An example is one prompt with its logged completions, as a data set returns it.

    Attributes:
        messages: the prompt, a list of chat messages; none of its tokens is an action.
        completions: G completions, each a list of messages in which the assistant's turns are actions.
        rewards: one entry for each completion, or None where the data has no rewards. An entry is one number for the
            whole completion (it falls on the last action), or a list with one number for each assistant turn (each
            falls on its turn's last action), or a list with one number for each action token. Reward units.
        prompt_id: equal for examples with the same prompt; it decides the validation split.
        answer: whatever a verifier needs.
        source: where the example came from (`file:line`), for error messages.
        alone: its completions are compared with each other only, not with those of other examples of the prompt: a
            logged pair says which of two is better, and nothing of a third.
        columns: the other columns of the data row, for code that writes the row again.
        sampled: the tokens of each completion, where the data have them; where they are the tokenizer's, they are the
            trajectory, and the text is not encoded.
        tools: JSON schemas of the functions that the policy may call, for the chat template. They belong to the prompt:
            its first message holds them under `tools`, where they may be given as well.
        part: name of the data set that it is of, in a mixture of data sets.

    Raises:
        ValueError: tools without a message to hold them, or the numbers of rewards, or of sampled tokens, and of
            completions differ.
    """

    messages: Sequence[Message]
    completions: Sequence[Sequence[Message]]
    rewards: Sequence[float | Sequence[float]] | None
    prompt_id: str
    answer: Any = None
    source: str = ""
    alone: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)
    sampled: Sequence[SampledTokens] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    part: str = ""

    def __post_init__(self) -> None:
        if self.sampled is not None and len(self.sampled) != len(self.completions):
            raise ValueError(f"{self.source}: {len(self.completions)} completions but tokens of {len(self.sampled)}")
        if self.tools and not self.messages:
            raise ValueError(f"{self.source}: tools, but no message of a prompt")
        if self.tools:
            first, *others = self.messages
            object.__setattr__(self, "messages", [{**first, "tools": [*self.tools]}, *others])
        elif self.messages and self.messages[0].get("tools"):
            object.__setattr__(self, "tools", self.messages[0]["tools"])
        if self.rewards is not None and len(self.rewards) != len(self.completions):
            raise ValueError(f"{self.source}: {len(self.completions)} completions but {len(self.rewards)} rewards")

    def pick(self, completions: Sequence[int]) -> "Example":
        """Return the example with the completions of these numbers alone."""
        return replace(
            self,
            completions=[self.completions[i] for i in completions],
            rewards=None if self.rewards is None else [self.rewards[i] for i in completions],
            sampled=None if self.sampled is None else [self.sampled[i] for i in completions],
        )


def _require(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(shape)}")


@dataclass(frozen=True)
class ActionScores:
    """Action scores are the numbers of a batch's actions under one model: all that any loss needs of a model.

    Scores are float32 (float64 in proofs) and in nats unless said otherwise.

    Attributes:
        logit: `[B, A]`, logit of the action taken, l(s_t, a_t).
        log_partition: `[B, A]`, v(s_t) = logsumexp l(s_t, .).
        value: `[B, A]`, the output of a value head, reward units; None without one.
        kl: `[B, A]`, KL(pi || pi_ref) over the vocabulary at each action's state; None unless the loss reads it.
        further: `[B, A, K]`, logits of the K anchor tokens at each action's state; None without an anchor.
        further_tokens: `[B, A, K]` int64, the anchor tokens, where the policy sampled them.
        entropy: `[B, A]`, entropy of the policy at each action's state, without gradient; at logged steps only.
        hits: `[B, A]` bool, True where the action was the most likely token; at logged steps only.

    Raises:
        ValueError: a shape does not fit the others.
    """

    logit: Tensor
    log_partition: Tensor
    value: Tensor | None = None
    kl: Tensor | None = None
    further: Tensor | None = None
    further_tokens: Tensor | None = None
    entropy: Tensor | None = None
    hits: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("log_partition", "value", "kl", "entropy", "hits"):
            _require(name, getattr(self, name), tuple(self.logit.shape))
        if self.further is not None:
            _require("further", self.further, (*self.logit.shape, self.further.shape[-1]))
            _require("further_tokens", self.further_tokens, tuple(self.further.shape))

    @property
    def logp(self) -> Tensor:
        """Return the log-probability of each action, log pi(a_t | s_t) = logit - log_partition, `[B, A]`, nats."""
        return self.logit - self.log_partition

    def detach(self) -> "ActionScores":
        """Return logit, log-partition and value, detached from the graph; nothing else is kept."""
        value = None if self.value is None else self.value.detach()
        return ActionScores(self.logit.detach(), self.log_partition.detach(), value)

    def to(self, where: "device | str") -> "ActionScores":
        """Return the actions' scores on another device."""
        return to_device(self, where)


@dataclass(frozen=True)
class Trajectories:
    """Trajectories form a batch: B trajectories of at most T tokens and A actions.

    Attributes:
        input_ids: `[B, T]` int64, padded on the right.
        attention_mask: `[B, T]` bool, True on tokens, False on padding.
        action_index: `[B, A]` int64, position of each action in `input_ids`, at least 1.
        action_mask: `[B, A]` bool, True on a prefix of each row.
        rewards: `[B, A]` float, reward of each action, reward units.
        group: `[B]` int64, rows with equal numbers answer the same prompt.
        reference: the frozen reference's scores, where they are cached.
        prompt_value: `[B]`, soft value Q0 of each row's prompt, reward units.
        quantile: `[B]`, share of the reference's returns on the prompt that are at or below the row's, no unit.
        behaviour_logp: `[B, A]`, nats, log-probability under the distribution that the actions were sampled from.
        acting_logp: `[B, A]`, nats, log-probability under the sampler's weights at temperature 1 without top-p.
        proximal: the policy's scores, with its value, when the batch came to be trained on; without gradient.
        value_target: `[B, A]`, target of the Monte-Carlo term, reward units, NaN where not annotated.
        offset: `[B]`, reward units that `algo.reward_offset` has taken from the reward of the last action.
        mismatched: for every row its prompt with a completion of another prompt, from which a KL is estimated.
        kl_estimate: `[]`, nats, the KL estimate of the whole optimiser step, without gradient.
        anchor_tokens: `[B, A, K]` int64, tokens whose logits the anchor holds at each action's state.
        source: where the trajectories came from: logged, online, replay, annotated, further or val.
        part: name of the data set that all rows are of, in a mixture of data sets.
        layout: how the body of a model reads the batch; None for padded rows as they are. It is of these very tokens
            and actions, so `dataclasses.replace` leaves it out.

    Raises:
        ValueError: a shape does not fit the others.
    """

    input_ids: Tensor
    attention_mask: Tensor
    action_index: Tensor
    action_mask: Tensor
    rewards: Tensor
    group: Tensor
    reference: ActionScores | None = None
    prompt_value: Tensor | None = None
    quantile: Tensor | None = None
    behaviour_logp: Tensor | None = None
    acting_logp: Tensor | None = None
    proximal: ActionScores | None = None
    value_target: Tensor | None = None
    offset: Tensor | None = None
    anchor_tokens: Tensor | None = None
    mismatched: "Trajectories | None" = None
    kl_estimate: Tensor | None = None
    source: str = "logged"
    part: str = ""
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
        _require("quantile", self.quantile, actions[:1])
        _require("offset", self.offset, actions[:1])
        _require("kl_estimate", self.kl_estimate, ())
        if self.anchor_tokens is not None:
            _require("anchor_tokens", self.anchor_tokens, (*actions, self.anchor_tokens.shape[-1]))
        for name in ("reference", "proximal"):
            scores = getattr(self, name)
            _require(name, scores and scores.logit, actions)

    def with_layout(self, layout: Layout | None) -> "Trajectories":
        """Return the batch with a layout, which must have been made of its tokens and actions."""
        batch: Trajectories = object.__new__(type(self))  # whose shapes were checked when this batch was made
        batch.__dict__.update(self.__dict__, layout=layout)
        return batch

    def to(self, where: "device | str") -> "Trajectories":
        """Return the batch, with its layout, on another device."""
        return to_device(self, where).with_layout(self.layout and self.layout.to(where))


@dataclass(frozen=True)
class LossTerms:
    """Loss terms are the result of a loss: a sum and a count, never a mean, so that micro-batches change no step.

    Attributes:
        total: `[]`, sum over units, differentiable.
        count: `[]`, number of units: actions, trajectories or pairs.
        metrics: name -> (sum, count), `[]` each, detached.

    Raises:
        ValueError: a total or a count is no scalar.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("total", self.total, ())
        _require("count", self.count, ())
