"""`shiqrun sweep sweep.search=optuna` from outside: what it reads, refuses, finds, and how a killed one goes on."""

import csv
import json
import time

import pytest

from shiqrun.cli import main
from shiqrun.sweeping import study
from tests.support.command_line import finished, started_anew

pytestmark = pytest.mark.usefixtures("workplace")
SEARCH = ("sweep", "sweep.search=optuna", "logger=none", "data.maps=20", "data.val_maps=3", "model.hidden_size=16")
BETA = "algo.beta=tag(log, interval(0.01, 1))"
needs_optuna = pytest.mark.skipif(study.find_spec("optuna") is None, reason="needs the extra optuna")


def said(capfd):
    return " ".join(capfd.readouterr().out.split())


@needs_optuna
def test_a_dry_run_shows_the_space_in_hydras_own_words(workplace, capfd):
    words = (
        "algo=choice(shiq,copg)",
        BETA,
        "trainer.batch_size=range(8,33,8)",
        "trainer.warmup_steps=int(interval(1,5))",
    )
    more = ("trainer.learning_rate=interval(1e-4,1e-3)", "seed=1,2", "sweep.trials=9", "dry_run=true")
    assert main([*SEARCH, *words, *more]) == 0
    out = said(capfd)
    assert "9 trials by 2 seeds of shiqrun train" in out
    for row in (
        "algo│shiq,copg",
        "algo.beta│0.01to1logarithmic",
        "8to32instepsof8,whole",
        "1to5,whole",
        "0.0001to0.001",
    ):
        assert row in out.replace(" ", "")
    assert "searched for the best val/reward, else val/loss, else train/loss" in out
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "sweep.search=optuna: nothing to search; give keys several values or an interval"),
        (["algo.beta=interval(1,0.1)"], "expected interval(LOW, HIGH) with LOW < HIGH"),
        (["algo.beta=tag(log, interval(0,1))"], "with LOW < HIGH, above 0 with tag(log, ...)"),
        ([BETA, "seed=interval(1,5)"], "seeds are not searched; give those of each trial, as seed=1,2,3"),
        ([BETA, "sweep.metric=reward"], "sweep.metric=reward: expected a metric of summary.json, val/... or train/..."),
        ([BETA, "sweep.metric=val/entropy"], "its name does not say what is better; set sweep.direction=max or min"),
        ([BETA, "sweep.trials=0"], "sweep.trials: met 0, expected greater than 0"),
        (["algo.beta=interval(-1,1)"], "algo.beta: met -1.0, expected greater than 0"),
        (["algo=shiq,copgg"], "copgg"),
        ([BETA, "run_dir=a,b"], "run_dir: met several values (a,b)"),
        ([BETA, "hydra.launcher._target_=x"], "starts its jobs itself; leave out hydra/launcher"),
        ([BETA, "sweep.search=optna"], "sweep.search: met 'optna', expected"),
        ([BETA, "sweep.search=grid"], "a grid needs values; an interval is searched: sweep.search=optuna"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(workplace, capfd, words, message):
    assert main([*SEARCH, *words]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert not list(workplace.iterdir())


def test_a_missing_library_is_one_line(workplace, monkeypatch, capfd):
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    assert main([*SEARCH, BETA]) == 2
    line = "shiqrun: error: sweep.search=optuna: optuna is not installed; pip install 'shiqrun[optuna]'\n"
    assert capfd.readouterr().err == line
    assert not list(workplace.iterdir())


@needs_optuna
@pytest.mark.slow
def test_a_real_search_finds_the_better_beta_and_survives_a_kill(workplace):
    """A larger beta holds the policy nearer to its reference: by val/kl the better beta is known."""
    words = ("algo.beta=0.01,100", "sweep.trials=3", "sweep.metric=val/kl", "trainer.max_steps=6", "eval.every=6")
    process = started_anew(*SEARCH, *words, "run_dir=search", "trainer.batch_size=16")
    wait_for_jobs(workplace / "search", 1)
    process.kill()
    finished(process)
    out = "are running"
    while "are running" in out:  # a job that outlives its sweep holds the lock, and ends by itself
        code, out = finished(started_anew("sweep", "sweep.resume=search"), 400)
    assert code == 0, out
    with (workplace / "search/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * 3
    with (workplace / "search/sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 3
    assert {row["algo.beta"] for row in rows} == {"0.01", "100"}
    with (workplace / "search/best.csv").open(newline="") as file:
        assert [(row["algo.beta"], row["best_by"]) for row in csv.DictReader(file)] == [("100", "val/kl")]
    assert "the best again: shiqrun train" in " ".join(out.split())
    assert (workplace / "search/report.html").is_file()


def wait_for_jobs(folder, count):
    end = time.monotonic() + 200
    while time.monotonic() < end:
        if (folder / "sweep.json").is_file():
            jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
            if sum(job["status"] == "finished" for job in jobs) >= count:
                return
        time.sleep(0.05)
    raise AssertionError("no such number of jobs")
