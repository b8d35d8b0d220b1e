"""The complete files of docs/architecture.md work as they stand there, from outside the repository."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.selection import rest_slow

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = re.findall(r"```(?:python|yaml)\n# file: (\S+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALL = ("data.maps=40", "data.val_maps=4")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architecture")
    for name, text in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_page_has_files_for_each_kind_of_choice():
    assert {name.split("/")[1] for name, _ in FILES if name.startswith("conf/")} == {
        "algo",
        "data",
        "reward",
        "hardware",
    }


@pytest.mark.parametrize("line", rest_slow(COMMANDS))
def test_a_command_of_the_page_runs(place, line):
    program, *words = shlex.split(line)
    assert program == "shiqrun"
    words += () if any(word.startswith("data=") for word in words) else SMALL
    environment = os.environ | {"PYTHONPATH": str(place), "SHIQRUN_CACHE": str(place / "cache")}
    command = [sys.executable, "-m", "shiqrun", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_dir = place / next(word.removeprefix("run_dir=") for word in words if word.startswith("run_dir="))
    assert (run_dir / ("eval.json" if words[0] == "eval" else "summary.json")).is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)", PAGE))))
def test_a_file_that_the_page_names_exists(name):
    root = Path(__file__).parents[1]
    assert (root / name).is_file() or (root / "shiqrun" / name).is_file()
