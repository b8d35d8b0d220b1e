"""A search by Optuna over real processes of a small program whose best value is known: trials, kills, failures."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.errors import InputError
from shiqrun.sweeping.search import Dimension, Search
from shiqrun.sweeping.state import Sweep, load

pytest.importorskip("optuna", reason="needs the extra optuna")

from shiqrun.sweeping.search_run import SearchRunner
from shiqrun.sweeping.study import RANDOM, Study
from shiqrun.sweeping.trials import conclude_search

JOB = """
import json, math, os, sys, time
from pathlib import Path
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
here, beta = Path(words["run_dir"].strip("'")), float(words["algo.beta"])
reward = 1 - abs(math.log10(beta) + 1) + float(words.get("seed", 0)) / 100 + 0.5 * (words.get("algo") == "copg")
(here / "started").open("a").write("x")
"""
ENDS = """
(here / "summary.json").write_text(json.dumps({"val/reward": reward, "val/loss": -reward, "val/entropy": 1.0}))
"""
ROOT = Path(__file__).parents[2]


def sweep_of(folder, **fields):
    space = {"algo.beta": Dimension("float", low=0.001, high=10.0, log=True)}
    fields = {"space": space, "trials": 3, "seeds": [], "seed": 0, **fields}
    folder.mkdir(exist_ok=True)
    return Sweep(folder, "train", ["sweep"], str(folder), [], [], Search(**fields))


def run(sweep, program=JOB + ENDS, parallel=1):
    return SearchRunner(sweep, [sys.executable, "-c", program], parallel).run()


def trials(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(folder):
    """(value of beta, result) of each trial, as Optuna's own storage has them."""
    return [(t.values["algo.beta"], t.value) for t in Study(folder, load(folder).search).trials()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    assert run(sweep_of(folder, trials=7)) == 0
    return folder


def test_every_trial_is_a_job_and_a_row(searched):
    sweep = load(searched)
    assert [job.status for job in sweep.jobs] == ["finished"] * 7
    assert [float(job.swept["algo.beta"]) for job in sweep.jobs] == [beta for beta, _ in results(searched)]
    assert [row["state"] for row in trials(searched)] == ["complete"] * 7
    assert sweep.jobs[3].dir.startswith("3_algo.beta=")


def test_the_metric_is_chosen_by_what_the_jobs_measure(searched):
    search = load(searched).search
    assert (search.metric, search.direction) == ("val/reward", 1)
    assert "val/reward" in trials(searched)[0]


def known_reward(beta):
    return 1 - abs(math.log10(beta) + 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_after_the_random_trials_most_are_at_the_better_value(tmp_path, seed):
    space = {"algo.beta": Dimension("choice", ["0.01", "0.1", "1"])}
    study = Study(tmp_path, sweep_of(tmp_path, space=space, seed=seed).search)
    for _ in range(14):
        trial = study.ask()
        study.tell(trial.number, known_reward(float(trial.values["algo.beta"])))
    tried = [trial.values["algo.beta"] for trial in study.trials()[RANDOM:]]
    assert tried.count("0.1") > len(tried) / 2, tried
    assert study.best().values == {"algo.beta": "0.1"}


def test_the_same_seed_proposes_the_same_values_and_another_others(searched, tmp_path):
    run(sweep_of(tmp_path / "again", trials=3))
    run(sweep_of(tmp_path / "other", trials=2, seed=1))
    assert [beta for beta, _ in results(tmp_path / "again")][:3] == [beta for beta, _ in results(searched)][:3]
    assert results(tmp_path / "other")[0] != results(searched)[0]


def test_a_search_that_is_killed_and_resumed_is_the_search_without_the_kill(searched, tmp_path):
    folder = tmp_path / "killed"
    sweep_of(folder, trials=7).save()
    for after in (2, 5):
        process = in_a_process(folder)
        wait_for_jobs(folder, after, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    sweep = load(folder)
    assert len(sweep.jobs) < 7, "it was over before it was killed"
    assert run(sweep) == 0
    assert results(folder) == results(searched)
    assert len(load(folder).jobs) == 7
    done = [(folder / job.dir / "started").read_text() for job in load(folder).jobs]
    assert sum(map(len, done)) <= 7 + 2, "only the job that was running at a kill starts again"


RESUMES = """
import sys
from pathlib import Path
from shiqrun.sweeping.state import load
from tests.sweeping.test_search import run, JOB, ENDS
sys.exit(run(load(Path(sys.argv[1])), JOB + "time.sleep(0.1)" + ENDS))
"""


def in_a_process(folder):
    words = [sys.executable, "-c", RESUMES, str(folder)]
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)


def wait_for_jobs(folder, count, process):
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if sum(job["status"] == "finished" for job in json.loads((folder / "sweep.json").read_text())["jobs"]) >= count:
            return
        time.sleep(0.005)
    raise AssertionError("no such number of jobs")


def test_a_trial_that_was_asked_for_and_has_no_job_gets_one(tmp_path):
    sweep = sweep_of(tmp_path)
    sweep.save()
    asked = Study(tmp_path, sweep.search).ask()
    assert run(load(tmp_path)) == 0
    assert results(tmp_path)[0][0] == asked.values["algo.beta"]
    assert [row["state"] for row in trials(tmp_path)] == ["complete"] * 3


def test_a_finished_search_runs_nothing_and_more_trials_go_on(searched, tmp_path):
    run(sweep_of(tmp_path, trials=2))
    again = load(tmp_path)
    again.search.trials = 3
    assert run(again) == 0
    assert run(load(tmp_path)) == 0
    assert [(tmp_path / job.dir / "started").read_text() for job in load(tmp_path).jobs] == ["x"] * 3


def test_the_value_of_a_trial_is_the_mean_over_seeds(tmp_path):
    run(sweep_of(tmp_path, trials=2, seeds=["1", "5"]), parallel=2)
    jobs = load(tmp_path).jobs
    assert [job.swept["seed"] for job in jobs] == ["1", "5", "1", "5"]
    assert jobs[0].swept["algo.beta"] == jobs[1].swept["algo.beta"]
    values = [json.loads((tmp_path / job.dir / "summary.json").read_text())["val/reward"] for job in jobs]
    assert [value for _, value in results(tmp_path)] == [sum(values[:2]) / 2, sum(values[2:]) / 2]
    assert [row["jobs"] for row in trials(tmp_path)] == ["0 1", "2 3"]


def test_a_job_that_fails_is_a_failed_trial_and_the_search_goes_on(tmp_path, capsys):
    program = JOB + "if here.name.startswith('1_'): sys.exit('shiqrun: failed: why')" + ENDS
    assert run(sweep_of(tmp_path, trials=4), program) == 1
    assert [row["state"] for row in trials(tmp_path)] == ["complete", "fail", "complete", "complete"]
    assert "trial 1  failed" in capsys.readouterr().out


def test_a_search_of_which_nothing_succeeds_ends_after_a_few_trials(tmp_path):
    assert run(sweep_of(tmp_path, trials=50), "raise SystemExit('no')") == 1
    assert len(load(tmp_path).jobs) == 5


def test_a_metric_that_the_jobs_lack_ends_the_search_with_the_nearest_and_another_goes_on(tmp_path):
    sweep = sweep_of(tmp_path, metric="val/rewrd", direction=1)
    with pytest.raises(InputError, match=r"sweep\.metric=val/rewrd: the jobs do not measure it; did you mean"):
        run(sweep)
    again = load(tmp_path)
    assert len(again.jobs) == 1
    again.search.metric = "val/reward"
    assert run(again) == 0
    assert len(again.jobs) == 3
    assert (tmp_path / again.jobs[0].dir / "started").read_text() == "x"


def test_a_metric_that_the_first_evaluation_lacks_ends_the_search_before_the_job_has_ended(tmp_path):
    program = JOB + "(here / 'metrics.csv').write_text('step,val/reward\\n0,1.0\\n'); time.sleep(100)"
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"sweep\.metric=val/rewrd: the jobs do not measure it; did you mean val/reward"
    ):
        run(sweep_of(tmp_path, metric="val/rewrd", direction=1), program)
    assert time.monotonic() - began < 60
    assert [job.status for job in load(tmp_path).jobs] == ["interrupted"]


def test_less_may_be_better(tmp_path):
    run(sweep_of(tmp_path, metric="val/loss", direction=-1))
    best = Study(tmp_path, load(tmp_path).search).best()
    assert best.value == min(value for _, value in results(tmp_path))


def test_choices_and_whole_numbers_are_searched_too(tmp_path):
    space = {
        "algo": Dimension("choice", ["shiq", "copg"]),
        "algo.beta": Dimension("float", low=0.05, high=0.2, log=True),
        "trainer.batch_size": Dimension("int", low=8, high=64, step=8),
    }
    run(sweep_of(tmp_path, space=space, trials=5), parallel=2)
    rows = trials(tmp_path)
    assert {row["algo"] for row in rows} == {"shiq", "copg"}
    assert all(int(row["trainer.batch_size"]) % 8 == 0 for row in rows)
    assert Study(tmp_path, load(tmp_path).search).best().values["algo"] == "copg"


def test_the_end_prints_the_best_trials_and_the_words_of_the_best(searched, capsys):
    sweep = load(searched)
    drawn, words = conclude_search(sweep)
    best = Study(searched, sweep.search).best()
    assert words == [f"algo.beta={best.values['algo.beta']!r}"]
    assert drawn[0] == searched / sweep.jobs[best.number].dir
    assert "The best of 7 trials, by val/reward" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sweep.seed=3"],
            "nothing but sweep.parallel, sweep.trials and sweep.metric can be set; leave out sweep.seed",
        ),
        (["sweep.trials=many"], "sweep.trials: met 'many', expected a whole number greater than 0"),
        (["sweep.metric=val/loss"], "sweep.metric=val/loss: trials of this search were judged by val/reward"),
    ],
)
def test_a_resume_changes_nothing_that_trials_were_judged_by(searched, capsys, words, message):
    before = (searched / "sweep.json").read_bytes()
    assert main(["sweep", f"sweep.resume={searched}", *words]) == 2
    assert message in capsys.readouterr().err
    assert (searched / "sweep.json").read_bytes() == before
