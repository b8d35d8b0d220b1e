"""KTO through the real command line: its KL estimate is one number of a whole step, with any reference."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shiqrun import losses
from shiqrun.cli import main
from shiqrun.losses.requirements import needs_of
from shiqrun.training.step.mismatched import with_kl_estimate
from tests.losses.naive import ragged
from tests.support.command_line import (
    checkpoint,
    command,
    finished,
    largest_difference,
    metrics,
    start,
    train,
    wait_for_rows,
)
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")
KTO = (
    "algo=kto",
    "algo.beta=0.5",
    "algo.reward_offset=mean",
    "algo.undesirable_weight=0.1",  # log-ratios rise, so that the estimate does
    "trainer.learning_rate=1e-3",
    "trainer.log_every=1",
)


def rows_of(run_dir):
    return [r for r in metrics(run_dir) if "train/loss" in r]


@pytest.fixture(scope="module")
def whole(home):
    """A run of ten steps, each read in one forward pass, on the cached reference."""
    with working_in(home):
        words = ("run_dir=whole", "trainer.max_steps=10", "trainer.micro_batch_tokens=10000", "cache_dir=cache")
        assert train(*KTO, *words) == 0
    return home / "whole"


def test_it_begins_at_the_reference_and_its_estimate_is_no_number_below_zero(whole):
    rows = rows_of(whole)
    share = rows[0]["train/desirable"]
    assert rows[0]["train/loss"] == pytest.approx((share + 0.1 * (1 - share)) / 2, abs=1e-5)
    assert rows[0]["train/kl_estimate"] == pytest.approx(0, abs=1e-4)
    assert 0 < share < 1
    assert rows[-1]["train/rewards/chosen"] > 0.1
    assert all(r["train/kl_estimate"] >= 0 for r in rows)
    assert rows[-1]["train/kl_estimate"] > 0.1
    assert metrics(whole)[-1]["val/kl_estimate"] > 0.1
    assert {"val/loss", "val/kl_estimate"} <= set(metrics(whole)[-1])


def test_the_estimate_and_the_step_do_not_depend_on_how_the_step_is_cut(home, whole):
    assert train(*KTO, "run_dir=cut", "trainer.max_steps=10", "trainer.micro_batch_tokens=80", "cache_dir=cache") == 0
    assert largest_difference(whole, home / "cut") < 5e-5
    for a, b in zip(rows_of(whole), rows_of(home / "cut"), strict=True):
        assert a["train/kl_estimate"] == pytest.approx(b["train/kl_estimate"], rel=1e-3, abs=1e-4)
    assert metrics(whole)[-1]["val/kl_estimate"] == pytest.approx(
        metrics(home / "cut")[-1]["val/kl_estimate"], rel=1e-3
    )


def test_a_live_reference_and_the_adapters_base_score_what_the_cache_has(home, whole):
    words = ("trainer.max_steps=10", "trainer.micro_batch_tokens=10000", "cache_dir=cache")
    assert train(*KTO, "algo.reference=frozen", "run_dir=live", *words) == 0
    assert largest_difference(whole, home / "live") < 5e-5
    for kind in ("cached", "adapter"):
        assert train(*KTO, "model.lora_r=4", f"algo.reference={kind}", f"run_dir=lora_{kind}", *words) == 0
    assert largest_difference(home / "lora_cached", home / "lora_adapter") < 5e-5
    assert max(r["train/kl_estimate"] for r in rows_of(home / "lora_adapter")) > 0


def test_a_sweep_over_seeds_and_betas_reads_the_mismatched_scores_from_the_cache(home, whole):
    before = sorted(p.name for p in Path("cache").glob("reference-*.arrow"))
    words = ("algo.beta=0.1", "run_dir=again", "trainer.max_steps=2", "cache_dir=cache")
    assert train(*KTO, *words) == 0
    assert sorted(p.name for p in Path("cache").glob("reference-*.arrow")) == before
    assert len(before) == 4, "training and validation, each as they are and mismatched"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(home):
    words = (*KTO, "trainer.max_steps=20", "trainer.checkpoint_every=3", "cache_dir=cache")
    code, out = finished(start("run_dir=unharmed", *words))
    assert code == 0, out
    process = start("run_dir=killed", *words)
    wait_for_rows(home / "killed", 8, process)
    process.kill()
    process.communicate()
    code, out = finished(command("train", "resume=killed"))
    assert code == 0, out
    assert largest_difference(home / "unharmed", home / "killed") == 0
    assert checkpoint(home / "killed")["global_step"] == 20


# ------------------------------------------------------------------ the estimate by itself
@pytest.mark.parametrize("sign", [1, -1])
def test_the_estimate_is_the_mean_of_mismatched_log_ratios_and_zero_where_that_is_negative(sign):
    batch, policy, reference = ragged()
    joined, models = batch, (policy, reference) if sign > 0 else (reference, policy)
    ratios = (models[0].logp - models[1].logp).masked_fill(~batch.action_mask, 0).sum(-1)
    acts = batch.action_mask.any(-1)
    mean = float(ratios[acts].mean())
    batches = [replace(batch, mismatched=joined, kl_estimate=None) for _ in range(2)]
    found = with_kl_estimate(batches, needs_of(losses.kto), lambda _: models[0], lambda _: models[1], added)
    for one in found:
        assert float(one.kl_estimate) == pytest.approx(max(mean, 0))
        assert not one.kl_estimate.requires_grad
    assert abs(mean) > 0.1


def added(parts):
    return {"kl": tuple(torch.stack([part["kl"][i].double() for part in parts]).sum() for i in range(2))}


def test_other_losses_score_nothing_mismatched():
    batch, _, _ = ragged()

    def refuses(_):
        raise AssertionError

    assert with_kl_estimate([batch], needs_of(losses.shiq), refuses, refuses, added) == [batch]


# ------------------------------------------------------------------ what does not fit
def refused(capfd, *words):
    capfd.readouterr()
    assert main(["train", "logger=none", "trainer.max_steps=1", "run_dir=refused", "algo=kto", *words]) == 2
    assert not Path("refused").exists()
    message = capfd.readouterr().err
    assert message.count("\n") == 1
    return message


def scored(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "data=jsonl", f"data.path={name}", "data.val_fraction=0"


def test_data_with_one_kind_of_completion(capfd):
    data = scored("bad.jsonl", [{"prompt": f"p{i}", "completion": f"c{i}", "reward": -(i % 2)} for i in range(20)])
    message = refused(capfd, *data)
    assert "but none of 20 is desirable: returns are from -1 to 0" in message
    assert "algo.threshold=0; set it between them" in message
    assert (
        main(["train", "logger=none", "trainer.max_steps=1", "run_dir=fine", "algo=kto", *data, "algo.threshold=-0.5"])
        == 0
    )


def test_data_of_one_prompt(capfd):
    data = scored("one.jsonl", [{"prompt": "p", "completion": f"c{i}", "reward": i % 2} for i in range(20)])
    assert "all trajectories answer one; add prompts" in refused(capfd, *data)


def test_sampling_while_training(capfd):
    words = ("rollout=local", "algo.reference=frozen", "data=programs", "data.problems=20", "eval.reward=programs")
    assert "set rollout=none" in refused(capfd, *words)
