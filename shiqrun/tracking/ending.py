"""`close` ends the tracked runs of this process."""

import sys


def close(exit_code: int = 0) -> None:
    """End the W&B and Trackio runs of this process, so that the next job does not write into them.

    Args:
        exit_code: what W&B shows of the run's end.
    """
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
    trackio = sys.modules.get("trackio")
    if trackio is not None and trackio.context_vars.current_run.get() is not None:
        trackio.finish()
