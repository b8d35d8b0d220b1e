"""`prepare_big` writes models of half a billion parameters and more, with random weights, a tokenizer and pairs.

Their shapes are those of models that people train, so that start-up and memory are measured on real sizes without a
download.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Cohere2Config, LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.initialization import no_init_weights

from bench.work import make_pairs, tokenizer_on

CONFIGS: dict[str, PreTrainedConfig] = {
    "tiny": LlamaConfig(  # for tests of the benchmarks
        vocab_size=8192,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    ),
    "0.5B": Qwen2Config(  # Qwen2.5-0.5B
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    ),
    "1.2B": LlamaConfig(  # Llama-3.2-1B
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
    ),
    "7B": Qwen2Config(  # Qwen2.5-7B
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    ),
    "8B": LlamaConfig(  # Llama-3-8B
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),
    "R7B": Cohere2Config(  # Command R7B
        vocab_size=256_000,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=132_096,
        tie_word_embeddings=True,
    ),
}
"""The shapes by the number of their parameters."""


def prepare_big(folder: Path, name: str, *, pairs: int, longest: int = 1024) -> None:
    """Write `model/`, with random bfloat16 weights as models are published, and `pairs.jsonl` into the folder."""
    rows = list(islice(make_pairs(4 * pairs), 4 * pairs))
    tokenizer = tokenizer_on(rows, 8192, longest)
    folder.mkdir(parents=True, exist_ok=True)
    fitting = [row for row in rows if _words(row) < longest // 2][:pairs]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fitting), encoding="utf-8")
    random_model(name, torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def random_model(name: str, dtype: torch.dtype) -> Any:
    """Return a model of this shape with normal weights of deviation 0.02, which needs no float32 copy of them."""
    torch.manual_seed(0)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype)
    for parameter in model.parameters():
        parameter.data.fill_(1.0) if parameter.ndim == 1 else parameter.data.normal_(0.0, 0.02)
    model.tie_weights()
    return model


def _words(row: dict[str, Any]) -> int:
    """Return the number of words of a row's longest conversation."""
    prompt = len(row["prompt"][0]["content"].split())
    return prompt + max(len(answer[0]["content"].split()) for answer in row["completions"])
