"""What this machine and this user offer to the tests of the sandbox."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shiqrun.sandbox import choice
from shiqrun.sandbox.backends import Backend

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534

why_unusable = cache(choice.why_unusable)


def usable(name: str) -> Backend:
    """The backend; skips the test where it does not work."""
    if why := why_unusable(name):
        pytest.skip(f"{name}: {why}")
    return Backend(name)


def as_ordinary_user(*words: str) -> str:
    """The output of a module run by an ordinary user, for a test that root runs; skips it for others."""
    if os.geteuid() != 0:
        pytest.skip("this user is an ordinary one already")
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-c", "import sys, shiqrun; sys.exit(sys.version_info < (3, 11))"]
        if run(command).returncode == 0:
            done = run([python, "-m", *words])
            assert done.returncode == 0, done.stderr
            return done.stdout
    pytest.skip("no Python that an ordinary user may run with this repository")


def run(command: list[str]) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300, **who)
    except PermissionError as error:  # its interpreter lies where it may not look
        return subprocess.CompletedProcess(command, 1, "", str(error))
