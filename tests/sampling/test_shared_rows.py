"""Completions that share what they have in common: the tokens and log-probabilities of completions that share nothing,
fewer rows, prompts read once. Models that cannot share keep the other path.
"""

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from shiqrun.models.policy import Policy
from shiqrun.sampling import shared_attention
from shiqrun.sampling.decode import spanned_attention_in
from shiqrun.sampling.generate import sample_completions
from shiqrun.sampling.refusals import share_refusal
from shiqrun.sampling.shared_attention import RAGGED, attend, attend_by_products, calls_of
from shiqrun.sampling.shared_prompts import COMMON, families, homes
from tests.support.helpers import llama, model

VOCABULARY = 48
NEW = 12
STOP = (5, 7, 11)
RNG = np.random.default_rng(0)
LONG = RNG.integers(0, VOCABULARY, 40)
DIFFERENT = [LONG, LONG[:9], LONG[:30], *(RNG.integers(0, VOCABULARY, n) for n in (12, 1, 9, 33))]
FAMILY = [np.concatenate([DIFFERENT[6], RNG.integers(0, VOCABULARY, n)]) for n in (1, 7, 4)]
DIFFERENT += [*FAMILY, FAMILY[1][:36], DIFFERENT[6][:20]]
COPIES = (5, 1, 3, 16, 2, 7, 1, 4, 2, 1, 3, 2)
PROMPTS = [p for p, n in zip(DIFFERENT, COPIES, strict=True) for _ in range(n)]
"""Prompts of several lengths with 1 to 16 copies each; five begin another one, and three of these begin alike."""
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": VOCABULARY}
SHARED = {
    "llama": llama,
    "heads in groups": lambda: llama(num_attention_heads=4, num_key_value_heads=2),
    "gpt2": lambda: model(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=VOCABULARY, initializer_range=0.3)
    ),
    "norms of queries": lambda: model(Qwen3Config(**SIZES)),
    "rotary in part": lambda: model(
        GPTNeoXConfig(**SMALL, intermediate_size=24, num_hidden_layers=2, initializer_range=0.3)
    ),
    "positions from the mask": lambda: model(
        OPTConfig(**SMALL, ffn_dim=24, num_hidden_layers=2, word_embed_proj_dim=16, init_std=0.3)
    ),
}
OTHER = {
    "eager": lambda: llama(attn_implementation="eager"),
    "a window": lambda: model(MistralConfig(**SIZES, sliding_window=4)),
    "capped, every other layer with a window": lambda: model(Gemma2Config(**SIZES, sliding_window=4)),
    "no positions": lambda: model(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
    ),
}
MODES = {
    "as it is": {},
    "no stop": {"stop": []},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.3},
    "a nucleus": {"temperature": 0.7, "top_p": 0.5},
    "several temperatures": {"temperature": [(0.0, 0.5, 1.0)[n % 3] for n in range(len(PROMPTS))]},
}


def sampled(policy, **options):
    plain = {"stop": STOP, "pad": 0, "max_new_tokens": NEW, "temperature": 1.0, "top_p": 1.0, "describe": True}
    keys = [[n] for n in range(len(PROMPTS))]
    return sample_completions(policy, PROMPTS, keys, **(plain | {"batch_size": len(PROMPTS)} | options))


def refused(monkeypatch):
    monkeypatch.setattr("shiqrun.sampling.generate.share_refusal", lambda model: "asked for by a test")


def expect_equal(found, expected):
    assert [(c.tokens.tolist(), c.ended) for c in found] == [(c.tokens.tolist(), c.ended) for c in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logp, other.logp, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.policy_logp, other.policy_logp, rtol=0, atol=1e-6)


def reads(causal_lm):
    """Shapes of what the body is given from now on."""
    shapes = []
    causal_lm.base_model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("name", SHARED)
def test_samples_that_share_equal_those_that_do_not(name, monkeypatch):
    """Float64, so that equal means to 1e-6."""
    policy = Policy(SHARED[name]().double()).eval()
    with spanned_attention_in(policy.causal_lm):
        assert share_refusal(policy.causal_lm) is None
    modes = MODES if name == "llama" else dict(list(MODES.items())[:1])
    found = {mode: sampled(policy, **options) for mode, options in modes.items()}
    few = sampled(policy, batch_size=5)
    refused(monkeypatch)
    for mode, options in modes.items():
        expect_equal(found[mode], sampled(policy, **options))
    expect_equal(few, found["as it is"])
    assert {c.ended for c in few} == {True, False}


def test_float32_samples_that_share_have_the_tokens_of_those_that_do_not(monkeypatch):
    policy = Policy(llama()).eval()
    found = sampled(policy)
    refused(monkeypatch)
    for one, other in zip(found, sampled(policy), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logp, other.logp, rtol=0, atol=1e-5)  # float32


def test_the_products_of_other_devices_give_the_same_samples(monkeypatch):
    policy = Policy(llama(num_attention_heads=4, num_key_value_heads=2).double()).eval()
    expected, calls = sampled(policy), []

    def counted(*given):
        calls.append(given[0].shape)
        return attend_by_products(*given)

    monkeypatch.setattr("shiqrun.sampling.shared_attention.attend", counted)
    monkeypatch.setattr("shiqrun.sampling.shared_cache.attend", counted)
    expect_equal(sampled(policy), expected)
    assert calls


@pytest.mark.parametrize("name", OTHER)
def test_a_model_that_cannot_share_keeps_a_row_for_each_sample(name):
    causal_lm = OTHER[name]()
    with spanned_attention_in(causal_lm):
        assert share_refusal(causal_lm) is not None
    shapes = reads(causal_lm)
    sampled(Policy(causal_lm).eval(), stop=[])
    assert (len(PROMPTS), 1) in shapes


def test_prompts_are_read_once_also_where_they_begin_another():
    causal_lm = llama()
    shapes = reads(causal_lm)
    sampled(Policy(causal_lm).eval(), max_new_tokens=1)
    alone = [len(LONG), 12, 1, 9]  # padded to the longest, with the beginning of the family
    assert shapes[-2:] == [(len(alone) + 1, len(LONG)), (3, 7)]


def test_equal_beginnings_are_one_row():
    causal_lm = llama()
    policy = Policy(causal_lm).eval()
    long = sampled(policy, stop=[])
    shapes = reads(causal_lm)
    found = sampled(policy, stop=[])
    assert [c.tokens.tolist() for c in found] == [c.tokens.tolist() for c in long]
    texts = [(*p, *c.tokens) for p, c in zip(PROMPTS, found, strict=True)]
    rows = [rows for rows, width in shapes if width == 1][-NEW + 1 :]
    ends = [len(p) for p in PROMPTS]
    different = [len({(end, text[: end + n]) for end, text in zip(ends, texts, strict=True)}) for n in range(1, NEW)]
    assert rows == different
    assert rows[0] < rows[-1] == len(PROMPTS)
    shapes.clear()
    sampled(policy, stop=[], temperature=0.0)
    assert {rows for rows, width in shapes[-NEW + 1 :]} == {len(DIFFERENT)}


def test_finished_samples_leave():
    causal_lm = llama()
    policy, stop = Policy(causal_lm).eval(), range(0, VOCABULARY, 4)
    shapes = reads(causal_lm)
    found = sampled(policy, stop=stop)
    going_on = [sum(len(c.tokens) > n for c in found) for n in range(1, max(len(c.tokens) for c in found))]
    rows = [rows for rows, width in shapes if width == 1][-len(going_on) :]
    assert all(batch <= n * 8 / 7 + 1 for n, batch in zip(going_on, rows, strict=True))
    assert going_on[-1] < going_on[0] / 2


@pytest.mark.parametrize("way", [attend, attend_by_products])
def test_two_parts_of_attention_join_to_the_whole(way):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, n, 8, generator=generator, dtype=torch.float64) for n in (4, 20, 20))
    bias = torch.zeros(3, 1, 1, 13, dtype=torch.float64)
    bias[1, ..., :6] = float("-inf")
    mask = torch.cat([bias, torch.zeros(3, 1, 1, 7, dtype=torch.float64)], -1)
    weights = (query @ key.transpose(-1, -2) * 0.3 + mask).softmax(-1)
    one, one_sum = way(query, key[:, :, :13], value[:, :, :13], bias, 0.3)
    other, other_sum = way(query, key[:, :, 13:], value[:, :, 13:], None, 0.3)
    share = (one_sum - other_sum).sigmoid()[..., None]
    torch.testing.assert_close(torch.lerp(other, one, share), weights @ value)


def test_every_row_stands_in_one_call_beside_its_prompt():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        counts = (rng.integers(0, 6, rng.integers(1, 20)) * (rng.random() < 0.7) + rng.integers(0, 2)).tolist()
        if seed % 3 == 0:
            counts[0] = 200
        middle = len(counts) // 2
        parts = [(0, middle), (middle, len(counts))] if middle else [(0, len(counts))]
        spans = [shared_attention.PromptSpan(a, [1] * (b - a), [], None) for a, b in parts]
        owner = np.repeat(np.arange(len(counts)), counts)
        seen = []
        for call in calls_of(spans, counts, torch.device("cpu")):
            rows = np.arange(call.rows.start, call.rows.stop)
            prompts = np.arange(call.prompts.start, call.prompts.stop) + call.span.first
            places = rows if call.index is None else rows[call.index.numpy()]
            assert len(places) <= RAGGED * len(rows)
            asked = owner[places].reshape(len(prompts), -1)
            assert (asked == prompts[:, None]).all()
            back = places if call.back is None else places[call.back.numpy()]
            assert back.tolist() == rows.tolist()
            seen += rows.tolist()
        assert seen == list(range(sum(counts)))


def test_every_prompt_is_in_one_family_and_begins_a_member():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(0, 2, rng.integers(1, 9)) for _ in range(20)]
        found = families(prompts)
        assert sorted(n for f in found for n, _ in f.prompts) == list(range(20))
        for f in found:
            stems = {tuple(prompts[m][: f.stem]) for m in f.members}
            assert len(stems) == 1
            assert all(f.stem >= COMMON * len(prompts[m]) for m in f.members)
            assert all(m in f.members and (prompts[m][: len(prompts[n])] == prompts[n]).all() for n, m in f.prompts)
    assert max(len(f.members) for f in found) > 1


def test_the_home_of_a_prompt_begins_with_it_and_begins_no_other():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(0, 2, rng.integers(1, 6)) for _ in range(12)]
        texts = [p.tolist() for p in prompts]
        for n, home in enumerate(homes(prompts)):
            assert texts[home][: len(texts[n])] == texts[n]
            assert not any(len(t) > len(texts[home]) and t[: len(texts[home])] == texts[home] for t in texts)
            assert home == homes(prompts)[home]
