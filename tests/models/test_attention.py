"""A packed batch gives the scores and gradients of its trajectories alone, on every kind of model that reads one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    CohereConfig,
    Gemma3TextConfig,
    GraniteConfig,
    JambaConfig,
    Lfm2Config,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
)

from shiqrun.batching.rows import Rows
from shiqrun.models.attention import PACKED, reads_packed, use_packed_attention
from shiqrun.models.model_checks import enable_packing
from shiqrun.models.policy import Policy, ValueHead, prepare
from tests.batching.test_packing import family, many
from tests.models.test_policy import BOUNDS, GROUPED, LINEAR_HEADS, SIZES
from tests.support.helpers import llama, model, settings

DEEP = SIZES | {"num_hidden_layers": 7}
ONE_KEY = {"num_key_value_heads": 1}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0}


def opt():
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 48}
    return model(OPTConfig(**sizes, **QUIET, max_position_embeddings=64, word_embed_proj_dim=16, **BOUNDS))


PACKING = {
    **LINEAR_HEADS,
    "grouped queries": lambda: model(Phi3Config(**SIZES, **BOUNDS, **ONE_KEY)),
    "a window": lambda: model(MistralConfig(**SIZES, **BOUNDS, **GROUPED, sliding_window=5)),
    "windows in some layers": lambda: model(Gemma3TextConfig(**DEEP, **BOUNDS, **GROUPED, sliding_window=6)),
    "learned positions": opt,
    "cohere": lambda: model(CohereConfig(**SIZES, **BOUNDS)),
    "granite": lambda: model(GraniteConfig(**SIZES, **BOUNDS)),
}
PADDING = {
    "a state": lambda: model(
        JambaConfig(**SIZES, **BOUNDS, **ONE_KEY, num_experts=2, use_mamba_kernels=False, mamba_d_state=4)
    ),
    "a window in its mask alone": lambda: model(
        PhimoeConfig(**SIZES, **BOUNDS, **ONE_KEY, num_local_experts=2, sliding_window=12)
    ),
    "a convolution": lambda: model(Lfm2Config(**SIZES, **BOUNDS, **ONE_KEY, layer_types=["conv", "full_attention"])),
}


def prepared(made, **changes):
    policy = Policy(prepare(made, settings(**changes)))
    assert not reads_packed(policy.causal_lm)  # until it is proved to
    use_packed_attention(policy.causal_lm)
    return policy


def both(made):
    """The same rows padded, and packed."""
    rows, found = Rows(made, pad=0), []
    for packed in (False, True):
        found.append(rows.with_layout(packed=packed).collate(range(len(rows))))
    return found


def scored(policy, batch):
    """Scores, and gradients of a sum that weighs every action and both numbers differently."""
    policy.zero_grad()
    scores = policy(batch)
    weight = torch.arange(scores.logit.numel(), dtype=scores.logit.dtype).view_as(scores.logit)
    total = scores.logit * weight.cos() + scores.log_partition * weight.sin()
    total.masked_fill(~batch.action_mask, 0).sum().backward()
    return scores, {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def expect_equal(policy, made, **tolerance):
    padded, packed = both(made)
    assert packed.layout.attention is not None
    ours, theirs = scored(policy, packed), scored(policy, padded)
    assert_close(ours[0].logit, theirs[0].logit, **tolerance)
    assert_close(ours[0].log_partition, theirs[0].log_partition, **tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        assert_close(gradient, theirs[1][name], **tolerance)


@pytest.mark.parametrize("kind", PACKING)
@pytest.mark.parametrize("rows", [family(), many(0)], ids=["family", "many"])
def test_packed_scores_and_gradients_are_those_of_the_padded_batch(kind, rows):
    policy = prepared(PACKING[kind]().double())
    short = [t for t in rows if len(t.input_ids) <= 64]
    assert enable_packing(policy, Rows(short, pad=0)) is None
    # norms and rotations of some models compute in float32 whatever the weights are
    expect_equal(policy, short, rtol=1e-5, atol=1e-5)


def test_in_float64_throughout_they_differ_by_rounding():
    expect_equal(prepared(LINEAR_HEADS["gpt2"]().double()), family(), rtol=1e-12, atol=1e-12)


def test_experts_too():
    config = MixtralConfig(**SIZES, **BOUNDS, **ONE_KEY, num_local_experts=2)  # their product knows no float64
    expect_equal(prepared(model(config)), family(), rtol=1e-4, atol=1e-4)


def test_under_activation_checkpointing_too():
    expect_equal(prepared(llama().double(), gradient_checkpointing=True), many(1), rtol=1e-5, atol=1e-5)


def test_no_trajectory_sees_another():
    policy, rows = prepared(llama()), Rows(family(), pad=0, packed=True)
    alone = [policy(rows.collate([i])).logp[0] for i in range(len(rows))]
    together = policy(rows.collate(range(len(rows)))).logp
    for i, logp in enumerate(alone):
        assert_close(together[i, : len(logp)], logp)


@pytest.mark.parametrize("at", ["state", "action"])
def test_values_are_read_at_the_same_tokens(at):
    value = ValueHead(16, at)
    torch.nn.init.normal_(value.linear.weight)
    policy = Policy(prepare(llama(), settings()), value=value)
    assert enable_packing(policy, Rows(many(2), pad=0)) is None
    padded, packed = both(many(2))
    assert_close(policy(packed).value, policy(padded).value)


def test_a_value_network_reads_what_the_policy_reads():
    body = prepare(llama(), settings()).base_model
    value = ValueHead(16, "state", body)
    torch.nn.init.normal_(value.linear.weight)
    policy = Policy(prepare(llama(), settings()), value=value)
    padded, packed = both(many(2))
    expected = policy(padded).value
    assert enable_packing(policy, Rows(many(2), pad=0)) is None
    assert reads_packed(body)
    assert_close(policy(packed).value, expected)


@pytest.mark.parametrize("kind", PADDING)
def test_a_model_that_cannot_is_found_out_and_reads_padded_batches(kind):
    policy, rows = prepared(PADDING[kind]()), Rows(family(), pad=0)
    why = enable_packing(policy, rows)
    assert type(policy.causal_lm).__name__ in why or "differ" in why
    assert policy.causal_lm.config._attn_implementation == "sdpa"
    padded, packed = both(family())
    policy.eval()
    with torch.no_grad():
        assert_close(policy(packed).logit, policy(padded).logit)  # a packed batch is read by its padded rows


def test_eager_attention_reads_padded_batches():
    policy = prepared(llama(), attn_implementation="eager")
    assert "eager" in enable_packing(policy, Rows(family(), pad=0))


def test_one_wrong_mask_is_found_out():
    rows = Rows(family(), pad=0)
    policy = prepared(llama())

    class Blind(Rows):
        def collate(self, picked):
            batch = super().collate(picked)
            if batch.layout.attention is None:
                return batch
            calls = tuple(
                call if call.mask is None else replace(call, mask=torch.ones_like(call.mask))
                for call in batch.layout.attention.calls
            )
            return batch.with_layout(replace(batch.layout, attention=replace(batch.layout.attention, calls=calls)))

    assert enable_packing(policy, rows) is None
    assert "differ" in enable_packing(policy, Blind(family(), pad=0))


def test_a_saved_model_names_no_attention_of_ours(tmp_path):
    policy = prepared(llama())
    assert reads_packed(policy.causal_lm)
    policy.model.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()


def test_without_a_packed_batch_attention_is_sdpa():
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 48, (3, 9)))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padding on the left, as in generation
    plain, ours = llama(), prepare(llama(), settings())
    ours.load_state_dict(plain.state_dict())
    assert_close(ours(ids, attention_mask=mask).logits, plain(ids, attention_mask=mask).logits)
