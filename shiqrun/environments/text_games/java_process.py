"""A Java process that holds text games, and the confined process around it that answers requests about them.

One Java holds the games of all episodes. It is ended, and this process with it, when a request takes more processor
time than allowed; a Java that has no memory left ends itself. A worker
module says in a `Player` what its games are.
"""

import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from shiqrun.environments.confined import OUT_OF_MEMORY, serve
from shiqrun.environments.text_games.java import find_java
from shiqrun.environments.text_games.states import Game

JAVA_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a game's start counts more than its top speed
    "-XX:CompressedClassSpaceSize=32m",
    "-XX:MaxMetaspaceSize=96m",
    "-XX:ReservedCodeCacheSize=32m",
    "-XX:-UsePerfData",  # a file, and none may be written
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:ErrorFile=/dev/null",  # no crash log in the directory of the package
)
JAVA_WITHOUT_MEMORY = 3
"""Exit code of a Java that has no memory left."""
JAVA_DIED = 78
"""Exit code of this process when Java ended otherwise."""


class JavaProcess:
    """A Java process holds games, and is ended with this process when a request takes too much processor time.

    Args:
        jar: file of the games.
        cpu_seconds: most processor time of a request.
        options: of Java, beside those that all games have.
    """

    def __init__(self, jar: Path, cpu_seconds: float, options: Sequence[str] = ()) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        found: tuple[int, Popen[bytes]] = launch_gateway(
            classpath=str(jar),
            cwd=str(jar.parent),  # where the games look for their lists of things
            java_path=find_java(),
            javaopts=[*JAVA_OPTIONS, *options],
            die_on_exit=True,
            return_proc=True,
        )
        port, self.process = found
        self.gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port), java_process=self.process)
        self.cpu_seconds = cpu_seconds
        self._latest: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def timed(self, times: float) -> None:
        """Begin to count the processor time of a request, which may take `times` as long as others."""
        self._latest = self._seconds() + self.cpu_seconds * times

    def untimed(self) -> None:
        """End the count: between requests Java tidies its memory."""
        self._latest = None

    def _seconds(self) -> float:
        """Return the processor time that Java has taken; 0 where the system does not tell, and wall time must do."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while True:
            time.sleep(0.05)
            latest = self._latest
            if latest is not None and self._seconds() > latest:
                self.process.kill()
                os.kill(os.getpid(), signal.SIGPROF)  # what the kernel sends for processor time of this process

    def leave_if_dead(self) -> None:
        """End this process if Java has ended, with the exit code that says why."""
        try:
            code = self.process.wait(timeout=1.0)
        except TimeoutExpired:
            return
        os._exit(OUT_OF_MEMORY if code == JAVA_WITHOUT_MEMORY else JAVA_DIED)


class Player(ABC):
    """A player answers requests about games; it starts Java when it is asked to `load`.

    Attributes:
        java: the process that holds the games.
        java_options: of Java, beside those that all games have.
        memory: most address space of Java, bytes; it reserves more than it uses.
    """

    java: JavaProcess
    java_options: Sequence[str] = ("-Xmx512m",)
    memory = 2 << 30

    def __init__(self) -> None:
        self.games: dict[str, Game] = {}

    @abstractmethod
    def jar(self) -> Path:
        """Return the file of the games."""

    @abstractmethod
    def load_games(self) -> None:
        """Load what every game needs, so that no request is timed for what is loaded but once."""

    @abstractmethod
    def seeds(self, game: str, parameters: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the seeds of a kind of game by fold.

        Raises:
            ValueError: the games do not know the name or a parameter.
        """

    @abstractmethod
    def begin(self, request: Mapping[str, Any]) -> Game:
        """Return the game that a request names, begun."""

    @abstractmethod
    def solve(self, request: Mapping[str, Any]) -> list[str]:
        """Return the actions that solve the game that a request names."""

    def close(self, game: Game) -> None:  # noqa: B027 - a hook that not every maker needs
        """Forget what belongs to a game that is over."""

    def load(self) -> None:
        """Start Java."""
        self.java = JavaProcess(self.jar(), float(sys.argv[1]), self.java_options)
        self.load_games()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request; its `error` says what the games complain of."""
        from py4j.protocol import Py4JError

        self.java.timed(request.get("times", 1))
        try:
            return self._answer(request)
        except ValueError as error:
            return {"error": str(error)}
        except (Py4JError, OSError) as error:
            self.java.leave_if_dead()
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        finally:
            self.java.untimed()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "seeds":
                return {"seeds": self.seeds(request["game"], request["parameters"])}
            case "solve":
                return {"actions": self.solve(request)}
            case "begin":
                self.games[request["session"]] = game = self.begin(request)
                return {"task": game.task, **game.state.facts()}
            case "step":
                return self.games[request["session"]].step(request["action"]).facts()
            case _:
                self.close(self.games.pop(request["session"]))
                return {}

    def serve(self) -> None:
        """Answer the requests of standard input until it ends, in a process with limits."""
        serve(self.answer, load=self.load, memory=self.memory)
