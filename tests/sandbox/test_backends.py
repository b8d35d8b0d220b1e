import subprocess
import sys

import pytest

from shiqrun.errors import InputError
from shiqrun.sandbox import probes
from shiqrun.sandbox.backends import Backend
from shiqrun.sandbox.choice import choose_backend
from shiqrun.sandbox.probes import BEGAN, ProbeSet, run_probes
from shiqrun.sandbox.worker import Limits
from tests.sandbox.here import as_ordinary_user, usable, why_unusable

READ = "read a file of yours"


@pytest.mark.parametrize("name", ["bwrap", "guard"])
def test_probes_do_no_harm(name):
    assert [probe.what for probe, _, good in run_probes(usable(name)) if not good] == []


def test_probes_see_what_limits_alone_do_not_prevent():
    leaks = {probe.what for probe, _, good in run_probes(usable("rlimits")) if not good}
    assert {READ, "write a file"} <= leaks


def test_probes_do_their_harm_where_nothing_confines_them():
    with ProbeSet() as made:
        for probe in made.all:
            command = [sys.executable, "-c", BEGAN + probe.code]
            output = subprocess.run(command, capture_output=True, timeout=60).stdout
            assert probe.harm(output), probe.what


def test_a_probe_that_does_not_run_proves_nothing(monkeypatch):
    monkeypatch.setattr(probes, "LIMITS", Limits(cpu=5, wall=20.0, memory=1 << 70, output=1 << 16))
    assert {(outcome.verdict, good) for _, outcome, good in run_probes(usable("guard"))} == {("sandbox_error", False)}


def test_auto_prefers_bubblewrap_and_takes_only_what_works():
    working = [name for name in ("bwrap", "guard") if why_unusable(name) is None]
    if not working:
        pytest.skip("no sandbox works here")
    assert choose_backend("auto").name == working[0]


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"reward.sandbox=docker: expected one of auto, bwrap, guard, rlimits"):
        choose_backend("docker")


def test_limits_alone_are_taken_only_when_they_are_asked_for():
    assert choose_backend("rlimits") == Backend("rlimits")


WITHOUT = """
import os, struct, sys
from shiqrun.sandbox import kernel
from shiqrun.sandbox.choice import choose_backend
from shiqrun.errors import InputError
kernel._prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7FFF0000)]
kernel.install_filter(kernel.syscalls.pack_filter(steps))
os.environ["PATH"] = "/nowhere"
for choice in ("auto", "guard", "rlimits"):
    try:
        print(choose_backend(choice).name)
    except InputError as error:
        print(error)
"""


def test_a_machine_without_a_sandbox_is_refused_unless_the_user_insists():
    """A real one: a process in which the kernel answers as one without Landlock does, and no bubblewrap."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120)
    auto, guard, rlimits = done.stdout.splitlines()
    for said, option in ((auto, "auto"), (guard, "guard")):
        assert said.startswith(f"reward.sandbox={option}: no sandbox")
        assert "Landlock is not there" in said
        assert "apt install bubblewrap" in said
        assert said.endswith("reward.sandbox=rlimits")
    assert "bubblewrap is not installed" in auto
    assert rlimits == "rlimits"


@pytest.mark.slow
def test_an_ordinary_user_finds_a_sandbox_too():
    usable("guard")
    assert "which reward.sandbox=auto takes: holds" in as_ordinary_user("shiqrun", "doctor")
