"""The estimate of memory against autograd, against parameters to the byte, and what a dry run says of it."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from shiqrun.models.attention import use_packed_attention
from shiqrun.models.policy import Policy, hidden_states, prepare
from shiqrun.models.precision import cast_weights
from shiqrun.training import memory_of_run
from shiqrun.training.memory import Use, estimate, remedies, shape_of
from tests.support import helpers
from tests.support.command_line import train

KINDS = {
    "fp32": {"autocast": False},
    "autocast": {},
    "bf16": {"half": True},
    "checkpointing": {"checkpointing": True},
    "adapter": {"autocast": False, "lora": True},
    "adapter on bf16": {"half": True, "lora": True},
}


def llama(layers, use):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model = cast_weights(LlamaForCausalLM(config), torch.bfloat16 if use.half else torch.float32)
    use_packed_attention(model)
    settings = helpers.settings(gradient_checkpointing=use.checkpointing, lora_r=2 * use.lora)
    return prepare(model, settings)


def kept(layers, use, layout):
    """Bytes that autograd keeps of the body's forward pass, without parameters and their casts."""
    policy = Policy(llama(layers, use))
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    shapes = {tuple(p.shape) for p in policy.parameters() if p.ndim == 2}
    shapes |= {shape[::-1] for shape in shapes}
    seen = {}

    def keep(t):
        if tuple(t.shape) not in shapes and t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        hidden_states(policy.causal_lm.base_model, layout, torch.bfloat16 if use.autocast else None)
    return sum(t.untyped_storage().nbytes() for t in seen.values())


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_that_autograd_keeps(kind):
    rows = helpers.rows(12).with_layout(packed=True)
    layout = rows.collate(list(range(12))).layout
    tokens = layout.input_ids.numel()
    use = Use(device="cpu", tokens=tokens, actions=0, **KINDS[kind])
    measured = (kept(3, use, layout) - kept(1, use, layout)) / 2
    shapes = [shape_of(llama(layers, use)) for layers in (1, 3)]
    expected = [estimate(shape, use)["activations"] for shape in shapes]
    assert (expected[1] - expected[0]) / 2 == pytest.approx(measured, rel=0.15)


def test_a_rank_of_many_needs_its_share_and_what_it_gathers():
    shape = shape_of(llama(2, Use(device="cpu", tokens=1, actions=1)))
    alone, rank = (estimate(shape, Use(tokens=64, actions=32, ranks=n, autocast=False)) for n in (1, 8))
    for name in ("weights", "gradients", "moments"):
        assert rank[name] == alone[name] / 8
    layer = (shape.parameters - shape.embeddings) / 2
    assert rank["gathered"] == 4 * (shape.embeddings + layer)
    whole = estimate(shape, Use(tokens=1, actions=1, ranks=1000, autocast=False, evaluates=True, lora=True))
    assert whole["gathered"] == 4 * shape.parameters


def test_weights_gradients_and_moments_are_counted_to_the_byte():
    use = Use(device="cpu", tokens=1, actions=1, autocast=False)
    model = llama(2, use)
    number = sum(p.numel() for p in model.parameters())
    found = estimate(shape_of(model), use)
    assert (found["weights"], found["gradients"], found["moments"]) == (4 * number, 4 * number, 8 * number)
    half = estimate(shape_of(model), Use(device="cpu", tokens=1, actions=1, half=True))
    assert (half["weights"], half["gradients"], half["moments"]) == (2 * number, 2 * number, 4 * number)


def test_every_remedy_needs_less_than_the_one_before():
    use = Use(tokens=8192, actions=4096)
    sizes = [size for _, size in remedies(shape_of(llama(2, use)), use)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes


def test_a_dry_run_says_what_memory_is_for_and_what_to_change_where_it_is_too_little(at_home, capfd, monkeypatch):
    assert train("dry_run=true") == 0
    out = capfd.readouterr().out
    assert "GiB at the peak: program" in out
    assert "does not fit" not in out
    monkeypatch.setattr(memory_of_run, "available", lambda device: 2.0**20)
    wide = ("model.hidden_size=512", "trainer.max_steps=1")
    assert train("dry_run=true", *wide) == 0
    out = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "this does not fit the 0.00098 GiB here; set" in out
    assert "hardware.weights=bf16 (" in out


def test_a_dry_run_of_several_ranks_says_what_each_needs(at_home, capfd):
    assert train("dry_run=true", "hardware=fsdp", "hardware.accelerator=cpu", "hardware.devices=2") == 0
    assert "GiB at the peak on each of 2 ranks: program" in capfd.readouterr().out
