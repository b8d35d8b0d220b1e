"""A damaged saved config, or a deleted working directory, ends a command with exit code 2 and one line."""

import os
from pathlib import Path

import pytest

from shiqrun.cli import main


@pytest.mark.parametrize(
    "content", [b"", b"algo: [1, 2", b"- 1\n", b"a: \xff\n", b"\0\0\0"], ids=["empty", "torn", "list", "bytes", "nuls"]
)
@pytest.mark.parametrize("words", [["train", "resume={}"], ["eval", "run={}"]], ids=["resume", "eval"])
def test_a_broken_saved_config_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], content: bytes
) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_bytes(content)
    assert main([word.format(run) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{run}/.hydra/config.yaml: " in error
    assert "start the run again" in error


@pytest.mark.parametrize("command", ["train", "report", "doctor"])
def test_a_deleted_working_directory_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the working directory was deleted" in error
    os.chdir(tmp_path)
