"""`choose_backend` tries the backends on this machine and returns the first in which a program runs."""

from typing import Literal, get_args

from shiqrun.errors import InputError
from shiqrun.sandbox.backends import Backend, Name
from shiqrun.sandbox.worker import Limits, Program, SandboxWorker, WorkerLost

Choice = Literal["auto", "bwrap", "guard", "rlimits"]
CHOICES = get_args(Choice)
AUTOMATIC: tuple[Name, ...] = ("bwrap", "guard")
"""The backends that `auto` tries, in order of preference."""
NO_SANDBOX = """\
no sandbox for programs that a model wrote works on this machine ({reasons}). To get one, install bubblewrap \
(`apt install bubblewrap`) where unprivileged user name spaces are allowed, or use a kernel with Landlock: Linux 5.13 \
or later with landlock in its list of security modules (lsm=). `shiqrun doctor` says what works. To run them all the \
same, with limits alone, as programs that can read and overwrite your files: reward.sandbox=rlimits"""


def why_unusable(name: Name) -> str | None:
    """Run a trial program in the sandbox; return why the backend does not work on this machine, None where it does."""
    with SandboxWorker(Backend(name)) as worker:
        try:
            outcome = worker.run(Program("print(6 * 7)"), Limits(cpu=5, wall=20.0, memory=1 << 29, output=1 << 10))
        except (InputError, WorkerLost) as error:
            return str(error)
    right = outcome.verdict == "ok" and outcome.output.split() == [b"42"]
    return None if right else f"a trial program ends with {outcome.verdict}: {outcome.errors.strip()}"


def choose_backend(choice: str, option: str = "reward.sandbox") -> Backend:
    """Return a backend in which a trial program has run.

    Args:
        choice: one of `CHOICES`; `auto` takes the first of `AUTOMATIC` that works.
        option: the key that the user set, for messages.

    Raises:
        InputError: `choice` is unknown, or no backend works; the message says how to get a sandbox.
    """
    if choice not in CHOICES:
        raise InputError(f"{option}={choice}: expected one of {', '.join(CHOICES)}")
    wanted = [name for name in get_args(Name) if name == choice] or AUTOMATIC
    reasons = []
    for name in wanted:
        why = why_unusable(name)
        if why is None:
            return Backend(name)
        reasons.append(f"{name}: {why}")
    raise InputError(f"{option}={choice}: {NO_SANDBOX.format(reasons='; '.join(reasons))}")
