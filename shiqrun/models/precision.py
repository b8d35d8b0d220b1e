"""`build_model` makes the model of a `conf/model/*.yaml` with its weights in float32 or bfloat16."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.models.head import HALF, give_float32_logits


def build_model(choice: Any, tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model that a choice names, with its weights in `dtype` and its own logits in float32.

    Args:
        choice: built from a `conf/model/*.yaml`.
        tokenizer: of the model.
        seed: of random weights.
        dtype: float32 or bfloat16.
    """
    model: PreTrainedModel
    if dtype == torch.float32:
        model = choice.build(tokenizer, seed)
    else:
        model = choice.build(tokenizer, seed, dtype=dtype)
        give_float32_logits(model)
    return model


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model's weights in place, one after the other, and return it; buffers such as rotary tables stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def half_weights(model: torch.nn.Module) -> list[str]:
    """Return the names of a model's weights in 16 bits."""
    return [name for name, parameter in model.named_parameters() if parameter.dtype in HALF]
