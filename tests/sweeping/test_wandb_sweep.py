"""The file for `wandb sweep`, and a job of it that W&B's own agent starts; W&B's server alone is not there."""

import os
import queue
import sys
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent

from shiqrun.cli import main
from shiqrun.config.of_run import rundir
from tests.support import wandb_file
from tests.support.command_line import summary

TINY = ("data.maps=20", "data.val_maps=3", "model.hidden_size=16", "model.num_layers=1", "trainer.batch_size=8")
SPACE = ("algo.beta=tag(log, interval(0.01, 1))", "algo=shiq,copg", "trainer.batch_size=8,16", "seed=1,2")
SEARCH = ("sweep", "sweep.search=wandb", "sweep.metric=val/reward", "sweep.trials=10")


def content(capfd, *words):
    assert main([*SEARCH, *words, "dry_run=true"]) == 0
    return yaml.safe_load(capfd.readouterr().out)


def test_the_space_is_that_of_the_words(workplace, capfd):
    more = (
        "trainer.warmup_steps=int(interval(1,5))",
        "eval.every=range(5,16,5)",
        "trainer.log_every=tag(log,int(interval(1,8)))",
    )
    found = content(capfd, *SPACE, *more, "trainer.learning_rate=interval(1e-4,1e-3)", "logger.project=p")
    assert found["parameters"] == {
        "algo.beta": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
        "algo": {"values": ["shiq", "copg"]},
        "trainer.batch_size": {"values": [8, 16]},
        "trainer.warmup_steps": {"distribution": "int_uniform", "min": 1, "max": 5},
        "eval.every": {"values": [5, 10, 15]},
        "trainer.log_every": {"distribution": "q_log_uniform_values", "min": 1, "max": 8, "q": 1},
        "trainer.learning_rate": {"distribution": "uniform", "min": 1e-4, "max": 1e-3},
        "seed": {"values": [1, 2]},
    }
    assert found["metric"] == {"name": "val/reward", "goal": "maximize"}
    assert (found["method"], found["run_cap"], found["project"]) == ("bayes", 20, "p")
    assert not list(workplace.iterdir())


def test_a_metric_is_needed(workplace, capfd):
    assert main(["sweep", "sweep.search=wandb", SPACE[0]]) == 2
    assert "W&B must know the metric beforehand; set sweep.metric=val/reward" in capfd.readouterr().err
    assert not list(workplace.iterdir())


def test_jobs_log_to_wandb_whatever_the_search_itself_was_given(workplace, capfd):
    assert "logger=wandb" in content(capfd, SPACE[0], "logger=csv")["command"]


@pytest.mark.slow
def test_an_agent_runs_a_job_that_its_server_knows_again(workplace, monkeypatch, capfd):
    """The agent makes the command line, as it does with what the server sends; the job is a real run, offline."""
    assert main([*SEARCH, *SPACE, *TINY, "trainer.max_steps=2", "eval.every=2", "run_dir=out"]) == 0
    out = capfd.readouterr().out
    assert "next: wandb sweep" in out
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc12345")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, "")
    agent = Agent(None, queue.Queue(), sweep_id="abc12345")
    agent._sweep_command = yaml.safe_load((workplace / "out/sweep.yaml").read_text())["command"]
    chosen = {"algo.beta": 1.5e-05, "algo": "copg", "trainer.batch_size": 16, "seed": 2}
    agent._command_run({"run_id": "run12345", "program": None, "args": {k: {"value": v} for k, v in chosen.items()}})
    assert agent._run_processes["run12345"].wait() == 0, capfd.readouterr().err
    (place,) = (path for path in (workplace / "out").iterdir() if path.is_dir())
    config = rundir.load(place)
    assert (config.algo.beta, config.algo.name, config.trainer.batch_size, config.seed) == (1.5e-05, "copg", 16, 2)
    assert summary(place)["steps"] == 2
    (file,) = place.glob("wandb/offline-run-*/run-*.wandb")
    assert wandb_file.read(file)["id"] == "run12345" == (place / "wandb/run_id").read_text()
