"""W&B for real, offline, in processes of their own: what a dashboard would show."""

import pytest

from shiqrun.tracking import has_key
from tests import wandb_file
from tests.command_line import SMALL, command, finished, metrics

TRACKED = [word for word in SMALL if word != "logger=none"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that was stopped after some steps and resumed, with W&B on and no key."""
    home = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("WANDB_MODE", raising=False)
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("SHIQRUN_CACHE", str(home / "cache"))
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


def test_config_group_tags_and_exit_code_are_there(tracked):
    run = offline_run(tracked[0])
    assert run["config"]["algo"]["beta"] == 0.3
    assert run["config"]["trainer"]["max_steps"] == 7
    assert (run["group"], run["tags"], run["project"]) == ("g", ["a", "b"], "shiqrun")
    assert run["exit_code"] == 0


def test_the_run_id_is_kept_for_a_resume(tracked):
    run_dir, _ = tracked
    assert (run_dir / "wandb" / "run_id").read_text() == offline_run(run_dir)["id"]


def test_two_jobs_of_a_sweep_are_two_runs_with_their_own_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHIQRUN_CACHE", str(tmp_path / "cache"))
    words = ("-m", "algo.beta=0.1,0.2", "trainer.max_steps=2", "run_dir=sweep", "eval.every=0")
    code, out = finished(command("train", *TRACKED, *words))
    assert code == 0, out
    runs = [offline_run(d) for d in sorted((tmp_path / "sweep").glob("*_*"))]
    assert len({run["id"] for run in runs}) == 2
    assert [run["config"]["algo"]["beta"] for run in runs] == [0.1, 0.2]


def test_a_key_is_found_in_the_environment_and_in_netrc(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_key()
    (tmp_path / "netrc").write_text("machine other.example login user password secret\n")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_key()
