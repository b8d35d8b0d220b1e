"""Rows of several temperatures, and what the policy itself gives the tokens: exact against softmaxes in float64.

Expected probabilities come from a forward pass over whole texts without a cache, by the softmax at the row's own
temperature cut to the nucleus by hand; those of the policy from scoring.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import MambaConfig

from shiqrun.models.policy import Policy
from shiqrun.sampling.generate import sample_completions
from shiqrun.sampling.refusals import decode_refusal
from shiqrun.types import Trajectories
from tests.support.helpers import llama, model

VOCABULARY = 48
PROMPTS = [np.random.default_rng(7).integers(0, VOCABULARY, n) for n in (5, 2, 9, 3, 9, 12, 2, 6)]
KEYS = [[0, 1, n] for n in range(len(PROMPTS))]
TEMPERATURES = [0.0, 0.3, 1.0, 2.0, 0.7, 0.0, 1.0, 0.1]
STOP = (5, 7, 11)


def mamba():
    """A model that is left to `generate`; of larger weights it would say one thing only."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    return model(MambaConfig(**sizes, initializer_range=0.1))


BUILDS = {"own loop": llama, "generate": mamba}


@pytest.fixture(params=BUILDS)
def causal_lm(request):
    built = BUILDS[request.param]()
    assert (decode_refusal(built) is None) == (request.param == "own loop")
    return built


def sampled(policy, prompts=PROMPTS, keys=KEYS, **options):
    plain = {"stop": STOP, "pad": 0, "max_new_tokens": 10, "temperature": TEMPERATURES, "top_p": 1.0, "batch_size": 5}
    return sample_completions(policy, prompts, keys, **(plain | options))


@torch.no_grad()
def next_logits(causal_lm, ids):
    """`[V]` float64 after the ids."""
    return causal_lm(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0, -1].double().numpy()


def distribution(logits, temperature, top_p):
    """`[V]` float64: the softmax, cut to the shortest run of the likeliest tokens that reaches `top_p`."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = p[order].cumsum() - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


@torch.no_grad()
def scored(policy, prompt, tokens):
    """`[A]`: the policy's log-probabilities of the tokens, as training takes them."""
    ids = torch.from_numpy(np.concatenate([prompt, tokens]))[None]
    at = torch.arange(len(prompt), ids.shape[1])[None]
    mask = torch.ones_like(at, dtype=torch.bool)
    batch = Trajectories(ids, torch.ones_like(ids, dtype=torch.bool), at, mask, at * 0.0, torch.zeros(1).long())
    return policy(batch).logp[0].numpy()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_row_among_others_of_other_temperatures_is_the_row_alone(causal_lm, top_p, batch_size):
    policy = Policy(causal_lm).eval()
    together = sampled(policy, top_p=top_p, batch_size=batch_size, describe=True)
    for n, found in enumerate(together):
        options = {"temperature": TEMPERATURES[n], "top_p": top_p, "describe": True}
        (alone,) = sampled(policy, PROMPTS[n : n + 1], KEYS[n : n + 1], **options)
        assert (found.tokens.tolist(), found.ended) == (alone.tokens.tolist(), alone.ended)
        for one, other in ((found.logp, alone.logp), (found.policy_logp, alone.policy_logp)):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)  # float32 logits over a temperature of 0.1
    assert {found.ended for found in together} == {True, False}, "the test data should hold both"


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_one_temperature_for_all_and_the_same_for_each_are_bit_for_bit_the_same(causal_lm, temperature, top_p):
    policy = Policy(causal_lm).eval()
    for describe in (False, True):
        one, each = (
            sampled(policy, temperature=t, top_p=top_p, describe=describe)
            for t in (temperature, np.full(len(PROMPTS), temperature))
        )
        for a, b in zip(one, each, strict=True):
            assert (a.tokens.tobytes(), a.logp.tobytes()) == (b.tokens.tobytes(), b.logp.tobytes())


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_have_the_probabilities_of_the_softmax_at_each_rows_own_temperature(causal_lm, top_p):
    """Pairs of two tokens, so that the second step's temperatures are those of its rows, some of which have left."""
    several, count = (0.4, 1.0, 1.8), 4000
    prompt, temperatures = PROMPTS[3], np.tile(several, count)
    rows = len(temperatures)
    options = {"max_new_tokens": 2, "top_p": top_p, "batch_size": rows, "temperature": temperatures.tolist()}
    found = sampled(Policy(causal_lm).eval(), [prompt] * rows, [[n] for n in range(rows)], **options)
    after = {a: next_logits(causal_lm, [*prompt, a]) for a in range(VOCABULARY)}
    for temperature in several:
        seen = Counter(tuple(c.tokens) for c, t in zip(found, temperatures, strict=True) if t == temperature)
        first = distribution(next_logits(causal_lm, prompt), temperature, top_p)
        expected = {(a,): count * first[a] for a in STOP}
        for a in set(range(VOCABULARY)) - set(STOP):
            second = distribution(after[a], temperature, top_p)
            expected |= {(a, b): count * first[a] * second[b] for b in range(VOCABULARY)}
        assert not [pair for pair in seen if not expected[pair]]
        chi_square_holds(np.array([seen[pair] for pair in expected]), np.array(list(expected.values())))


def chi_square_holds(seen, expected):
    """Cells that are expected 5 times or more, and all others as one."""
    often = expected >= 5
    seen, expected = (np.append(x[often], x[~often].sum()) for x in (seen, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    assert len(seen) > 10
    chi, degrees = ((seen - expected) ** 2 / expected).sum(), len(seen) - 1
    assert abs(chi - degrees) < 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_log_probabilities_are_those_of_scoring_and_of_the_softmax_drawn_from(causal_lm, top_p):
    policy = Policy(causal_lm).eval()
    for n, found in enumerate(sampled(policy, top_p=top_p, describe=True)):
        assert found.policy_logp.dtype == np.float32
        expected = scored(policy, PROMPTS[n], found.tokens)
        np.testing.assert_allclose(found.policy_logp, expected, rtol=0, atol=1e-5)  # float32
        text = PROMPTS[n].tolist()
        for token, logp in zip(found.tokens, found.logp, strict=True):
            p = distribution(next_logits(causal_lm, text), TEMPERATURES[n] or 1e-9, top_p)
            assert abs(logp - np.log(p[token])) < 1e-4  # float32 logits over a temperature of 0.1
            text.append(int(token))


def test_the_policys_log_probability_is_that_of_the_draw_where_nothing_is_changed(causal_lm):
    policy = Policy(causal_lm).eval()
    plain, described = (sampled(policy, temperature=1.0, describe=d) for d in (False, True))
    assert [c.policy_logp for c in plain] == [None] * len(PROMPTS)
    assert [c.logp.tobytes() for c in plain] == [c.logp.tobytes() for c in described]
    assert [c.policy_logp.tobytes() for c in described] == [c.logp.tobytes() for c in described]


@pytest.mark.parametrize(
    ("temperature", "said"),
    [([1.0] * 7, r"\(7,\) given.*each of 8"), (-0.5, "at least 0"), ([1.0] * 7 + [float("nan")], "at least 0")],
)
def test_temperatures_that_are_not_one_for_each_prompt_are_refused(temperature, said):
    with pytest.raises(ValueError, match=said):
        sampled(Policy(llama()), temperature=temperature)


def test_every_prompt_has_its_own_temperature_whatever_the_order():
    """Longer prompts stand first in a batch: temperatures go with them."""
    policy = Policy(llama()).eval()
    for order in itertools.islice(itertools.permutations(range(len(PROMPTS))), 0, 40_000, 9973):
        found = sampled(
            policy, *([x[n] for n in order] for x in (PROMPTS, KEYS)), temperature=[TEMPERATURES[n] for n in order]
        )
        expected = sampled(policy)
        assert [c.tokens.tolist() for c in found] == [expected[n].tokens.tolist() for n in order]
