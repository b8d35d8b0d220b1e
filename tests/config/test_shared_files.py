"""What a run writes can be shared: no value of an environment variable is in it, and pages name no absolute path."""

import pytest
import yaml
from omegaconf import OmegaConf

from shiqrun.cli import main
from shiqrun.config.without_environment import standalone
from tests.evaluation.runs import make_base, words
from tests.support.places import working_in

SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def made(home):
    """A run whose cache lies where an environment variable says, evaluated by samples, and its report."""
    with pytest.MonkeyPatch.context() as patch, working_in(home):
        patch.setenv("PLACE_OF_CACHES", SECRET)
        make_base(home)
        cache = ["cache_dir=${oc.env:PLACE_OF_CACHES}"]
        line = [word for word in words(home, "run") if not word.startswith("cache_dir")]
        assert main(line + cache) == 0
        assert main(["report", "run", "--out", "run/report.html"]) == 0
    return home / "run"


@pytest.mark.slow
def test_the_value_of_an_environment_variable_is_in_no_file(made):
    files = [file for file in made.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [str(file) for file in files if SECRET.encode() in file.read_bytes()] == []
    saved = yaml.safe_load((made / ".hydra" / "config.yaml").read_text())
    assert saved["cache_dir"] == "${oc.env:PLACE_OF_CACHES}"
    assert (made.parent / SECRET).is_dir()  # it was used


def test_pages_name_no_absolute_path(made):
    pages = [made / "report.html", made / "policy" / "README.md", *made.rglob("*.csv")]
    assert len(pages) > 3
    assert [str(page) for page in pages if str(made.parent) in page.read_text()] == []
    assert "base/policy" in (made / "policy" / "README.md").read_text()


def test_such_a_run_is_known_again_and_says_what_it_lacks(made, home, monkeypatch, capsys):
    line = [word for word in words(home, "run") if not word.startswith("cache_dir")]
    with working_in(home):
        monkeypatch.setenv("PLACE_OF_CACHES", SECRET)
        assert main([*line, "cache_dir=${oc.env:PLACE_OF_CACHES}"]) == 2
        assert "already holds this run, finished" in " ".join(capsys.readouterr().err.split())
        monkeypatch.delenv("PLACE_OF_CACHES")
        assert main(["train", "resume=run"]) == 2
    said = capsys.readouterr().err
    assert "PLACE_OF_CACHES" in said
    assert "Traceback" not in said


def test_an_evaluation_with_other_data_settings_copies_no_value_of_an_environment_variable(home, monkeypatch):
    secret = home / SECRET
    secret.mkdir(exist_ok=True)
    (secret / "data.jsonl").write_bytes((home / "data.jsonl").read_bytes())
    monkeypatch.setenv("PLACE_OF_DATA", str(secret))
    line = [word for word in words(home, "private") if not word.startswith("data.path")]
    assert main([*line, "data.path=${oc.env:PLACE_OF_DATA}/data.jsonl", "trainer.max_steps=1"]) == 0
    assert main(["eval", f"run={home / 'private'}", "data.limit=30", f"run_dir={home / 'answers'}"]) == 0
    files = [file for file in (home / "answers").rglob("*") if file.is_file()]
    assert [str(file) for file in files if SECRET.encode() in file.read_bytes()] == []
    saved = yaml.safe_load((home / "answers" / ".hydra" / "config.yaml").read_text())["data"]
    assert (saved["path"], saved["limit"]) == ("${oc.env:PLACE_OF_DATA}/data.jsonl", 30)


def test_a_node_stands_alone_with_its_references_replaced():
    made = {"place": "${oc.env:HOME}/x", "n": 3, "data": {"path": "${place}/${n}.jsonl", "limit": "${n}"}}
    found = standalone(OmegaConf.create(made), "data")
    assert found == {"path": "${oc.env:HOME}/x/3.jsonl", "limit": 3}
