"""`Policy` wraps a causal language model so that its forward pass scores a batch's actions, with an optional value."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from transformers import PreTrainedModel

from shiqrun.batching.packing import padded_layout
from shiqrun.errors import InputError
from shiqrun.layout import Layout
from shiqrun.models.adapter import with_lora
from shiqrun.models.attention import reads_packed
from shiqrun.models.head import head_of
from shiqrun.models.scoring import score_further
from shiqrun.models.vocabulary_kl import States
from shiqrun.types import ActionScores, Trajectories


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A `ModelSettings` holds what every `conf/model/*.yaml` sets beside its own keys: LoRA, attention, checkpointing.

    Attributes:
        gradient_checkpointing: recompute activations, and the logits of actions, in the backward pass: less memory, a
            tenth to a third more time.
        attn_implementation: attention as `transformers` names it: sdpa, eager, flash_attention_2; None for its default.
        lora_r: rank of the LoRA adapter, 0 for none (then all weights are trained).
        lora_alpha: LoRA's scale is lora_alpha / lora_r.
        lora_target_modules: names of the layers that get an adapter; None for all linear layers but the head.
    """

    gradient_checkpointing: bool
    attn_implementation: str | None
    lora_r: Annotated[int, Ge(0)]
    lora_alpha: Annotated[float, Gt(0)]
    lora_target_modules: list[str] | None


class Policy(nn.Module):
    """A `Policy` is a language model whose forward pass scores actions, so that wrappers such as DDP see one call.

    Args:
        model: a causal language model of `transformers`, or a PEFT model around one.
        autocast: dtype of the matrix products of the body, None for the weights' own.
        value: a value head, whose output at each action becomes `ActionScores.value`; None for none.

    Attributes:
        recomputes: whether the backward pass computes activations again, and then logits too.
        skeleton: where ranks share the weights from the start, the policy without them; in a list, as no sub-module.
        copied: makes a frozen copy of a policy that `deepcopy` cannot copy; None where it can.
    """

    skeleton: "Sequence[Policy]" = ()
    copied: "Callable[[], Policy] | None" = None

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None, value: "ValueHead | None" = None) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.value = value
        self.recomputes = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    @property
    def causal_lm(self) -> PreTrainedModel:
        """Return the `transformers` model of the policy, without the PEFT wrapper."""
        model: PreTrainedModel = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return model

    def forward(
        self,
        batch: Trajectories,
        *,
        sample: int = 0,
        describe: bool = False,
        against: States | None = None,
        states: bool = False,
    ) -> ActionScores | tuple[ActionScores, States]:
        """Return the scores of a batch's actions, `[B, A]`, nats, float32, zero where there is no action.

        Args:
            batch: trajectories; where it has `anchor_tokens`, their logits are returned as `further`.
            sample: number of further tokens to sample from the policy at every action's state.
            describe: also return entropy and arg-max hits, without gradient.
            against: states of the reference at these actions, to which the KL over the vocabulary is returned.
            states: return a pair, whose second is the states that the scores were computed from.
        """
        found = self._scores(batch, sample, describe, against)
        return found if states else found[0]

    def _scores(
        self, batch: Trajectories, sample: int, describe: bool, against: States | None
    ) -> tuple[ActionScores, States]:
        layout = batch.layout
        if layout is None or (layout.attention is not None and not reads_packed(self.causal_lm)):
            layout = padded_layout(batch.input_ids, batch.attention_mask, batch.action_index, batch.action_mask)
        hidden = hidden_states(self.causal_lm.base_model, layout, self.autocast)
        states = States(hidden.index_select(0, layout.state), head := head_of(self.causal_lm))
        scored: dict[str, Any] = score_further(
            states.hidden,
            head.weight,
            head.bias,
            layout.input_ids.flatten().index_select(0, layout.taken),
            further=None if batch.anchor_tokens is None else batch.anchor_tokens.flatten(0, 1)[layout.slot],
            sample=sample,
            describe=describe,
            keep=False if self.recomputes else None,
            scale=head.scale,
            cap=head.cap,
            dtype=self.autocast,
            against=against,
        )._asdict()
        if not (sample or batch.anchor_tokens is not None):
            scored |= {"further": None, "further_tokens": None}
        if self.value is not None:
            scored["value"] = self.value(hidden, layout)
        shape = batch.action_mask.shape
        placed: Any = {name: None if x is None else _scatter(x, layout.slot, shape) for name, x in scored.items()}
        return ActionScores(**placed), states

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Switch the LoRA adapter off inside the block, so that the policy computes what the reference does."""
        with self.model.disable_adapter():
            yield


def hidden_states(body: Any, layout: Layout, autocast: torch.dtype | None) -> Tensor:
    """Return the body's last hidden states `[R*L, D]` at every token of a layout, without applying the head.

    Raises:
        ValueError: the layout is packed and the model does not read packed batches: trajectories would see each other.
    """
    if layout.attention is not None and not reads_packed(body):
        raise ValueError(
            f"{type(body).__name__} with {body.config._attn_implementation} attention reads no packed batch"
        )
    if layout.attention is None:
        assert layout.attention_mask is not None
        more: dict[str, Any] = {"attention_mask": layout.attention_mask.long()}
    else:  # `transformers` passes a mask of four axes on as it is, and `packed_attention` does not read it
        nothing = layout.input_ids.new_zeros(1, 1, 1, 1)
        more = {"attention_mask": nothing, "position_ids": layout.positions, "packing": layout.attention}
    # A cast is kept by what needs it for the backward pass; autocast's own cache would keep those of all layers besides
    enabled = autocast is not None
    with torch.autocast(layout.input_ids.device.type, dtype=autocast, enabled=enabled, cache_enabled=False):
        out = body(input_ids=layout.input_ids, use_cache=False, return_dict=True, **more)
    hidden: Tensor = out.last_hidden_state
    return hidden.flatten(0, 1)


def _scatter(x: Tensor, slot: Tensor, shape: torch.Size) -> Tensor:
    """Return values of the N actions, `[N, ...]`, scattered to `[B, A, ...]`, zero where there is no action."""
    return x.new_zeros(shape.numel(), *x.shape[1:]).index_copy(0, slot, x).view(*shape, *x.shape[1:])


class ValueHead(nn.Module):
    """A `ValueHead` computes a number for each action: the value of its state, or a score of the text through it.

    Args:
        width: hidden size of the body that it reads.
        at: "state" reads the position that predicts the action (a value), "action" the action's own (a score).
        body: a network of its own; None to read the policy's hidden states, which a score trains and a value does not.
        autocast: dtype of the matrix products of its own body, None for the weights' own.
    """

    def __init__(
        self,
        width: int,
        at: Literal["state", "action"],
        body: nn.Module | None = None,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.at, self.body, self.autocast = at, body, autocast
        self.linear = nn.Linear(width, 1, bias=at == "state")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn.init.normal_(self.linear.weight, std=0.02 if at == "action" else 0.0)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return the values (or scores) of the N actions, `[N]`, float32, reward units.

        Args:
            hidden: `[R*L, D]`, the policy's hidden states.
            layout: of the same batch.
        """
        if self.body is not None:
            hidden = hidden_states(self.body, layout, self.autocast)
        elif self.at == "state":
            hidden = hidden.detach()  # a value learns from the policy's features and does not train them
        at = layout.state if self.at == "state" else layout.taken
        out: Tensor = self.linear(hidden.index_select(0, at).float())
        return out.squeeze(-1)


def prepare(model: PreTrainedModel, settings: ModelSettings) -> Any:
    """Prepare a model for training and return it: without dropout, with LoRA and gradient checkpointing if set.

    Dropout is off for every method, as in TRL: with it, policy and reference would differ at step 0.

    Raises:
        InputError: the attention implementation is unknown, the model has no gradient checkpointing, LoRA is set for
            the head or for layers that do not exist, or `peft` is not installed.
    """
    if settings.attn_implementation:
        try:
            model.set_attn_implementation(settings.attn_implementation)
        except (ValueError, ImportError) as error:
            raise InputError(f"model.attn_implementation={settings.attn_implementation}: {error}") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if settings.gradient_checkpointing:
        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise InputError(f"model.gradient_checkpointing=true: {error}") from error
    model.train()
    return with_lora(
        model, rank=settings.lora_r, alpha=settings.lora_alpha, target_modules=settings.lora_target_modules
    )
