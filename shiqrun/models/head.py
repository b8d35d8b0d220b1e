"""A `Head` holds the output head of a causal language model, which turns hidden states into logits.

    logits = cap tanh(scale (W h + b) / cap)

with the scale and the soft-cap that the model's config describes and `transformers` applies.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

HALF = (torch.bfloat16, torch.float16)
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2 and on; RecurrentGemma; xLSTM
MULTIPLY_BY_SCALING = ("hyperclovax",)  # model types that multiply by `logits_scaling`; Granite and MiniCPM3 divide
MANY_ROWS = 64
"""Rows from which on it pays to rearrange a head for decoding."""
ARRANGED = (1 << 20, 1 << 26)
"""Least and most numbers of a head that is rearranged: a small one gains nothing, the copy of a large one is large."""


class Head(NamedTuple):
    """A `Head` holds the parameters of an output head; the scoring of actions and sampling use the same.

    Attributes:
        weight: `[V, D]`.
        bias: `[V]` or None.
        scale: logits are multiplied by it, bias included.
        cap: soft-cap; scaled logits x become cap tanh(x / cap); None for no soft-cap.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits `[..., V]` of hidden states `[..., D]`, float32 or float64, even under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            out = self._product(hidden)
        out = out if self.scale == 1 else out * self.scale
        return out if self.cap is None else torch.tanh(out / self.cap) * self.cap

    def _product(self, hidden: Tensor) -> Tensor:
        """Return W h + b; a GPU sums products of bfloat16 weights in float32 without a copy of them in float32."""
        if self._multiplies_halves():
            flat = torch.mm(hidden.flatten(0, -2).to(self.weight.dtype), self.weight.t(), out_dtype=torch.float32)
            out = flat.view(*hidden.shape[:-1], -1)
            return out if self.bias is None else out + self.bias
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, self.weight.dtype), torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), bias)

    def _multiplies_halves(self) -> bool:
        halves = self.weight.is_cuda and self.weight.dtype in HALF
        return halves and hasattr(torch.ops.aten.mm, "dtype")  # torch 2.8 and later

    def for_decoding(self, rows: int = 1) -> "Head":
        """Return the head with the weights that `logits` multiplies by, so that no step of decoding casts them anew.

        For many rows a CPU multiplies faster by a copy that lies in memory as `[D, V]`, 33 to 29 ms for 128 rows and
        32,000 tokens: its library rearranges the weights in every product.

        Args:
            rows: of hidden states in a step.
        """
        if self._multiplies_halves():
            return self
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        size = self.weight.numel()
        if self.weight.device.type != "cpu" or rows < MANY_ROWS or not ARRANGED[0] <= size <= ARRANGED[1]:
            return self._replace(weight=self.weight.to(dtype))
        arranged = torch.empty_like(self.weight.t(), dtype=dtype, memory_format=torch.contiguous_format)
        return self._replace(weight=arranged.copy_(self.weight.detach().t()).t())


def head_of(model: Any) -> Head:
    """Return the output head of a causal language model of `transformers`, as its config describes it.

    A config may have keys that this function does not know, so `check_head` compares with the model's own logits before
    a run uses the head.
    """
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    scale = scaling if config.model_type in MULTIPLY_BY_SCALING else 1 / scaling
    scale *= float(getattr(model, "logit_scale", None) or 1.0)  # Cohere; MPT's config has one that nothing applies
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)  # Falcon-H1
    cap = next((float(cap) for name in CAPS if (cap := getattr(config, name, None))), None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, cap)


@contextlib.contextmanager
def decoding_head_in(model: Any) -> Iterator[None]:
    """Let a model's own forward pass compute float32 logits inside the context, with its head cast once.

    It is `give_float32_logits` for weights that do not change, where every pass predicts few tokens.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        yield
        return
    own = layer.__dict__.get("forward")
    layer.__dict__["forward"] = Head(layer.weight, layer.bias, 1.0, None).for_decoding().logits
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if own is not None:
            layer.__dict__["forward"] = own


def give_float32_logits(model: Any) -> RemovableHandle:
    """Let a model's own forward pass compute its logits in float32, also of bfloat16 weights and under autocast.

    Logits near 16 move in steps of 0.125 in bfloat16, and samples must follow the distribution that is scored.

    Returns:
        What removes this again.
    """
    handle: RemovableHandle = model.get_output_embeddings().register_forward_hook(_in_float32)
    return handle


def _in_float32(layer: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
    """Return the logits of a linear layer in float32 where they were rounded, None where not; a forward hook."""
    if logits.dtype in (torch.float32, torch.float64) or not isinstance(layer, nn.Linear):
        return None
    return Head(layer.weight, layer.bias, 1.0, None).logits(inputs[0])
