"""`is_output_closed` tells a reader that went away, as in `shiqrun inspect | head`, from other broken pipes."""

import os
import select
import sys

CLOSED_PIPE = 141
"""The exit code of a command whose output nobody reads any more: what a shell shows for a program ended by SIGPIPE."""


def is_output_closed(error: BaseException) -> bool:
    """Return whether an error says that nobody reads the standard output any more."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def drop_output() -> None:
    """Send what is still to be written on the standard output to nowhere, so that Python can end without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
