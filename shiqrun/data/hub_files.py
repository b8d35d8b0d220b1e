"""`hub_files` downloads a split of a data set of the Hugging Face Hub, and returns the Arrow files of its rows."""

import re
from pathlib import Path

from shiqrun.data.files import SUFFIXES
from shiqrun.errors import InputError
from shiqrun.util.hub import expect_reachable

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_hub_id(path: str) -> bool:
    """Return whether a path is the id of a data set of the Hub, ORG/NAME, and no file or directory of this machine."""
    return bool(HUB_ID.fullmatch(path)) and not path.endswith(SUFFIXES) and not Path(path).exists()


def hub_files(name: str, *, split: str, config: str | None, revision: str | None) -> list[Path]:
    """Return the Arrow files in the cache of `datasets` that hold a split, after downloading it where it is not there.

    Args:
        name: Hub id, ORG/NAME.
        split: name of a whole split, as the Hub has it.
        config: configuration (subset) of the data set; None for the only one.
        revision: branch, tag or commit; None for the newest, or offline the newest that was downloaded.

    Raises:
        InputError: no such data set, configuration, revision or split, a part of a split, or no network.
    """
    import datasets  # late: it takes a second, and local files do without

    if "[" in split:
        raise InputError(f"data.split={split}: a whole split is read; data.limit bounds its rows")
    try:
        expect_reachable(name, "data.path")
    except InputError as error:
        raise InputError(
            f"data.path={name}: no file or directory {Path(name).absolute()}; on the Hub: {error}"
        ) from None
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = " ".join(str(error.__cause__ or error).split())  # "an error occurred" has the error as its cause
        raise InputError(
            f"data.path={name} (split {split}, config {config}, revision {revision}): {said}; see data.split, "
            "data.config and data.revision, or pass data.path=FILE_OR_DIRECTORY"
        ) from None
    return [Path(entry["filename"]) for entry in rows.cache_files]
