"""The head as its config describes it, against what `transformers` does with it: values, gradients, and the guard."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig

from shiqrun.models.head import MANY_ROWS, Head, head_of
from shiqrun.models.scoring import score_further
from tests.support.helpers import model

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 48, "max_position_embeddings": 64}
SIZES |= {"initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
HEADS = {
    "llama": ({}, 1.0, None),
    "phi": ({}, 1.0, None),  # with bias
    "gemma2": ({"final_logit_softcapping": 1.5}, 1.0, 1.5),
    "gemma3_text": ({"final_logit_softcapping": 1.5}, 1.0, 1.5),
    "gemma3_text without": ({"final_logit_softcapping": None}, 1.0, None),
    "recurrent_gemma": ({"logits_soft_cap": 1.5, "lru_width": 16, "num_hidden_layers": 3}, 1.0, 1.5),
    "xlstm": ({"output_logit_soft_cap": 1.5, "num_heads": 2, "num_blocks": 2}, 1.0, 1.5),
    "cohere": ({"logit_scale": 0.4}, 0.4, None),
    "granite": ({"logits_scaling": 2.5}, 0.4, None),
    "hyperclovax": ({"logits_scaling": 2.5}, 2.5, None),  # the same name, the other way round
    "minicpm3": ({"dim_model_base": 4, **LATENT}, 0.25, None),
    "falcon_h1": ({"lm_head_multiplier": 0.4, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8}, 0.4, None),
    "mpt": ({"logit_scale": 0.4, "d_model": 16, "n_heads": 2, "n_layers": 2}, 1.0, None),  # which MPT does not apply
}
HEAD = pytest.mark.parametrize("name", HEADS)


def built(name):
    own = model(AutoConfig.for_model(name.split()[0], **{**SIZES, **HEADS[name][0]}))
    bias = own.get_output_embeddings().bias
    if bias is not None:
        torch.nn.init.normal_(bias)
    return own.double()


def read(own):
    """(the body's output, the model's own logits) of 24 tokens."""
    ids = torch.arange(24)[None]
    body = own.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return body, own(input_ids=ids, use_cache=False).logits


@HEAD
def test_the_scale_and_the_cap_are_those_of_the_config(name):
    head = head_of(built(name))
    assert (head.scale, head.cap) == pytest.approx(HEADS[name][1:])
    assert (head.bias is not None) == (name == "phi")


@HEAD
def test_logits_are_the_models_own(name):
    own = built(name)
    hidden, logits = read(own)
    found = head_of(own).logits(hidden)
    assert logits.std() > 0.05
    assert_close(found, logits.to(found.dtype))


@HEAD
def test_scores_and_gradients_are_those_of_the_models_own_logits(name):
    own = built(name)
    hidden, logits = read(own)
    head = head_of(own)
    taken = torch.arange(24) * 7 % 48
    further = torch.arange(48).reshape(24, 2)
    up = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = list(own.parameters())
    out = score_further(hidden[0], head.weight, head.bias, taken, further=further, scale=head.scale, cap=head.cap)
    truth = (logits[0].gather(1, taken[:, None])[:, 0], logits[0].logsumexp(-1), logits[0].gather(1, further))
    both = []
    for logit, partition, others in ((out.logit, out.log_partition, out.further), truth):
        loss = (up[0] * logit).sum() + (up[1] * partition).sum() + (up[2:].t() * others).sum()
        both.append(torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True))
    assert_close((out.logit, out.log_partition, out.further), truth, check_dtype=False)
    for got, expected in zip(*both, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:  # xLSTM takes its logits to float32, whatever the weights
            assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_logits_are_float32_under_autocast():
    own = model(AutoConfig.for_model("gemma2", **SIZES, final_logit_softcapping=1.5))
    head, hidden = head_of(own), torch.randn(2, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.logits(hidden)
    assert found.dtype == torch.float32
    assert_close(found, head.logits(hidden))
    assert head_of(own.bfloat16()).logits(hidden.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_head_for_decoding_many_rows_has_the_same_logits(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(MANY_ROWS, 256, generator=generator).to(dtype)
    for size, arranged in ((4096, True), (100, False)):
        head = Head(torch.randn(size, 256, generator=generator).to(dtype), None, 0.5, 3.0)
        found = head.for_decoding(MANY_ROWS)
        assert_close(found.logits(hidden), head.logits(hidden), rtol=0, atol=1e-4 if dtype != torch.float64 else 1e-12)
        assert (found.weight.stride() == (1, size)) == arranged
        assert head.for_decoding().weight.stride() == (256, 1)
