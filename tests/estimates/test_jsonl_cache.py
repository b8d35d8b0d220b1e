import errno
import fcntl

import pytest

from shiqrun.errors import InputError
from shiqrun.estimates.jsonl_cache import lock_cache


def test_a_cache_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    refused = pytest.raises(InputError, match=r"cannot be locked \(No locks available\); name another cache_dir")
    with refused, lock_cache(tmp_path / "values" / "x.jsonl", "values prompts"):
        raise AssertionError("it is not locked")


def test_an_error_while_a_cache_is_locked_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="No space"), lock_cache(tmp_path / "x.jsonl", "values prompts"):
        raise OSError(errno.ENOSPC, "No space left on device")
