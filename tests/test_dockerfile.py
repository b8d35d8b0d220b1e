"""The Dockerfile, read as text: its steps are the README's commands, and its context has what they need.

No test builds the image; that needs a Docker daemon and the network.
"""

import json
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def steps():
    """(instruction, rest) of each line of the Dockerfile, comments and line continuations resolved."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip() and line[0] != "#"]


def stages():
    """The steps of every stage by its name, those of the stage that it builds on included; the last one is ''."""
    found, order = {}, []
    for instruction, rest in steps():
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            order = found[name] = [*found.get(base, [])]
        else:
            order.append((instruction, rest))
    return found


def patterns():
    """The patterns of .dockerignore."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and line[0] != "#"]


def is_sent(name):
    """Whether `docker build` sends a file: the last pattern that fits it, or a folder above it, decides."""
    above = [name, *map(str, Path(name).parents)]
    sent = True
    for pattern in patterns():
        bare = pattern.removeprefix("!")
        anywhere = bare.startswith("**/")
        if any(fnmatch(Path(path).name if anywhere else path, bare.removeprefix("**/")) for path in above):
            sent = pattern.startswith("!")
    return sent


@pytest.mark.parametrize(("stage", "command"), [("test", "make test"), ("demo", "make demo")])
def test_a_stage_installs_then_runs_a_command_of_the_readme(stage, command):
    run = [rest for instruction, rest in stages()[stage] if instruction == "RUN"]
    assert run[-2:] == ["make install", command]
    assert re.search(rf"(^|`){command}\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_image_itself_has_everything_installed_and_runs_the_demo():
    last = stages()[""]
    assert ("RUN", "make install") in last
    assert [json.loads(rest) for instruction, rest in last if instruction == "CMD"] == [["make", "demo"]]
    assert not {"make test", "make demo"} & {rest for _, rest in last}  # `docker build .` stays short


def test_every_target_of_make_exists():
    targets = re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"))
    used = {
        word for _, rest in steps() for word in re.findall(r"make\"?,? \"?([a-z-]+)", rest) if "apt-get" not in rest
    }
    assert used == {"install", "test", "demo"}
    assert used <= set(targets)


def test_the_python_of_the_image_is_one_that_the_package_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (base,) = [rest.split()[0] for instruction, rest in steps() if instruction == "FROM" and ":" in rest]
    assert SpecifierSet(project["requires-python"]).contains(re.search(r"python:([\d.]+)", base)[1])


def test_the_context_has_every_tracked_file_and_no_environment_and_no_run():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert [name for name in done.stdout.splitlines() if not is_sent(name)] == []
    assert is_sent(".git/HEAD")  # the commit in summary.json
    for name in (
        ".venv/bin/python",
        "outputs/demo/shiq/summary.json",
        "shiqrun/__pycache__/cli.pyc",
        "bench/out/a.json",
    ):
        assert not is_sent(name)
