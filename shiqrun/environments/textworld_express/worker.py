"""This module plays the text games of TextWorldExpress in a confined process, with Java as its child.

One Java holds the games of all episodes. It is ended, and this process with it, when a request takes more processor
time than allowed; a Java that has no memory left ends itself. `harness` starts this module and sends it requests.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from shiqrun.environments.confined import OUT_OF_MEMORY, serve
from shiqrun.environments.textworld_express.java import find_java
from shiqrun.environments.textworld_express.states import FOLDS, Game, GameState
from shiqrun.environments.textworld_express.walk import solution

MEMORY = 2 << 30
"""Most address space of Java, bytes; it reserves more than it uses."""
JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a game's start counts more than its top speed
    "-XX:CompressedClassSpaceSize=32m",
    "-XX:MaxMetaspaceSize=96m",
    "-XX:ReservedCodeCacheSize=32m",
    "-XX:-UsePerfData",  # a file, and none may be written
    "-XX:+ExitOnOutOfMemoryError",
)
FORGETFUL = ("sorting",)
"""Kinds of games that keep their state outside the game: to begin one spoils the others of its kind in one Java."""
JAVA_WITHOUT_MEMORY = 3
"""Exit code of a Java that has no memory left."""
JAVA_DIED = 78
"""Exit code of this process when Java ended otherwise."""


class JavaProcess:
    """A Java process holds games, and is ended with this process when a request takes too much processor time.

    Args:
        cpu_seconds: most processor time of a request.
    """

    def __init__(self, cpu_seconds: float) -> None:
        import textworld_express.constants as package
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        found: tuple[int, Popen[bytes]] = launch_gateway(
            classpath=package.JAR_PATH,
            cwd=package.BASEPATH,  # where the games look for their lists of things
            java_path=find_java(),
            javaopts=list(JAVA_OPTIONS),
            die_on_exit=True,
            return_proc=True,
        )
        port, self.process = found
        self.gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port), java_process=self.process)
        self.cpu_seconds = cpu_seconds
        self.in_use: dict[str, JavaGame] = {}  # by kind, the game that was played last
        self._latest: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def game(self, name: str, parameters: Mapping[str, int]) -> Any:
        """Return a game of this name and size, not yet begun.

        Raises:
            ValueError: the games do not know the name or a parameter, or a parameter is out of bounds.
        """
        made = self.gateway.jvm.textworldexpress.runtime.PythonInterface()
        complaint = made.load(name, ",".join(f"{key}={value}" for key, value in parameters.items()))
        if complaint:
            raise ValueError(" ".join(complaint.split()))
        return made

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


class JavaGame(Game):
    """A Java game is one game of an episode, begun from its seed; `state` is where it stands.

    Args:
        java: the process that holds it.
        request: `game`, `parameters`, `seed` and `fold`.
    """

    def __init__(self, java: JavaProcess, request: Mapping[str, Any]) -> None:
        self._java, self._kind = java, str(request["game"])
        self._game = java.game(self._kind, request["parameters"])
        self._seed, self._fold = request["seed"], FOLDS[request["fold"]]
        self._taken: list[str] = []
        self.state = self._begun()
        self.task = str(self._game.getTaskDescription())

    def step(self, action: str) -> GameState:
        """Take an action and return where the game stands then."""
        if self._kind in FORGETFUL and self._java.in_use[self._kind] is not self:
            self._begun()
            for former in self._taken:
                self._game.stepJSON(former)
        self._taken.append(action)
        self.state = self._state(self._game.stepJSON(action))
        return self.state

    def own_solution(self) -> list[str]:
        """Begin the game anew and return the actions that it says solve it."""
        self._taken, self.state = [], self._begun(solved=True)
        return [str(action) for action in self._game.getGoldActionSequence()]

    def _begun(self, *, solved: bool = False) -> GameState:
        """Begin the game, anew if it was played, and return where it stands."""
        self._java.in_use[self._kind] = self
        return self._state(self._game.generateNewGameJSON(self._seed, self._fold, solved))

    def _state(self, answer: str) -> GameState:
        found = json.loads(answer)
        return GameState(
            observation=found["observation"].strip(),
            actions=sorted(set(found["validActions"])),  # the games list some twice, in the order of a hash
            score=float(found["score"]),
            won=bool(found["tasksuccess"]),
            lost=bool(found["taskfailure"]),
        )


class Player:
    """A player answers requests about games; it starts Java when it is asked to `load`."""

    java: JavaProcess

    def __init__(self) -> None:
        self.games: dict[str, JavaGame] = {}

    def load(self) -> None:
        """Start Java and make every kind of game once, so that no request is timed for what is loaded but once."""
        self.java = JavaProcess(float(sys.argv[1]))
        self.java.game("coin", {})

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
                game = self.java.game(request["game"], request["parameters"])
                folds = {"train": game.getSeedsTrain(), "val": game.getSeedsDev(), "test": game.getSeedsTest()}
                return {"seeds": {fold: list(seeds) for fold, seeds in folds.items()}}
            case "solve":
                return {"actions": solution(request["game"], JavaGame(self.java, request))}
            case "begin":
                self.games[request["session"]] = game = JavaGame(self.java, request)
                return {"task": game.task, **game.state.facts()}
            case "step":
                return self.games[request["session"]].step(request["action"]).facts()
            case _:
                del self.games[request["session"]]
                return {}


if __name__ == "__main__":
    player = Player()
    serve(player.answer, load=player.load, memory=MEMORY)
