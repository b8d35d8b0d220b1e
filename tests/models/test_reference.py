import functools

import pytest
import torch
from torch.testing import assert_close

from shiqrun.losses import shiq
from shiqrun.models.policy import Policy, prepare
from shiqrun.models.reference import AdapterOff, FrozenReference, scores_in_batch, weights_fingerprint
from shiqrun.models.reference_cache import cache_key, cached_scores
from shiqrun.training.step.method import AlgoSettings, Method, TrainerSettings
from tests.support.helpers import llama, rows, settings


def policy_of(*, lora_r=0):
    return Policy(prepare(llama(), settings(lora_r=lora_r)))


def scores_of(policy, given, directory):
    key = cache_key(policy, given, weights_fingerprint(policy.causal_lm))
    return cached_scores(policy, given, directory, key=key, tokens=30, device=torch.device("cpu")).scores


def perturb(policy):
    for p in policy.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.5)


def test_cached_frozen_and_adapter_give_the_scores_of_the_policy_at_step_0(tmp_path):
    policy, given = policy_of(lora_r=2), rows()
    frozen, adapter = FrozenReference(policy), AdapterOff(policy)
    given = given.with_column("reference", scores_of(policy, given, tmp_path))
    batch = given.collate([3, 1, 7, 5])
    at_start = policy(batch)
    perturb(policy)
    assert (policy(batch).logp - at_start.logp).abs().max() > 0.1
    for kind in (frozen, adapter, scores_in_batch):
        found = kind(batch)
        assert_close(found.logit, at_start.logit.detach())
        assert_close(found.log_partition, at_start.log_partition.detach())
        assert not found.logit.requires_grad
        assert not found.log_partition.requires_grad


def test_without_cached_scores_cached_says_so():
    with pytest.raises(ValueError, match="no cached reference scores"):
        scores_in_batch(rows().collate([0]))


def test_fingerprint_takes_scalars_and_half_precision():
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    one = weights_fingerprint(module)
    module.scale.data += 1
    assert weights_fingerprint(module) != one


def test_a_frozen_reference_is_in_no_state_dict_and_no_optimiser():
    policy = policy_of()
    frozen = FrozenReference(policy)
    options = {
        "max_steps": 2,
        "max_epochs": None,
        "batch_size": 2,
        "micro_batch_tokens": 64,
        "log_every": 1,
        "prompts_together": False,
    }
    optimiser = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0, "lr_schedule": "constant"}
    made = TrainerSettings(**options, **optimiser, grad_clip=None, checkpoint_every=1)
    plain = AlgoSettings(reference="frozen", reward_offset="none")
    method = Method(policy, frozen, functools.partial(shiq, beta=0.5), made, max_steps=2, seed=0, algo=plain)
    assert set(method.state_dict()) == {f"policy.{name}" for name in policy.state_dict()}
    (optimizer,), _ = method.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in policy.parameters()}
    assert not any(p.requires_grad for p in frozen.policy.parameters())
    assert not frozen.policy.training
