"""A checkpoint of ranks that share the weights goes on on any number of ranks, as one process, and the other way."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from shiqrun.cli import main
from shiqrun.evaluation.sharded_files import is_index
from shiqrun.training.callbacks import Checkpoints
from tests.support.command_line import (
    SMALL,
    checkpoint,
    finished,
    largest_difference,
    metrics,
    started_anew,
    timeless,
    train,
)
from tests.support.killed_saves import site
from tests.support.places import working_in

pytestmark = [pytest.mark.usefixtures("at_home"), pytest.mark.slow]
WORDS = (
    "trainer.max_steps=8",
    "trainer.checkpoint_every=4",
    "trainer.log_every=1",
    "trainer.batch_size=7",
    "trainer.micro_batch_tokens=60",
    "data.per_map=1",
    "data.val_maps=3",
    "eval.every=4",
)
RANKS = ("hardware=fsdp", "hardware.devices=2", "hardware.accelerator=cpu")
KINDS = {"full": (), "adapter_and_value_head": ("model.lora_r=4", "algo=dro_v", "algo.value=head")}


MOMENTS = ("0 1 one", "1 1 all", "0 30 one", "1 12 one")
"""Rank, number of the thing that a save does to the disk, and who is killed before it."""
OF_THE_INDEX = ("0 1 one", "0 3 all", "0 6 all")
"""The same after all files of ranks are there: while the index is replaced, and the former directory deleted."""


def to_be_killed(place, moment, *words):
    """A run in which a rank kills itself or all at a moment of a save: rank, number, who, part of the save's paths."""
    program = [sys.executable, "-m", "shiqrun", "train", *words]
    environment = os.environ | site(place) | {"KILL": moment}
    return subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.fixture(scope="module", params=["full", "adapter_and_value_head"])
def runs(request, home, tmp_path_factory):
    """A folder with `one`, whole, `one_stopped` after step 4, and `two_stopped`, two ranks killed in a later save."""
    folder, kind = home / request.param, KINDS[request.param]
    folder.mkdir()
    with working_in(folder), pytest.MonkeyPatch.context() as patch:
        words = (*SMALL, *WORDS, *RANKS, *kind, "run_dir=two_stopped")
        two = to_be_killed(tmp_path_factory.mktemp("site"), "1 2 all last.ckpt-8", *words)
        save = Checkpoints.save

        def and_copy(self, trainer):
            save(self, trainer)
            if trainer.global_step == 4:
                shutil.copytree("one", "one_stopped")

        patch.setattr(Checkpoints, "save", and_copy)
        assert train(*WORDS, *kind, "run_dir=one") == 0
        code, out = finished(two)
        assert code == -signal.SIGKILL, out
    assert checkpoint(folder / "two_stopped")["global_step"] == 4
    return folder


def resumed(runs, name, new, *places, elsewhere=False):
    """A copy of a stopped run that has gone on to its end, on other hardware where words say so."""
    shutil.copytree(runs / name, runs / new)
    if not elsewhere:
        assert main(["train", f"resume={runs / new}", *places]) == 0
        return runs / new
    code, out = finished(started_anew("train", f"resume={runs / new}", *places))
    assert code == 0, out
    return runs / new


def same(one, two):
    assert largest_difference(one, two) < 1e-6
    for a, b in zip(timeless(metrics(one)), timeless(metrics(two)), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    first, second = (checkpoint(run)["optimizer_states"][0]["state"] for run in (one, two))
    assert first.keys() == second.keys()
    for number, state in first.items():
        assert float((state["exp_avg"] - second[number]["exp_avg"]).abs().max()) < 1e-6
        assert state["step"] == second[number]["step"]


def test_one_process_goes_on_from_a_checkpoint_of_two_ranks(runs):
    alone = ("hardware.devices=1", "hardware.strategy=auto")
    two = resumed(runs, "two_stopped", "two_then_one", *alone)
    same(runs / "one", two)
    assert sorted(p.name for p in (two / "checkpoints").glob("last.ckpt*")) == ["last.ckpt"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_another_number_of_ranks_goes_on(runs, ranks):
    more = f"hardware.devices={ranks}"
    same(runs / "one", resumed(runs, "two_stopped", f"two_then_{ranks}", more, elsewhere=True))


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_two_ranks_go_on_from_a_checkpoint_of_one_process(runs, strategy):
    both = ("hardware.devices=2", f"hardware.strategy={strategy}")
    two = resumed(runs, "one_stopped", f"one_then_{strategy}", *both, elsewhere=True)
    same(runs / "one", two)
    assert is_index(two / "checkpoints/last.ckpt") == (strategy == "fsdp")


def test_two_copies_go_on_from_a_checkpoint_of_two_ranks(runs):
    same(runs / "one", resumed(runs, "two_stopped", "two_then_ddp", "hardware.strategy=ddp", elsewhere=True))


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_sharded_checkpoint_is_evaluated(runs, name, tmp_path):
    run = runs / "two_stopped"
    if "lora_r: 4" in (run / ".hydra/config.yaml").read_text():
        pytest.skip("one kind is enough")
    assert is_index(run / f"checkpoints/{name}.ckpt")
    assert main(["eval", f"run={run}", f"checkpoint={name}", f"run_dir={tmp_path}"]) == 0
    assert main(["eval", f"run={runs / 'one_stopped'}", f"checkpoint={name}", f"run_dir={tmp_path / 'one'}"]) == 0


def test_a_best_checkpoint_of_ranks_holds_weights_alone(runs):
    best = checkpoint(runs / "two_stopped", "best")
    assert "optimizer_states" not in best
    assert best["state_dict"].keys() == checkpoint(runs / "one", "best")["state_dict"].keys()


def test_a_run_that_is_killed_in_one_save_after_the_other_ends_as_one_that_is_not(home, tmp_path):
    words = (*SMALL, *WORDS, *RANKS, "trainer.max_steps=14", "trainer.checkpoint_every=1", "eval.every=0")
    code, out = finished(started_anew("train", *words, "run_dir=unkilled"))
    assert code == 0, out
    step, words = 0, (*words, "run_dir=killed")
    for moment in (*(f"{m} last.ckpt-{{}}" for m in MOMENTS), *(f"{m} .last.ckpt." for m in OF_THE_INDEX)):
        code, out = finished(to_be_killed(tmp_path / "site", moment.format(step + 2), *words))
        assert code != 0, (moment, out)
        words = ("resume=killed",)
        former, step = step, checkpoint(home / "killed")["global_step"]
        assert former <= step <= former + 2
    code, out = finished(started_anew("train", *words))
    assert code == 0, out
    assert largest_difference(home / "unkilled", home / "killed") == 0
    assert timeless(metrics(home / "unkilled")) == timeless(metrics(home / "killed"))
    assert sorted(p.name for p in (home / "killed/checkpoints").iterdir()) == ["last.ckpt", "last.ckpt-14"]
