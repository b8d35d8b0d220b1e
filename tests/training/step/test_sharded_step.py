"""Clipping and AdamW on weights that ranks hold in parts give the numbers of one process."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from shiqrun.training.step.optimiser import divide_and_clip
from shiqrun.training.step.rounding import Noise, RoundedAdamW
from tests.support.ranks import on_ranks

STEPS = 3


def steps(dtype, mesh=None):
    """(gradient norms, weights) of a few clipped steps of a small module; their inputs depend on the step alone."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.Linear(33, 5, bias=False)).to(dtype)
    if mesh is not None:
        for layer in module:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
    optimizer = RoundedAdamW([{"params": list(module.parameters())}], lr=1e-2, weight_decay=0.1, noise=Noise(0))
    norms = []
    for step in range(1, STEPS + 1):
        x = torch.randn(6, 7, generator=torch.Generator().manual_seed(step)).to(dtype)
        module(x).float().square().sum().backward()
        norms.append(divide_and_clip(optimizer, torch.tensor(0.25, dtype=torch.float64), 0.5).tolist())
        optimizer.moment, optimizer.found_inf = (step, 1), torch.tensor(0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    whole = [p.full_tensor() if mesh is not None else p for p in module.parameters()]
    return norms, [w.detach().float().flatten().tolist() for w in whole]


def on_rank(rank, dtype):
    return steps(dtype, init_device_mesh("cpu", (torch.distributed.get_world_size(),)))


@pytest.mark.slow
def test_two_ranks_give_the_norms_and_weights_of_one_process():
    one = steps(torch.float32)
    for norms, weights in on_ranks(2, on_rank, torch.float32):
        assert torch.tensor(norms) == pytest.approx(torch.tensor(one[0]), rel=1e-6)
        for a, b in zip(weights, one[1], strict=True):
            assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.slow
def test_two_ranks_round_their_own_parts_and_repeat_it():
    first, again = (on_ranks(2, on_rank, torch.bfloat16) for _ in range(2))
    assert first == again
    assert first[0] == first[1]  # gathered from both
    one = steps(torch.bfloat16)
    for a, b in zip(first[0][1], one[1], strict=True):
        assert torch.tensor(a) == pytest.approx(torch.tensor(b), abs=0.02)  # other noise, the same steps
