"""The commands of docs/evaluation.md and docs/environments.md run as they stand there, on smaller problems."""

import json
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest

from shiqrun.cli import main
from tests.support.vllm_server import serving
from tests.test_architecture_page import FILES

DOCS = Path(__file__).parents[1] / "docs"
PROGRAMS = ("data.base=4", "data.primitives=[reverse,sort,rotate,add,drop]", "data.problems=60", "data.val_problems=4")
MODEL = ("model.hidden_size=16", "model.num_layers=1")
STEPS = ("trainer.max_steps=1", "trainer.batch_size=4", "logger=none")


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with pairs and with the files of docs/architecture.md."""
    folder = tmp_path_factory.mktemp("pages")
    for name, text in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    words = (("yes", "no"), ("good", "bad"))
    rows = [{"prompt": f"go {n}", "chosen": words[n % 2][0], "rejected": words[n % 2][1]} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("line", [*commands("evaluation.md"), *commands("environments.md")])
def test_a_command_of_the_pages_runs(place, monkeypatch, line):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("SHIQRUN_CACHE", str(place / "cache"))
    program, command, *words = shlex.split(line)
    assert program == "shiqrun"
    of_run = any(word.startswith("run=") for word in words)
    smaller = [*(PROGRAMS if "data=programs" in words else ()), "eval.max_prompts=4"]
    smaller += MODEL if "model=hf" not in words and "eval.policy=gold" not in words and not of_run else ()
    smaller += STEPS if command == "train" else ()
    given = {word.split("=")[0] for word in words}
    url = next((word for word in words if word.startswith("endpoint.base_url=")), None)
    with serving("runs/programs/policy") if url else nullcontext() as server:
        words = [f"endpoint.base_url={server.url}/v1" if word == url else word for word in words]
        assert main([command, *words, *(word for word in smaller if word.split("=")[0] not in given)]) == 0


def test_the_pages_have_commands():
    assert len(commands("evaluation.md")) == 7
    assert len(commands("environments.md")) == 3
