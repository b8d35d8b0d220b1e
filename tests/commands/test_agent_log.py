"""The log of an agent, two dialogues with tools written by hand, is converted and shown as docs/data.md says."""

import re
import shutil
from pathlib import Path

from shiqrun.cli import main
from shiqrun.console import console

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
LOG = Path(__file__).with_name("agent_log.jsonl")


def test_the_page_shows_what_convert_and_inspect_print_of_an_agents_log(workplace, monkeypatch, capsys):
    shutil.copy(LOG, "agent_log.jsonl")
    monkeypatch.setattr(console, "width", 100)
    block = next(b for b in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL) if LOG.name in b)
    commands = [line.removeprefix("$ shiqrun ").split() for line in block.splitlines() if line.startswith("$ ")]
    printed = ""
    for words in commands:
        assert main(words) == 0
        printed += f"$ shiqrun {' '.join(words)}\n{capsys.readouterr().out}"
    assert [line.rstrip() for line in printed.splitlines()] == [line.rstrip() for line in block.splitlines()]
