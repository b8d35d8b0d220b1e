"""The package: what it declares, and what a wheel of it holds and does."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import shiqrun

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "shiqrun"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
INSTALLED_BY_HAND = {"bfcl-eval"}
"""Distributions that the README says how to install: their own pins would hold back everything else."""


def imported(folder):
    """Names of the packages outside the standard library that the modules of a folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"shiqrun"}


def normalised(name):
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements):
    return {normalised(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}


def test_every_import_is_a_declared_dependency_and_every_dependency_is_imported():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    owners = packages_distributions()
    needed = {normalised(owners[name][0]) if name in owners else normalised(name) for name in imported(PACKAGE)}
    always = names_of(project["dependencies"])
    optional = names_of(r for name, rs in project["optional-dependencies"].items() if name != "dev" for r in rs)
    assert needed <= always | optional | INSTALLED_BY_HAND
    assert always <= needed


def test_every_pin_is_in_the_declared_range():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {normalised(name): pin for name, _, pin in (line.partition("==") for line in lines if "==" in line)}
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["dev"], *extras["peft"], *extras["ray"], *extras["docs"]]
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(pins[normalised(requirement.name)]), requirement


def test_the_changelog_dates_the_version_of_the_package():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"(?m)^## {re.escape(shiqrun.__version__)} \(\d{{4}}-\d\d-\d\d\)$", text)
    assert text.index("## Unreleased") < text.index(f"## {shiqrun.__version__}")


def test_every_folder_of_the_package_is_declared():
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    folders = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in PACKAGE.rglob("__init__.py")}
    assert folders | {"shiqrun.conf"} == set(declared)


@pytest.mark.parametrize("step", ["make check", "make test"])
def test_continuous_integration_runs_the_targets_of_make(step):
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [job_step.get("run") for job in workflow["jobs"].values() for job_step in job["steps"]]
    assert step in steps
    assert step in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that no build directory is left in the repository."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy / name)
    for name in ("shiqrun", "conf"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(copy)]
    subprocess.run(build, check=True, timeout=300)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [*PIP, "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)], check=True, timeout=300
    )
    return folder


def run(installed, cwd, *command):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_yaml(wheel):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "shiqrun").rglob("*.py")}
    configs = {f"shiqrun/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert configs
    report = REPOSITORY / "shiqrun" / "report"
    page = {str(p.relative_to(REPOSITORY)) for p in report.rglob("*") if p.suffix in (".css", ".js", ".j2")}
    assert {path.rpartition(".")[2] for path in page} == {"css", "js", "j2"}
    assert modules | configs | page | {"shiqrun/py.typed"} <= shipped


@pytest.mark.slow
def test_an_installed_wheel_finds_its_conf_from_any_directory(installed, tmp_path):
    where = run(installed, tmp_path, sys.executable, "-c", "import shiqrun, shiqrun.conf as c; print(c.__path__[0])")
    assert Path(where.strip()).is_relative_to(installed)
    config = run(installed, tmp_path, sys.executable, "-m", "shiqrun", "train", "--cfg", "job", "algo=shiq_ms")
    assert yaml.safe_load(config)["algo"]["name"] == "shiq_ms"


@pytest.mark.slow
def test_the_console_script_of_an_installed_wheel_works(installed, tmp_path):
    assert run(installed, tmp_path, str(installed / "bin/shiqrun"), "train", "--help").startswith("Trains a policy")
