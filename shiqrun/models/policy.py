"""The policy: a causal language model that scores the actions of a batch, and nothing else of its vocabulary."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from transformers import PreTrainedModel

from shiqrun.batching.packing import padded
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError
from shiqrun.layout import Layout
from shiqrun.models.adapter import is_quantized, with_lora
from shiqrun.models.attention import pack, packs, unpack
from shiqrun.models.head import head_of
from shiqrun.models.scoring import score_further
from shiqrun.types import ActionScores, Trajectories

AGREEMENT = 1e-3
"""Nats by which rounding lets two readings of an action differ, in float32; a wrong mask is off by more."""
AGREEMENT_QUANTIZED = 0.2
"""The same where weights of 4 bits make products bfloat16."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What every model understands beside its own keys (`conf/model/*.yaml`).

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        attn_implementation: as `transformers` names it: sdpa, eager, flash_attention_2; None for its default.
        lora_r: rank of LoRA adapters, 0 for none (then all weights are trained).
        lora_alpha: LoRA's scale is lora_alpha / lora_r.
        lora_target_modules: names of the layers that get an adapter; None for all linear layers but the head.
    """

    gradient_checkpointing: bool
    attn_implementation: str | None
    lora_r: Annotated[int, Ge(0)]
    lora_alpha: Annotated[float, Gt(0)]
    lora_target_modules: list[str] | None


class Policy(nn.Module):
    """Scores actions inside its own forward, so that whatever wraps it (DDP) sees one call.

    Args:
        model: a causal language model of `transformers`, or a PEFT model around one.
        autocast: dtype of the matrix products of the body, None for the weights' own.
        value: a value head, whose output at each action becomes `ActionScores.value`.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None, value: "ValueHead | None" = None) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.value = value

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The `transformers` model, without the PEFT wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: Trajectories, *, sample: int = 0, describe: bool = False) -> ActionScores:
        """Logit and log-partition of every action, `[B, A]`, nats, float32, zero where there is no action.

        Args:
            batch: with `anchor_tokens`, their logits come as `further`.
            sample: further tokens to draw from the policy at every action's state.
            describe: also give entropy and arg-max hits, without gradient.
        """
        layout = batch.layout
        if layout is None or (layout.attention is not None and not packs(self.causal_lm)):
            layout = padded(batch.input_ids, batch.attention_mask, batch.action_index, batch.action_mask)
        hidden = read(self.causal_lm.base_model, layout, self.autocast)
        head = head_of(self.causal_lm)
        scored: dict[str, Any] = score_further(
            hidden.index_select(0, layout.state),
            head.weight,
            head.bias,
            layout.input_ids.flatten().index_select(0, layout.taken),
            further=None if batch.anchor_tokens is None else batch.anchor_tokens.flatten(0, 1)[layout.slot],
            sample=sample,
            describe=describe,
            scale=head.scale,
            cap=head.cap,
            dtype=self.autocast,
        )._asdict()
        if not (sample or batch.anchor_tokens is not None):
            scored |= {"further": None, "further_tokens": None}
        if self.value is not None:
            scored["value"] = self.value(hidden, layout)
        shape = batch.action_mask.shape
        placed: dict[str, Any] = {
            name: None if x is None else _placed(x, layout.slot, shape) for name, x in scored.items()
        }
        return ActionScores(**placed)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """The weights that training started from: the LoRA adapter switched off."""
        with self.model.disable_adapter():
            yield


def read(body: Any, layout: Layout, autocast: torch.dtype | None) -> Tensor:
    """`[R*L, D]`, the body's output at every token of the layout, without the head.

    Raises:
        ValueError: a packed layout for a model that does not read one: its trajectories would see each other.
    """
    if layout.attention is not None and not packs(body):
        raise ValueError(
            f"{type(body).__name__} with {body.config._attn_implementation} attention reads no packed batch"
        )
    if layout.attention is None:
        assert layout.attention_mask is not None
        more: dict[str, Any] = {"attention_mask": layout.attention_mask.long()}
    else:  # a mask of four axes is handed on as it is, and `packed_attention` does not look at it
        nothing = layout.input_ids.new_zeros(1, 1, 1, 1)
        more = {"attention_mask": nothing, "position_ids": layout.positions, "packing": layout.attention}
    with torch.autocast(layout.input_ids.device.type, dtype=autocast, enabled=autocast is not None):
        out = body(input_ids=layout.input_ids, use_cache=False, return_dict=True, **more)
    return out.last_hidden_state.flatten(0, 1)


def _placed(x: Tensor, slot: Tensor, shape: torch.Size) -> Tensor:
    """`[N, ...]` numbers of the actions in their places, `[B, A, ...]`, zero where there is no action."""
    return x.new_zeros(shape.numel(), *x.shape[1:]).index_copy(0, slot, x).unflatten(0, shape)


class ValueHead(nn.Module):
    """One number per action, reward units: V of its state, or the score of the text up to and with it.

    Args:
        width: hidden size of the body it reads.
        at: "state" reads the position that predicts the action, "action" the action's own.
        body: a network of its own, or None to read the policy's hidden states (V does not train them, a score does).
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
        """`[N]`, float32."""
        if self.body is not None:
            hidden = read(self.body, layout, self.autocast)
        elif self.at == "state":
            hidden = hidden.detach()  # the value learns from the policy's features and does not bend them
        at = layout.state if self.at == "state" else layout.taken
        return self.linear(hidden.index_select(0, at).float()).squeeze(-1)


def prepare(model: PreTrainedModel, settings: ModelSettings) -> Any:
    """The model made ready to be trained: dropout off, LoRA and activation checkpointing as asked.

    Dropout is off for every method, as in TRL: with it, policy and reference differ at step 0.

    Raises:
        InputError: an unknown attention implementation, no activation checkpointing in this model, LoRA on the head
            or on layers that are not there, or `peft` not installed.
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


@torch.no_grad()
def check_head(policy: Policy, batch: Trajectories, tolerance: float = 1e-3) -> None:
    """Compares the scores of a few actions with the model's own dense logits, both in the weights' own precision.

    Raises:
        InputError: they differ, e.g. because the model's head is no linear layer.
    """
    batch = batch.to(policy.causal_lm.device)
    ids, mask, at = batch.input_ids[:1], batch.attention_mask[:1], batch.action_index[:1]
    dense = policy.causal_lm(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[0].float()
    taken = dense[at[0] - 1].gather(-1, ids[0, at[0]][:, None]).squeeze(-1)
    ours = Policy(policy.model)(Trajectories(ids, mask, at, batch.action_mask[:1], batch.rewards[:1], batch.group[:1]))
    keep = batch.action_mask[0]
    gaps = [(ours.logit[0] - taken)[keep], (ours.log_partition[0] - dense[at[0] - 1].logsumexp(-1))[keep]]
    gap = max(float(g.abs().max()) for g in gaps)
    if not gap <= tolerance:
        raise InputError(
            f"{type(policy.causal_lm).__name__}: scores differ from the model's own logits by {gap:.2g} nats; its head "
            "is no linear layer with the scale and the soft-cap of its config, and shiqrun scores no other"
        )


@torch.no_grad()
def enable_packing(policy: Policy, rows: Rows) -> str | None:
    """Have the policy read packed batches if its scores stay the same; return why they do not, or None.

    A few rows are scored padded and packed. Where the scores differ, or the model cannot read packed batches, its
    attention stays as it was.

    Args:
        policy: on the device where its model was loaded.
        rows: of which a few are scored both ways, the longest and some of one prompt among them.
    """
    model, mode, why = policy.causal_lm, policy.training, None
    bodies: list[Any] = [model] if policy.value is None or policy.value.body is None else [model, policy.value.body]
    if not all(map(pack, bodies)):
        why = f"{type(model).__name__} with {model.config._attn_implementation} attention"
    policy.eval()
    try:
        gap = 0.0 if why else _gap(policy, rows)
        if not gap <= (AGREEMENT_QUANTIZED if is_quantized(policy.model) else AGREEMENT):
            why = f"packed, its scores differ by {gap:.2g} nats"
    except Exception as error:  # code of any model: what it cannot read may raise anything
        why = f"{type(model).__name__}: {type(error).__name__}: {error}"
    finally:
        policy.train(mode)
        if why:
            for body in bodies:
                unpack(body)
    return why


def _gap(policy: Policy, rows: Rows) -> float:
    """The largest difference between padded and packed scores of a few rows, nats, without autocast."""
    order = np.argsort(rows.lengths, kind="stable")
    siblings = order[np.bincount(rows.prompt_number)[rows.prompt_number[order]] > 1]
    of_one_prompt = (
        siblings[rows.prompt_number[siblings] == rows.prompt_number[siblings[0]]] if len(siblings) else siblings
    )
    few = [int(i) for i in dict.fromkeys([*of_one_prompt[:3], *order[:2], order[-1]])]
    plain, found = Policy(policy.model), []
    for packed in (False, True):
        batch = rows.with_layout(packed=packed, device=rows.device).collate(few)
        scores = plain(batch.to(policy.causal_lm.device))
        found.append(torch.stack([scores.logit, scores.log_partition]))
    return float((found[0] - found[1]).abs().max())
