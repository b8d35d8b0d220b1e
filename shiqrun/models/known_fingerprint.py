"""`KnownFingerprint` remembers the fingerprint of weights by the files that they are loaded from.

The fingerprint is one hash over all bytes in order, which no number of threads makes faster, and summaries and
checkpoints hold it. So it is computed once for files with the same place, size and times, and read afterwards.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import shiqrun
from shiqrun.models.model_checks import WORTH_SECONDS, code_digest
from shiqrun.models.reference import weights_fingerprint
from shiqrun.util.kept_facts import KeptFacts

SETTLED_SECONDS = 2.0
"""Files that changed less long ago are not remembered: a further change might leave their times as they are."""


class KnownFingerprint:
    """A `KnownFingerprint` returns the fingerprint of a model that is loaded after it was made.

    Args:
        files: that the model is loaded from, all of them; none if they are not known.
        made_by: what else the weights depend on, such as a dtype.
        kept: what earlier runs found.
    """

    def __init__(self, files: Iterable[Path], made_by: Iterable[Any], kept: KeptFacts) -> None:
        self.files, self.made_by, self.kept = list(files), list(made_by), kept
        self._before = self._versions()

    def _versions(self) -> list[Any]:
        """Return place, size and times of each file; the time of a change of the inode cannot be set by programs."""
        found = []
        for path in self.files:
            facts = path.stat()
            times = facts.st_mtime_ns, facts.st_ctime_ns
            found.append([str(path.resolve()), facts.st_dev, facts.st_ino, facts.st_size, *times])
        return found

    def of(self, model: nn.Module, compute: Callable[[], str] | None = None) -> str:
        """Return `weights_fingerprint(model)`, from the cache where the files are those of an earlier run.

        Args:
            model: which was loaded.
            compute: computes the fingerprint where the model does not hold its weights.
        """
        key = self._key(model)
        found = self.kept.read(key) if self.files else None
        if found is not None and isinstance(known := found.get("fingerprint"), str):
            return known
        began = time.perf_counter()
        value = compute() if compute else weights_fingerprint(model)
        worth = bool(self.files) and time.perf_counter() - began > WORTH_SECONDS
        if worth and self._versions() == self._before and self._settled():
            self.kept.write(key, {"fingerprint": value})
        return value

    def _settled(self) -> bool:
        newest: int = max(facts[-1] for facts in self._before)
        return time.time_ns() - newest > SETTLED_SECONDS * 1e9

    def _key(self, model: nn.Module) -> str:
        versions = torch.__version__, transformers.__version__, shiqrun.__version__, code_digest()
        names = {name: [list(p.shape), str(p.dtype)] for name, p in model.state_dict().items()}
        words = [self._before, [str(x) for x in self.made_by], type(model).__name__, versions, names]
        return hashlib.blake2b(json.dumps(words, sort_keys=True).encode(), digest_size=16).hexdigest()
