"""The own loop over a KV cache: the tokens and probabilities of `generate` and of scoring, less work, other models."""

import contextlib
import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from shiqrun.models.attention import reads_packed, use_packed_attention
from shiqrun.models.head import head_of
from shiqrun.models.policy import Policy
from shiqrun.sampling import generate
from shiqrun.sampling.decode import Sampling, decode, spanned_attention_in
from shiqrun.sampling.decoding_rows import DecodingRows
from shiqrun.sampling.generate import sample_completions
from shiqrun.sampling.kv_cache import SLACK, SPANNED, spans_of
from shiqrun.sampling.refusals import decode_refusal
from shiqrun.types import Trajectories
from tests.support.helpers import llama, model

VOCABULARY = 48
LENGTHS = (30, 5, 1, 9, 30, 3, 12, 6)
PROMPTS = [np.random.default_rng(n).integers(0, VOCABULARY, length) for n, length in enumerate(LENGTHS)]
NEW = 12
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
OWN = {
    "llama": llama,
    "heads in groups": lambda: llama(num_attention_heads=4, num_key_value_heads=2),
    "eager": lambda: llama(attn_implementation="eager"),
    "gpt2": lambda: model(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=VOCABULARY, initializer_range=0.3)
    ),
    "a window": lambda: model(MistralConfig(**SIZES, sliding_window=4)),
    "capped, every other layer with a window": lambda: model(Gemma2Config(**SIZES, sliding_window=4)),
    "norms of queries": lambda: model(Qwen3Config(**SIZES)),
    "rotary in part": lambda: model(GPTNeoXConfig(**SMALL, intermediate_size=24, num_hidden_layers=2)),
    "positions from the mask": lambda: model(
        OPTConfig(**SMALL, ffn_dim=24, num_hidden_layers=2, word_embed_proj_dim=16, init_std=0.3)
    ),
    "no positions": lambda: model(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
    ),
}
OTHER = {
    "a state": lambda: model(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    ),
    "windows and states": lambda: model(
        RecurrentGemmaConfig(
            **{k: v for k, v in SIZES.items() if k not in ("max_position_embeddings", "head_dim", "num_hidden_layers")},
            num_hidden_layers=3,
            lru_width=16,
            attention_window_size=8,
        )
    ),
}


def sampled(policy, prompts=PROMPTS, keys=None, **options):
    plain = {"stop": [], "pad": 0, "max_new_tokens": NEW, "temperature": 1.0, "top_p": 1.0, "batch_size": 5}
    keys = [[n] for n in range(len(prompts))] if keys is None else keys
    return sample_completions(policy, prompts, keys, **(plain | options))


def tokens(found):
    return [c.tokens.tolist() for c in found]


def by_generate(causal_lm, prompts):
    """Greedy completions of prompts side by side, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p.tolist() for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    causal_lm.generation_config = GenerationConfig()  # without a stop token
    return causal_lm.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()


def next_logits(causal_lm, ids):
    with torch.no_grad():
        return causal_lm(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0, -1]


def reads(causal_lm):
    """Shapes of what the body is given from now on."""
    shapes = []
    causal_lm.base_model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("name", OWN)
def test_greedy_tokens_are_those_of_generate_in_a_batch_and_alone(name):
    causal_lm = OWN[name]()
    assert decode_refusal(causal_lm) is None
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[2:3]):
        found = tokens(sampled(Policy(causal_lm).eval(), prompts, temperature=0.0))
        assert found == by_generate(causal_lm, prompts)
    assert len({t for row in by_generate(causal_lm, PROMPTS) for t in row}) > 1


@pytest.mark.parametrize("name", OWN)
def test_the_loop_reads_what_the_model_reads_without_a_cache(name):
    """Hidden states of padded rows, equal and different prompts, some of which leave, against whole prefixes alone."""
    causal_lm = OWN[name]()
    close = {"rtol": 1e-4, "atol": 1e-4}  # float32: eager attention masks whole rows to NaN in float64
    if causal_lm.config._attn_implementation == "sdpa":
        causal_lm, close = causal_lm.double(), {}
    prompts = sorted([*PROMPTS, PROMPTS[3], PROMPTS[3]], key=lambda p: (-len(p), p.tobytes()))
    with torch.no_grad(), spanned_attention_in(causal_lm):
        rows, texts = DecodingRows(causal_lm, prompts, NEW), [p.tolist() for p in prompts]
        for step in range(NEW):
            whole = [causal_lm.base_model(input_ids=torch.tensor([x])).last_hidden_state[0, -1] for x in texts]
            torch.testing.assert_close(rows.hidden, torch.stack(whole), **close)
            if step in (3, 7):
                on = [n for n in range(len(texts)) if n % 3 != (0 if step == 3 else 1)]
                rows.keep(torch.tensor(on))
                texts = [texts[n] for n in on]
            new = torch.randint(VOCABULARY, (len(texts),), generator=torch.Generator().manual_seed(step))
            rows.read(new)
            texts = [[*text, int(t)] for text, t in zip(texts, new, strict=True)]


@pytest.mark.parametrize("name", ["llama", "a window", "gpt2"])
def test_log_probabilities_of_the_samples_are_those_that_scoring_gives(name):
    policy = Policy(OWN[name]()).eval()
    found = sampled(policy)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion.tokens]))[None]
        at = torch.arange(len(prompt), ids.shape[1])[None]
        mask = torch.ones_like(at, dtype=torch.bool)
        batch = Trajectories(ids, torch.ones_like(ids, dtype=torch.bool), at, mask, at * 0.0, torch.zeros(1).long())
        with torch.no_grad():
            scores = policy(batch)
        np.testing.assert_allclose(completion.logp, scores.logp[0].numpy(), rtol=0, atol=1e-4)  # float32


@pytest.mark.parametrize("build", [OWN["llama"], OTHER["a state"]])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.5, 1.0), (1.5, 0.7)])
def test_log_probabilities_are_under_the_distribution_that_was_drawn_from(build, temperature, top_p):
    causal_lm = build()
    for prompt, completion in zip(
        PROMPTS, sampled(Policy(causal_lm).eval(), temperature=temperature, top_p=top_p), strict=True
    ):
        text = prompt.tolist()
        for token, logp in zip(completion.tokens, completion.logp, strict=True):
            p = (next_logits(causal_lm, text).double() / (temperature or 1e-9)).softmax(-1).numpy()
            order = np.argsort(-p)
            kept = order[: np.searchsorted(p[order].cumsum(), top_p) + 1] if top_p < 1 else order
            assert token in kept
            assert abs(logp - np.log(p[token] / p[kept].sum())) < 1e-4  # float32
            text.append(int(token))


def test_samples_have_the_probabilities_of_the_model_by_a_chi_square():
    causal_lm, count = llama(), 6000
    found = sampled(Policy(causal_lm).eval(), [PROMPTS[3]] * count, max_new_tokens=2, batch_size=count)
    first = next_logits(causal_lm, PROMPTS[3]).double().softmax(-1).numpy()
    seen = Counter(map(tuple, tokens(found)))
    second = {a: next_logits(causal_lm, [*PROMPTS[3], a]).double().softmax(-1).numpy() for a in range(VOCABULARY)}
    expected = {(a, b): count * first[a] * second[a][b] for a, b in itertools.product(range(VOCABULARY), repeat=2)}
    often = [pair for pair, n in expected.items() if n >= 5]
    chi = sum((seen[pair] - expected[pair]) ** 2 / expected[pair] for pair in often)
    assert len(often) > 20
    assert abs(chi - len(often)) < 4 * (2 * len(often)) ** 0.5


@pytest.mark.parametrize("name", OTHER)
def test_a_model_with_another_cache_is_left_to_generate_and_that_is_said_once(name, caplog):
    causal_lm = OTHER[name]()
    prompts = [p for p in PROMPTS if len(p) > 1]  # to RecurrentGemma a single token is the next one of the last text
    assert "not of keys and values alone" in decode_refusal(causal_lm)
    generate._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="shiqrun"):
        found = [tokens(sampled(Policy(causal_lm).eval(), prompts, temperature=0.0, batch_size=1)) for _ in range(2)]
    assert found == [[by_generate(causal_lm, [prompt])[0] for prompt in prompts]] * 2
    (said,) = [r.getMessage() for r in caplog.records]
    assert type(causal_lm).__name__ in said
    assert "generate of transformers" in said


def test_a_model_that_takes_no_part_of_the_padding_or_the_cache_into_account_is_left_to_generate():
    def without(name):
        causal_lm = llama()
        causal_lm.base_model.register_forward_pre_hook(
            lambda module, args, given: (args, given | ({name: None} if name in given else {})), with_kwargs=True
        )
        return decode_refusal(causal_lm)

    assert without("nothing") is None
    assert "differ by" in without("attention_mask")
    assert without("past_key_values") is not None


@pytest.fixture
def a_row_each(monkeypatch):
    """Samples share no rows; `test_shared_rows` has those that do."""
    monkeypatch.setattr("shiqrun.sampling.generate.share_refusal", lambda model: "asked for by a test")


@pytest.mark.usefixtures("a_row_each")
def test_equal_prompts_are_read_once():
    causal_lm = llama()
    prompts = [PROMPTS[1]] * 4 + [PROMPTS[3]] * 2
    alone = [tokens(sampled(Policy(causal_lm).eval(), [p], [[n]]))[0] for n, p in enumerate(prompts)]
    shapes = reads(causal_lm)
    assert tokens(sampled(Policy(causal_lm).eval(), prompts, batch_size=6)) == alone
    assert (2, len(PROMPTS[3])) in shapes
    assert {rows for rows, width in shapes if width == 1} == {2, 6}  # 2 of the two rows that `decode_refusal` reads


@pytest.mark.usefixtures("a_row_each")
def test_rows_that_have_ended_leave_the_batch():
    causal_lm = llama()
    rows = [PROMPTS[3]] * 64
    long = tokens(sampled(Policy(causal_lm).eval(), rows, batch_size=64))
    stop = range(0, VOCABULARY, 4)
    cut = [next((row[: n + 1] for n, t in enumerate(row) if t in stop), row) for row in long]
    shapes = reads(causal_lm)
    assert tokens(sampled(Policy(causal_lm).eval(), rows, batch_size=64, stop=stop)) == cut
    batches = [n for n, width in shapes[4:] if width == 1]  # after the four passes of `decode_refusal`
    going_on = [sum(len(row) > step + 1 for row in cut) for step in range(len(batches))]
    assert all(n <= batch <= n * 8 / 7 + 1 for n, batch in zip(going_on, batches, strict=True))


def test_keys_and_values_stay_where_they_are():
    causal_lm = llama()
    with torch.no_grad():
        rows = DecodingRows(causal_lm, [PROMPTS[0], PROMPTS[3]], NEW)
        places = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in rows.cache.layers]
        for _ in range(NEW):
            rows.read(torch.tensor([1, 2]))
        assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in rows.cache.layers] == places
        assert rows.length == len(PROMPTS[0]) + NEW


def test_prompts_are_read_in_portions_of_so_many_tokens(monkeypatch):
    causal_lm = llama()
    expected = tokens(sampled(Policy(causal_lm).eval(), batch_size=8))
    monkeypatch.setattr("shiqrun.sampling.decoding_rows.PROMPT_TOKENS", {"cpu": 24, "cuda": 24})
    shapes = reads(causal_lm)
    assert tokens(sampled(Policy(causal_lm).eval(), batch_size=8)) == expected
    portions = [shape for shape in shapes[4:] if shape[1] > 1]
    assert portions == [(1, 30), (1, 30), (2, 12), (4, 6)]


@pytest.mark.parametrize("packing", [False, True])
def test_the_attention_of_the_model_is_put_back(packing):
    causal_lm = llama()
    if packing:
        use_packed_attention(causal_lm)
    own = causal_lm.config._attn_implementation
    with contextlib.suppress(ZeroDivisionError), spanned_attention_in(causal_lm):
        assert causal_lm.config._attn_implementation == SPANNED
        raise ZeroDivisionError
    assert causal_lm.config._attn_implementation == own
    assert reads_packed(causal_lm) == packing
    eager = llama(attn_implementation="eager")
    with spanned_attention_in(eager):
        assert eager.config._attn_implementation == "eager"


def test_spans_hold_every_row_once_and_little_padding():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        length = int(rng.integers(1, 500))
        first = np.sort(length - rng.integers(1, length + 1, size=rng.integers(1, 40))).tolist()
        spans = spans_of(first, length)
        assert [row for start, stop, _ in spans for row in range(start, stop)] == list(range(len(first)))
        for start, stop, column in spans:
            assert column == first[start]
            assert all(first[row] - column <= max(SLACK, (length - column) / 8) for row in range(start, stop))


def test_attention_by_spans_reads_less_and_gives_the_same():
    causal_lm = llama()
    prompts = sorted(PROMPTS, key=lambda p: -len(p))
    numbers = np.random.default_rng(0).random((len(prompts), NEW))
    sampling = Sampling([], NEW, 1.0, 1.0)
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, *args, **options):
        seen.append(key.shape[0] * key.shape[2] if query.shape[2] == 1 else 0)
        return attend(query, key, *args, **options)

    results = []
    for spans in (False, True):
        seen.clear()
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            if spans:
                with spanned_attention_in(causal_lm):
                    found = decode(causal_lm, head_of(causal_lm), prompts, numbers, sampling)
            else:
                found = decode(causal_lm, head_of(causal_lm), prompts, numbers, sampling)
        results.append((found[0].tolist(), sum(seen)))
    assert results[0][0] == results[1][0]
    assert results[1][1] < 0.75 * results[0][1]
