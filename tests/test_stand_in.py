"""What `stand_in.python()` runs, it runs as the interpreter would: the same words, streams, signals and exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import stand_in

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the stand-in is the interpreter here")
SLEEPS = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(3)
"""


def started(code, *words, stdin=None, cwd=None, **variables):
    """The stand-in with the variables that its server has seen, whatever earlier tests have left, and some more."""
    left = {k: v for k, v in os.environ.items() if not k.startswith(stand_in.READ_AT_IMPORT)}
    return subprocess.Popen(
        [stand_in.python(), "-c", code, *words],
        env=left | stand_in.AT_IMPORT | variables,
        stdin=stdin,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("import sys; sys.exit(5)", 5, ""),
        ("import sys; sys.exit('not so')", 1, "not so\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_it_ends_as_its_process_does(code, exit_code, said):
    process = started(code)
    assert process.communicate(timeout=60)[1].endswith(said)
    assert process.returncode == exit_code


def test_the_process_has_the_words_the_folder_and_the_variables_and_has_imported_pytorch(tmp_path):
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['MINE'], 'torch' in sys.modules, input())"
    process = started(code, "a", "b c", cwd=tmp_path, MINE="yes", stdin=subprocess.PIPE)
    assert process.communicate("typed\n", timeout=60)[0] == f"['-c', 'a', 'b c'] {tmp_path} yes True typed\n"


def test_what_a_command_starts_by_sys_executable_is_forked_too_with_the_variables_that_the_command_sets():
    job = "import sys; print('torch' in sys.modules)"
    code = (
        "import os, subprocess, sys; from shiqrun.cli import ENVIRONMENT; os.environ.update(ENVIRONMENT); "
        f"print(subprocess.check_output([sys.executable, '-c', {job!r}], text=True))"
    )
    assert started(code).communicate(timeout=60)[0] == "True\n\n"


def test_variables_that_libraries_read_early_and_other_words_are_for_the_interpreter_itself():
    process = started("import sys; print('torch' in sys.modules)", HF_HOME="elsewhere")
    assert process.communicate(timeout=60)[0] == "False\n"
    assert subprocess.check_output([stand_in.python(), "-V"], text=True) == f"Python {sys.version.split()[0]}\n"


def test_a_signal_reaches_the_process_and_it_does_not_outlive_a_kill():
    process = started(SLEEPS)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 3
    process = started(SLEEPS)
    pid = int(process.stdout.readline())
    process.kill()
    assert process.wait(60) == -9
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
