"""The policy: a causal language model that scores the actions of a batch, and nothing else of its vocabulary."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from transformers import PreTrainedModel

from shiqrun.errors import InputError
from shiqrun.models.scoring import score_further
from shiqrun.types import ActionScores, Trajectories


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

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[B, T, D]`, the body's output, without the head."""
        with torch.autocast(input_ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            out = self.causal_lm.base_model(
                input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=False, return_dict=True
            )
        return out.last_hidden_state

    def forward(self, batch: Trajectories, *, sample: int = 0, describe: bool = False) -> ActionScores:
        """Logit and log-partition of every action, `[B, A]`, nats, float32, zero where there is no action.

        Args:
            batch: with `anchor_tokens`, their logits come as `further`.
            sample: further tokens to draw from the policy at every action's state.
            describe: also give entropy and arg-max hits, without gradient.
        """
        hidden, mask = self.hidden(batch.input_ids, batch.attention_mask), batch.action_mask
        row = mask.nonzero()[:, 0]
        at = batch.action_index[mask]
        head = self.causal_lm.get_output_embeddings()
        scored: dict[str, Any] = score_further(
            hidden[row, at - 1],
            head.weight,
            head.bias,
            batch.input_ids[row, at],
            further=None if batch.anchor_tokens is None else batch.anchor_tokens[mask],
            sample=sample,
            describe=describe,
        )._asdict()
        if not (sample or batch.anchor_tokens is not None):
            scored |= {"further": None, "further_tokens": None}
        if self.value is not None:
            scored["value"] = self.value(hidden, row, at, batch)
        placed: dict[str, Any] = {name: None if x is None else _placed(x, mask) for name, x in scored.items()}
        return ActionScores(**placed)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """The weights that training started from: the LoRA adapter switched off."""
        with self.model.disable_adapter():
            yield


def _placed(x: Tensor, mask: Tensor) -> Tensor:
    """`[N, ...]` numbers of the actions in their places, `[B, A, ...]`, zero where there is no action."""
    if x.ndim == 1:
        return x.new_zeros(mask.shape).masked_scatter(mask, x)
    out = x.new_zeros(*mask.shape, *x.shape[1:])
    return out.masked_scatter(mask[..., None].expand_as(out), x)


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

    def forward(self, hidden: Tensor, row: Tensor, at: Tensor, batch: Trajectories) -> Tensor:
        """`[N]`, float32."""
        if self.body is not None:
            mask = batch.attention_mask.long()
            with torch.autocast(hidden.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                out = self.body(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
            hidden = out.last_hidden_state
        elif self.at == "state":
            hidden = hidden.detach()  # the value learns from the policy's features and does not bend them
        read = at - 1 if self.at == "state" else at
        return self.linear(hidden[row, read].float()).squeeze(-1)


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
    return _with_lora(model, settings) if settings.lora_r else model


def _with_lora(model: PreTrainedModel, settings: ModelSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("model.lora_r needs the extra `peft`: pip install 'shiqrun[peft]'") from error
    (head,) = (name for name, m in model.named_modules() if m is model.get_output_embeddings())
    wanted = settings.lora_target_modules
    if any(head == name or head.endswith(f".{name}") for name in wanted or ()):
        raise InputError(
            f"model.lora_target_modules={wanted}: the head is scored by its weight, an adapter on it would not train"
        )
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=wanted or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # names that no layer has, or layers that cannot have an adapter
        raise InputError(f"model.lora_target_modules={wanted}: {error}") from error


@torch.no_grad()
def check_head(policy: Policy, batch: Trajectories, tolerance: float = 1e-3) -> None:
    """Compares the scores of a few actions with the model's own dense logits, both in the weights' own precision.

    Raises:
        InputError: they differ, e.g. because the model's head scales or caps its logits.
    """
    ids, mask, at = batch.input_ids[:1], batch.attention_mask[:1], batch.action_index[:1]
    dense = policy.causal_lm(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[0].float()
    taken = dense[at[0] - 1].gather(-1, ids[0, at[0]][:, None]).squeeze(-1)
    ours = Policy(policy.model)(Trajectories(ids, mask, at, batch.action_mask[:1], batch.rewards[:1], batch.group[:1]))
    keep = batch.action_mask[0]
    gaps = [(ours.logit[0] - taken)[keep], (ours.log_partition[0] - dense[at[0] - 1].logsumexp(-1))[keep]]
    gap = max(float(g.abs().max()) for g in gaps)
    if not gap <= tolerance:
        raise InputError(
            f"{type(policy.causal_lm).__name__}: scores differ from the model's own logits by {gap:.2g}; its head does "
            "more than a linear layer (soft-capping or scaling), which shiqrun does not score yet"
        )
