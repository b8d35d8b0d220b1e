"""What each of two ranks holds of a run's models; the other rank answers nothing, so that no numbers are compared."""

import functools

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from shiqrun import losses
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference
from shiqrun.settings import AlgoSettings
from shiqrun.training.shared_weights import SharedWeights
from shiqrun.training.step.sharded import ShardedMethod
from tests.support import helpers
from tests.training.step.fitting import method


@pytest.fixture
def mesh():
    """Of the first of two ranks."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def held(policy):
    """Numbers that this rank holds of a policy's weights."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in policy.parameters())


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
