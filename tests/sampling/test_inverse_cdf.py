"""Drawing: each token for a share of the uniform numbers equal to its probability, by the running sum over token ids.

Expected tokens come from a softmax and a running sum of the whole vocabulary in float64.
"""

import numpy as np
import pytest
import torch

from shiqrun.sampling.inverse_cdf import BLOCK, draw

NEVER = float("-inf")
SIZES = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 17]
ALMOST_ONE = 1 - 2.0**-53
MIXED = torch.tensor([0.0, 0.2, 1.0, 0.0, 3.0, 0.7], dtype=torch.float64)


def drawn(logits, uniforms, *, temperature=1.0, top_p=1.0):
    """The tokens that uniform numbers pick from the same logits, and their log-probabilities."""
    rows = torch.as_tensor(logits).repeat(len(uniforms), 1)
    found = draw(rows, torch.tensor(uniforms, dtype=torch.float64), temperature=temperature, top_p=top_p)
    return found.tokens.numpy(), found.logp.numpy()


def probabilities(logits, temperature=1.0, top_p=1.0):
    """`[V]` float64; the nucleus is the shortest run of the most likely tokens that reaches `top_p`."""
    p = (torch.as_tensor(logits).double() / temperature).softmax(-1).numpy()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        kept = order[: np.searchsorted(p[order].cumsum(), top_p) + 1]
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
    return p / p.sum()


def normal(size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=2, size=size)).float()


def test_each_token_is_picked_for_a_share_of_uniforms_equal_to_its_probability():
    logits, steps = [0.3, -2.0, 1.7, 1.7, -9.0, 0.0], 20_000
    share = np.bincount(drawn(logits, np.arange(steps) / steps)[0], minlength=6) / steps
    assert np.abs(share - probabilities(torch.tensor(logits))).max() <= 1 / steps


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.9), (2.0, 0.5), (0.3, 0.999)])
@pytest.mark.parametrize("size", SIZES)
def test_a_token_is_where_the_running_sum_of_the_whole_vocabulary_passes_the_number(size, temperature, top_p):
    logits, uniforms = normal(size), np.random.default_rng(1).random(2000)
    tokens, logp = drawn(logits, uniforms, temperature=temperature, top_p=top_p)
    p = probabilities(logits, temperature, top_p)
    seams = p.cumsum()
    clear = np.abs(uniforms[:, None] - seams).min(-1) > 1e-6  # float32 logits and sums: a seam is known to some 1e-7
    assert clear.mean() > 0.99
    assert (tokens == np.searchsorted(seams, uniforms, side="right"))[clear].all()
    np.testing.assert_allclose(logp, np.log(p[tokens]), rtol=0, atol=2e-6)  # float32 logarithms


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_have_the_probabilities_of_the_softmax_by_a_chi_square(top_p):
    logits, count = normal(BLOCK + 60, seed=3), 200_000
    tokens, _ = drawn(logits, np.random.default_rng(2).random(count), top_p=top_p)
    expected = probabilities(logits, top_p=top_p) * count
    seen = np.bincount(tokens, minlength=len(logits))
    assert not seen[expected == 0].any()
    often = expected >= 5
    chi = ((seen - expected)[often] ** 2 / expected[often]).sum()
    degrees = often.sum() - 1
    assert abs(chi - degrees) < 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("at", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 40])
def test_a_token_of_probability_zero_is_never_drawn(at):
    """Two tokens that can be drawn, among zeros, at the borders of blocks and at both ends."""
    logits = torch.full((2 * BLOCK + 41,), NEVER)
    logits[[at, 70]] = torch.tensor([2.0, 1.0])
    first, last = sorted([at, 70])
    uniforms = np.concatenate([[0.0, 2.0**-53, ALMOST_ONE], np.random.default_rng(0).random(500)])
    for top_p in (1.0, 0.95):
        tokens, logp = drawn(logits, uniforms, top_p=top_p)
        assert set(tokens) == {first, last}
        assert (tokens[0], tokens[2]) == (first, last)
        assert np.isfinite(logp).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_the_ends_of_the_interval_pick_the_first_and_the_last_token_that_can_be(size, top_p):
    for seed in range(20):
        logits = normal(size, seed=seed)
        kept = np.flatnonzero(probabilities(logits, top_p=top_p))
        assert drawn(logits, [0.0, ALMOST_ONE], top_p=top_p)[0].tolist() == [kept[0], kept[-1]]


def test_the_nucleus_of_a_flat_vocabulary_is_as_large_as_it_must_be():
    size = 40 * BLOCK
    tokens, logp = drawn(torch.zeros(size), np.random.default_rng(0).random(4000), top_p=0.9)
    share = 1 / np.ceil(0.9 * size)
    np.testing.assert_allclose(np.exp(logp), share, rtol=1e-5)  # float32
    assert len(set(tokens)) > 2000


def test_every_row_has_its_own_logits_number_and_nucleus():
    logits, uniforms = torch.stack([normal(300, seed=s) * (s + 1) for s in range(8)]), np.linspace(0.05, 0.95, 8)
    for top_p in (1.0, 0.6):
        together = draw(logits.clone(), torch.from_numpy(uniforms), temperature=1.0, top_p=top_p)
        alone = [drawn(row, [u], top_p=top_p)[0][0] for row, u in zip(logits, uniforms, strict=True)]
        assert together.tokens.tolist() == alone


def test_at_temperature_zero_the_lowest_of_the_most_likely_tokens_is_taken():
    logits = torch.zeros(3, 500)
    logits[0, [7, 8, 400]], logits[1, [499]] = 3.0, 1.0
    found = draw(logits, torch.full((3,), 0.99, dtype=torch.float64), temperature=0.0, top_p=0.5)
    assert found.tokens.tolist() == [7, 499, 0]
    assert found.logp.tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [5, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK + 40])
def test_the_most_likely_token_is_that_of_argmax_wherever_it_and_its_equals_are(size):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randint(4, (200, size), generator=generator).float()  # few values, so that many are equal
    logits[:100] = torch.randn(100, size, generator=generator)
    logits[torch.arange(100), torch.randint(size, (100,), generator=generator)] = 9
    expected = logits.argmax(-1)
    drawn = draw(logits.clone(), torch.zeros(200, dtype=torch.float64), temperature=0.0, top_p=1.0)
    assert drawn.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.5, 1.0), (0.7, 0.6), (MIXED, 0.8)])
def test_numbers_that_share_a_row_draw_as_from_rows_of_their_own(temperature, top_p):
    generator = torch.Generator().manual_seed(0)
    logits, row = torch.randn(5, 3 * BLOCK + 7, generator=generator) * 3, torch.tensor([0, 0, 1, 3, 3, 3, 4, 2])
    uniforms = torch.rand(len(row), generator=generator, dtype=torch.float64)
    own = each = temperature
    if isinstance(temperature, torch.Tensor):
        own = temperature[:5]
        each = own[row]
    asked = {"top_p": top_p, "describe": True}
    shared = draw(logits.clone(), uniforms, temperature=own, rows=row, **asked)
    alone = draw(logits[row], uniforms, temperature=each, **asked)
    assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_large_logits_and_small_temperatures_overflow_nowhere():
    tokens, logp = drawn(torch.tensor([3e38, -3e38, 1.0, 3e38]), [0.2, 0.7], temperature=0.01)
    assert tokens.tolist() == [0, 3]
    np.testing.assert_allclose(logp, np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_row_with_a_temperature_of_its_own_is_drawn_as_if_it_were_alone(size, top_p):
    logits = torch.stack([normal(size, seed=s) for s in range(len(MIXED))])
    logits[3, -1] = logits[3].max()  # two that are most likely: the lowest is taken at temperature 0
    for seed in range(20):
        uniforms = np.random.default_rng(seed).random(len(MIXED))
        together = draw(logits.clone(), torch.from_numpy(uniforms), temperature=MIXED, top_p=top_p)
        alone = [
            drawn(row, [u], temperature=t, top_p=top_p)
            for row, u, t in zip(logits, uniforms, MIXED.tolist(), strict=True)
        ]
        assert together.tokens.tolist() == [tokens[0] for tokens, _ in alone]
        np.testing.assert_allclose(together.logp, np.concatenate([logp for _, logp in alone]), rtol=0, atol=1e-6)
        assert together.policy_logp is None


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 30.0, MIXED])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_the_policys_own_log_probability_is_the_log_softmax_of_the_logits(temperature, top_p):
    """Tokens far from the most likely one, which only a high temperature draws, among them."""
    logits = torch.stack([normal(3 * BLOCK + 5, seed=s) * 10 for s in range(len(MIXED))])
    for seed in range(20):
        uniforms = torch.from_numpy(np.random.default_rng(seed).random(len(MIXED)))
        options = {"temperature": temperature, "top_p": top_p}
        found = draw(logits.clone(), uniforms, **options, describe=True)
        plain = draw(logits.clone(), uniforms, **options)
        assert torch.equal(found.tokens, plain.tokens)
        assert torch.equal(found.logp, plain.logp)
        assert plain.policy_logp is None
        expected = logits.double().log_softmax(-1).gather(1, found.tokens[:, None])[:, 0]
        np.testing.assert_allclose(found.policy_logp, expected, rtol=1e-6, atol=1e-5)  # float32 logits up to 80
