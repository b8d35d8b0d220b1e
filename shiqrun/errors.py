"""These errors end a command, each with its own exit code."""


class InputError(ValueError):
    """An InputError says that something the user gave cannot work: exit code 2, raised before training begins.

    The message names the file, row, key or option, the value met, the value expected, and what to do.
    """


class TrainingError(RuntimeError):
    """A TrainingError says that training began and cannot go on: exit code 1.

    The message says what happened and where the run was saved.
    """


class Interrupted(KeyboardInterrupt):
    """Interrupted says that a signal arrived and the checkpoint was saved: exit code 130.

    Attributes:
        number: of the signal.
    """

    def __init__(self, text: str = "", number: int = 0) -> None:
        super().__init__(text)
        self.number = number
