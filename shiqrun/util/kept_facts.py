"""`KeptFacts` keeps what took long to find out in small files, each named by all that the finding depends on."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiqrun.util.atomic import write_atomic

log = logging.getLogger("shiqrun")
SEAL = "digest"


@dataclass(frozen=True)
class KeptFacts:
    """A `KeptFacts` is a directory of facts, one JSON file for each key.

    Nothing depends on a file being there: one that is missing or damaged means that its facts are found anew.

    Args:
        directory: made when the first facts are written.
    """

    directory: Path

    def read(self, key: str) -> dict[str, Any] | None:
        """Return the facts with this key; None where there are none, or the file is damaged."""
        path = self._path(key)
        try:
            found = json.loads(path.read_bytes())
            if found.pop(SEAL) == _digest(key, found):
                return dict(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        log.warning("%s: is damaged; what it held is found anew", path)
        return None

    def write(self, key: str, facts: dict[str, Any]) -> None:
        """Write facts under a key; only log where the directory takes no file."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path(key), json.dumps({**facts, SEAL: _digest(key, facts)}))
        except OSError as error:
            log.info("%s: %s; the next run checks the model again", self.directory, error.strerror or error)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.json"


def _digest(key: str, facts: dict[str, Any]) -> str:
    return hashlib.blake2b((key + json.dumps(facts, sort_keys=True)).encode(), digest_size=16).hexdigest()
