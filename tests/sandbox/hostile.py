"""Programs that try to do harm or to earn a reward without solving the problem, and what became of each.

`python -m tests.sandbox.hostile BACKEND [WORKERS]` prints it as JSON; it needs only the standard library, so that
another user can run it. In the programs FOLDER, PORT and PID stand for what they are after, WON for the secret itself:
there it says that something was granted that must not be.
"""

import json
import os
import socket
import stat
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from shiqrun.rewards.grading import grade
from shiqrun.rewards.program_tests import parse_tests
from shiqrun.sandbox.backends import Backend
from shiqrun.sandbox.pool import Pool
from shiqrun.sandbox.worker import Limits

SECRET = "6177-the-secret"
"""In a file, in this process's environment and its memory; a program that gets hold of it and prints it is right."""
READS = [{"input": "2 3\n", "output": SECRET}]
ADDS = {"entry_point": "add", "calls": [{"args": [2, 3], "output": 5}, {"args": [40, 2], "output": 42}]}
LIMITS = Limits(cpu=1, wall=2.0, memory=256 << 20, output=1 << 20)
PATIENT = Limits(cpu=20, wall=60.0, memory=256 << 20, output=1 << 20)


def programs(file: str) -> dict[str, str]:
    """Name: code, from `### name` lines and what follows each."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return dict(part.partition("\n")[::2] for part in text.split("### ")[1:])


UNREADABLE = {
    "a source that the compiler does not survive": "(" * 99 + "-" * 99999 + "1" + ")" * 99,
    "a source of half a character": "print('\ud800')",
    "a source with a zero": "print(1)\0",
}
PRINTING = programs("printing.txt") | UNREADABLE
CALLED = programs("calling.txt")


class Targets:
    """Files, a listening socket and a secret that programs are after; a context manager."""

    def __enter__(self) -> "Targets":
        os.environ["SHIQRUN_TEST_SECRET"] = SECRET
        with ExitStack() as made:
            self.folder = Path(made.enter_context(tempfile.TemporaryDirectory()))
            self.server = made.enter_context(socket.create_server(("127.0.0.1", 0)))
            self._made = made.pop_all()
        self.server.setblocking(False)
        self.folder.chmod(0o777)
        for name in ("secret", "victim"):
            (self.folder / name).write_text(SECRET)
            (self.folder / name).chmod(0o666)
        self.before = self.look()
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()
        del os.environ["SHIQRUN_TEST_SECRET"]

    def aimed(self, code: str) -> str:
        """A program at these targets and at this process."""
        places = {"FOLDER": self.folder, "PORT": self.server.getsockname()[1], "PID": os.getpid(), "WON": SECRET}
        for word, place in places.items():
            code = code.replace(word, str(place))
        return code

    def look(self) -> dict[str, tuple]:
        files = {path.name: path.lstat() for path in self.folder.iterdir()}
        texts = {name: (self.folder / name).read_text() for name, s in files.items() if stat.S_ISREG(s.st_mode)}
        return {name: (s.st_mode, s.st_mtime_ns, texts.get(name)) for name, s in files.items()}

    def harm(self) -> str:
        """In words, empty for none."""
        now = self.look()
        seen = [
            f"{name} is not as before" for name in now.keys() | self.before if now.get(name) != self.before.get(name)
        ]
        self.before = now
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return "; ".join(sorted(seen))
        return "; ".join([*sorted(seen), "it connected"])


def attempt(backend: str, workers: int = 2) -> dict[str, list]:
    """Name: [verdict, harm seen after it] of every program, then how good programs fare in the same workers.

    With two workers the harm may be that of the program beside it.
    """
    cases = {name: (READS, code) for name, code in PRINTING.items()} | {n: (ADDS, code) for n, code in CALLED.items()}
    found: dict[str, list] = {}
    looking = Lock()
    with Targets() as targets, Pool(Backend(backend), workers) as pool:

        def judged(run, case):
            outputs = []

            def noted(program, limits):
                outputs.append(run(program, limits))
                return outputs[-1]

            word = grade(parse_tests(case[0], "here", 99), targets.aimed(case[1]), noted, LIMITS)
            told = "it has the secret" * any(SECRET.encode() in x.output for x in outputs)
            with looking:
                return [word, "; ".join(filter(None, (told, targets.harm())))]

        found |= zip(cases, pool.map(judged, cases.values()), strict=True)
        time.sleep(1)  # what a daemon would still do
        found["later"] = ["", targets.harm()]
        good = [("print(sum(map(int, input().split())))", [{"input": "2 3\n", "output": "5"}])] * 4
        good.append(("def add(a, b): return a + b", ADDS))
        found["good"] = [*pool.map(lambda run, x: grade(parse_tests(x[1], "here", 99), x[0], run, PATIENT), good)]
        found["lost"] = [pool.lost]
    return found


if __name__ == "__main__":
    print(json.dumps(attempt(sys.argv[1], *map(int, sys.argv[2:]))))
