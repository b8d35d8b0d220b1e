"""Stochastic rounding is unbiased and repeatable, and AdamW with it trains as AdamW in float32 does."""

import copy

import pytest
import torch

from shiqrun.training.step.rounding import CHUNK, Noise, RoundedAdamW, round_to_bfloat16

RATE = 1e-5


def noise(size, seed=0):
    return Noise.bits(size, torch.Generator().manual_seed(seed)) & 0xFFFF


def optimizer(*params, seed=0, rate=RATE):
    return RoundedAdamW([{"params": list(params)}], lr=rate, weight_decay=0.1, noise=Noise(seed))


def weights(dtype, size=4000):
    """Of the size that real weights have, the same in both dtypes."""
    made = torch.randn(size, generator=torch.Generator().manual_seed(1)).mul_(0.02).bfloat16()
    return torch.nn.Parameter(made.to(dtype))


def gradient(p, step):
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 + step)).add_(0.3).to(p.dtype)


def train(optimizer, p, steps):
    for step in steps:
        gradient(p, step)
        optimizer.moment = (step, 1)
        optimizer.step()


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_keeps_the_expectation_and_takes_the_two_nearest_numbers(sign):
    x = torch.full((200_000,), sign * 1.001)
    found = round_to_bfloat16(x, noise(len(x)))
    low, high = sign * 1.0, sign * 1.0078125
    assert set(found.unique().tolist()) == {low, high}
    share = 0.001 / 0.0078125
    assert float((found == high).float().mean()) == pytest.approx(share, abs=4 * (share / len(x)) ** 0.5)


def test_what_bfloat16_holds_stays_as_it_is():
    x = torch.cat([torch.randn(1000).bfloat16().float(), torch.tensor([0.0, -0.0, float("inf"), -float("inf")])])
    assert torch.equal(round_to_bfloat16(x, noise(len(x))).float(), x)
    assert torch.equal(round_to_bfloat16(x, torch.full((len(x),), 0xFFFF, dtype=torch.int32)).float(), x)


def test_weights_move_on_average_as_in_float32_where_plain_adamw_leaves_them():
    exact, rounded, trap = weights(torch.float32), weights(torch.bfloat16), weights(torch.bfloat16)
    start = exact.detach().clone()
    train(optimizer(exact), exact, range(1, 31))
    train(optimizer(rounded), rounded, range(1, 31))
    plain = torch.optim.AdamW([trap], lr=RATE, weight_decay=0.1, fused=True)
    train(plain, trap, range(1, 31))
    moved = [(p.detach().float() - start).mean().item() for p in (exact, rounded, trap)]
    assert moved[1] == pytest.approx(moved[0], rel=0.1)
    assert abs(moved[2]) < 0.5 * abs(moved[0])
    still = [(p.detach().float() == start).float().mean().item() for p in (exact, rounded, trap)]
    assert still[0] < 0.05
    assert still[2] > 0.5 > still[1]


def test_float32_parameters_get_the_weights_of_torch():
    ours, theirs = weights(torch.float32), weights(torch.float32)
    train(optimizer(ours, rate=1e-2), ours, range(1, 9))
    train(torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, fused=True), theirs, range(1, 9))
    assert torch.equal(ours, theirs)


def test_the_noise_is_a_function_of_seed_step_update_and_parameter():
    device = torch.device("cpu")
    drawn = {
        what: tuple(Noise.bits(3, Noise(what[0]).of(what[1:3], what[3], device)).tolist())
        for what in ((0, 1, 1, 0), (1, 1, 1, 0), (0, 2, 1, 0), (0, 1, 2, 0), (0, 1, 1, 1))
    }
    assert len(set(drawn.values())) == len(drawn)
    one, other = Noise(0), Noise(0)
    one.of((1, 1), 5, device)  # what was drawn before does not matter
    again = [tuple(Noise.bits(3, n.of((1, 1), 0, device)).tolist()) for n in (one, other)]
    assert set(again) == {drawn[0, 1, 1, 0]}


def test_a_loaded_state_goes_on_to_the_same_bits():
    whole, part = weights(torch.bfloat16), weights(torch.bfloat16)
    train(optimizer(whole, rate=1e-3), whole, range(1, 9))
    before = optimizer(part, rate=1e-3)
    train(before, part, range(1, 5))
    after = optimizer(part, rate=1e-3)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, part, range(5, 9))
    assert torch.equal(whole, part)


def test_the_flag_for_nonsense_makes_a_step_change_nothing_and_not_count():
    p = weights(torch.bfloat16)
    made = optimizer(p, rate=1e-2)
    train(made, p, [1])
    state = {name: x.clone() for name, x in made.state[p].items()}
    before = p.detach().clone()
    p.grad = torch.full_like(p, float("nan"))
    made.found_inf, made.moment = torch.tensor(1.0), (2, 1)
    made.step()
    assert torch.equal(p, before)
    assert all(torch.equal(x, made.state[p][name]) for name, x in state.items())
    assert state["step"] == 1
    made.found_inf = torch.tensor(0.0)
    train(made, p, [2])
    assert not torch.equal(p, before)


def test_a_parameter_larger_than_a_chunk_takes_one_step(monkeypatch):
    whole, cut = weights(torch.float32), weights(torch.float32)
    train(optimizer(whole, rate=1e-2), whole, range(1, 4))
    monkeypatch.setattr("shiqrun.training.step.rounding.CHUNK", 1 << 10)
    assert CHUNK > 1 << 10
    made = optimizer(cut, rate=1e-2)
    train(made, cut, range(1, 4))
    assert torch.equal(whole, cut)
    assert made.state[cut]["step"] == 3
