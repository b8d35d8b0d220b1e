"""This module runs BFCL's backends in a confined process, which `bfcl.harness` starts and sends requests."""

from typing import Any

from shiqrun.environments.confined import serve

_sessions: dict[str, Any] = {}


def load() -> None:
    """Import the official checker, and with it what the backends need."""
    import bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker  # noqa: F401


def answer_request(request: dict[str, Any], sessions: dict[str, Any]) -> dict[str, Any]:
    """Return the backends' answer to a request; its `error` says that a sample's backends could not be made."""
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
    serve(lambda request: answer_request(request, _sessions), load=load)
