"""This module adds LoRA adapters (Hu et al. 2021, arXiv 2106.09685) to a model, merges them and saves them."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shiqrun.errors import InputError
from shiqrun.models.precision import half_weights

BASE = "base"
"""The folder, in an adapter's directory, of a base model that has no directory of its own."""


def is_quantized(model: Any) -> bool:
    """Return whether a model's linear layers have 4-bit weights, which cannot be trained or merged into directly."""
    return bool(getattr(base_of(model), "is_loaded_in_4bit", False))


def has_adapter(model: Any) -> bool:
    """Return whether a model is a PEFT model, which has an adapter."""
    return hasattr(model, "merge_and_unload")


def base_of(model: Any) -> Any:
    """Return the `transformers` model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def with_lora(model: PreTrainedModel, *, rank: int, alpha: float, target_modules: list[str] | None) -> Any:
    """Return a PEFT model whose LoRA adapter alone is trained, or the model itself for rank 0.

    A new adapter adds nothing to the model's outputs. `state_dict` of the PEFT model holds the adapter alone: the base
    is loaded from where it came from, and whoever loads a checkpoint compares the base's fingerprint.

    Args:
        model: the base, changed in place.
        rank: rank of the adapter, the inner size of its two factors.
        alpha: the adapter's product is scaled by alpha / rank.
        target_modules: names of the layers that get an adapter, None for all linear ones but the head.

    Raises:
        InputError: the target layers do not exist, are the head, or are embeddings that share their weight with the
            head; the weights are 4-bit and the rank is 0; or `peft` is not installed.
    """
    if not rank:
        if is_quantized(model):
            raise InputError(
                "model.quantize: 4-bit weights cannot be trained; set model.lora_r=16, and leave out algo.value=network"
            )
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("model.lora_r needs the extra `peft`: pip install 'shiqrun[peft]'") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules="all-linear" if target_modules is None else target_modules,
        task_type="CAUSAL_LM",
    )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embeddings.weight
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:  # names that no layer has, or layers that cannot have an adapter
        raise InputError(f"model.lora_target_modules={target_modules}: {error}") from error
    _expect_plain_head(model, target_modules, head=head, embeddings=embeddings if tied else None)
    wrapped.register_state_dict_post_hook(_drop_base)
    wrapped.register_load_state_dict_post_hook(_ignore_missing_base)
    return wrapped


def _expect_plain_head(
    model: PreTrainedModel, target_modules: list[str] | None, *, head: nn.Module, embeddings: nn.Module | None
) -> None:
    """Check that no layer whose weight scores actions has an adapter, whatever names it was selected by.

    Raises:
        InputError: the head, or embeddings that share its weight, have an adapter.
    """
    if model.get_output_embeddings() is not head:
        why = "the head is scored by its weight, an adapter on it would not train"
    elif embeddings is not None and model.get_input_embeddings() is not embeddings:
        why = "the embeddings share their weight with the head: merging an adapter on them would change both"
    else:
        return
    raise InputError(f"model.lora_target_modules={target_modules}: {why}; leave it out")


def _drop_base(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Remove the base model's weights from a state dict, as a hook of `state_dict`."""
    for name in [name for name in state_dict if name.startswith(prefix) and not _is_adapter(name)]:
        del state_dict[name]


def _ignore_missing_base(module: nn.Module, incompatible: Any) -> None:
    """Remove the base model's weights from the list of missing keys, as a hook of `load_state_dict`."""
    base = {name for name, _ in module.named_parameters() if not _is_adapter(name)}
    base |= {name for name, _ in module.named_buffers()}
    inner = "base_model.model."  # what every name in a PEFT model begins with; before it is where that model is
    absent = [name for name in incompatible.missing_keys if inner + name.partition(inner)[2] not in base]
    incompatible.missing_keys[:] = absent


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def merge_adapter(model: Any) -> Any:
    """Return a copy of the model with its LoRA adapter merged into the weights, or the model itself without one.

    An adapter that was trained on 4-bit weights is merged into the base's original weights, so that nothing is rounded
    twice; the copy's logits then differ from those of training by the rounding to 4 bits. A copy of bfloat16 weights is
    float32: rounded to bfloat16, most weights would lose what the adapter adds.
    """
    if not has_adapter(model):
        return model
    if is_quantized(model):
        return merge_into_saved_base(model)
    copied = copy.deepcopy(model)
    return (copied.float() if half_weights(copied) else copied).merge_and_unload()


def merge_into_saved_base(model: Any) -> Any:
    """Load the base model anew, in float32 on the CPU, and return it with the LoRA adapter merged into its weights."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    base = base_of(model)
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(base).from_pretrained(base.name_or_path, config=config, dtype=torch.float32)
    adapted = get_peft_model(fresh, copy.deepcopy(model.peft_config["default"]))
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, save_embedding_layers=False))
    return adapted.merge_and_unload()


def save_adapter(model: Any, directory: Path) -> str:
    """Save the LoRA adapter for `PeftModel.from_pretrained`; return the path or Hub id of its base model.

    A base without a directory or Hub id of its own (`model=tiny`) is saved in `directory/base`.
    """
    base: str = base_of(model).name_or_path
    if not base:
        base = str(directory / BASE)
        copy.deepcopy(model).unload().save_pretrained(base)
    if Path(base).is_dir():
        base = str(Path(base).resolve())
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(directory, save_embedding_layers=False)  # never resized; without it, peft asks the Hub
    return base
