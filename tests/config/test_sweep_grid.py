import csv
import json
import re

import pytest
from omegaconf import OmegaConf

from shiqrun.config.compose import compose, job_overrides
from shiqrun.config.sweep_grid import labels, plan_sweep, swept_keys, words_for_jobs, words_for_launcher
from shiqrun.errors import InputError
from tests.support.command_line import command, finished

WORDS = ["algo=shiq", "run_dir=out", "sweep.parallel=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1"]


def job(**nodes):
    """A job's config with what naming it needs."""
    hydra = {"job": {"num": 0, "override_dirname": "", "config": {"override_dirname": {"exclude_keys": ["cache_dir"]}}}}
    hydra["sweep"] = {"subdir": "${hydra.job.num}_${hydra.job.override_dirname}"}
    return OmegaConf.create({"hydra": hydra, **nodes})


def test_jobs_get_their_own_settings_and_a_launcher_its_own_too():
    assert words_for_jobs(WORDS) == ["algo=shiq", "seed=1"]
    assert words_for_launcher(WORDS) == ["algo=shiq", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1"]


def test_what_is_swept_is_what_has_several_values_also_in_a_file():
    config = OmegaConf.create({"hydra": {"sweeper": {"params": {"algo.beta": "0.1,0.2"}}}})
    assert swept_keys(config, ["algo=shiq", "seed='range(1,3)'", "data.limit=3", "algo.lam=0,1"]) == [
        "algo.beta",
        "algo.lam",
    ]
    assert swept_keys(config, ["seed=range(1,3)"]) == ["algo.beta", "seed"]


@pytest.mark.parametrize("key", ["run_dir", "resume", "cache_dir", "dry_run", "sweep.parallel", "sweep.resume"])
def test_what_all_jobs_share_has_one_value(key):
    config = OmegaConf.create({"hydra": {"sweeper": {"params": None}}})
    with pytest.raises(InputError, match=rf"{key}: met several values \(/tmp/p,q\), expected one"):
        swept_keys(config, [f"{key}=/tmp/p,q", "seed=1,2"])
    assert swept_keys(config, [f"{key}='/tmp/p,q'", "seed=1,2"]) == ["seed"]


@pytest.mark.parametrize("path", [f"/a b/{'long/' * 60}", "/it\\'s (a) [dir]; $x & <y>"])
def test_directory_names_are_safe_and_short(path):
    words = ["model=hf", f"model.path='{path}',x", "data.limit=3"]
    config = compose("train", words, multirun=True)
    each = [(job, compose("train", job)) for job in job_overrides("train", config, words)]
    names = [job.dir for job in plan_sweep("train", each, swept_keys(config, words), ["typed"]).jobs]
    assert names[1] == "1_model.path=x_model=hf_data.limit=3"
    assert names[0].startswith("0_model.path=_")
    assert all(re.fullmatch(r"[A-Za-z0-9_.=+-]{1,100}", name) for name in names)


def test_a_job_is_named_by_what_is_swept_first_and_knows_steps_and_gpus():
    config = job(trainer={"max_steps": 7}, hardware={"accelerator": "gpu", "devices": 2})
    words = ["data.limit=3", "cache_dir=x", "model.path='a b'", "run_dir=out", "algo.beta=0.5"]
    (made,) = plan_sweep("sweep", [(words, config)], ["algo.beta"], ["typed"]).jobs
    assert made.dir == "0_algo.beta=0.5,data.limit=3,model.path=a b"
    assert (made.max_steps, made.gpus, made.swept) == (7, 2, {"algo.beta": "0.5"})
    assert made.words == ["data.limit=3", "cache_dir=x", "model.path='a b'", "algo.beta=0.5"]


def test_a_dashboard_gets_the_sweeps_name_and_what_is_swept_and_keeps_what_the_user_set(tmp_path):
    logger = {"group": None, "tags": ["mine"]}
    told = labels(OmegaConf.create({"logger": logger}), {"algo.beta": "0.1"}, tmp_path / "sweep-hh" / "now")
    assert told == {"group": "sweep-hh/now", "tags": ["mine", "algo.beta=0.1"]}
    assert labels(OmegaConf.create({"logger": {**logger, "group": "g"}}), {}, tmp_path)["group"] == "g"
    assert labels(OmegaConf.create({"logger": {"name": "none"}}), {"algo.beta": "0.1"}, tmp_path) == {}


def test_another_launcher_runs_the_same_grid(workplace):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra joblib")
    small = ("data.maps=20", "data.val_maps=3", "model.hidden_size=16", "model.num_layers=1", "trainer.max_steps=2")
    words = (
        "seed=1,2",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "run_dir=out",
        "logger=none",
        "eval.every=0",
    )
    code, out = finished(command("sweep", *small, *words))
    assert code == 0, out
    assert "Joblib" in out
    with (workplace / "out/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["status"], row["seed"]) for row in rows] == [("finished", "1"), ("finished", "2")]
    assert [json.loads((workplace / "out" / row["dir"] / "summary.json").read_text())["seed"] for row in rows] == [1, 2]
