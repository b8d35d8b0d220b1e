"""`hardware.weights=bf16` from outside: what moves, what is saved, what goes on after a kill, and what is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shiqrun.cli import main
from shiqrun.models.reference import weights_fingerprint
from tests.support.command_line import (
    checkpoint,
    largest_difference,
    metrics,
    start,
    summary,
    timeless,
    train,
    wait_for_rows,
)
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")
HALF = "hardware.weights=bf16"
LONG = (HALF, "trainer.max_steps=12", "trainer.checkpoint_every=4", "algo.beta=0.5")


@pytest.fixture(scope="module")
def done(home):
    """One finished run of 12 steps with bfloat16 weights."""
    with working_in(home):
        assert train("run_dir=bf16", *LONG) == 0
    return home / "bf16"


def tensors(directory):
    return {name: x for file in directory.glob("*.safetensors") for name, x in load_file(file).items()}


def test_weights_moments_and_the_saved_policy_are_bfloat16(done):
    saved = checkpoint(done)
    assert {x.dtype for x in saved["state_dict"].values()} == {torch.bfloat16}
    moments = saved["optimizer_states"][0]["state"].values()
    assert {state[name].dtype for state in moments for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    policy = tensors(done / "policy")
    assert all(torch.equal(policy[name.removeprefix("policy.model.")], x) for name, x in saved["state_dict"].items())
    assert json.loads((done / "policy" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(done / "policy", dtype=torch.bfloat16)
    assert summary(done)["fingerprint/policy"] == weights_fingerprint(loaded)


def test_policy_and_reference_are_equal_at_step_zero(done):
    first = next(row for row in metrics(done) if row["step"] == 1)
    assert abs(first["train/logratio_mean"]) < 5e-3
    assert metrics(done)[0]["val/kl"] == pytest.approx(0, abs=1e-9)


def test_it_learns_what_float32_learns(home):
    words = ("algo=sft", "trainer.max_steps=20", "eval.every=20", "trainer.log_every=20", "model.num_layers=1")
    gain = {}
    for name in ("fp32", "bf16"):
        assert train(f"run_dir=learns_{name}", f"hardware.weights={name}", *words) == 0
        first, last = (metrics(home / f"learns_{name}")[k]["val/loss"] for k in (0, -1))
        gain[name] = first - last
    assert gain["fp32"] > 0.5
    assert gain["bf16"] == pytest.approx(gain["fp32"], rel=0.1)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(done, home):
    process = start("run_dir=killed", *LONG)
    wait_for_rows(home / "killed", 4, process)
    process.kill()
    process.communicate()
    assert main(["train", "resume=killed"]) == 0
    assert largest_difference(done, home / "killed") == 0
    assert timeless(metrics(done)) == timeless(metrics(home / "killed"))


def test_an_evaluation_loads_policy_and_reference_as_the_run_had_them(done, home):
    assert main(["eval", f"run={done}", "run_dir=evaluated", "eval.max_prompts=4"]) == 0
    result = json.loads((home / "evaluated" / "eval.json").read_text())
    assert result["fingerprint/policy"] == summary(done)["fingerprint/policy"]


def test_an_adapter_on_a_bfloat16_base_is_float32_and_so_is_the_merged_policy(home):
    words = ("model.lora_r=4", "run_dir=lora", "trainer.max_steps=6", "algo.reference=adapter", "eval.max_prompts=0")
    assert train(HALF, *words) == 0
    saved = checkpoint(home / "lora")["state_dict"]
    assert {x.dtype for x in saved.values()} == {torch.float32}
    base, merged = tensors(home / "lora" / "adapter" / "base"), tensors(home / "lora" / "policy")
    assert {x.dtype for x in base.values()} == {torch.bfloat16}
    assert {x.dtype for x in merged.values()} == {torch.float32}
    name = "model.layers.0.self_attn.q_proj"
    a, b = (
        next(x for key, x in saved.items() if f"{name}.lora_{side}." in key.replace("base_model.model.", "", 1))
        for side in "AB"
    )
    expected = base[f"{name}.weight"].float() + 32 / 4 * b @ a
    torch.testing.assert_close(merged[f"{name}.weight"], expected)
    assert main(["eval", "run=lora", "run_dir=lora_eval", "eval.max_prompts=4"]) == 0
    result = json.loads((home / "lora_eval" / "eval.json").read_text())
    assert result["fingerprint/policy"] == summary(home / "lora")["fingerprint/policy"]


@pytest.mark.parametrize("value", [pytest.param("head", marks=pytest.mark.slow), "network"])
def test_a_value_function_trains_beside_bfloat16_weights(home, value):
    words = ("algo=dro_v", f"algo.value={value}", "trainer.max_steps=4", f"run_dir=value_{value}", "eval.max_prompts=0")
    assert train(HALF, *words) == 0
    assert math.isfinite(summary(home / f"value_{value}")["train/loss"])
    dtypes = {n: x.dtype for n, x in checkpoint(home / f"value_{value}")["state_dict"].items() if "value" in n}
    assert {d for n, d in dtypes.items() if ".linear." in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if ".body." in n} == ({torch.bfloat16} if value == "network" else set())


def test_nonsense_in_a_step_changes_nothing(home, capsys):
    words = ("trainer.max_steps=6", "run_dir=nonsense", "trainer.learning_rate=1e30", "trainer.warmup_steps=0")
    assert train(HALF, *words) == 1
    assert "nothing was updated" in capsys.readouterr().err


def test_another_precision_is_refused(home, capsys):
    assert train(HALF, "hardware.precision=fp32") == 2
    error = capsys.readouterr().err.strip()
    assert "hardware.weights=bf16 computes in bfloat16; set hardware.precision=bf16" in error
    assert "\n" not in error


@pytest.mark.parametrize(("dtype", "words"), [("bfloat16", ()), ("float16", (HALF,))])
def test_a_model_whose_weights_would_not_move_is_refused(home, capsys, dtype, words):
    own = ("model._target_=tests.support.own_models.HalfTiny", f"+model.kind={dtype}")
    assert train(*own, *words) == 2
    error = capsys.readouterr().err.strip()
    assert "most would never move: at a learning rate of 1e-5 AdamW's updates are lost in rounding" in error
    assert "set hardware.weights=bf16" in error
    assert "\n" not in error
