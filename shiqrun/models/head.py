"""A `Head` holds the output head of a causal language model, which turns hidden states into logits.

    logits = cap tanh(scale (W h + b) / cap)

with the scale and the soft-cap that the model's config describes and `transformers` applies.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2 and on; RecurrentGemma; xLSTM
MULTIPLY_BY_SCALING = ("hyperclovax",)  # model types that multiply by `logits_scaling`; Granite and MiniCPM3 divide


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
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            out = nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), bias)
        out = out if self.scale == 1 else out * self.scale
        return out if self.cap is None else torch.tanh(out / self.cap) * self.cap


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
