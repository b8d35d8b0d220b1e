"""A mixture of data sets has parts with names: what a name may be, and how ids and errors of a part name it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from shiqrun.errors import InputError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
SOURCES = ("logged", "online", "replay", "annotated", "further", "train", "val")
"""Names of sources of trajectories, beside which parts have their metrics."""
HASHED = re.compile(r"[0-9a-f]{16}")
"""An id that is the hash of its prompt (`prompt_name`): equal in two data sets only for equal prompts."""


def expect_part_name(name: object) -> str:
    """Return the name of a part.

    Raises:
        InputError: it could not stand in keys of the config and in names of metrics.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"data.parts: {name!r} is no name of a part; expected a letter, then letters, digits and _")
    if name in SOURCES:
        raise InputError(f"data.parts.{name}: metrics use this name already ({', '.join(SOURCES)}); give another")
    return name


def id_in_mixture(part: str, prompt_id: str) -> str:
    """Return the id of a part's prompt in the mixture: ids that a file gives may stand for other prompts elsewhere."""
    return prompt_id if HASHED.fullmatch(prompt_id) else f"{part}/{prompt_id}"


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Name a part, and the keys of its data set in it, in the input errors of the block."""
    try:
        yield
    except InputError as error:
        text = re.sub(
            r"\bdata\.(?!parts\b|train_on\b|_target_)([a-z_]+)(?=[=.,;:) ]|$)", rf"data.parts.{part}.\1", str(error)
        )
        raise type(error)(f"data.parts.{part}: {text}") from error
