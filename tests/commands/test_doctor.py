import os
import subprocess
import sys

import pytest

from shiqrun.cli import main
from shiqrun.sandbox.choice import AUTOMATIC
from tests.sandbox.here import REPOSITORY, usable, why_unusable
from tests.sandbox.test_backends import WITHOUT


def doctor(*words, code="from shiqrun.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))", **environment):
    command = [sys.executable, "-c", f"import sys; {code}", *words]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_it_proves_the_sandbox_that_auto_takes():
    working = [name for name in AUTOMATIC if why_unusable(name) is None]
    done = doctor()
    if not working:
        assert done.returncode == 1
        pytest.skip("no sandbox works here")
    assert done.returncode == 0, done.stdout
    assert f"{working[0]}, which reward.sandbox=auto takes: holds" in done.stdout
    assert done.stdout.count("refused\n") == 6 * len(working)
    for what in ("read a file of yours", "write a file", "delete a file", "connect to a socket", "start a process"):
        assert what in done.stdout
    for name in ("python", "torch", "accelerator", "bfcl-eval"):
        assert f"\n{name}" in f"\n{done.stdout}"


def test_it_imports_nothing_heavy():
    code = "from shiqrun.cli import main; main(['doctor']); print(*{'torch', 'hydra', 'transformers'} & {*sys.modules})"
    assert doctor(code=code).stdout.splitlines()[-1] == ""


def test_a_machine_without_a_sandbox_gets_1_and_what_to_do():
    confined = WITHOUT.partition("for choice")[0] + "from shiqrun.commands.doctor import main\nsys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", confined], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "guard       does not work: Landlock is not there" in done.stdout
    assert "apt install bubblewrap" in done.stdout
    assert "reward.sandbox=rlimits" in done.stdout


def test_a_sandbox_that_leaks_gets_1(monkeypatch, capsys):
    """Limits alone, under the name of a sandbox."""
    usable("rlimits")
    from shiqrun.sandbox import backends

    monkeypatch.setitem(backends.CONFINED, "guard", backends.CONFINED["rlimits"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "read a file of yours    NOT REFUSED" in shown
    assert "guard, which reward.sandbox=auto takes: DOES NOT HOLD" in shown


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("sandbox", 2), ("--fast", 2)])
def test_words(capsys, word, code):
    assert main(["doctor", word]) == code
    out, err = capsys.readouterr()
    assert "usage: shiqrun doctor" in out + err
