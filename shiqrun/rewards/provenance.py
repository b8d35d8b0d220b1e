"""The provenance of a reward model, `shiqrun.json` beside its weights, names the prompts it was trained on."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError

FILE = "shiqrun.json"
FORMAT = 1
READS = "last_action"


@dataclass(frozen=True)
class Provenance:
    """The provenance holds the names of the prompts that a reward model was trained on.

    Attributes:
        names: `prompt_name` of each prompt.
    """

    names: frozenset[str]

    @property
    def fingerprint(self) -> str:
        """Return a hash of the prompts' names that does not depend on their order."""
        return hashlib.blake2b(" ".join(sorted(self.names)).encode(), digest_size=16).hexdigest()

    def file_content(self) -> dict[str, Any]:
        """Return the content of the file `shiqrun.json`."""
        prompts = {"fingerprint": self.fingerprint, "count": len(self.names), "names": sorted(self.names)}
        return {"format": FORMAT, "reads": READS, "prompts": prompts}


def provenance_of(names: Iterable[str]) -> Provenance:
    """Return the provenance of a reward model trained on the prompts with these names."""
    return Provenance(frozenset(names))


def read_provenance(file: Path, option: str) -> Provenance:
    """Read the provenance file of a reward model.

    Raises:
        InputError: the file is damaged, or another version of shiqrun wrote it.
    """
    try:
        text = json.loads(file.read_text(encoding="utf-8"))
        version, reads = text["format"], text["reads"]
        if (version, reads) != (FORMAT, READS):
            raise InputError(
                f"{option}: {file} has format {version!r} and reads {reads!r}, this version of shiqrun knows format "
                f"{FORMAT} and {READS!r}; use the version that wrote it, or train the reward model again"
            )
        found = provenance_of(map(str, text["prompts"]["names"]))
        if found.fingerprint != text["prompts"]["fingerprint"]:
            raise ValueError("its fingerprint is not that of its names")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{option}: {file} is damaged ({error}); copy or train the reward model again") from error
    return found
