"""These functions suggest in error messages the known name that is nearest to what the user typed."""

from collections.abc import Iterable

from shiqrun.config.other_names import name_here
from shiqrun.util.nearest import did_you_mean, nearest


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return one line about an unknown dotted key: the nearest key of the same node, else of all, else a list of keys.

    Args:
        key: what the user typed.
        known: every valid dotted key, of nodes and of values. Hydra's own keys are listed only if `key` is under
            `hydra` too.
    """
    parent, _, _ = key.rpartition(".")
    names = list(known)
    siblings = [name for name in names if name.rpartition(".")[0] == parent]
    hint = name_here(key, names) or _by_leaf(key, siblings)
    hint = hint or did_you_mean(
        key, [] if siblings and parent else [n for n in names if _is_hydras(key) or not _is_hydras(n)]
    )
    listed = [name for name in dict.fromkeys(siblings or names) if _is_hydras(key) or not _is_hydras(name)]
    return f"{key}: unknown key{hint or '; known are ' + ', '.join(listed)}"


def _is_hydras(key: str) -> bool:
    return key.replace("/", ".").partition(".")[0] == "hydra"


def _by_leaf(key: str, siblings: list[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in siblings}
    near = nearest(key.rpartition(".")[2], leaves)
    return f"; did you mean {leaves[near]}?" if near else ""
