"""What the console says where it is no terminal."""

import pytest

from shiqrun import console


@pytest.mark.parametrize(("total", "of"), [(None, ""), (3, " of 3")])
def test_what_takes_long_says_so_now_and_then(monkeypatch, capsys, total, of):
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(console, "REPEAT_SECONDS", 0.0)
    assert list(console.track("abc", "reading", total)) == list("abc")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["reading ...", f"reading: 1{of} ...", f"reading: 2{of} ...", "reading: 3 in 0 s"]


def test_what_takes_no_time_says_nothing(capsys):
    assert list(console.track("abc", "reading")) == list("abc")
    with console.waiting("loading"):
        pass
    assert capsys.readouterr().out == ""
