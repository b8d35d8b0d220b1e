"""W&B for real, offline, in processes of their own: what a dashboard would show."""

import json
import os
import subprocess
import sys

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger

from shiqrun.tracking import Wandb, close, has_key, log_samples
from shiqrun.tracking.panels import MAIN
from tests.support import wandb_file
from tests.support.command_line import SMALL, command, finished, metrics
from tests.support.places import working_in

TRACKED = [word for word in SMALL if word != "logger=none"]


@pytest.fixture(scope="module")
def tracked(home):
    """A run that was stopped after some steps and resumed, with W&B on and no key."""
    with working_in(home) as patch:
        patch.delenv("WANDB_MODE", raising=False)
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("HOME", str(home))
        words = ("trainer.max_steps=7", "run_dir=run", "algo.beta=0.3", "logger.tags=[a,b]", "logger.group=g")
        code, out = finished(command("train", *TRACKED, *words))
    assert code == 0, out
    return home / "run", out


def offline_run(run_dir) -> dict:
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return wandb_file.read(file)


def test_without_a_key_it_goes_offline_and_says_how_to_upload(tracked):
    run_dir, out = tracked
    assert "W&B is offline" in out
    assert f"wandb sync {run_dir.name}" in out or f"wandb sync {run_dir}" in out


def test_the_history_has_every_number_of_metrics_csv(tracked):
    run_dir, _ = tracked
    seen: dict[int, dict] = {}
    for row in offline_run(run_dir)["history"]:
        seen.setdefault(int(row["trainer/global_step"]), {}).update(row)
    for row in metrics(run_dir):
        at = seen[int(row["step"])]
        for name, value in row.items():
            if name != "step":
                assert at[name] == pytest.approx(value)


def test_the_summary_has_the_last_of_each_metric(tracked):
    run_dir, _ = tracked
    last = {name: value for row in metrics(run_dir) for name, value in row.items() if name != "step"}
    assert {name: offline_run(run_dir)["summary"][name] for name in last} == pytest.approx(last)


def test_steps_have_the_names_of_trl_and_of_lightning_and_are_the_axis(tracked):
    run = offline_run(tracked[0])
    assert {"train/global_step", "trainer/global_step"} <= set(run["metrics"])
    assert run["axes"]["*"] == "trainer/global_step"
    assert all(row["train/global_step"] == row["trainer/global_step"] for row in run["history"])
    assert run["history"][-1]["train/global_step"] == 7


def test_the_first_screen_has_the_main_metrics_alone_and_the_others_are_logged(tracked):
    run = offline_run(tracked[0])
    logged = {name.split(".")[0] for row in run["history"] for name in row if not name.startswith("_")}
    drawn = logged - run["hidden"]
    assert {"val/reward", "val/kl", "val/regularised_return", "val/regret", "train/loss"} <= drawn
    assert drawn <= {*MAIN, "completions"}, "a panel for each of these, by W&B's own grouping: train, val"
    assert len(logged) > 2 * len(drawn)
    assert all(run["axes"][name] == "trainer/global_step" for name in run["hidden"] if "global_step" not in name)


def test_every_metric_gets_its_panel_where_that_is_asked(tmp_path, board):
    logger = board(panels="all")
    logger.log_metrics({"val/reward": 1.0, "val/seconds_training": 2.0}, 1)
    ended()
    assert offline_run(tmp_path)["hidden"] == {"train/global_step", "trainer/global_step"}


def test_config_group_tags_and_exit_code_are_there(tracked):
    run = offline_run(tracked[0])
    assert run["config"]["algo"]["beta"] == 0.3
    assert run["config"]["trainer"]["max_steps"] == 7
    assert (run["group"], run["job_type"], run["project"]) == ("g", "shiq", "shiqrun")
    assert set(run["tags"]) == {"a", "b", "shiq", "treasure"}
    assert run["exit_code"] == 0


def test_the_run_id_is_kept_for_a_resume(tracked):
    run_dir, _ = tracked
    assert (run_dir / "wandb" / "run_id").read_text() == offline_run(run_dir)["id"]


def ended() -> None:
    """Ends the W&B run and waits for its file: finishing alone returns before all of it is on disk."""
    close()
    wandb.teardown()


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Opens a W&B logger, as a run and as the run that goes on with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    settings = {"project": "p", "entity": None, "group": None, "job_type": None, "tags": ["mine", "x" * 80]}
    config = {"algo": {"name": "dro"}, "data": {"name": "hh"}, "seed": 3}
    yield lambda **more: Wandb(**settings, **more).open(tmp_path, config)
    ended()


def answers(step: int, *completions: str) -> list[dict]:
    return [
        {"step": step, "prompt": "p", "completion": c, "reward": 1.0, "reference_completion": "r", "tokens": 2}
        for c in completions
    ]


def kept(folder, rows) -> None:
    with (folder / "samples.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_the_table_of_completions_holds_the_rows_of_every_evaluation_also_after_a_resume(tmp_path, board):
    logger = board()
    for step, words in ((0, ("a", "b")), (50, ("c",))):
        kept(tmp_path, answers(step, *words))
        log_samples(logger, step, answers(step, *words))
    ended()
    log_samples(board(), 100, answers(100, "d"))
    ended()
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    both = [wandb_file.table(file, wandb_file.read(file), "completions") for file in (first, second)]
    assert [[row["completion"] for row in rows] for rows in both] == [["a", "b", "c"], ["a", "b", "c", "d"]]
    assert both[1][-1] == {
        "step": 100,
        "prompt": "p",
        "completion": "d",
        "reward": 1.0,
        "ref_completion": "r",
        "ref_reward": None,
    }
    assert wandb_file.read(second)["id"] == wandb_file.read(first)["id"]


def test_other_loggers_take_no_table(tmp_path):
    log_samples(CSVLogger(tmp_path), 0, answers(0, "a"))


def test_tags_are_cut_to_what_the_server_takes(tmp_path, board):
    board().log_metrics({"a": 1.0}, 1)
    ended()
    assert set(offline_run(tmp_path)["tags"]) == {"mine", "x" * 64, "dro", "hh"}


ALONE = """
import logging, sys
from pathlib import Path
from shiqrun.tracking import Wandb, close
from tests.support.places import working_in
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
settings = Wandb(project="p", entity=None, group=None, job_type=None, tags=[])
settings.open(Path(sys.argv[1]), {"seed": 3}).log_metrics({"val/loss": 0.5}, 4)
close()
"""


@pytest.mark.parametrize(
    "key", ["wrong", pytest.param("0123456789" * 4, marks=pytest.mark.slow)], ids=["wrong key", "unreachable server"]
)
@pytest.mark.slow
def test_where_no_server_takes_it_the_run_goes_on_offline_and_says_so(tmp_path, key):
    server = {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_INIT_TIMEOUT": "1"}
    wandb.setup()  # a service that the process below inherits and cannot end
    environment = {**os.environ, **server, "HOME": str(tmp_path), "WANDB_MODE": "online"}
    folder = tmp_path / "a b"
    folder.mkdir()
    words = [sys.executable, "-c", ALONE, str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    ended()
    assert done.returncode == 0, done.stderr
    assert "shiqrun WARNING W&B refused this run, which goes on offline" in done.stderr
    assert f"wandb sync '{folder}/wandb'/offline-run-*" in done.stderr
    run = offline_run(folder)
    assert run["history"][0]["val/loss"] == 0.5
    assert run["id"] == (folder / "wandb/run_id").read_text()
    assert run["config"]["seed"] == 3


def test_a_key_is_found_in_the_environment_and_in_netrc(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_key()
    (tmp_path / "netrc").write_text("machine api.forge.coreweave.com login user password secret\n")
    assert has_key()
    (tmp_path / "netrc").write_text("machine other.example login user password secret\n")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_key()
