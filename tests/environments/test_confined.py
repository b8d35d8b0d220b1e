"""A confined process answers requests, is ended by its limits, and is replaced by the next request."""

import os
import signal

import pytest

from shiqrun.environments.confined import ConfinedProcess, LimitReached, ProcessKilled
from shiqrun.errors import InputError


@pytest.fixture
def process():
    with ConfinedProcess("tests.environments.adding", "the process that adds", 0.5) as made:
        yield made


def add(process, number, do="add"):
    return process.request({"do": do, "number": number})["total"]


def test_it_keeps_its_state_between_requests_and_prints_are_no_answers(process):
    assert [add(process, 2), add(process, 3, "print"), add(process, 4)] == [2, 5, 9]
    assert process.ended == 0
    assert process.request({"do": "add"})["seconds"] < 0.5


@pytest.mark.parametrize("misdeed", ["loop", "grow"])
def test_a_limit_ends_it_and_the_next_request_starts_another(process, misdeed):
    assert add(process, 7) == 7
    with pytest.raises(LimitReached):
        process.request({"do": misdeed})
    assert process.ended == 1
    assert add(process, 1) == 1, "the state is lost"


def test_a_kill_from_outside_is_no_limit(process):
    add(process, 1)
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(ProcessKilled, match="the process that adds ended with exit code -9"):
        add(process, 1)


def test_one_that_cannot_start_is_named():
    said = r"the process does not start; try: .* -m tests\.environments\.no_such"
    with (
        ConfinedProcess("tests.environments.no_such", "the process", 1.0) as made,
        pytest.raises(InputError, match=said),
    ):
        made.request({"do": "add"})
