"""Probes are hostile programs that show whether a backend holds: each attempts one kind of harm."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shiqrun.sandbox.backends import Backend
from shiqrun.sandbox.worker import Limits, Outcome, Program, SandboxWorker

LIMITS = Limits(cpu=5, wall=20.0, memory=1 << 29, output=1 << 16)
SECRET = "it was read"
BEGAN = "print('began', flush=True)\n"


@dataclass(frozen=True)
class Probe:
    """A probe is a hostile program that attempts one kind of harm to the machine.

    Attributes:
        what: the attempt in words.
        code: the program.
        harm: returns from the program's output, and from what it left outside, whether it succeeded.
    """

    what: str
    code: str
    harm: Callable[[bytes], bool]


def run_probes(backend: Backend) -> Iterator[tuple[Probe, Outcome, bool]]:
    """Run every probe in a backend; yield the probe, its outcome, and whether it ran and did no harm.

    Raises:
        InputError, WorkerLost: the backend does not start.
    """
    with ProbeSet() as probes, SandboxWorker(backend) as worker:
        for probe in probes.all:
            outcome = worker.run(Program(BEGAN + probe.code), LIMITS)
            yield probe, outcome, b"began" in outcome.output and not probe.harm(outcome.output)


class ProbeSet:
    """A probe set makes the files and the listening socket that its probes attack; a context manager."""

    def __enter__(self) -> "ProbeSet":
        with ExitStack() as made:
            folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="shiqrun-probe-")))
            folder.chmod(0o777)  # so that not file permissions but the sandbox refuses access
            self._server = made.enter_context(socket.create_server(("127.0.0.1", 0)))
            self._server.setblocking(False)
            self._made = made.pop_all()
        self.all = self._probes(folder, self._server.getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def _probes(self, folder: Path, port: int) -> list[Probe]:
        secret, victim, trace = folder / "secret", folder / "victim", folder / "trace"
        for file in (secret, victim):
            file.write_text(SECRET)
            file.chmod(0o666)
        done = SECRET.encode()
        return [
            Probe("read a file of yours", f"print(open({str(secret)!r}).read())", lambda out: done in out),
            Probe("write a file", f"open({str(trace)!r}, 'w').write('x')", lambda _: trace.exists()),
            Probe("delete a file", f"import os; os.remove({str(victim)!r})", lambda _: not victim.exists()),
            Probe(
                "connect to a socket",
                f"import socket; socket.create_connection(('127.0.0.1', {port}))",
                self._is_connected,
            ),
            Probe(
                "start a process", f"import os\nif not os.fork(): print({SECRET!r}, flush=True)", lambda o: done in o
            ),
            Probe("signal another", f"import os; os.kill(os.getppid(), 0); print({SECRET!r})", lambda out: done in out),
        ]

    def _is_connected(self, _: bytes) -> bool:
        try:
            self._server.accept()[0].close()
        except BlockingIOError:
            return False
        return True
