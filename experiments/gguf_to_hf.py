"""`convert` turns a GGUF file of a Llama model into a directory that transformers loads: weights, tokenizer, template.

Quantised weights are dequantised: the directory holds what llama.cpp computes with, in float32. The text is split into
tokens as by llama.cpp, for the one way of splitting that is written here, that of SmolLM.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.smaller_vocabulary import smaller
from shiqrun.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFReader

CONTROL, USER_DEFINED = 3, 4
"""Types of a token in GGUF that text is searched for, special or not."""
END_OF_TEXT = "<|endoftext|>"
"""Pads, so that the end of a turn, which GGUF files name as padding, stays a token of its own."""
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The name in transformers of each part of a layer in GGUF."""
WHOLE_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(path: Path, out: Path, texts: Sequence[str] = ()) -> tuple[int, int]:
    """Convert a GGUF file into a directory for transformers.

    Args:
        path: of the GGUF file.
        out: directory to write into.
        texts: keep only the tokens that these need; all tokens where there are none.

    Returns:
        The number of parameters and of tokens.

    Raises:
        InputError: `gguf` is not installed, or the file is of another kind of model or tokenizer.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError("reading a GGUF file needs the package gguf: pip install 'shiqrun[gguf]'") from None
    try:
        reader = GGUFReader(path)
    except ValueError as error:
        raise InputError(f"{path}: no GGUF file: {error}") from None
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts.get("general.architecture") != "llama":
        raise InputError(f"{path}: a model of {facts.get('general.architecture')!r}; only llama is converted")
    backend, weights = tokenizer_of(facts, str(path)), weights_of(reader, facts)
    if texts:
        template = facts.get("tokenizer.chat_template") or ""
        backend, kept = smaller(backend, [*texts, template, "system", "user", "assistant", "tool"])
        for name in {"model.embed_tokens.weight", "lm_head.weight"}.intersection(weights):
            weights[name] = weights[name][kept]
    tokenizer = _with_specials(backend, facts)
    model = _model(weights, facts, tokenizer)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    return sum(p.numel() for p in model.parameters()), len(tokenizer)


def weights_of(reader: "GGUFReader", facts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of a GGUF file by their names in transformers, float32."""
    from gguf.quants import dequantize

    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    found = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if parts[0] == "blk":
            _, layer, part, kind = parts
            name = f"model.layers.{layer}.{LAYER_PARTS[part]}.{kind}"
            if part in heads:
                values = halves_of_pairs(values, heads[part])
        else:
            name = f"{WHOLE_PARTS[parts[0]]}.{parts[1]}"
        found[name] = torch.from_numpy(np.array(values, order="C"))
    return found


def halves_of_pairs(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of queries or keys in the order of transformers, which rotates row i with i + half of a head.

    GGUF has the two rows of each rotation beside each other.
    """
    pairs = weights.reshape(heads, -1, 2, weights.shape[-1])
    return pairs.transpose(0, 2, 1, 3).reshape(weights.shape)


def tokenizer_of(facts: Mapping[str, Any], place: str) -> Tokenizer:
    """Return the tokenizer of a GGUF file.

    Raises:
        InputError: it is another than SmolLM's byte-level BPE.
    """
    kind = (facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise InputError(f"{place}: a tokenizer {kind}; only SmolLM's, ('gpt2', 'smollm'), is converted")
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [(first, second) for first, second in (m.split(" ") for m in facts["tokenizer.ggml.merges"])]
    made = Tokenizer(models.BPE(vocab={text: n for n, text in enumerate(tokens)}, merges=merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    made.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, facts["tokenizer.ggml.token_type"], strict=True))
    made.add_special_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == CONTROL])
    made.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == USER_DEFINED])
    return made


def _with_specials(backend: Tokenizer, facts: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the names of its special tokens and its chat template."""
    tokens = facts["tokenizer.ggml.tokens"]
    named = {
        f"{name}_token": tokens[facts[key]]
        for name, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
        )
        if key in facts
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        pad_token=END_OF_TEXT if END_OF_TEXT in tokens else named.get("unk_token"),
        clean_up_tokenization_spaces=False,
        model_max_length=facts["llama.context_length"],
    )
    made.chat_template = facts.get("tokenizer.chat_template")
    return made


def _model(
    weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """Return the model with these weights, each of which it must have and nothing beside."""
    of = {key.removeprefix("llama."): value for key, value in facts.items() if key.startswith("llama.")}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tied = "lm_head.weight" not in weights
    config = LlamaConfig(
        vocab_size=len(weights["model.embed_tokens.weight"]),
        hidden_size=of["embedding_length"],
        intermediate_size=of["feed_forward_length"],
        num_hidden_layers=of["block_count"],
        num_attention_heads=of["attention.head_count"],
        num_key_value_heads=of["attention.head_count_kv"],
        head_dim=of["rope.dimension_count"],
        max_position_embeddings=of["context_length"],
        rms_norm_eps=float(str(np.float32(of["attention.layer_norm_rms_epsilon"]))),
        rope_parameters={"rope_type": "default", "rope_theta": of["rope.freq_base"]},
        tie_word_embeddings=tied,
        **special,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    given = dict(weights) | ({"lm_head.weight": weights["model.embed_tokens.weight"]} if tied else {})
    model.load_state_dict(given, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)
    return model
