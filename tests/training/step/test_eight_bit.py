"""AdamW with 8-bit moments: by `bitsandbytes` where it is installed, one line where it is not."""

import copy
import sys

import pytest
import torch

from shiqrun.training.step.eight_bit import eight_bit_adamw
from shiqrun.training.step.rounding import Noise
from tests.support.command_line import checkpoint, train
from tests.training.step.test_rounding import train as take_steps
from tests.training.step.test_rounding import weights


def made(p, rate=1e-5):
    return eight_bit_adamw([{"params": [p], "lr": rate}], lr=rate, weight_decay=0.1, noise=Noise(0))


def test_without_the_library_one_line_says_so(at_home, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert train("trainer.optimizer=adamw_8bit", "trainer.max_steps=1", "run_dir=absent") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(
        "shiqrun: error: trainer.optimizer=adamw_8bit needs the extra `8bit`: pip install 'shiqrun[8bit]'"
    )
    assert "\n" not in error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_on_average_as_with_float32_moments(dtype):
    pytest.importorskip("bitsandbytes")
    p, exact = weights(dtype, 8192), weights(torch.float32, 8192)
    before = exact.detach().clone()
    take_steps(torch.optim.AdamW([exact], lr=1e-5, weight_decay=0.1), exact, range(1, 21))
    optimizer = made(p)
    take_steps(optimizer, p, range(1, 21))
    state = optimizer.state[p]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}
    assert p.dtype == dtype
    moved = [float((x.detach().float() - before).mean()) for x in (p, exact)]
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


def test_a_loaded_state_goes_on_to_the_same_bits():
    pytest.importorskip("bitsandbytes")
    whole, part = weights(torch.bfloat16, 8192), weights(torch.bfloat16, 8192)
    take_steps(made(whole, 1e-3), whole, range(1, 9))
    before = made(part, 1e-3)
    take_steps(before, part, range(1, 5))
    after = made(part, 1e-3)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    take_steps(after, part, range(5, 9))
    assert torch.equal(whole, part)


def test_a_run_keeps_its_moments_in_eight_bits(home, at_home):
    pytest.importorskip("bitsandbytes")
    wide = ("model.hidden_size=64", "model.num_layers=1", "trainer.max_steps=2", "eval.every=0")
    assert train("trainer.optimizer=adamw_8bit", "hardware.weights=bf16", "run_dir=small_states", *wide) == 0
    states = checkpoint(home / "small_states")["optimizer_states"][0]["state"].values()
    sizes = [x.dtype for s in states for x in s["__bnb_optimizer_quant_state__"].values()]
    assert torch.uint8 in sizes
