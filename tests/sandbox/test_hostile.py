"""No hostile program earns a reward or does harm, and the pool goes on."""

import json
import subprocess
import sys

import pytest

from shiqrun.sandbox import kernel
from tests.sandbox.here import as_ordinary_user, usable
from tests.sandbox.hostile import CALLED, PRINTING, SECRET, Targets, attempt

EXPECTED = {
    "fork bomb": "runtime_error",
    "memory hog": "memory_limit",
    "infinite output": "output_limit",
    "exit before the tests": "wrong_answer",
    "exit before the calls": "wrong_answer",
    "raise its limits": "runtime_error",
    "no program at all": "syntax_error",
    "sleep": "timeout",
    "small threads without end": "wrong_answer",
    "call of another instruction set": "runtime_error",
    "give a slow set": "wrong_answer",
    "take the errors' place": "runtime_error",
}
FILES = {
    "huge file": "huge is not as before",
    "overwrite": "victim is not as before",
    "read a secret": "it has the secret",
    "ways around to a file": "it has the secret",
    "what the kernel says of it": "it has the secret",
    "write to a device": "it has the secret",
}
"""What limits alone do not prevent, where the system calls are filtered."""


def check(found):
    assert found["good"] == ["passed"] * 5
    assert found.keys() == {*PRINTING, *CALLED, "later", "good", "lost"}
    tried = {name: found[name] for name in (*PRINTING, *CALLED, "later")}
    assert {name: what for name, what in tried.items() if what[0] == "passed" or what[1]} == {}
    other = {name: found[name][0] for name, word in EXPECTED.items() if found[name][0] not in (word, "timeout")}
    assert other == {}  # on a busy machine any of them may take too long
    assert found["lost"] == [0]  # not even a worker


@pytest.mark.parametrize("backend", ["guard", pytest.param("bwrap", marks=pytest.mark.slow)])
def test_no_hostile_program_earns_a_reward_or_does_harm(backend):
    usable(backend)
    check(attempt(backend))


def check_limits(found):
    """The files are open to them, nothing else is."""
    tried = {name: found[name] for name in (*PRINTING, *CALLED, "later")}
    harmful = {name: what for name, what in tried.items() if what[0] == "passed" or what[1]}
    assert harmful.keys() <= FILES.keys()
    assert {"huge file", "overwrite", "read a secret"} <= harmful.keys()  # the others depend on the user
    assert {name: harm.split(";")[0] for name, (_, harm) in harmful.items()} == {name: FILES[name] for name in harmful}
    assert harmful["huge file"][0] in ("file_limit", "timeout")
    assert (found["good"], found["lost"]) == (["passed"] * 5, [0])


@pytest.mark.slow
def test_limits_alone_leave_files_open_and_nothing_else():
    usable("rlimits")
    if not kernel.has_seccomp():
        pytest.skip("no filter of system calls here: much else is open too")
    check_limits(attempt("rlimits", 1))


@pytest.mark.slow
def test_limits_alone_leave_an_ordinary_users_files_open_and_nothing_else():
    usable("rlimits")
    if not kernel.has_seccomp():
        pytest.skip("no filter of system calls here: much else is open too")
    check_limits(json.loads(as_ordinary_user("tests.sandbox.hostile", "rlimits", "1")))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["guard", "bwrap"])
def test_nor_does_one_that_an_ordinary_user_runs(backend):
    usable(backend)
    check(json.loads(as_ordinary_user("tests.sandbox.hostile", backend)))


@pytest.mark.parametrize(
    "name",
    ["connect", "delete", "rename", "truncate", "overwrite", "change the mode", "change the time", "link", "shell"],
)
def test_a_program_that_nothing_confines_does_the_harm(name):
    """Else the tests above would prove nothing."""
    with Targets() as targets:
        code = targets.aimed(PRINTING[name]).replace("print(s.recv", "#")
        subprocess.run([sys.executable, "-c", code], timeout=60, stderr=subprocess.DEVNULL)
        assert targets.harm()


@pytest.mark.parametrize("name", ["read a secret", "read its environment", "read the environment of others"])
def test_a_program_that_nothing_confines_reads_the_secret(name):
    with Targets() as targets:
        command = [sys.executable, "-c", targets.aimed(PRINTING[name])]
        assert SECRET in subprocess.run(command, timeout=60, capture_output=True, text=True).stdout
