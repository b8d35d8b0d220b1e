"""`estimate` says how much memory a run needs at its peak, on the device that trains, and what each part takes.

What a decoder block keeps for the backward pass was counted on Llama blocks (`_kept_by_block`); other blocks with a
gated feed-forward layer are close to it. docs/scale.md compares the estimate with measured peaks.
"""

from dataclasses import dataclass, replace
from typing import Any

from shiqrun.models.scoring import KEPT_BYTES, chunk_rows

PROGRAM = {"cpu": 0.5 * 2**30, "cuda": 0.5 * 2**30}
"""Memory of Python, its libraries and the device's context, by device."""
ROUNDED = 1 << 24
"""Numbers of a bfloat16 weight that AdamW updates at once, in seven arrays of float32: `training/step/rounding.py`."""
FREED = 0.6
"""Share of activations and scores that stays with a process on a CPU once they are freed; .4 to .95 was measured."""
NF4 = 0.55
"""Bytes of a 4-bit weight, with its scales."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A `Shape` holds the sizes of a model that its memory depends on.

    Attributes:
        parameters: all of them, adapters included.
        trained: those with a gradient.
        embeddings: numbers in the token embeddings and, unless it shares their weight, the head.
        head: numbers in the head.
        layers: decoder blocks.
        hidden: units of a hidden state.
        queries: units of all attention heads together.
        keys: units of all key heads together.
        inner: units of the feed-forward layers.
    """

    parameters: int
    trained: int
    embeddings: int
    head: int
    layers: int
    hidden: int
    queries: int
    keys: int
    inner: int


@dataclass(frozen=True, kw_only=True)
class Use:
    """A `Use` says how a model is trained, as far as its memory depends on it.

    Attributes:
        device: cpu or cuda.
        tokens: of the largest micro-batch.
        actions: that it scores.
        accumulates: a step has several micro-batches, so that gradients are held beside activations.
        half: weights, gradients and moments are bfloat16.
        eight_bit: AdamW's moments have 8 bits.
        quantized: the linear layers have 4-bit weights.
        autocast: the body computes in bfloat16.
        checkpointing: activations are recomputed.
        lora: an adapter alone is trained.
        copies: further copies of the model: a live reference, the policy that samples.
        sampled: tokens of prompts and completions that are sampled together, 0 for none.
        ranks: that share weights, gradients and moments, each of which gathers two layers and what is no layer.
        evaluates: a rank gathers all weights to evaluate.
    """

    device: str = "cuda"
    tokens: int
    actions: int
    accumulates: bool = True
    half: bool = False
    eight_bit: bool = False
    quantized: bool = False
    autocast: bool = True
    checkpointing: bool = False
    lora: bool = False
    copies: int = 0
    sampled: int = 0
    ranks: int = 1
    evaluates: bool = False


def shape_of(model: Any) -> Shape:
    """Return the sizes of a causal language model of `transformers`, or of a PEFT model around one.

    Args:
        model: with its parameters, which may be on the device "meta".
    """
    named = list(model.parameters())
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    head, table = base.get_output_embeddings().weight, base.get_input_embeddings().weight
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in named),
        trained=sum(p.numel() for p in named if p.requires_grad),
        embeddings=head.numel() + (0 if table is head else table.numel()),
        head=head.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        queries=config.num_attention_heads * width,
        keys=keys * width,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
    )


def _kept_by_block(shape: Shape, use: Use) -> float:
    """Return the bytes a token that a decoder block keeps for the backward pass."""
    half = use.half or use.autocast
    norms = 24 if not half else 16 if use.half else 26  # inputs, normalised inputs, and their casts
    if use.lora:  # frozen layers keep no input
        norms = 18 if half else 16
    return norms * shape.hidden + (12 if half else 24) * shape.queries + (8 if half else 16) * shape.inner


def estimate(shape: Shape, use: Use) -> dict[str, float]:
    """Return the bytes of each part of a run at the moment when it needs the most; their sum is the peak."""
    body = shape.parameters - shape.embeddings
    each = 2 if use.half else 4
    weights = (NF4 * body if use.quantized else each * body) + each * shape.embeddings
    of_adapter = use.lora or not use.half
    gradients = float((4 if of_adapter else 2) * shape.trained)
    moments = (2.2 if use.eight_bit else 8 if of_adapter else 4) * shape.trained
    held = {"program": PROGRAM[use.device], "weights": weights / use.ranks, "copies": use.copies * weights}
    held["moments"], gradients = moments / use.ranks, gradients / use.ranks
    back = _forward_and_back(shape, use, body)
    phases = (
        {"gradients": gradients * use.accumulates, **back, "freed blocks": _kept_by_allocator(shape, use, back)},
        {"gradients": gradients, "embeddings' gradient": 0.0 if use.lora else each * (shape.embeddings - shape.head)},
        {"gradients": gradients, "rounding": 0.0 if of_adapter else 7.0 * 4 * min(ROUNDED, shape.head / use.ranks)},
        {"gradients": gradients, **_exchange(shape, use, each)},
        {"gathered": weights if use.ranks > 1 and use.evaluates else 0.0},
        {
            "cache of sampling": float(
                2 * use.sampled * shape.layers * shape.keys * (2 if use.half or use.autocast else 4)
            )
        },
        {"merged copy": 4.0 * shape.parameters if use.lora and use.device == "cpu" else 0.0},
    )
    return held | max(phases, key=lambda phase: sum(phase.values()))


def _forward_and_back(shape: Shape, use: Use, body: int) -> dict[str, float]:
    """Return the bytes that a forward and backward pass over one micro-batch add to weights, moments and gradients."""
    casts = 2.0 * body if use.autocast and not use.half and not use.quantized else 0.0
    each, sharded = 2 if use.half else 4, use.ranks > 1

    def gathered(layers: int) -> dict[str, float]:
        return {"gathered": each * (shape.embeddings + layers * body / shape.layers)} if sharded else {}

    block = use.tokens * _kept_by_block(shape, use)
    between = use.tokens * shape.hidden * (2 if use.half else 4)  # the input of each block
    scores, after = _scoring(shape, use)
    if not use.checkpointing:
        return {"casts": casts, "activations": shape.layers * block, "scores": scores, **gathered(1)}
    between *= shape.layers
    scoring = {"casts": casts / shape.layers, "activations": between, "scores": scores, **gathered(1)}
    block_back = {"casts": casts / shape.layers, "activations": between + block, "scores": after, **gathered(2)}
    block_back |= {"exchanged gradients": each * body / shape.layers} if sharded and not use.lora else {}
    return max((scoring, block_back), key=lambda phase: sum(phase.values()))


def _exchange(shape: Shape, use: Use, each: int) -> dict[str, float]:
    """Return the bytes with which ranks exchange the gradients of what is no layer, at the end of a backward pass."""
    if use.ranks == 1 or use.lora:
        return {}
    return {"gathered": float(each * shape.embeddings), "exchanged gradients": 2.0 * each * shape.embeddings}


def _kept_by_allocator(shape: Shape, use: Use, parts: dict[str, float]) -> float:
    """Return the bytes of freed blocks that glibc keeps on a CPU: it hands back only those that exceed 32 MiB."""
    small = use.tokens * shape.inner * 4 < 32 << 20
    return FREED * (parts["activations"] + parts["scores"]) if use.device == "cpu" and small else 0.0


def _scoring(shape: Shape, use: Use) -> tuple[float, float]:
    """Return the bytes of logits, of the head's copy in the precision of products and of its gradient; what stays."""
    vocabulary = shape.head // shape.hidden
    factors = 2 if use.device == "cuda" and (use.half or use.autocast) else 4
    rows = min(use.actions, chunk_rows(vocabulary, use.device))
    kept = use.actions * vocabulary * factors
    recomputed = use.lora or use.checkpointing or kept > KEPT_BYTES.get(use.device, KEPT_BYTES["cuda"])
    kept = 0 if recomputed else kept
    copy = 0 if factors == (2 if use.half else 4) else factors * shape.head
    gradient = 0 if use.lora else 4 * shape.head
    after = gradient + 4.0 * use.actions * shape.hidden
    return 2.0 * rows * vocabulary * 4 + kept + copy + after + 2 * 4 * use.actions * shape.hidden, after


def remedies(shape: Shape, use: Use) -> list[tuple[str, float]]:
    """Return settings that lower the peak, each with the bytes that the run needs with it and those before it."""
    found, now = [], sum(estimate(shape, use).values())
    for words, change in (
        ("model.gradient_checkpointing=true", {"checkpointing": True}),
        (f"trainer.micro_batch_tokens={use.tokens // 4}", {"tokens": use.tokens // 4, "actions": use.actions // 4}),
        ("hardware.weights=bf16", {"half": True}),
        ("trainer.optimizer=adamw_8bit", {"eight_bit": True}),
        ("model.lora_r=16", {"lora": True, "eight_bit": False}),
    ):
        use = replace(use, **change)
        smaller = replace(shape, trained=shape.trained // 100) if use.lora and "lora" in words else shape
        then = sum(estimate(smaller, use).values())
        if then < 0.97 * now:
            found.append((words, then))
            now = then
    return found
