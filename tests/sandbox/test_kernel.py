"""What a process is after it has been confined, as the kernel says."""

import subprocess
import sys

import pytest

from shiqrun.sandbox import kernel

CONFINED = """
from shiqrun.sandbox import kernel, syscalls
kernel.confine(kernel.Confinement(None, syscalls.program_filter()), cpu=7, memory=1 << 30)
print(open("/proc/self/status").read())
import resource
print(resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_AS))
"""


def test_a_confined_process_has_no_capability_and_no_way_back():
    if not kernel.has_seccomp():
        pytest.skip("no seccomp on this machine")
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, timeout=60, check=True)
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert done.stdout.splitlines()[-1] == f"(7, 8) ({1 << 30}, {1 << 30})"
