import json
import shutil

import pytest
import yaml

from shiqrun.errors import InputError
from shiqrun.report.run_records import SWEEP_FORMAT, collect_runs
from shiqrun.sweeping import state
from tests.report import fake_runs


def names(*directories):
    return [run.name for run in collect_runs(directories).runs]


def test_sweeps_write_the_format_that_reports_read():
    assert state.FORMAT == SWEEP_FORMAT


def test_a_run_is_its_config_its_summary_and_its_metrics(tmp_path):
    (run,) = collect_runs([fake_runs.finished_run(tmp_path / "one", "copg", 0.3, 2)]).runs
    assert (run.algo, run.data, run.beta, run.seed, run.status) == ("copg", "hh", 0.3, 2, "finished")
    assert run.final["val/reward"] == 0.7
    assert run.history["train/loss"] == {1: 2.0, 100: 1.0}
    assert run.history["val/reward"] == pytest.approx({0: 0.1, 50: 0.4, 100: 0.7})


def test_jobs_of_a_sweep_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 2):
        fake_runs.finished_run(tmp_path / f"{number}_seed={number}", seed=number)
    assert names(tmp_path) == ["2_seed=2", "9_seed=9", "10_seed=10"]


def test_failed_and_missing_jobs_of_a_sweep_are_listed(tmp_path):
    runs = collect_runs([fake_runs.sweep(tmp_path)]).runs
    assert len(runs) == 38
    assert [run.status for run in runs[-2:]] == ["failed", "waiting"]
    assert (runs[-1].algo, runs[-1].beta, runs[-1].seed) == ("dpo", 1.0, 5)
    assert runs[-2].error == "the loss is not finite at step 7"


def test_a_hydra_multirun_without_a_state_of_its_own_is_a_folder_of_runs(tmp_path):
    (tmp_path / "multirun.yaml").write_text("hydra: {}\n")
    fake_runs.finished_run(tmp_path / "0_seed=1", seed=1)
    fake_runs.finished_run(tmp_path / "1_seed=2", seed=2)
    assert names(tmp_path) == ["0_seed=1", "1_seed=2"]


def test_evaluations_and_checkpoints_under_a_run_are_no_runs(tmp_path):
    run = fake_runs.finished_run(tmp_path / "run")
    fake_runs.write_run(run / "eval" / "2026-01-31", rows=[{"step": 0, "val/reward": 1.0}])
    assert names(run) == ["run"]
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("name", ["policy", "eval", "report", "reward_model", "adapter", "checkpoints", "tensorboard"])
def test_a_job_may_have_the_name_of_a_runs_own_folders(tmp_path, name):
    fake_runs.finished_run(tmp_path / name, seed=1)
    fake_runs.finished_run(tmp_path / "other", seed=2)
    fake_runs.write_run(tmp_path / "other" / name / "inside", rows=[{"step": 0, "val/reward": 1.0}])
    assert sorted(names(tmp_path)) == sorted(["other", name])


def test_a_sweep_may_have_the_name_of_a_runs_own_folders(tmp_path):
    fake_runs.sweep(tmp_path / "eval")
    assert len(collect_runs([tmp_path]).runs) == 38


@pytest.mark.parametrize("status", ["running", "waiting", "interrupted", "failed"])
def test_a_job_stands_as_its_sweep_says(tmp_path, status):
    jobs = [
        state.Job(0, "0", [], {"seed": "1"}, status="finished"),
        state.Job(1, "1", [], {"seed": "2"}, status=status),
    ]
    state.Sweep(tmp_path, "train", [], "/", [], jobs).save()
    fake_runs.finished_run(tmp_path / "0", seed=1)
    fake_runs.write_run(tmp_path / "1", settings=fake_runs.config(seed=2), rows=[{"step": 1, "train/loss": 1.0}])
    assert [run.status for run in collect_runs([tmp_path]).runs] == ["finished", status]


def test_a_job_that_has_just_ended_is_finished_whatever_its_sweep_says_yet(tmp_path):
    state.Sweep(tmp_path, "train", [], "/", [], [state.Job(0, "0", [], {}, status="running")]).save()
    fake_runs.finished_run(tmp_path / "0")
    assert [run.status for run in collect_runs([tmp_path]).runs] == ["finished"]


def test_a_job_that_never_began_is_known_by_its_words(tmp_path):
    words = ["+algo.anchor=10", "algo.beta=0.5", "--config-dir", "here"]
    state.Sweep(tmp_path, "train", [], "/", [], [state.Job(0, "0", words, {"algo": "copg", "seed": "2"})]).save()
    fake_runs.finished_run(tmp_path / "other")
    waiting = collect_runs([tmp_path]).runs[0]
    assert (waiting.algo, waiting.beta, waiting.seed, waiting.config["algo.anchor"]) == ("copg", 0.5, 2, 10)


def test_a_directory_given_twice_counts_once(tmp_path):
    run = fake_runs.finished_run(tmp_path / "sweep" / "run")
    assert len(collect_runs([run, tmp_path / "sweep", tmp_path]).runs) == 1


def test_runs_of_several_directories_are_told_apart_by_them(tmp_path):
    for sweep in ("a", "b"):
        fake_runs.finished_run(tmp_path / sweep / "0_seed=1")
    assert names(tmp_path / "a", tmp_path / "b") == ["a/0_seed=1", "b/0_seed=1"]


def test_a_run_that_still_goes_on_has_its_last_numbers(tmp_path):
    run = fake_runs.write_run(tmp_path / "r", rows=fake_runs.history(1.0, 4.0, 0.1))
    (found,) = collect_runs([run]).runs
    assert found.status == "unfinished"
    assert found.final["val/reward"] == 1.0


@pytest.mark.parametrize("file", ["metrics.csv", "samples.jsonl"])
def test_a_line_torn_by_a_kill_is_dropped(tmp_path, file):
    from shiqrun.report.run_files import read_lines

    run = fake_runs.finished_run(tmp_path / "r")
    text = (run / file).read_text()
    (run / file).write_text(text.rstrip("\n")[:-9])
    (found,) = collect_runs([run]).runs
    if file == "metrics.csv":
        assert sorted(found.history["val/reward"]) == [0, 50]
    else:
        assert len(list(read_lines(run / file))) == 3


def test_numbers_that_are_none_are_left_out(tmp_path):
    run = fake_runs.finished_run(tmp_path / "r")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"val/kl": float("nan"), "val/win_rate": float("inf")}))
    (found,) = collect_runs([run]).runs
    assert "val/kl" not in found.final
    assert "val/win_rate" not in found.final


def broken(tmp_path, file, text):
    """A sweep of two runs, a file of the second of which holds `text`."""
    fake_runs.finished_run(tmp_path / "0_seed=1", seed=1)
    run = fake_runs.finished_run(tmp_path / "1_seed=2", seed=2)
    (run / file).write_text(text)
    return tmp_path


BROKEN = {
    "summary.json": ("{", "no JSON"),
    "metrics.csv": ("step,val/reward\n1,2,3\n4,5\n", "line 2: 3 columns, the header has 2"),
    ".hydra/config.yaml": ("a: [\n", "no YAML"),
}


@pytest.mark.parametrize(("file", "text", "said"), [(k, *v) for k, v in BROKEN.items()])
def test_a_broken_file_is_named(tmp_path, file, text, said):
    with pytest.raises(InputError) as raised:
        collect_runs([broken(tmp_path, file, text)])
    assert f"1_seed=2/{file}" in str(raised.value)
    assert said in str(raised.value)


def test_a_run_whose_config_is_gone_is_shown_without_it_and_that_is_said(tmp_path, caplog):
    run = fake_runs.finished_run(tmp_path / "run")
    (run / ".hydra" / "config.yaml").unlink()
    (found,) = collect_runs([run]).runs
    assert not found.configured
    assert [r.message for r in caplog.records if f"{run}/.hydra/config.yaml: is missing" in r.message]


def test_a_table_without_steps_is_named(tmp_path):
    with pytest.raises(InputError, match=r"1_seed=2/metrics\.csv: no header with a column step"):
        collect_runs([broken(tmp_path, "metrics.csv", "epoch\n1\n")])


def test_a_directory_without_runs_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no run in it or below .*give the run_dir"):
        collect_runs([tmp_path])


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such directory"):
        collect_runs([tmp_path / "nowhere"])


def test_an_evaluation_is_no_run(tmp_path):
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(InputError, match="this is an evaluation; give the run's own directory"):
        collect_runs([tmp_path])


def test_a_run_without_metrics_is_named(tmp_path):
    settings = fake_runs.config() | {"trainer": {"learning_rate": 1e-3}}
    fake_runs.write_run(tmp_path / "r", settings=settings)
    with pytest.raises(InputError, match=r"r/metrics\.csv: no metrics, nor in summary\.json; run\.log there says"):
        collect_runs([tmp_path / "r"])


def test_a_run_without_metrics_among_others_is_listed(tmp_path):
    fake_runs.write_run(tmp_path / "0_seed=0")
    fake_runs.finished_run(tmp_path / "1_seed=1")
    assert [run.status for run in collect_runs([tmp_path]).runs] == ["unfinished", "finished"]


def test_a_sweep_of_another_format_is_named(tmp_path):
    fake_runs.sweep(tmp_path, failed=False)
    state = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(state | {"format": 7}))
    with pytest.raises(InputError, match=r"sweep\.json: format 7, this version reads 1"):
        collect_runs([tmp_path])


def test_a_sweep_that_was_moved_is_read(tmp_path):
    fake_runs.sweep(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    runs = collect_runs([tmp_path / "there"]).runs
    assert len(runs) == 38
    assert [run.status for run in runs].count("failed") == 1


def test_settings_of_other_commands_are_no_runs(tmp_path):
    folder = tmp_path / "toy"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"study": {"name": "bandit"}}))
    (folder / "summary.json").write_text(json.dumps({"study": "bandit"}))
    fake_runs.finished_run(tmp_path / "run")
    assert names(tmp_path) == ["run"]
