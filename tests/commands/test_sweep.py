"""`shiqrun sweep` from outside, on real runs in processes of their own."""

import csv
import json
import re
import signal
import time
from pathlib import Path

import pytest

from shiqrun.cli import main
from tests.support import wandb_file
from tests.support.command_line import command, edit_config, finished, summary, wait_for_rows
from tests.support.places import working_in

TINY = (
    "data.maps=20",
    "data.val_maps=3",
    "model.hidden_size=16",
    "model.num_layers=1",
    "trainer.batch_size=8",
    "eval.every=2",
)
DIVERGES = "1e30"  # as trainer.learning_rate: the second step is not finite


@pytest.fixture(autouse=True)
def user_home(at_home, monkeypatch):
    monkeypatch.setenv("HOME", str(at_home))


def table(folder: Path, name: str = "sweep.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def visible(folder: Path) -> set[str]:
    """What stands there, but for the folders that libraries make at home when they are imported."""
    return {path.name for path in folder.iterdir() if path.name[0] != "."}


def statuses(folder: Path) -> list[str]:
    return [row["status"] for row in table(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def swept(home):
    """(its directory, output) of a grid of four jobs on two processes, of which two diverge."""
    with working_in(home) as patch:
        patch.setenv("HOME", str(home))
        words = ("algo=shiq,copg", f"trainer.learning_rate=0.01,{DIVERGES}", "trainer.max_steps=3", "run_dir=grid")
        code, out = finished(command("sweep", *TINY, *words, "sweep.parallel=2"))
    assert code == 1, out
    return home / "grid", out


def test_jobs_that_fail_are_recorded_and_the_others_finish(swept):
    rows = table(swept[0])
    assert [(row["algo"], row["trainer.learning_rate"], row["status"], row["exit_code"]) for row in rows] == [
        ("shiq", "0.01", "finished", "0"),
        ("shiq", "1e+30", "failed", "1"),
        ("copg", "0.01", "finished", "0"),
        ("copg", "1e+30", "failed", "1"),
    ]
    assert rows[0]["dir"].startswith("0_algo=shiq_trainer.learning_rate=0.01")
    assert "nothing was updated" in json.loads((swept[0] / "sweep.json").read_text())["jobs"][1]["error"][0]


def test_the_table_has_the_final_metrics_of_each_summary(swept):
    folder, _ = swept
    for row in table(folder):
        if row["status"] == "finished":
            values = summary(folder / row["dir"])
            assert float(row["val/regularised_return"]) == values["val/regularised_return"]
            assert float(row["train/loss"]) == values["train/loss"]
        else:
            assert row["val/regularised_return"] == ""


def test_each_job_is_a_run_directory_with_its_console_output(swept):
    folder, _ = swept
    for row in table(folder):
        assert (folder / row["dir"] / ".hydra/config.yaml").is_file()
    assert "step 3/3" in (folder / table(folder)[0]["dir"] / "console.log").read_text()
    assert "\x1b[" not in (folder / table(folder)[0]["dir"] / "console.log").read_text()


def test_jobs_that_start_together_score_the_reference_once(swept):
    folder, out = swept
    logs = [(folder / row["dir"] / "run.log").read_text() for row in table(folder)]
    assert sorted("computed in" in log for log in logs) == [False, False, False, True]
    done = [summary(folder / row["dir"]) for row in table(folder) if row["status"] == "finished"]
    assert len({values["seconds/reference_computed"] for values in done}) == 1
    assert "the reference " in out


def test_elsewhere_than_on_a_terminal_each_ended_job_is_one_line(swept):
    lines = [line for line in swept[1].splitlines() if line.startswith("job ")]
    assert len(lines) == 4
    assert sorted(re.findall(r"^job (\d)", "\n".join(lines), flags=re.MULTILINE)) == ["0", "1", "2", "3"]
    assert any("algo=copg trainer.learning_rate=0.01  finished" in line and "val/kl" in line for line in lines)


def test_the_end_names_the_best_and_the_page_and_how_to_go_on(swept):
    folder, out = swept
    assert [row["algo"] for row in table(folder, "best.csv")] == ["shiq", "copg"]
    assert "by highest mean val/reward over seeds" in out
    assert (folder / "report.html").is_file()
    assert f"2 of 4 jobs are not finished; to go on:  shiqrun sweep sweep.resume={folder} sweep.parallel=2\n" in out


def test_a_dashboard_finds_the_runs_of_a_sweep_by_group_job_type_and_tags(swept):
    folder, _ = swept
    ids = set()
    for row in table(folder):
        (file,) = (folder / row["dir"]).glob("wandb/offline-run-*/run-*.wandb")
        run = wandb_file.read(file)
        ids.add(run["id"])
        assert run["group"] == f"{folder.parent.name}/grid"
        assert run["job_type"] == row["algo"]
        tags = {row["algo"], "treasure", f"algo={row['algo']}", f"trainer.learning_rate={row['trainer.learning_rate']}"}
        assert set(run["tags"]) == tags
        assert run["config"]["trainer"]["learning_rate"] == float(row["trainer.learning_rate"])
    assert len(ids) == 4


def test_a_resume_takes_no_other_settings(swept, capsys):
    assert main(["sweep", f"sweep.resume={swept[0]}", "seed=2"]) == 2
    assert "nothing but sweep.parallel can be set; leave out seed=2" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_runs_what_is_missing_or_failed_and_leaves_what_is_finished(swept, home):
    """One job is mended as a person would, one finished job's directory is lost, one fails again."""
    folder, _ = swept
    kept, mended, lost, hopeless = (folder / row["dir"] for row in table(folder))
    edit_config(mended, "learning_rate: 1.0e+30", "learning_rate: 0.01")
    lost.rename(home / "lost")
    before = contents(kept)
    code, out = finished(command("sweep", f"sweep.resume={folder}", "sweep.parallel=2"))
    assert code == 1, out
    assert statuses(folder) == ["finished", "finished", "finished", "failed"]
    assert contents(kept) == before
    assert summary(lost)["fingerprint/policy"] == summary(home / "lost")["fingerprint/policy"]
    assert (hopeless / "console.log").read_text().count("shiqrun: failed") == 2
    (home / "lost").rename(home / "seen")


@pytest.mark.slow
def test_a_signal_lets_the_running_job_save_and_leaves_the_rest(home):
    words = ("seed=1,2", "trainer.max_steps=100000", "run_dir=long", "logger=none", "trainer.log_every=1")
    process = command("sweep", *TINY, *words)
    first = home / "long" / "0_seed=1"
    end = time.monotonic() + 60
    while time.monotonic() < end and not list((home / "long").glob("0_*")):
        time.sleep(0.05)
    (first,) = (home / "long").glob("0_*")
    wait_for_rows(first, 3, process)
    process.send_signal(signal.SIGINT)
    code, out = finished(process)
    assert code == 130, out
    assert [(row["status"], row["exit_code"]) for row in table(home / "long")] == [
        ("interrupted", "130"),
        ("waiting", ""),
    ]
    assert (first / "checkpoints/last.ckpt").is_file()
    assert f"2 of 2 jobs are not finished; to go on:  shiqrun sweep sweep.resume={home / 'long'}\n" in out


def test_a_dry_run_prints_the_jobs_and_leaves_nothing(home, capsys):
    before = set(home.iterdir())
    assert main(["sweep", "algo=shiq,dro", "algo.beta=0.25,0.75", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "4 jobs of shiqrun train" in shown
    assert "3_algo=dro_algo.beta=0.75" in shown
    assert set(home.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("algo.beta=0.1,0",), "algo.beta: met 0, expected greater than 0"),
        (("algo=shiq,shqi",), "algo=shqi: no such choice; did you mean algo=shiq?"),
        (("sweep.paralel=2",), "sweep.paralel: unknown key; did you mean sweep.parallel?"),
        (("sweep.parallel=0",), "sweep.parallel: met 0, expected greater than 0"),
        (("run_dir=/tmp/p,q", "seed=1,2"), "run_dir: met several values (/tmp/p,q), expected one"),
        (("sweep.parallel=1,2",), "sweep.parallel: met several values (1,2), expected one"),
        (("resume=grid",), "a sweep goes on with sweep.resume=DIR"),
        (("sweep.resume=nowhere",), "no such directory"),
        (("sweep.resume=nowhere", "sweep.parallel=many"), "sweep.parallel: met 'many'"),
        (("seed=1,2", "hydra.sweep.subdir=same"), "gives two jobs one folder"),
    ],
)
def test_a_mistake_ends_with_2_before_anything_is_made(home, capsys, words, message):
    before = visible(home)
    assert main(["sweep", *words]) == 2
    assert message in capsys.readouterr().err
    assert visible(home) == before


def test_a_sweep_of_another_format_is_refused_and_untouched(home, capsys):
    folder = home / "foreign"
    (folder / "0_seed=1").mkdir(parents=True)
    (folder / "sweep.json").write_text('{"format": 7, "shiqrun": "9.0", "jobs": []}')
    before = contents(folder)
    assert main(["sweep", f"sweep.resume={folder}"]) == 2
    error = capsys.readouterr().err
    assert "met format 7, written by shiqrun 9.0" in error
    assert "nothing was changed" in error
    assert contents(folder) == before


def test_long_names_keep_what_is_swept(home, capsys):
    words = [f"model.path='/a b/{'long/' * 60}'", "model=hf", "algo.beta=0.25,0.75", "data.limit=3"]
    assert main(["sweep", *words, "dry_run=true"]) == 0
    assert "1_algo.beta=0.75 " in capsys.readouterr().out
