"""A run's models in parts: what one of two ranks holds, of which the other is none, and what one rank computes."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from shiqrun import losses
from shiqrun.models.policy import Policy, prepare
from shiqrun.models.reference import AdapterOff, FrozenReference, frozen_copies
from shiqrun.models.sharding import shard
from shiqrun.settings import AlgoSettings
from shiqrun.training.shared_weights import SharedWeights
from shiqrun.training.step.sharded import ShardedMethod
from tests.support import helpers
from tests.training.step.fitting import method


@pytest.fixture
def mesh(request):
    """Of the first of so many ranks."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield init_device_mesh("cpu", (request.param,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def held(policy):
    """Numbers that this rank holds of a policy's weights."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in policy.parameters())


@pytest.mark.parametrize("mesh", [2], indirect=True)
def test_a_rank_holds_half_of_the_policy_and_of_each_frozen_copy(mesh):
    policy = Policy(helpers.llama())
    of_method, of_evaluation = FrozenReference(policy), FrozenReference(policy)
    settings = method().settings
    algo = AlgoSettings(reference="frozen", reward_offset="none")
    made = ShardedMethod(
        policy, of_method, functools.partial(losses.shiq, beta=0.5), settings, max_steps=1, seed=0, algo=algo
    )
    made._device_mesh = mesh
    whole = held(policy)
    SharedWeights(policy, [of_method, of_evaluation, of_method, None]).shard_with(made)
    made.configure_model()
    assert [held(x) / whole for x in (policy, of_method.policy, of_evaluation.policy)] == pytest.approx(
        [0.5] * 3, abs=0.02
    )


@pytest.mark.parametrize("mesh", [1], indirect=True)
@pytest.mark.parametrize("lora", [0, 4])
def test_a_policy_is_compared_over_the_vocabulary_with_a_reference_in_parts(mesh, lora):
    policy = Policy(prepare(helpers.llama(), helpers.settings(lora_r=lora)))
    reference = AdapterOff(policy) if lora else FrozenReference(policy)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p.add_(0.1 if "lora_B" in name or not lora else 0.0)
    batch, found = helpers.rows(4).collate([0, 1, 2, 3]), []
    for cut in (False, True):
        for model in dict.fromkeys((policy, *frozen_copies(reference))) if cut else ():
            shard(model, mesh)
        for _ in range(2):
            policy.zero_grad()
            scores = policy(batch, against=reference.with_states(batch)[1])
            scores.kl.sum().backward()
            gradients = [p.grad for p in policy.parameters() if p.grad is not None]
            norm = torch.stack([(g.to_local() if isinstance(g, DTensor) else g).norm() for g in gradients]).norm()
            found.append((float(scores.kl.detach().sum()), float(norm)))
    assert found[0][0] > 0.01
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-5)
