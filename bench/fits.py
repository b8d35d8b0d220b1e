"""`python -m bench.fits` prints which settings fit models of 0.5 to 8 billion parameters on GPUs of 24, 40 and 80 GB.

It is arithmetic by `shiqrun.training.memory`: nothing is run, and a tenth of the GPU is left free.
"""

from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from shiqrun.training.memory import Shape, Use, estimate, shape_of

MODELS = {  # layers, hidden, feed-forward, heads, key heads, vocabulary, tied: Qwen2.5 and Llama-3
    "0.5B": (24, 896, 4864, 14, 2, 151936, True),
    "1.5B": (28, 1536, 8960, 12, 2, 151936, True),
    "3B": (36, 2048, 11008, 16, 2, 151936, True),
    "8B": (32, 4096, 14336, 32, 8, 128256, False),
}
CARDS = (24, 40, 80)
TOKENS = 8192
SETTINGS = {
    "default": {},
    "model.gradient_checkpointing=true": {"checkpointing": True},
    "checkpointing, hardware.weights=bf16": {"checkpointing": True, "half": True},
    "checkpointing, weights=bf16, trainer.optimizer=adamw_8bit": {
        "checkpointing": True,
        "half": True,
        "eight_bit": True,
    },
    "checkpointing, weights=bf16, model.lora_r=16": {"checkpointing": True, "half": True, "lora": True},
    "checkpointing, weights=bf16, lora_r=16, model.quantize=nf4": {
        "checkpointing": True,
        "half": True,
        "lora": True,
        "quantized": True,
    },
}


def shape(name: str) -> Shape:
    """Return the sizes of a model, made on no device."""
    layers, hidden, inner, heads, keys, vocabulary, tied = MODELS[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        return shape_of(LlamaForCausalLM(config))


def with_adapter(model: Shape, rank: int) -> Shape:
    """Return the sizes with a LoRA adapter on all linear layers but the head, which alone is trained."""
    attention = 2 * (model.hidden + model.queries) + 2 * (model.hidden + model.keys)
    added = model.layers * rank * (attention + 3 * (model.hidden + model.inner))
    return replace(model, parameters=model.parameters + added, trained=added)


def main() -> None:
    """Print the memory of every setting, and the first that fits each GPU."""
    console = Console(width=160)
    sizes, fits = (
        Table("GB", *MODELS, title="peak"),
        Table("", *(f"{card} GB" for card in CARDS), title="first that fits"),
    )
    shapes = {name: shape(name) for name in MODELS}
    peaks: dict[str, dict[str, float]] = {}
    for words, changes in SETTINGS.items():
        use = replace(Use(tokens=TOKENS, actions=TOKENS // 2), **changes)  # type: ignore[arg-type]
        peaks[words] = {
            name: sum(estimate(with_adapter(s, 16) if use.lora else s, use).values()) / 1e9
            for name, s in shapes.items()
        }
        sizes.add_row(words, *(f"{peak:.0f}" for peak in peaks[words].values()))
    for name in MODELS:
        found = (next((w for w in SETTINGS if peaks[w][name] < 0.9 * card), "none") for card in CARDS)
        fits.add_row(name, *found)
    console.print(sizes)
    console.print(fits)


if __name__ == "__main__":
    main()
