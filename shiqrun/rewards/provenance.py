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
        names: `prompt_name` of each prompt, by its text.
        tokens: `prompt_key` of each, by the tokens that the reward model reads; empty in files of older versions.
    """

    names: frozenset[str]
    tokens: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        """Return a hash of the prompts' names that does not depend on their order."""
        return _hash_of(self.names)

    def file_content(self) -> dict[str, Any]:
        """Return the content of the file `shiqrun.json`."""
        prompts = {"fingerprint": self.fingerprint, "count": len(self.names), "names": sorted(self.names)}
        tokens = {"fingerprint": _hash_of(self.tokens), "keys": sorted(self.tokens)}
        return {"format": FORMAT, "reads": READS, "prompts": prompts, "prompt_tokens": tokens}


def _hash_of(names: Iterable[str]) -> str:
    return hashlib.blake2b(" ".join(sorted(names)).encode(), digest_size=16).hexdigest()


def provenance_of(names: Iterable[str], tokens: Iterable[str] = ()) -> Provenance:
    """Return the provenance of a reward model trained on the prompts with these names and token keys."""
    return Provenance(frozenset(names), frozenset(tokens))


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
        tokens = text.get("prompt_tokens", {"fingerprint": _hash_of(()), "keys": ()})
        found = provenance_of(map(str, text["prompts"]["names"]), map(str, tokens["keys"]))
        if (found.fingerprint, _hash_of(found.tokens)) != (text["prompts"]["fingerprint"], tokens["fingerprint"]):
            raise ValueError("its fingerprint is not that of its names")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{option}: {file} is damaged ({error}); copy or train the reward model again") from error
    return found
