"""A reference that moves, through the real command line: what is measured against which, and a resume after a kill."""

import pytest
import torch

from shiqrun.cli import main
from tests.support.command_line import (
    checkpoint,
    command,
    finished,
    largest_difference,
    metrics,
    summary,
    wait_for_rows,
)
from tests.support.online_words import ONLINE, PROBLEMS, TINY

pytestmark = pytest.mark.usefixtures("at_home")
RUN = (
    *PROBLEMS,
    *TINY,
    "algo.reference=frozen",
    "trainer.batch_size=8",
    "trainer.log_every=1",
    "trainer.warmup_steps=0",
    "trainer.learning_rate=3e-3",
    "eval.max_prompts=6",
    "eval.max_new_tokens=6",
    "data.limit=60",
)
WEIGHTS = "ReferenceMoves"


def train(*words):
    return main(["train", *RUN, *words])


@pytest.fixture
def moving(home):
    """A run whose policy becomes its reference after steps 3 and 6 of 7; the file's tests share it."""
    if not (home / "moving" / "summary.json").is_file():
        words = ("algo=copg", "algo.reference_every=3", "trainer.max_steps=7", "eval.every=2", "run_dir=moving")
        assert train(*words) == 0
    return home / "moving"


def test_the_policy_is_its_own_reference_in_the_first_step_and_after_every_move(moving):
    sizes = {int(row["step"]): row["train/logratio_abs"] for row in metrics(moving) if "train/logratio_abs" in row}
    assert sorted(sizes) == [1, 2, 3, 4, 5, 6, 7]
    for step, size in sizes.items():
        assert (size < 1e-5) == (step in (1, 4, 7)), step
    assert summary(moving)["reference/moves"] == 2


def test_the_kl_to_the_first_reference_stands_beside_that_to_the_present_one(moving):
    found = {int(row["step"]): row for row in metrics(moving) if "val/kl" in row}
    assert sorted(found) == [0, 2, 4, 6, 7]
    both = {step: (row["val/kl"], row["val/kl_to_present"]) for step, row in found.items()}
    assert both[0] == pytest.approx((0, 0), abs=1e-6)
    assert both[2][0] == pytest.approx(both[2][1], rel=1e-4)
    assert both[2][0] > 1e-4
    for step in (4, 6, 7):  # step 6 is evaluated before the reference moves
        assert both[step][0] != pytest.approx(both[step][1], rel=0.05), step
        assert found[step]["val/kl_to_present_ci95"] > 0
    told = summary(moving)
    assert (told["val/kl"], told["val/kl_to_present"]) == both[7]


def test_a_decay_leaves_the_reference_between_its_weights_and_the_policys(home):
    words = ("algo=copg", "algo.reference_every=2", "trainer.max_steps=3", "eval.every=0", "trainer.checkpoint_every=3")
    for decay in ("0", "0.25"):
        assert train(*words, f"algo.reference_decay={decay}", f"run_dir=decay{decay}") == 0
    assert (
        train("algo=copg", "trainer.max_steps=1", "trainer.learning_rate=1e-12", "eval.every=0", "run_dir=start") == 0
    )
    start = checkpoint(home / "start")["state_dict"]
    policy, mixed = (checkpoint(home / f"decay{decay}")["callbacks"][WEIGHTS]["weights"] for decay in ("0", "0.25"))
    moved = 0.0
    for name, became in policy.items():
        before = start[f"policy.model.{name}"]
        torch.testing.assert_close(mixed[name], 0.25 * before + 0.75 * became, rtol=1e-5, atol=1e-6)
        moved = max(moved, float((became - before).abs().max()))
    assert moved > 1e-3


def goes_on_to_the_same_bits(home, name, *words):
    """Kills a run after some steps, resumes it, and compares it with one that was left alone; returns what it kept."""
    assert train(*words, f"run_dir={name}_whole") == 0
    process = command("train", *RUN, *words, f"run_dir={name}_killed")
    wait_for_rows(home / f"{name}_killed", 9, process)
    process.kill()
    process.communicate()
    kept = checkpoint(home / f"{name}_killed")
    assert kept["global_step"] < 14
    code, out = finished(command("train", f"resume={name}_killed"))
    assert code == 0, out
    assert largest_difference(home / f"{name}_whole", home / f"{name}_killed") == 0
    assert summary(home / f"{name}_whole")["reference/moves"] == summary(home / f"{name}_killed")["reference/moves"]
    return kept["callbacks"][WEIGHTS]


LONG = ("trainer.max_steps=14", "eval.every=0")


@pytest.mark.slow
@pytest.mark.slow
def test_a_run_that_was_killed_between_two_moves_goes_on_with_the_same_reference(home):
    words = ("algo=copg", "algo.reference_every=5", "algo.reference_decay=0.5", "trainer.checkpoint_every=4", *LONG)
    kept = goes_on_to_the_same_bits(home, "between", *words)
    assert kept["moves"] == kept["moved"] // 5 > 0
    assert kept["weights"]


@pytest.mark.slow
def test_a_checkpoint_of_the_step_in_which_the_policy_became_the_reference_holds_it_once(home):
    words = ("algo=copg", "algo.reference_every=3", "trainer.checkpoint_every=3", *LONG)
    kept = goes_on_to_the_same_bits(home, "at_once", *words)
    assert kept["weights"] is None
    assert kept["moved"] in (6, 9, 12)


@pytest.mark.slow
def test_so_does_a_run_that_samples_and_is_evaluated_in_between(home):
    sampling = (*ONLINE, "rollout.samples_per_prompt=2", "rollout.offline=0", "trainer.checkpoint_every=2")
    words = ("algo=copg", "algo.reference_every=5", *sampling, "trainer.max_steps=14", "eval.every=3")
    goes_on_to_the_same_bits(home, "sampling", *words)
    whole, killed = (metrics(home / f"sampling_{how}") for how in ("whole", "killed"))
    for one, other in zip(whole, killed, strict=True):
        assert one.get("val/kl_to_present") == other.get("val/kl_to_present")


@pytest.mark.slow
def test_two_processes_move_their_references_as_one_does(home):
    words = ("algo=copg", "algo.reference_every=2", "algo.reference_decay=0.3", "trainer.max_steps=6", "eval.every=0")
    assert train(*words, "run_dir=alone") == 0
    code, out = finished(command("train", *RUN, *words, "hardware=ddp", "hardware.devices=2", "run_dir=both"))
    assert code == 0, out
    assert largest_difference(home / "alone", home / "both") < 5e-5
    assert summary(home / "both")["reference/moves"] == 2


def test_an_adapter_moves_in_a_copy_and_the_base_is_the_first_reference(home):
    pytest.importorskip("peft", reason="an adapter needs peft")
    words = ("algo=copg", "algo.reference_every=2", "model.lora_r=4", "trainer.max_steps=4", "eval.every=3")
    assert train(*words, "trainer.checkpoint_every=3", "run_dir=adapter") == 0
    rows = metrics(home / "adapter")
    assert [row["train/logratio_abs"] < 1e-5 for row in rows if "train/logratio_abs" in row] == [
        True,
        False,
        True,
        False,
    ]
    last = rows[-1]
    assert last["val/kl"] != pytest.approx(last["val/kl_to_present"], rel=0.05)
    assert all("lora" in name for name in checkpoint(home / "adapter")["callbacks"][WEIGHTS]["weights"])


def test_a_dry_run_says_how_often_the_reference_moves(home, capsys):
    for decay, told in (("0", "becomes the policy every 3 steps"), ("0.4", "moves, keeping 0.4 of its weights, every")):
        words = ("algo.reference_every=3", f"algo.reference_decay={decay}", "trainer.max_steps=4", "dry_run=true")
        assert train("algo=copg", *words, "run_dir=dry") == 0
        assert told in " ".join(capsys.readouterr().out.split())
    assert not (home / "dry").exists()


def test_a_run_whose_reference_stays_keeps_nothing_of_it(home):
    assert train("algo=copg", "trainer.max_steps=2", "eval.every=1", "run_dir=stays") == 0
    assert WEIGHTS not in checkpoint(home / "stays")["callbacks"]
    assert "val/kl_to_present" not in metrics(home / "stays")[-1]
