"""What a run writes can be shared: no value of an environment variable is in it, and pages name no absolute path."""

import pytest
import yaml

from shiqrun.cli import main
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
