"""Sampling: each token by its probability, the same completion whatever rows stand beside it, nothing of the model's
own generation settings. Expected completions come from a loop that reads the whole prefix at every step.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, GPT2Config

from shiqrun.models.head import give_float32_logits
from shiqrun.models.policy import Policy, prepare
from shiqrun.sampling.generate import InverseCdf, sample_completions
from shiqrun.sampling.refusals import decode_refusal
from tests.support.helpers import llama, model, settings

VOCABULARY = 48
PROMPTS = [np.random.default_rng(7).integers(0, VOCABULARY, n) for n in (5, 1, 9, 3, 9, 12, 2, 6)]
KEYS = [[0, 1, n] for n in range(len(PROMPTS))]
STOP = (5, 7, 11)
PLAIN = {"pad": 0, "max_new_tokens": 10, "temperature": 1.0, "top_p": 1.0}
MODES = [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.0, 0.9), (0.7, 0.5)]


def gpt2(**options):
    """A GPT-2 of two layers, with positions that count."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": VOCABULARY}
    return model(GPT2Config(**(sizes | {"initializer_range": 0.3} | options)))


def sampled(policy, prompts=PROMPTS, keys=KEYS, **options):
    plain = {"stop": STOP, "pad": 0, "max_new_tokens": 10, "temperature": 1.0, "top_p": 1.0, "batch_size": 3}
    found = sample_completions(policy, prompts, keys, **(plain | options))
    return [(c.tokens.tolist(), c.ended) for c in found]


@torch.no_grad()
def naive(causal_lm, prompt, key, *, temperature=1.0, top_p=1.0, stop=STOP, max_new_tokens=10):
    """One completion: at every step a softmax of the last logits, the nucleus cut by hand, the inverse CDF."""
    ids, made = prompt.tolist(), []
    for uniform in np.random.default_rng(key).random(max_new_tokens):
        logits = causal_lm(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1].double().numpy()
        if temperature == 0:
            made.append(int(logits.argmax()))
        else:
            p = np.exp((logits - logits.max()) / temperature)
            p /= p.sum()
            nucleus, total = np.zeros(len(p), bool), 0.0
            for token in np.argsort(-p):
                if total >= top_p and top_p < 1:
                    break
                nucleus[token], total = True, total + p[token]
            p = np.where(nucleus, p, 0)
            below = 0.0
            for token, share in enumerate(p / p.sum()):
                below += share
                if uniform < below:
                    made.append(token)
                    break
        if made[-1] in stop:
            return made, True
    return made, False


def test_as_a_logits_processor_each_step_has_a_uniform_of_its_own():
    uniforms = torch.tensor([[0.1, 0.9], [0.6, 0.4]], dtype=torch.float64)
    cdf, flat = InverseCdf(uniforms, temperature=1.0, top_p=1.0), torch.zeros(2, 4)
    left = [cdf(None, flat) for _ in range(2)]
    assert [x.argmax(-1).tolist() for x in left] == [[0, 2], [3, 1]]
    assert all(torch.equal(x.isfinite().sum(-1), torch.ones(2, dtype=torch.long)) for x in left)
    assert torch.equal(flat, torch.zeros(2, 4))
    assert torch.equal(torch.stack(cdf.logp), torch.full((2, 2), 0.25).log())


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize(("temperature", "top_p"), MODES)
def test_completions_are_those_of_a_loop_over_unpadded_prefixes(build, temperature, top_p):
    causal_lm = build()
    expected = [
        naive(causal_lm, p, k, temperature=temperature, top_p=top_p) for p, k in zip(PROMPTS, KEYS, strict=True)
    ]
    assert sampled(Policy(causal_lm), temperature=temperature, top_p=top_p) == expected
    if temperature == 1:
        assert {ended for _, ended in expected} == {True, False}, "the test data should hold both"


def test_no_uniform_number_is_drawn_from_the_global_generators():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = sampled(Policy(llama()))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    np.random.seed(4)
    assert sampled(Policy(llama())) == first


@pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_completion_depends_on_no_other_row(build, batch_size):
    policy = Policy(build())
    expected = sampled(policy)
    assert sampled(policy, batch_size=batch_size) == expected
    order = np.random.default_rng(1).permutation(len(PROMPTS))[:5]
    assert sampled(policy, [PROMPTS[i] for i in order], [KEYS[i] for i in order], batch_size=batch_size) == [
        expected[i] for i in order
    ]


def test_equal_keys_give_equal_completions_and_other_keys_others():
    policy, same = Policy(llama()), [PROMPTS[0]] * 40
    assert len({tuple(tokens) for tokens, _ in sampled(policy, same, [[3]] * 40)}) == 1
    assert len({tuple(tokens) for tokens, _ in sampled(policy, same, [[3, 1, n] for n in range(40)])}) > 20


def test_a_completion_ends_with_its_first_stop_token_and_no_other_token_ends_it():
    rows, keys = [PROMPTS[0]] * 64, [[n] for n in range(64)]
    found = sampled(Policy(llama()), rows, keys, max_new_tokens=12)
    assert {ended for _, ended in found} == {True, False}
    for tokens, ended in found:
        assert not set(tokens[:-1]) & set(STOP)
        assert (tokens[-1] in STOP) == ended
        assert ended or len(tokens) == 12
    assert {tokens[-1] for tokens, ended in found if ended} == set(STOP)


@pytest.mark.parametrize("pad", [0, 5, 20])
def test_padding_is_no_token_of_a_completion_even_where_it_is_a_stop_token_or_a_common_one(pad):
    causal_lm = llama()
    expected = [naive(causal_lm, p, k) for p, k in zip(PROMPTS, KEYS, strict=True)]
    assert sampled(Policy(causal_lm), pad=pad) == expected


def test_a_policy_samples_its_padding_token_like_any_other():
    causal_lm = llama()
    expected = [naive(causal_lm, p, k) for p, k in zip(PROMPTS, KEYS, strict=True)]
    common = int(np.bincount([t for tokens, _ in expected for t in tokens[:-1]]).argmax())
    assert sampled(Policy(causal_lm), pad=common) == expected


def test_without_stop_tokens_every_completion_is_cut_off_at_max_new_tokens():
    found = sampled(Policy(llama()), stop=(), max_new_tokens=7)
    assert [(len(tokens), ended) for tokens, ended in found] == [(7, False)] * len(PROMPTS)


def test_a_stop_token_at_the_last_place_ends_a_completion():
    causal_lm = llama()
    (tokens, _) = naive(causal_lm, PROMPTS[0], KEYS[0], stop=(), max_new_tokens=3)
    last = tokens[-1]
    assert last not in tokens[:-1]
    assert sampled(Policy(causal_lm), PROMPTS[:1], KEYS[:1], stop=[last], max_new_tokens=3) == [(tokens, True)]


def test_no_prompts_give_no_completions():
    assert sampled(Policy(llama()), [], []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_generation_settings_do_not_leak_in_and_are_put_back(temperature):
    causal_lm = llama()
    expected = sampled(Policy(causal_lm), temperature=temperature)
    causal_lm.generation_config = own = GenerationConfig(
        do_sample=True,
        temperature=0.01,
        top_k=1,
        top_p=0.1,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        eos_token_id=[1, 2, 3, 4],
        min_new_tokens=9,
        max_new_tokens=2,
        suppress_tokens=[20, 21],
        num_beams=3,
        num_return_sequences=2,
        use_cache=False,
    )
    assert sampled(Policy(causal_lm), temperature=temperature) == expected
    assert causal_lm.generation_config is own


def test_the_models_own_generation_settings_are_put_back_after_an_error():
    policy = Policy(llama()).train()
    own = policy.model.generation_config
    with pytest.raises(IndexError):
        sampled(policy, [np.array([VOCABULARY + 1])], [[0]])
    assert policy.model.generation_config is own
    assert policy.training


@pytest.mark.parametrize("training", [True, False])
def test_dropout_and_gradient_checkpointing_are_off_while_sampling_and_the_mode_is_put_back(training):
    expected = sampled(Policy(gpt2()))
    noisy = gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    noisy.gradient_checkpointing_enable()
    policy = Policy(noisy).train(training)
    assert sampled(policy) == expected
    assert {module.training for module in policy.modules()} == {training}
    assert policy.model.is_gradient_checkpointing


def test_in_bfloat16_the_samples_are_of_the_distribution_that_is_scored():
    causal_lm = llama(vocabulary=400, hidden_size=32, initializer_range=0.5)
    policy, steps = Policy(causal_lm, autocast=torch.bfloat16), 300
    keys = [[n] for n in range(steps)]
    prompt = PROMPTS[2]
    found = sampled(policy, [prompt] * steps, keys, max_new_tokens=1, batch_size=steps)
    with torch.no_grad():
        ids = torch.from_numpy(prompt)[None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            last = causal_lm.base_model(input_ids=ids).last_hidden_state[0, -1].float()
        p = (causal_lm.get_output_embeddings().weight.float() @ last).double().softmax(-1).numpy()
    uniforms = [np.random.default_rng(key).random() for key in keys]
    assert [tokens for tokens, _ in found] == [[int(np.searchsorted(p.cumsum(), u, side="right"))] for u in uniforms]
    assert not policy.causal_lm.get_output_embeddings()._forward_hooks


def test_a_policy_as_its_reference_answers_without_its_adapter():
    pytest.importorskip("peft")
    base = sampled(Policy(llama()))
    policy = Policy(prepare(llama(), settings(lora_r=4, lora_alpha=64.0)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    adapted = sampled(policy)
    assert adapted != base
    with policy.as_reference():
        assert sampled(policy) == base
    assert sampled(policy) == adapted


def test_every_step_reads_one_token_and_none_is_taken_once_every_row_has_ended(monkeypatch):
    causal_lm, widths = llama(), []
    assert decode_refusal(causal_lm) is None
    monkeypatch.setattr(
        "shiqrun.sampling.generate.decode_refusal", lambda model: None
    )  # its passes are not to be counted
    causal_lm.base_model.register_forward_pre_hook(
        lambda module, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    found = sampled(Policy(causal_lm), PROMPTS[:3], KEYS[:3], max_new_tokens=40, stop=range(1, VOCABULARY, 2))
    assert all(ended for _, ended in found)
    assert widths == [max(len(p) for p in PROMPTS[:3]), *[1] * (max(len(tokens) for tokens, _ in found) - 1)]


class WideCasts(TorchDispatchMode):
    """Counts casts of tensors of a size."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["rows of their own", "shared rows", "generate"])
def test_a_head_of_16_bits_is_cast_once_and_its_samples_have_the_scores_log_probabilities(way, monkeypatch):
    causal_lm = llama().to(torch.bfloat16)
    give_float32_logits(causal_lm)  # as `build_model` does
    if way == "generate":
        monkeypatch.setattr("shiqrun.sampling.generate.decode_refusal", lambda model: "asked for by a test")
    prompts = PROMPTS[:3] if way != "shared rows" else [PROMPTS[0]] * 6
    with WideCasts(causal_lm.lm_head.weight.shape) as casts:
        found = sample_completions(
            Policy(causal_lm).eval(), prompts, [[n] for n in range(len(prompts))], **PLAIN, stop=[], batch_size=8
        )
    assert casts.count == 1
    assert "forward" not in vars(causal_lm.lm_head)
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion.tokens]))[None]
        with torch.no_grad():
            logp = causal_lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, ids[0, len(prompt) :, None])[:, 0]
        np.testing.assert_allclose(completion.logp, expected.numpy(), rtol=0, atol=0.1)  # bfloat16 body
