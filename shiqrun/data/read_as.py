"""`RowsRead` counts how the rows of a file were read, and says so in one line of the log."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiqrun.console import count_of
from shiqrun.data.columns import Form
from shiqrun.data.hub_files import is_hub_id

log = logging.getLogger("shiqrun")
WORDS: Mapping[Form, str] = {
    "pair": "pair",
    "several": "several completions",
    "single": "prompt and completion",
    "chat": "chat",
}
"""What each form of row is called."""


class RowsRead:
    """A `RowsRead` counts the rows of a split by form, and those with tools.

    Args:
        names: the file's own column by the name that it has here, where they differ.
        tools: whether tools are read.
    """

    def __init__(self, names: Mapping[str, str], *, tools: bool) -> None:
        self.names, self.read_tools = names, tools
        self._forms, self._tools, self._rewards = Counter[Form](), 0, "no rewards"

    def see(self, form: Form, tools: Any, rewards: Any, rewards_from: str | None) -> None:
        """Take note of a row.

        Args:
            form: of the row.
            tools: of the row, as they stand.
            rewards: of its completions.
            rewards_from: the columns or the setting that they are from; equal in all rows of a split.
        """
        self._forms[form] += 1
        self._tools += bool(tools)
        if rewards is not None and self._rewards == "no rewards":
            each = "reward per turn" if form in ("single", "chat") and isinstance(rewards[0], list) else "rewards"
            each = "reward" if rewards_from == "reward" else each
            self._rewards = f"{each} from {self._shown(str(rewards_from))}"

    def _shown(self, source: str) -> str:
        own = self.names.get(source)
        named = f"`{source}`" if source in ("reward", "rewards") else source
        return f"{named} (column {own})" if own else named

    def forms(self) -> str:
        """Return the forms of the rows so far, with their numbers where there are several."""
        several = len(self._forms) > 1
        return ", ".join(f"{n} {WORDS[f]}" if several else WORDS[f] for f, n in sorted(self._forms.items()))

    def tell(self, path: str) -> None:
        """Log how the rows at a path were read, if there were any; its last part names it, as `run.log` is shared."""
        total = self._forms.total()
        if not total:
            return
        forms = self.forms()
        if self._tools and not self.read_tools:
            forms += ", tools left out"
        elif self._tools:
            forms += " with tools" if self._tools == total else f" ({self._tools} with tools)"
        log.info(f"{path if is_hub_id(path) else Path(path).name}: {count_of(total, 'row')}: {forms}, {self._rewards}")
