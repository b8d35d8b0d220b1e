"""The two ways in which shiqrun gives up, each with its exit code."""


class InputError(ValueError):
    """Something the user gave cannot work: exit code 2, before training, nothing written is lost.

    The message names the file, row, key or option, the value met, the value expected, and what to do.
    """


class TrainingError(RuntimeError):
    """Training began and cannot go on: exit code 1. The message says what was seen and where it was saved."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived and the checkpoint was saved: exit code 130."""
