"""`write_gguf` writes a model and its tokenizer as one GGUF file, with llama.cpp's names and order of rotary units."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shiqrun.errors import InputError
from shiqrun.sharing.finished_run import FinishedRun, load_model, load_tokenizer
from shiqrun.sharing.gguf_tokenizer import add_tokenizer

INSTALL = "--to gguf needs the extra `gguf`: pip install 'shiqrun[gguf]'"


class Family(NamedTuple):
    """A `Family` says how llama.cpp knows an architecture.

    Attributes:
        arch: llama.cpp's name of it.
        pairs_units: whether a rotary pair is two neighbouring units there, and not units half a head apart.
    """

    arch: Literal["llama", "qwen2", "qwen3"]
    pairs_units: bool


FAMILIES = {
    "LlamaForCausalLM": Family("llama", pairs_units=True),
    "MistralForCausalLM": Family("llama", pairs_units=True),
    "Qwen2ForCausalLM": Family("qwen2", pairs_units=False),
    "Qwen3ForCausalLM": Family("qwen3", pairs_units=False),
}
"""Architectures whose tensors are copied as they are, or with their rotary units in another order."""
LARGEST_FP16 = float(np.finfo(np.float16).max)


def write_gguf(run: FinishedRun, path: Path, precision: Literal["fp32", "fp16", "bf16"]) -> None:
    """Write the policy of a run as a GGUF file; matrices in `precision`, vectors in float32.

    Raises:
        InputError: `gguf` is not installed, or llama.cpp would not compute the same with this model or tokenizer.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(INSTALL) from error
    if run.is_reward_model:
        raise InputError(f"{run.model}: a reward model, of which llama.cpp has no form; use --to merged")
    model, tokenizer = load_model(run), load_tokenizer(run)
    family = _family(model)
    writer = gguf.GGUFWriter(path, family.arch, use_temp_file=False)
    writer.add_name(run.directory.resolve().name)
    kind = {"fp32": gguf.LlamaFileType.ALL_F32, "fp16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_file_type(kind.get(precision, gguf.LlamaFileType.MOSTLY_BF16))
    _add_sizes(writer, model)
    add_tokenizer(writer, tokenizer, _rows(model))
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.arch.upper()), model.config.num_hidden_layers)
    for name, array in _tensors(model, family):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise InputError(f"{run.model}: llama.cpp knows no tensor {name}; use --to merged")
        _add(writer, known, array, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _family(model: PreTrainedModel) -> Family:
    """Return how llama.cpp knows the model.

    Raises:
        InputError: it does not, or computes something else with these settings.
    """
    name, config = type(model).__name__, model.config
    if name not in FAMILIES:
        raise InputError(f"--to gguf: {name} is not written; known are {', '.join(FAMILIES)}; use --to merged")
    family, kind = FAMILIES[name], config.rope_parameters.get("rope_type", "default")
    if kind != "default" and not (kind == "llama3" and family.arch == "llama"):
        raise InputError(f"--to gguf: {name} with rotary positions scaled by {kind!r} is not written; use --to merged")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []) or (
        family.arch == "llama" and getattr(config, "sliding_window", None)
    ):
        raise InputError(f"--to gguf: {name} with sliding-window attention is not written; use --to merged")
    if config.hidden_act != "silu":
        raise InputError(f"--to gguf: {name} with hidden_act={config.hidden_act} is not written; use --to merged")
    return family


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rows(model: PreTrainedModel) -> int:
    """Return the number of tokens that have an embedding, which may be more than the tokenizer has."""
    return len(model.get_input_embeddings().state_dict()["weight"])


def _add_sizes(writer: Any, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_vocab_size(_rows(model))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a model by their names in `transformers`, in float32."""
    config = model.config
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and head.weight is embeddings.weight:
            continue  # llama.cpp takes the embeddings where there is no head
        array = tensor.detach().float().numpy()
        if family.pairs_units and ".q_proj." in name:
            array = in_pairs(array, config.num_attention_heads)
        elif family.pairs_units and ".k_proj." in name:
            array = in_pairs(array, config.num_key_value_heads)
        yield name, array
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _slowdowns(config)


def in_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a query or key projection with the two units of each rotary pair beside each other.

    In `transformers` unit i of a head turns with unit i + half; in llama.cpp's `llama`, unit 2i with unit 2i + 1.
    """
    size = len(array) // heads
    return array.reshape(heads, 2, size // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _slowdowns(config: Any) -> np.ndarray:
    """Return by how much each rotary frequency is divided, from the two sets of frequencies of `transformers`."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, _head_size(config), 2, dtype=torch.float32) / _head_size(config)
    return (1.0 / config.rope_parameters["rope_theta"] ** exponents / scaled).numpy()


def _add(writer: Any, name: str, array: np.ndarray, precision: str) -> None:
    """Add a tensor to the file; vectors stay in float32, as llama.cpp expects.

    Raises:
        InputError: a number is too large for float16.
    """
    import gguf

    if array.ndim < 2 or precision == "fp32":
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    elif precision == "bf16":
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    elif np.abs(array).max() > LARGEST_FP16:
        raise InputError(f"--dtype fp16: a weight of {name} is larger than {LARGEST_FP16:.0f}; use --dtype bf16")
    else:
        writer.add_tensor(name, array.astype(np.float16))
