import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that no build directory is left in the repository."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
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


def test_the_wheel_holds_every_module_and_every_yaml(wheel):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "shiqrun").rglob("*.py")}
    configs = {f"shiqrun/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert configs
    report = REPOSITORY / "shiqrun" / "report"
    page = {str(p.relative_to(REPOSITORY)) for p in report.rglob("*") if p.suffix in (".css", ".js", ".j2")}
    assert {path.rpartition(".")[2] for path in page} == {"css", "js", "j2"}
    assert modules | configs | page | {"shiqrun/py.typed"} <= shipped


def test_an_installed_wheel_finds_its_conf_from_any_directory(installed, tmp_path):
    where = run(installed, tmp_path, sys.executable, "-c", "import shiqrun, shiqrun.conf as c; print(c.__path__[0])")
    assert Path(where.strip()).is_relative_to(installed)
    config = run(installed, tmp_path, sys.executable, "-m", "shiqrun", "train", "--cfg", "job", "algo=shiq_ms")
    assert yaml.safe_load(config)["algo"]["name"] == "shiq_ms"


def test_the_console_script_of_an_installed_wheel_works(installed, tmp_path):
    assert run(installed, tmp_path, str(installed / "bin/shiqrun"), "train", "--help").startswith("Trains a policy")
