"""What is traced of a sharded step: bytes by arithmetic, the project's estimate, and two real processes."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.scale import check, row_of
from bench.traced import Setting, Traced, trace
from shiqrun.training.memory import Use, estimate, shape_of
from tests.support.selection import rest_slow

CONFIG = LlamaConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=False,
)
SETTING = Setting(tokens=1024, row=256)


def number():
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(CONFIG).parameters())


@pytest.fixture(scope="module")
def traced():
    """Traces by (ranks, bfloat16 weights, checkpointing)."""
    found = {}

    def of(world, half, checkpointing):
        key = (world, half, checkpointing)
        if key not in found:
            found[key] = trace(CONFIG, world, replace(SETTING, half=half, checkpointing=checkpointing))
        return found[key]

    return of


@pytest.mark.parametrize("world", rest_slow([8, 1, 512]))
def test_a_rank_holds_its_share_and_collectives_pass_what_arithmetic_says(traced, world):
    found = traced(world, False, True)
    assert found.sent == found.expected
    assert bool(found.sent) == (world > 1)
    share = 4 * number() / world
    held = [found.held[name] for name in ("parameters", "gradients", "moments")]
    assert held == pytest.approx([share, share, 2 * share], rel=1e-3 if world <= 8 else 0.1)  # padded to 512 rows


def test_bfloat16_weights_halve_what_is_held_and_sent(traced):
    full, half = traced(8, False, True), traced(8, True, True)
    assert half.sent == {kind: size // 2 for kind, size in full.sent.items()}
    for name in ("parameters", "gradients", "moments"):
        assert half.held[name] == pytest.approx(full.held[name] / 2, rel=1e-3)
    assert half.held["casts"] == 0


@pytest.mark.parametrize(("half", "checkpointing"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_estimate_of_a_rank_is_that_of_the_trace(traced, half, checkpointing):
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(CONFIG))
    use = Use(tokens=SETTING.tokens, actions=SETTING.tokens // 2, half=half, checkpointing=checkpointing, ranks=8)
    parts = estimate(shape, use)
    assert sum(parts.values()) - parts["program"] == pytest.approx(
        sum(traced(8, half, checkpointing).held.values()), rel=0.15
    )


def test_other_bytes_than_arithmetic_says_stop_the_benchmark():
    with pytest.raises(SystemExit, match="collectives passed"):
        row_of(Traced({"parameters": 1}, {"all-gathered": 8}, {"all-gathered": 9}), 1.0)


@pytest.mark.slow
def test_two_real_ranks_hold_what_is_traced():
    for name, row in check().items():
        assert row["traced"] == pytest.approx(row["measured"], rel=0.15), name
