"""The commit of the code: of the checkout that it is imported from, or of the wheel that it was installed from."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import shiqrun
from shiqrun.util.code_version import describe, git_commit

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
PRINT = "from shiqrun.util.code_version import describe, git_commit; print(git_commit()); print(describe())"


def git(folder, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder):
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


def package(folder):
    """A copy of the package's code in a folder."""
    shutil.copytree(
        REPOSITORY / "shiqrun", folder / "shiqrun", ignore=shutil.ignore_patterns("__pycache__", "commit.txt")
    )
    return folder


def said(code, cwd):
    """The lines that Python prints with the package in `code` and the working directory `cwd`."""
    environment = {"PYTHONPATH": str(code), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


@pytest.fixture
def elsewhere(tmp_path):
    """A working directory in a repository of its user's own, which says nothing about the code."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    repository(folder)
    return folder


def test_a_checkout_says_its_commit_wherever_it_is_used_from(tmp_path, elsewhere):
    (tmp_path / "checkout").mkdir()
    code = package(tmp_path / "checkout")
    commit = repository(code)
    assert said(code, elsewhere) == [commit, f"shiqrun {shiqrun.__version__} (commit {commit[:12]})"]
    (code / "new.py").write_text("x = 1\n")
    assert said(code, elsewhere)[0] == f"{commit}+"


def test_code_inside_another_repository_does_not_take_its_commit(elsewhere):
    code = package(elsewhere)  # as .venv/lib/python3.11/site-packages in a project of its user's own
    inside = elsewhere / "project" / "site-packages"
    inside.parent.mkdir()
    inside.mkdir()
    (code / "shiqrun").rename(inside / "shiqrun")
    assert said(inside, elsewhere) == ["None", f"shiqrun {shiqrun.__version__}"]


def build(kind, source, out):
    """The file that setuptools builds from a source tree: a wheel or an sdist."""
    code = f"from setuptools import build_meta as b; import sys; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A copy of the sources with a git history of one commit; gives the folder and the commit."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "conf", folder / "conf")
    shutil.copy(REPOSITORY / ".gitignore", folder)
    return package(folder), repository(folder)


def unpacked(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_says_the_commit_that_it_was_built_from(history, tmp_path, elsewhere):
    source, commit = history
    code = unpacked(build("wheel", source, tmp_path), tmp_path / "site")
    assert said(code, elsewhere) == [commit, f"shiqrun {shiqrun.__version__} (commit {commit[:12]})"]
    assert not (source / "shiqrun" / "commit.txt").exists()


def test_a_wheel_of_an_sdist_says_the_commit_of_the_sdist(history, tmp_path, elsewhere):
    source, commit = history
    shutil.unpack_archive(build("sdist", source, tmp_path), tmp_path)
    tree = next(path for path in tmp_path.iterdir() if (path / "setup.py").is_file())
    code = unpacked(build("wheel", tree, tmp_path), tmp_path / "site")
    assert said(code, elsewhere)[0] == commit


def test_a_wheel_built_without_a_history_says_no_commit(tmp_path, elsewhere):
    (tmp_path / "plain").mkdir()
    source = package(tmp_path / "plain")
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, source / name)
    shutil.copytree(REPOSITORY / "conf", source / "conf")
    code = unpacked(build("wheel", source, tmp_path), tmp_path / "site")
    assert said(code, elsewhere)[0] == "None"


def test_this_checkout_is_described():
    commit = git_commit()
    assert describe() == f"shiqrun {shiqrun.__version__}" + (
        f" (commit {commit[:12]}{'+' * commit.endswith('+')})" if commit else ""
    )
