"""The confined process of the backends: `python -m shiqrun.environments.bfcl.worker`, JSON lines in and out.

Memory is limited for the whole process, processor time for each request: the kernel ends the process when a request
takes longer, and `bfcl.harness` starts the next. Nothing here imports torch.
"""

import json
import os
import resource
import signal
import sys
import time
from typing import Any

MEMORY = 1 << 30  # bytes of address space
FILES = 64
OUT_OF_MEMORY = 77
"""The exit code when a request needs more memory."""


def main() -> None:
    """Answer requests until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # signals are meant for the run, which may still want an answer
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that a backend's prints do not mix with answers
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker  # noqa: F401

    sessions: dict[str, Any] = {}
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds * request.get("times", 1))
        began = time.process_time()
        try:
            answer = answered(request, sessions)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        answer["seconds"] = time.process_time() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def answered(request: dict[str, Any], sessions: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request; its `error` says that a sample's backends could not be made."""
    from shiqrun.environments.bfcl.backends import Session, official

    session = request.get("session", "")
    match request["do"]:
        case "open":
            try:
                sessions[session] = Session(request["sample"])
            except MemoryError:
                raise
            except Exception as error:
                return {"error": f"{type(error).__name__}: {error}"}
            return {}
        case "run":
            return {"result": sessions[session].run(request["call"])}
        case "end_turn":
            return dict(sessions[session].end_turn())
        case "official":
            return {"valid": official(request["sample"], request["turns"])}
        case _:
            del sessions[session]
            return {}


if __name__ == "__main__":
    main()
