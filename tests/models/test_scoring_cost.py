"""The cost of chunked scores: largest tensor, matrix products, memory of a process."""

import sys
from subprocess import run

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shiqrun.models.scoring import KEPT_BYTES, score_actions, score_further
from tests.models.dense import D, N, V, gradients, in_way, problem, upstreams


class Watch(TorchDispatchMode):
    """Inside, keeps the entries of the largest tensor that any operation returns, and the shapes of matrix products."""

    def __init__(self):
        super().__init__()
        self.numel, self.products = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)), 0)
        if func.overloadpacket._qualified_op_name.split("::")[1] in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv"):
            self.products.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("scored", ["scores", "samples", "a soft-cap", "no gradient"])
def test_no_tensor_is_larger_than_one_chunk_of_logits(scored):
    inputs = problem(torch.float32, n=64, d=4, v=500)
    options = {"samples": {"sample": 2, "describe": True}, "a soft-cap": {"cap": 2.0}}.get(scored, {})
    with Watch() as watch, torch.set_grad_enabled(scored != "no gradient"):
        out = score_further(*inputs, chunk=8, keep=False, **options)
        if out.logit.requires_grad:
            (out.logit + out.log_partition + out.further.sum(1)).sum().backward()
    assert watch.numel == 8 * 500


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("options", [{}, {"cap": 2.0, "scale": 0.5}], ids=["plain", "capped"])
@pytest.mark.parametrize(
    ("way", "forward", "backward"),
    [
        (
            "recomputed",
            [(4, V), (4, V), (3, V)],
            [(4, V), (4, D), (V, D), (4, V), (4, D), (V, D), (3, V), (3, D), (V, D)],
        ),
        ("kept", [(4, V), (4, V), (3, V)], [(N, D), (V, D)]),
        ("frozen", [(4, V), (4, D), (4, V), (4, D), (3, V), (3, D)], []),
    ],
)
def test_each_way_makes_its_matrix_products_and_no_more(way, forward, backward, options, bias):
    inputs = problem(bias=bias)
    keep = in_way(way, inputs[:3])
    with Watch() as ahead:
        outputs = score_actions(*inputs, chunk=4, keep=keep, **options)
    with Watch() as behind:
        gradients(outputs, upstreams(), inputs)
    assert ahead.products == forward
    assert [p for p in behind.products if p != (V, 1)] == backward  # [V, 1] is the bias


@pytest.mark.parametrize("recorded", [True, False])
def test_without_gradients_nothing_is_done_for_them(recorded):
    inputs = problem()
    for x in inputs[:3]:
        x.requires_grad_(recorded)
    with Watch() as watch, torch.set_grad_enabled(not recorded):
        score_actions(*inputs, chunk=4)
    assert watch.products == [(4, V), (4, V), (3, V)]
    assert watch.numel <= max(4 * V, D * V)


def test_a_weight_or_a_bias_alone_costs_its_own_product_only():
    for trained, backward in ((1, [(V, D)]), (2, [(V, 1)])):
        inputs = problem()
        for at, x in enumerate(inputs[:3]):
            x.requires_grad_(at == trained)
        outputs = score_actions(*inputs, keep=True)
        with Watch() as watch:
            gradients(outputs, upstreams(), inputs)
        assert watch.products == backward


MEMORY = """
import sys, torch
from pathlib import Path
from shiqrun.models.scoring import score_actions
way, n, v, d = sys.argv[1], 2048, 8192, 16
def resident(line):
    return int(Path("/proc/self/status").read_text().split(line + ":")[1].split()[0]) / 1024
def once(n):
    hidden, weight = torch.randn(n, d).requires_grad_(), torch.randn(v, d).requires_grad_(way != "frozen")
    keep = {"kept": True, "recomputed": False}.get(way)
    logit, partition = score_actions(hidden, weight, None, torch.randint(v, (n,)), chunk=256, keep=keep)
    (logit.sum() - 2 * partition.sum()).backward()
once(8)
Path("/proc/self/clear_refs").write_text("5")
base = resident("VmRSS")
once(n)
print(resident("VmHWM") - base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
@pytest.mark.parametrize(("way", "bound"), [("recomputed", 24), ("kept", 80), ("frozen", 24)])
def test_a_process_needs_one_tile_or_what_is_kept(way, bound):
    """MiB: a tile is 8, all logits are 64; twice that is what a dense backward pass holds."""
    done = run([sys.executable, "-c", MEMORY, way], capture_output=True, text=True, check=True)
    assert float(done.stdout) < bound


@pytest.mark.parametrize(("megabytes", "held"), [(1, True), (0, False)])
def test_tiles_are_kept_where_they_fit(monkeypatch, megabytes, held):
    monkeypatch.setitem(KEPT_BYTES, "cpu", megabytes << 20)
    inputs = problem()
    outputs = score_actions(*inputs, chunk=4)
    with Watch() as watch:
        gradients(outputs, upstreams(), inputs)
    assert ((4, V) not in watch.products) == held
