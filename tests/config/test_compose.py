"""What is typed and what Hydra reads: rewards by name or directory, paths, and where results go."""

from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from shiqrun.config.compose import as_hydra_overrides, compose
from shiqrun.config.explain import explain
from shiqrun.config.resolvers import inside
from shiqrun.config.sources import ProjectYaml
from shiqrun.errors import InputError


@pytest.fixture(autouse=True)
def workplace(workplace):
    (workplace / "rm").mkdir()
    return workplace


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("reward=exact_match", ["reward=exact_match"]),
        ("reward=out/rm", ["reward=model", "reward.path=out/rm"]),
        ("reward=rm", ["reward=model", "reward.path=rm"]),
        ("reward=org/name", ["reward=model", "reward.path=org/name"]),
        ("reward=/abs/rm", ["reward=model", "reward.path=/abs/rm"]),
        ("reward='out/rm'", ["reward=model", "reward.path='out/rm'"]),
        ("reward=null", ["reward=null"]),
        ("reward=", ["reward="]),
        ("eval.reward=exact_match", ["reward@eval.reward=exact_match"]),
        ("eval.reward=out/rm", ["reward@eval.reward=model", "eval.reward.path=out/rm"]),
        ("eval.reward=null", ["eval.reward=null"]),
        ("reward.center=0.5", ["reward.center=0.5"]),
        ("eval.reward.scale=2", ["eval.reward.scale=2"]),
        ("reward@eval.reward=model", ["reward@eval.reward=model"]),
        ("data.path=out/a=1/x.jsonl", ["data.path='out/a=1/x.jsonl'"]),
        ("reward=out/a=1/rm", ["reward=model", "reward.path='out/a=1/rm'"]),
        ("algo=shiq", ["algo=shiq"]),
    ],
)
def test_an_override_is_read_as(typed, read):
    assert as_hydra_overrides([typed]) == read


def test_a_reward_directory_is_known_by_being_there(workplace):
    (workplace / "rm").rmdir()
    assert as_hydra_overrides(["reward=rm"]) == ["reward=rm"], "then it is a choice, and its name is checked"


def test_other_overrides_stay_where_they_are():
    assert as_hydra_overrides(["seed=1", "reward=a/b", "seed=2"]) == [
        "seed=1",
        "reward=model",
        "reward.path=a/b",
        "seed=2",
    ]


def test_results_go_inside_a_folder_or_elsewhere():
    assert inside("out/run", "eval", "other") == str(Path("out/run/eval"))
    assert inside(None, "eval", "other") == "other"


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "submitit"), ("submitit_local", "submitit")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher, extra):
    missing = MissingConfigException("", f"hydra/launcher/{launcher}", ["basic"])
    told = explain(missing, "train", [])
    assert told == f"hydra/launcher={launcher}: not installed; pip install 'shiqrun[{extra}]'"
    assert "did you mean hydra/launcher=basic" in explain(
        MissingConfigException("", "hydra/launcher/basik", ["basic"]), "train", []
    )


@pytest.mark.parametrize("key", ["sweep.parallel", "sweep.resume", "sweep"])
def test_a_key_of_a_sweep_is_sent_there(key):
    with pytest.raises(InputError, match=f"^{key}: belongs to shiqrun sweep, not to shiqrun train$"):
        compose("train", [f"{key}=2"])


def test_of_the_known_keys_hydras_own_are_not_listed_and_none_twice():
    with pytest.raises(InputError, match=r"^foo\.bar: unknown key; known are ") as refused:
        compose("train", ["foo.bar=1"])
    listed = str(refused.value).partition("known are ")[2].split(", ")
    assert {"algo", "algo.beta", "trainer.max_steps", "seed"} <= set(listed)
    assert not [name for name in listed if name.startswith("hydra")]
    assert len(set(listed)) == len(listed)


def test_a_mistyped_key_of_hydras_is_still_helped():
    with pytest.raises(InputError, match=r"hydra.sweep.dri: unknown key; did you mean hydra.sweep.dir\?"):
        compose("train", ["hydra.sweep.dri=x"])


def test_a_file_of_the_project_that_was_changed_is_read_again_and_what_is_read_belongs_to_its_reader(
    workplace, monkeypatch
):
    (workplace / "yaml_of_mine").mkdir()
    (workplace / "yaml_of_mine/__init__.py").touch()
    file = workplace / "yaml_of_mine/a.yaml"
    file.write_text("beta: 1")
    monkeypatch.syspath_prepend(workplace)
    source = ProjectYaml("main", f"{ProjectYaml.scheme()}://yaml_of_mine")
    first = source.load_config("a")
    first.config.beta = 5
    assert source.load_config("a").config == {"beta": 1}
    file.write_text("beta: 0.5")
    assert source.load_config("a").config == {"beta": 0.5}
