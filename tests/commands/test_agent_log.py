"""The commands of docs/data.md print what the page says: of each format, and of an agent's log written by hand."""

import re
import shutil
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.console import console

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
LOG = Path(__file__).with_name("agent_log.jsonl")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
COMMAND = re.compile(r"(?P<words>[^|]+?)(?: \| head -(?P<lines>\d+))?")


def parts(block):
    """(command without the prompt, lines below it) of a block."""
    for part in block.split("$ ")[1:]:
        command, *lines = part.splitlines()
        while lines and not lines[-1]:
            lines.pop()
        yield command, lines


@pytest.mark.parametrize("block", BLOCKS, ids=["formats", "log"])
def test_the_page_shows_what_the_commands_print(workplace, monkeypatch, capsys, block):
    monkeypatch.setattr(console, "width", 100)
    shutil.copy(LOG, LOG.name)
    for command, shown in parts(block):
        if command.startswith("cat "):
            Path(command.removeprefix("cat ")).write_text("\n".join(shown) + "\n", encoding="utf-8")
            continue
        match = COMMAND.fullmatch(command)
        code, said = main(match["words"].split()[1:]), capsys.readouterr()
        assert code == (2 if shown[0].startswith("shiqrun: error") else 0)
        printed = [line.rstrip() for line in (said.err if code else said.out).splitlines()]
        printed = [line for line in printed if not line.startswith("starting: ")]  # said where the start takes long
        printed = printed[: int(match["lines"] or len(printed))]
        while printed and not printed[-1]:
            printed.pop()
        assert printed == shown, command


def test_the_page_has_both_blocks():
    assert "kto.jsonl" in BLOCKS[0]
    assert LOG.name in BLOCKS[1]
