"""Which backend works on this machine."""

from typing import Literal, get_args

from shiqrun.errors import InputError
from shiqrun.sandbox.backends import Backend, Name
from shiqrun.sandbox.worker import Limits, Lost, Program, Worker

Choice = Literal["auto", "bwrap", "guard", "rlimits"]
CHOICES = get_args(Choice)
AUTOMATIC: tuple[Name, ...] = ("bwrap", "guard")
"""What `auto` tries, in order of preference."""
NONE = """\
no sandbox for programs that a model wrote works on this machine ({reasons}). To get one, install bubblewrap \
(`apt install bubblewrap`) where unprivileged user name spaces are allowed, or use a kernel with Landlock: Linux 5.13 \
or later with landlock in its list of security modules (lsm=). `shiqrun doctor` says what works. To run them all the \
same, with limits alone, as programs that can read and overwrite your files: reward.sandbox=rlimits"""


def trial(name: Name) -> str | None:
    """Why a backend does not work here; None where a program runs in it."""
    with Worker(Backend(name)) as worker:
        try:
            outcome = worker.run(Program("print(6 * 7)"), Limits(cpu=5, wall=20.0, memory=1 << 29, output=1 << 10))
        except (InputError, Lost) as error:
            return str(error)
    right = outcome.verdict == "ok" and outcome.output.split() == [b"42"]
    return None if right else f"a trial program ends with {outcome.verdict}: {outcome.errors.strip()}"


def choose(choice: str, option: str = "reward.sandbox") -> Backend:
    """A backend in which a trial program has run.

    Args:
        choice: one of `CHOICES`; `auto` takes the first of `AUTOMATIC` that works.
        option: what the user set, for messages.

    Raises:
        InputError: unknown, or nothing works; the message says how to get a sandbox.
    """
    if choice not in CHOICES:
        raise InputError(f"{option}={choice}: expected one of {', '.join(CHOICES)}")
    wanted = [name for name in get_args(Name) if name == choice] or AUTOMATIC
    reasons = []
    for name in wanted:
        why = trial(name)
        if why is None:
            return Backend(name)
        reasons.append(f"{name}: {why}")
    raise InputError(f"{option}={choice}: {NONE.format(reasons='; '.join(reasons))}")
