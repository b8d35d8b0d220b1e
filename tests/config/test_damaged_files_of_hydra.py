"""Damaged files of Hydra's in a run directory are mended and said, or end a command with exit code 2 and one line."""

import shutil
import subprocess

import pytest

from shiqrun.cli import main
from tests.support.command_line import SMALL
from tests.support.selection import rest_slow

BROKEN = [b"", b"hydra: [1, 2", b"- 1\n", b"a: \xff\n", b"\0\0\0", b"hydra: {runtime: 3}\n", None]
IDS = ["empty", "torn", "list", "bytes", "nuls", "other", "missing"]


@pytest.fixture(scope="module")
def begun(home):
    """A run whose last step is saved, killed before its summary was written."""
    words = (*SMALL, "trainer.max_steps=2", "trainer.log_every=1", "eval.every=0")
    assert main(["train", *words, f"run_dir={home / 'begun'}"]) == 0
    (home / "begun" / "summary.json").unlink()
    return home / "begun"


def damage(file, content):
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)


@pytest.mark.parametrize("content", rest_slow(BROKEN, 2), ids=IDS)
def test_a_resumed_run_with_a_broken_record_of_hydra_goes_on_with_its_log(begun, content, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    damage(run / ".hydra" / "hydra.yaml", content)
    damage(run / ".hydra" / "overrides.yaml", content)
    before = (run / "run.log").read_text()
    assert main(["train", f"resume={run}"]) == 0
    out, error = capfd.readouterr()
    said = " ".join((out + error).split())
    assert "Traceback" not in said
    assert f"{run}/.hydra/hydra.yaml: is missing or damaged; run.log goes on" in said
    after = (run / "run.log").read_text()
    assert after.startswith(before)
    assert "resuming after step" in after[len(before) :]


@pytest.mark.parametrize("content", rest_slow(BROKEN, 2), ids=IDS)
def test_an_evaluation_of_a_run_needs_no_record_of_hydra(begun, content, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    damage(run / ".hydra" / "hydra.yaml", content)
    words = [f"run={run}", "checkpoint=last", "data.val_maps=2", "dry_run=true"]
    assert main(["eval", *words]) == 0
    assert "evaluated exactly" in capfd.readouterr().out


@pytest.mark.parametrize("content", rest_slow([b"", b"\0\0\0", b"algo: [1"]), ids=["empty", "nuls", "torn"])
def test_a_directory_with_a_broken_config_where_nothing_was_trained_begins_anew(content, tmp_path, capfd):
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_bytes(content)
    (run / "run.log").write_text("")
    words = (*SMALL, "trainer.max_steps=2", "eval.every=0", f"run_dir={run}")
    assert main(["train", f"resume={run}"]) == 2
    assert "nothing was trained there yet" in capfd.readouterr().err
    assert main(["train", *words]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"{run}/.hydra/config.yaml: is damaged, and nothing was trained there yet: the run begins anew" in said
    assert (run / "summary.json").is_file()


def test_a_broken_config_beside_trained_steps_is_an_error(begun, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    (run / ".hydra" / "config.yaml").write_bytes(b"\0\0")
    assert main(["train", *SMALL, f"run_dir={run}"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "restore it, or start the run again in another run_dir" in said


@pytest.mark.parametrize("content", rest_slow(BROKEN, 2), ids=IDS)
def test_a_sweep_by_hydra_counts_a_job_without_its_record_as_it_ended(home, content, tmp_path, capfd, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    from shiqrun.config import sweep_grid

    monkeypatch.setattr(sweep_grid, "uses_own_launcher", lambda config: False)
    launched = BasicLauncher.launch

    def launch_and_damage(self, *args, **kwargs):
        found = launched(self, *args, **kwargs)
        for file in tmp_path.rglob(".hydra/hydra.yaml"):
            damage(file, content)
        return found

    monkeypatch.setattr(BasicLauncher, "launch", launch_and_damage)
    words = (*SMALL, "trainer.max_steps=1", "eval.every=0", f"run_dir={tmp_path / 'sweep'}")
    assert main(["train", "-m", *words, "seed=0"]) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_partial_files_of_a_killed_writer_are_gone_after_the_next_start(begun, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    with subprocess.Popen(["true"]) as gone:
        pass
    left = [run / f".metrics.csv.{gone.pid}.tmp", run / ".hydra" / f".config.yaml.{gone.pid}.tmp"]
    for file in left:
        file.write_text("half")
    (run / f".policy.{gone.pid}.tmp").mkdir()
    assert main(["train", f"resume={run}"]) == 0
    assert not list(run.rglob("*.tmp"))
