"""`save_families` writes tiny models of several families with random weights, as `model=hf` reads them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cohere2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZE: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8, "initializer_range": 0.2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
}
WINDOW = {"sliding_window": 16}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Llama, tied head": (LlamaConfig, {"tie_word_embeddings": True}),
    "Qwen2, tied head": (Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen3": (Qwen3Config, {"tie_word_embeddings": False}),
    "Cohere2": (Cohere2Config, {"logit_scale": 0.25, **WINDOW}),
    "Mistral": (MistralConfig, {"tie_word_embeddings": False, **WINDOW}),
    "Gemma3": (Gemma3TextConfig, {"query_pre_attn_scalar": 8, **WINDOW}),
}
"""The config of each family, and what it sets beside the size."""


def save_families(tokenizer_of: Path, folder: Path) -> dict[str, Path]:
    """Save a model of each family with random weights and another model's tokenizer; return their directories."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)  # which a family's own class may give further tokens
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    saved = {}
    for name, (config, own) in FAMILIES.items():
        saved[name] = path = folder / name.split(",")[0].lower()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer) + 8, **SIZE, **special, **own))
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return saved
