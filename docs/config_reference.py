"""The reference of config keys is made here from the YAML files of conf/ and their comments, for the docs site.

`python docs/config_reference.py` prints it. Only PyYAML is needed.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CONF = Path(__file__).parents[1] / "conf"
FIRST = ("train", "sweep", "compare", "eval", "algo", "data", "model", "reward")
"""Commands and groups that stand before the others."""
NO_KEYS = ("defaults", "hydra", "_target_", "_partial_")


@dataclass(frozen=True)
class Key:
    """A config key with its default and its comment, as a YAML file has them."""

    name: str
    default: str
    comment: str


def read_keys(path: Path, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a YAML file in its order, with dotted names; the comment stands behind a key or above it."""
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text)
    if isinstance(node, yaml.MappingNode):
        yield from _keys(node, text.splitlines(), text, prefix)


def _keys(node: yaml.MappingNode, lines: list[str], text: str, prefix: str, above: str = "") -> Iterator[Key]:
    for name, value in node.value:
        if name.value in NO_KEYS:
            continue
        key, comment = prefix + name.value, _comment(lines, name.start_mark.line, value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _keys(value, lines, text, f"{key}.", comment if prefix else "")
        else:
            shown = text[value.start_mark.index : value.end_mark.index].strip()
            yield Key(key, shown, "; ".join(part for part in (above, comment) if part))


def _comment(lines: list[str], row: int, value: yaml.Node) -> str:
    """Return the comment behind a key; where there is none, the lines of comment above it."""
    is_node = isinstance(value, yaml.MappingNode) and value.value
    tail = lines[row] if is_node else lines[value.end_mark.line][value.end_mark.column :]
    behind = re.search(r"(?:^|\s)#\s*(.*)$", tail)
    if behind:
        return behind.group(1)
    above: list[str] = []
    while row > 0 and lines[row - 1].lstrip().startswith("#"):
        row -= 1
        above.insert(0, lines[row].strip().lstrip("# "))
    return " ".join(above)


def defaults(path: Path) -> list[str]:
    """Return a file's list of defaults, each as `NAME` (a base) or `GROUP=CHOICE`; `_self_` is first where none is."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    listed = []
    for entry in content.get("defaults", ["_self_"]):
        pairs = entry.items() if isinstance(entry, dict) else [(entry, None)]
        listed += [
            name if choice is None and not isinstance(entry, dict) else f"{name}={choice}" for name, choice in pairs
        ]
    return listed


def keys_with_bases(path: Path, prefix: str = "") -> dict[str, Key]:
    """Return the keys of a choice with those of the bases it builds on; what stands later in the list wins."""
    found: dict[str, Key] = {}
    for base in defaults(path):
        if base == "_self_":
            found |= {key.name: key for key in read_keys(path, prefix)}
        elif "=" not in base:
            found |= keys_with_bases(path.with_name(f"{base}.yaml"), prefix)
    return found


def introduction(path: Path) -> str:
    """Return the comment at the head of a YAML file as one paragraph."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(line for line in lines if not line.startswith("@package"))


def choices(group: str) -> list[Path]:
    """Return the YAML files of a group that can be chosen; those with an underscore are bases."""
    return sorted(path for path in (CONF / group).glob("*.yaml") if not path.name.startswith("_"))


def commands() -> list[str]:
    """Return the names of the commands that have keys."""
    return _in_order(path.stem for path in CONF.glob("*.yaml") if not path.name.startswith("_"))


def shared() -> list[str]:
    """Return the files whose keys several commands have; they are listed once, and the commands name them."""
    return sorted(path.stem for path in CONF.glob("_*.yaml"))


def groups() -> list[str]:
    """Return the names of the config groups."""
    return _in_order(path.name for path in CONF.iterdir() if path.name != "hydra" and any(path.glob("*.yaml")))


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def table(keys: Iterable[Key]) -> str:
    """Return a Markdown table of keys, or a sentence where there are none."""
    rows = [f"| `{key.name}` | {_cell(key.default)} | {_escape(key.comment)} |" for key in keys]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) if rows else "It has no keys of its own."


def _cell(default: str) -> str:
    if default == "???":
        return "must be given"
    return f"`{_escape(' '.join(default.split()))}`" if default else "`null`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def of_command(name: str) -> str:
    """Return the section of a command or of a shared file: groups to choose from, further keys, its own keys."""
    path = CONF / f"{name}.yaml"
    listed = [entry.removeprefix("override ").replace("=None", "=null") for entry in defaults(path)]
    chosen = [f"`{entry}`" for entry in listed if "=" in entry and not entry.startswith("hydra/")]
    bases = [entry for entry in listed if "=" not in entry and entry != "_self_"]
    parts = [introduction(path)]
    if bases:
        parts.append("It also has the keys of " + ", ".join(f"[{_title(b)}](#{_anchor(b)})" for b in bases) + ".")
    if chosen:
        parts.append("Groups, with what is chosen unless you choose: " + ", ".join(chosen) + ".")
    return "\n\n".join([f"### {_title(name)} {{ #{_anchor(name)} }}", *parts, table(read_keys(path))])


def _title(name: str) -> str:
    return f"`conf/{name}.yaml`" if name.startswith("_") else f"`shiqrun {name}`"


def _anchor(name: str) -> str:
    return ("keys-of" if name.startswith("_") else "shiqrun-") + name.replace("_", "-")


def of_choice(group: str, path: Path) -> str:
    """Return the section of one choice of a group: what it is, the choices that it makes, all of its keys."""
    prefix = "" if group == "experiment" else f"{group}."
    keys = keys_with_bases(path, prefix)
    if path.stem == "mixture":
        keys |= keys_with_bases(path.with_name("_part.yaml"), f"{prefix}parts.NAME.")
    parts = [f"### `{group}={path.stem}` {{ #{group}-{path.stem.replace('_', '-')} }}", introduction(path)]
    chosen = [f"`{entry.removeprefix('override /')}`" for entry in _chosen(path)]
    if chosen:
        parts.append("It chooses " + ", ".join(chosen) + ".")
    return "\n\n".join([*parts, table(keys.values())])


def _chosen(path: Path) -> Iterator[str]:
    for entry in defaults(path):
        if "=" in entry:
            yield entry
        elif entry != "_self_":
            yield from _chosen(path.with_name(f"{entry}.yaml"))


def reference() -> str:
    """Return the whole reference as Markdown: commands, keys that they share, and every choice of every group."""
    parts = ["## Commands", *(of_command(name) for name in commands())]
    parts += ["## Keys that several commands have", *(of_command(name) for name in shared())]
    for group in groups():
        parts += [f"## `{group}=`", *(of_choice(group, path) for path in choices(group))]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    print(reference())
