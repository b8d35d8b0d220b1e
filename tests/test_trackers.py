"""TensorBoard's files of a real run, read by TensorBoard's own reader; MLflow and Trackio where they are installed."""

import sys

import pytest
import yaml

from shiqrun.cli import main
from shiqrun.tracking import MLflow, TensorBoard, Trackio, close
from tests.support import wandb_file
from tests.support.command_line import SMALL, command, finished, metrics, wait_for_rows
from tests.support.places import working_in

TRACKED = [word for word in SMALL if word != "logger=none"]
OFTEN = ("trainer.log_every=1", "trainer.checkpoint_every=4", "trainer.max_steps=24", "algo.beta=0.3")
CONFIG = {"algo": {"name": "dro", "lam": None}, "data": {"name": "hh"}, "seed": 3}


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(each.step, each.value) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def columns(run_dir) -> dict[str, list[tuple[int, float]]]:
    """The same of `metrics.csv`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in metrics(run_dir):
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((int(row["step"]), value))
    return found


def expect_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        values = [value for _, value in points]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-5, abs=1e-9, nan_ok=True)  # float32


@pytest.fixture(scope="module")
def both(home):
    """A run with TensorBoard and W&B that was killed after some steps and then went on."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    with working_in(home) as patch:
        patch.setenv("WANDB_MODE", "offline")
        run = home / "run"
        process = command("train", *TRACKED, *OFTEN, "logger=[tensorboard,wandb]", "run_dir=run")
        wait_for_rows(run, 7, process)
        process.kill()
        finished(process)
        assert not (run / "summary.json").exists(), "it finished before it was killed"
        code, out = finished(command("train", "resume=run"))
    assert code == 0, out
    return run


@pytest.mark.slow
def test_tensorboard_shows_every_number_of_metrics_csv_once_over_a_kill_and_a_resume(both):
    assert len(list((both / "tensorboard").glob("events.out.tfevents.*"))) == 2
    expect_equal(scalars(both / "tensorboard"), columns(both))


@pytest.mark.slow
def test_the_other_tracker_has_the_same_run(both):
    last = max(both.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    run = wandb_file.read(last)
    assert (run["project"], run["config"]["algo"]["beta"]) == ("shiqrun", 0.3)
    assert run["history"][-1]["train/global_step"] == 24


@pytest.mark.slow
def test_tensorboard_has_the_config_as_hyperparameters(both):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    assert yaml.safe_load((both / "tensorboard" / "hparams.yaml").read_text())["algo"]["beta"] == 0.3
    reader = EventAccumulator(str(both / "tensorboard")).Reload()
    content = reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["algo/beta"].number_value == 0.3
    assert given["trainer/max_steps"].number_value == 24


def test_a_list_of_loggers_is_the_first_and_the_others_beside_it(workplace, capfd):
    words = ["train", "logger=[csv,wandb]", "--cfg", "job"]
    assert main(words) == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert shown["logger"] == {"name": "csv", "also": ["wandb"]}


@pytest.mark.parametrize("words", [["logger=NAME"], ["logger=none", "logger.also=[NAME]"]], ids=["chosen", "also"])
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_missing_library_is_one_line_before_training(workplace, monkeypatch, capfd, name, words):
    monkeypatch.setitem(sys.modules, name, None)  # how Python marks a module that cannot be imported
    words = [word.replace("NAME", name) for word in words]
    assert main(["train", *TRACKED, "trainer.max_steps=1", *words, "run_dir=run"]) == 2
    err = capfd.readouterr().err
    line = f"shiqrun: error: logger={name}: {name} is not installed; pip install 'shiqrun[{name}]'\n"
    assert err == line
    assert not (workplace / "run").exists()


def test_an_unknown_further_tracker_names_the_known_ones(workplace, capfd):
    assert main(["train", "logger=none", "logger.also=[tensorbord]", "run_dir=run"]) == 2
    assert "logger.also: met ['tensorbord'], expected 'wandb', 'tensorboard', 'mlflow' or 'trackio'" in (
        capfd.readouterr().err
    )


def test_tensorboard_goes_on_in_the_same_folder_after_its_end(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    logger = TensorBoard().open(tmp_path, CONFIG)
    logger.log_metrics({"val/reward": 1.0, "train/by_source/a b": 2.0}, 0)
    logger.finalize("success")
    logger.log_metrics({"val/kl": 0.5}, 0)
    assert scalars(tmp_path / "tensorboard") == {
        "val/reward": [(0, 1.0)],
        "train/by_source/a b": [(0, 2.0)],
        "val/kl": [(0, 0.5)],
    }


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the extra mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    settings = MLflow(project="p", uri=store, group="g", tags=["mine"])
    for step, value in ((0, 0.5), (5, 0.25)):
        logger = settings.open(tmp_path, CONFIG | {"resume": step})
        logger.log_metrics({"val/reward": value}, step)
        logger.finalize("success")
    client = mlflow.MlflowClient(store)
    run = client.get_run((tmp_path / "mlflow/run_id").read_text())
    history = client.get_metric_history(run.info.run_id, "val/reward")
    assert [(point.step, point.value) for point in history] == [(0, 0.5), (5, 0.25)]
    assert run.data.params["algo/name"] == "dro"
    assert {"mine", "dro", "hh", "group"} <= set(run.data.tags)
    assert run.info.status == "FINISHED"


def test_trackio_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio", reason="needs the extra trackio")
    settings = Trackio(project="p", group="g", tags=["mine"])
    for step, value in ((0, 0.5), (5, 0.25)):
        settings.open(tmp_path, CONFIG).log_metrics({"val/reward": value}, step)
        close()
    (run,) = trackio.Api().runs("p")
    assert run.config["algo"]["name"] == "dro"
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("p", run.name)
    assert [(row["step"], row["val/reward"]) for row in rows] == [(0, 0.5), (5, 0.25)]
