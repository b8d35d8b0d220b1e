"""A run ends early where a metric no longer improves: when, why, what it leaves; kills change nothing of it."""

import os
import signal

import pytest

from shiqrun.cli import main
from shiqrun.training import run as training_run
from shiqrun.training.callbacks import Validation
from tests.support.command_line import checkpoint, command, finished, metrics, summary, timeless, train
from tests.support.online_runs import RUN as ONLINE
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")
STILL = ("eval.every=2", "trainer.max_steps=20", "trainer.stop_metric=val/regret", "trainer.stop_min_delta=0.5")
AT_4 = (*STILL, "trainer.stop_patience=2", "trainer.lr_schedule=cosine")
WHY = "Stopped early after step 4 of 20: val/regret has not fallen by more than 0.5 below "


@pytest.fixture(scope="module")
def stopped(home):
    """A run of at most 20 steps whose regret does not fall by 0.5: evaluated at 0, 2 and 4."""
    with working_in(home):
        assert train("run_dir=stopped", *AT_4) == 0
    return home / "stopped"


def test_it_ends_after_as_many_evaluations_without_improvement(stopped):
    assert [int(r["step"]) for r in metrics(stopped) if "val/regret" in r] == [0, 2, 4]
    assert checkpoint(stopped)["global_step"] == 4
    assert (stopped / "policy" / "model.safetensors").is_file()


def test_summary_card_and_log_say_why_and_how_far(stopped):
    values = summary(stopped)
    assert values["steps"] == 4
    assert values["stopped_early"].startswith(WHY)
    assert values["stopped_early"].endswith("(step 0) in 2 evaluations")
    assert ", 4 optimiser steps" in (stopped / "policy/README.md").read_text()
    assert values["stopped_early"] in (stopped / "run.log").read_text()


def test_the_end_says_so_and_what_the_learning_rate_did(stopped, home, capfd):
    assert train("run_dir=again", *AT_4) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert WHY in out
    assert "trainer.lr_schedule=cosine is that of 20 steps" in out


def test_the_learning_rate_is_that_of_a_run_that_does_not_stop(stopped):
    assert train("run_dir=whole", *AT_4[:2], "trainer.lr_schedule=cosine") == 0
    whole = {r["step"]: r["train/learning_rate"] for r in metrics(stopped.parent / "whole") if "train/loss" in r}
    part = {r["step"]: r["train/learning_rate"] for r in metrics(stopped) if "train/loss" in r}
    assert part == {step: whole[step] for step in part}
    assert "stopped_early" not in summary(stopped.parent / "whole")


@pytest.mark.parametrize("step", [2, 3])
def test_an_interrupted_run_stops_at_the_same_step_with_the_same_numbers(stopped, monkeypatch, step):
    name = f"interrupted_{step}"
    send_a_signal_after(monkeypatch, step)
    assert train(f"run_dir={name}", *AT_4, "trainer.log_every=3") == 130
    monkeypatch.undo()
    with working_in(stopped.parent):
        assert main(["train", f"resume={name}"]) == 0
    assert timeless(metrics(stopped.parent / name)) == timeless(metrics(stopped))
    assert summary(stopped.parent / name)["stopped_early"] == summary(stopped)["stopped_early"]
    assert summary(stopped.parent / name)["fingerprint/policy"] == summary(stopped)["fingerprint/policy"]


def test_a_run_killed_between_its_stop_and_its_summary_does_not_train_on(stopped, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "finish", killed)
    assert train("run_dir=killed", *AT_4) == 130
    monkeypatch.undo()
    with working_in(stopped.parent):
        assert main(["train", "resume=killed"]) == 0
    killed_run = stopped.parent / "killed"
    assert timeless(metrics(killed_run)) == timeless(metrics(stopped))
    assert summary(killed_run)["stopped_early"] == summary(stopped)["stopped_early"]
    assert checkpoint(killed_run)["global_step"] == 4


def send_a_signal_after(monkeypatch, step):
    """Has a run of this process get SIGTERM in the step's batch end, as a scheduler sends it."""
    original = Validation.on_train_batch_end

    def hook(self, trainer, module, *rest):
        original(self, trainer, module, *rest)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Validation, "on_train_batch_end", hook)


def test_a_metric_of_training_is_averaged_between_evaluations(home):
    words = ("trainer.stop_metric=train/loss", "trainer.stop_min_delta=1e9", "trainer.stop_patience=2", "eval.every=2")
    assert train("run_dir=loss", *words, "trainer.max_steps=20", "trainer.log_every=1") == 0
    losses = {int(r["step"]): r["train/loss"] for r in metrics(home / "loss") if "train/loss" in r}
    assert list(losses) == [1, 2, 3, 4, 5, 6], "the first mean is at step 2, two others do not improve on it"
    kept = checkpoint(home / "loss")["callbacks"]["EarlyStop"]
    assert kept["best"] == pytest.approx((losses[1] + losses[2]) / 2)
    assert "in 2 evaluations" in summary(home / "loss")["stopped_early"]


def test_without_evaluations_logged_rows_count(home):
    words = ("trainer.stop_metric=train/grad_norm", "trainer.stop_mode=max", "trainer.stop_min_delta=1e9")
    assert train("run_dir=rows", *words, "eval.every=0", "trainer.max_steps=30") == 0
    assert summary(home / "rows")["steps"] == 9, "rows of steps 1, 3, 6, 9; the patience is 3"
    assert summary(home / "rows")["stopped_early"].endswith("in 3 logged rows")


def test_a_metric_that_improves_stops_nothing(home):
    words = ("trainer.stop_metric=train/learning_rate", "trainer.stop_mode=max", "trainer.stop_patience=1")
    assert train("run_dir=rises", *words, "trainer.max_steps=8", "eval.every=2") == 0
    assert summary(home / "rises")["steps"] == 8
    assert "stopped_early" not in summary(home / "rises")


@pytest.mark.parametrize(
    ("name", "near", "last"), [("val/regert", "val/regret", 0), ("train/looss", "train/loss", 1)], ids=["val", "train"]
)
def test_an_unknown_metric_is_one_line_as_soon_as_names_are_known(home, capfd, name, near, last):
    words = (f"trainer.stop_metric={name}", "trainer.stop_mode=min", "trainer.max_steps=500")
    assert train(f"run_dir=unknown{last}", *words) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("shiqrun: error")]
    assert said == [
        f"shiqrun: error: trainer.stop_metric={name}: step {last} has not measured it; did you mean {near}?"
    ]


def test_a_run_that_samples_stops_too(home):
    words = ("eval.reward=programs", "eval.every=2", "trainer.max_steps=12", "rollout=local", "run_dir=samples")
    stop = ("trainer.stop_metric=rollout/reward", "trainer.stop_min_delta=10", "trainer.stop_patience=1")
    assert main(["train", *(w for w in ONLINE if w != "eval.every=1000"), *words, *stop]) == 0
    values = summary(home / "samples")
    assert values["steps"] == 4
    assert (values["rollout/lost"], values["rollout/duplicated"]) == (0, 0)


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step(stopped, home):
    words = ["hardware=ddp", "hardware.devices=2", "run_dir=ranks", "logger=none", "data.maps=40", "data.val_maps=4"]
    small = ["model.hidden_size=32", "model.num_layers=2", "trainer.batch_size=8", "trainer.log_every=3"]
    code, out = finished(command("train", *words, *small, *AT_4))
    assert code == 0, out
    assert summary(home / "ranks")["steps"] == 4
    assert summary(home / "ranks")["stopped_early"].startswith(WHY[:60])
