"""This module has the check of a run's vLLM server that is made before any data or model is loaded."""

import shlex
import shutil

from shiqrun.errors import InputError
from shiqrun.rollout.settings import VllmRollouts
from shiqrun.rollout.vllm.start import server_of, wait_for_server
from shiqrun.training.plan import Plan


def server_is_there(plan: Plan) -> str | None:
    """A run that samples by a vLLM server needs one that answers, or a command that can start it."""
    settings = plan.rollout
    if not isinstance(settings, VllmRollouts):
        return None
    try:
        if settings.command is None:
            wait_for_server(server_of(settings), settings)
            return None
        program = next(iter(shlex.split(settings.command)), "")
    except InputError as error:
        return str(error)
    except ValueError as error:
        return f"rollout.command={settings.command}: {error}"
    if shutil.which(program) is None:
        return (
            f"rollout.command={settings.command}: there is no program {program!r}; give its path, or start the server "
            "yourself"
        )
    return None
