"""The fused optimiser against the plain one, and division and clipping against a loop."""

import copy

import pytest
import torch

from shiqrun.models.policy import Policy, ValueHead
from shiqrun.settings import TrainerSettings
from shiqrun.training.step.optimiser import adamw, divide_and_clip, set_learning_rates
from shiqrun.training.step.schedule import learning_rate_factor
from tests.support import helpers

RATE, DECAY, WARM_UP, STEPS = 1e-2, 0.1, 3, 12


def made(dtype=torch.float32, *, value=False):
    """A policy, and the settings of its optimiser."""
    model = helpers.llama()
    policy = Policy(model, value=ValueHead(16, "state") if value else None).to(dtype)
    settings = TrainerSettings(
        max_steps=STEPS,
        max_epochs=None,
        batch_size=2,
        micro_batch_tokens=64,
        prompts_together=False,
        learning_rate=RATE,
        weight_decay=DECAY,
        warmup_steps=WARM_UP,
        lr_schedule="cosine",
        grad_clip=None,
        log_every=1,
        checkpoint_every=1,
    )
    return policy, settings


def factor(step):
    return learning_rate_factor(step, "cosine", WARM_UP, STEPS)


def plain(policy):
    """What trained before: torch's AdamW in its loop over tensors, and a scheduler."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=DECAY, fused=False, foreach=False)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def gradients(policy, step):
    torch.manual_seed(step)
    for p in policy.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_optimiser_gives_the_weights_of_the_plain_one(dtype):
    one, settings = made(dtype)
    other, _ = made(dtype)
    fused, (loop, schedule) = adamw(one, settings, value_lr_ratio=1.0), plain(other)
    assert fused.defaults["fused"]
    for step in range(STEPS):
        gradients(one, step)
        gradients(other, step)
        assert set_learning_rates(fused, factor(step)) == pytest.approx(schedule.get_last_lr()[0])
        fused.step()
        loop.step()
        schedule.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_checkpoint_of_the_plain_optimiser_goes_on_in_the_fused_one():
    one, settings = made()
    other, _ = made()
    loop, schedule = plain(other)
    for step in range(5):
        gradients(other, step)
        loop.step()
        schedule.step()
    one.load_state_dict(other.state_dict())
    fused = adamw(one, settings, value_lr_ratio=1.0)
    fused.load_state_dict(copy.deepcopy(loop.state_dict()))  # which a file would not share
    assert all(group["fused"] for group in fused.param_groups)
    for step in range(5, STEPS):
        gradients(one, step)
        gradients(other, step)
        set_learning_rates(fused, factor(step))
        fused.step()
        loop.step()
        schedule.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_flag_for_nonsense_makes_the_fused_step_change_nothing_and_then_go_on():
    policy, settings = made()
    optimizer = adamw(policy, settings, value_lr_ratio=1.0)
    for flag in (0.0, 1.0):
        gradients(policy, 0)
        if flag:
            for p in policy.parameters():
                p.grad.fill_(float("nan"))
        before = [p.detach().clone() for p in policy.parameters()]
        optimizer.found_inf = torch.tensor(flag)
        optimizer.step()
        changed = [not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)]
        assert changed == [not flag] * len(changed)
        assert all(torch.isfinite(x).all() for state in optimizer.state.values() for x in state.values())
        assert all(state["step"] == 1 for state in optimizer.state.values())


@pytest.mark.parametrize("largest", [None, 0.5, 1e6])
def test_gradients_are_divided_and_each_group_is_clipped_apart(largest):
    policy, settings = made(torch.float64, value=True)
    optimizer = adamw(policy, settings, value_lr_ratio=7.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([RATE, 7 * RATE])
    gradients(policy, 1)
    scale, expected, norms = 1 / 40, [], []
    for group in optimizer.param_groups:
        mean = [p.grad * scale for p in group["params"]]
        norm = sum(float(g.square().sum()) for g in mean) ** 0.5
        factor = min(1.0, largest / norm) if largest else 1.0
        expected += [g * factor for g in mean]
        norms.append(norm)
    found = divide_and_clip(optimizer, torch.tensor(scale, dtype=torch.float64), largest)
    assert found.tolist() == pytest.approx(norms)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, grad in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-8)  # the norm is clipped to largest less 1e-6


def test_what_does_not_train_is_in_no_group():
    policy, settings = made()
    policy.causal_lm.get_output_embeddings().requires_grad_(False)
    (group,) = adamw(policy, settings, value_lr_ratio=1.0).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in policy.parameters() if p.requires_grad}
