"""`shiqrun report` on damaged files: a torn end is dropped and said, anything else is one line and exit code 2."""

import shutil

import pytest

from shiqrun.cli import main
from tests.report.fake_runs import finished_run
from tests.support.selection import rest_slow

TORN = {
    "zero bytes": lambda b: b + b"\0" * 512,
    "half of it zero": lambda b: b[: len(b) // 2] + b"\0" * (len(b) // 2),
    "half of it gone": lambda b: b[: len(b) // 2],
}
BROKEN = {
    "no UTF-8 in it": lambda b: b[: len(b) // 2] + b"\xff\x00junk\n" + b[len(b) // 2 :],
    "other bytes": lambda b: b'\xff\xd8junk,"x\n\n{}\n',
    "a list": lambda b: b"[1, 2]\n",
    "many brackets": lambda b: b"[" * 100_000 + b"\n{}\n",
    "a field too long": lambda b: b"step,val/loss\n0," + b"9" * 200_000 + b"\n{}\n",
    "a quote more": lambda b: b[: len(b) // 2] + b'"' + b[len(b) // 2 :],
    "letters for digits": lambda b: b.replace(b"1", b"x"),
}
LINES = ("metrics.csv", "samples.jsonl", "credit.jsonl")
WHOLE = ("summary.json", ".hydra/config.yaml")


@pytest.fixture(scope="module")
def whole(home):
    finished_run(home / "run")
    return home / "run"


def report_on(whole, folder, name, content):
    """Exit code of a report on a copy of the run whose file has other content."""
    shutil.copytree(whole, folder / "run")
    (folder / "run" / name).write_bytes(content((whole / name).read_bytes()))
    return main(["report", str(folder / "run")])


@pytest.mark.parametrize("damage", rest_slow(TORN))
@pytest.mark.parametrize("name", LINES)
def test_a_torn_end_is_dropped_and_said(whole, tmp_path, name, damage, caplog):
    assert report_on(whole, tmp_path, name, TORN[damage]) == 0
    assert f"{tmp_path}/run/{name}: its end is torn" in caplog.text
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("damage", rest_slow(BROKEN))
@pytest.mark.parametrize("name", [*LINES, *WHOLE])
def test_a_broken_file_is_named_in_one_line(whole, tmp_path, name, damage, capsys):
    if (name, damage) == (".hydra/config.yaml", "letters for digits"):
        pytest.skip("is a config with other values")
    assert report_on(whole, tmp_path, name, BROKEN[damage]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path}/run/{name}" in error
    assert "restore the file" in error
