"""A trial damages one file of a copy of the world, runs a command that reads it, and judges what comes of it."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tests.campaign.outcome import differences, outcome
from tests.campaign.world import READINGS, Reading, run

FOUND, HARMLESS, SAID, HOLE = "found", "harmless", "said", "HOLE"
VERDICTS = (FOUND, HARMLESS, SAID, HOLE)
"""Exit 2 with a line that names the file; an equal result; another result and a line that names the file; the rest."""
DAMAGES = ("bit", "bit", "byte", "byte", "cut", "empty", "nuls", "garbage", "removed")
FOLDERS = ("policy", "experience", "values", ".hydra", "checkpoints")
"""Folders whose path is name enough for a file in them."""


def damage(file: Path, kind: str, rng: random.Random) -> str:
    """Damage a file in place; return what was done."""
    if kind == "removed":
        file.unlink()
        return kind
    data = bytearray(file.read_bytes() or b"\n")
    at = rng.randrange(len(data))
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] ^= rng.randrange(1, 256)
    elif kind == "cut":
        del data[at:]
    elif kind == "empty":
        data.clear()
    elif kind == "nuls":
        data[at:] = bytes(len(data) - at)
    elif kind == "garbage":
        data[:] = rng.randbytes(max(len(data), 16))
    file.write_bytes(data)
    return f"{kind} at {at}"


class Campaign:
    """A campaign knows what each command makes of the undamaged world, and tries damage one by one.

    Attributes:
        table: how often each (command, kind of file) met each verdict.
        flips: how many trials flipped a bit or a byte.
    """

    def __init__(self, world: Path, place: Path, seed: int) -> None:
        self.world, self.place, self.seed = world, place, seed
        self.table: dict[tuple[str, str], Counter[str]] = {}
        self.flips, self.sound = 0, dict[str, tuple[dict[str, Any], list[str]]]()

    def undamaged(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """(outcome, lines printed) of a command that reads the undamaged world."""
        if name not in self.sound:
            self._copy()
            code, said = run(self.place, READINGS[name].words)
            assert code == 0, f"{' '.join(READINGS[name].words)}: exit {code}\n{said}"
            self.sound[name] = self._result(READINGS[name], said), said.splitlines()
        return self.sound[name]

    def trial(self, name: str, number: int) -> str | None:
        """Damage one file for one reading, which the seed and the trial's number choose; describe the hole, if any."""
        reading, rng = READINGS[name], random.Random(f"{self.seed}/{number}")
        good, said_before = self.undamaged(name)
        self._copy()
        kinds: dict[str, list[Path]] = {}
        for file in sorted({f for glob in reading.files for f in self.place.glob(glob) if f.is_file()}):
            if file.suffix not in (".log", ".lock", ".tmp") and file.name != ".lock":
                kinds.setdefault(kind_of(file.relative_to(self.place)), []).append(file)
        kind = rng.choice(sorted(kinds))
        file, how = rng.choice(kinds[kind]), rng.choice(DAMAGES)
        done, inside = damage(file, how, rng), str(file.relative_to(self.place))
        left = file.read_bytes() if file.exists() else None
        code, said = run(self.place, reading.words)
        verdict, why = self._judge(code, said, said_before, file, good, reading, left)
        self.table.setdefault((name, kind), Counter())[verdict] += 1
        self.flips += how in ("bit", "byte")
        if verdict != HOLE:
            return None
        return f"HOLE {name} | trial {number} | {inside} | {done} | exit {code}: {why}\n{said[-700:]}"

    def _judge(self, code, said, said_before, file, good, reading, left) -> tuple[str, str]:
        """(verdict, reason) of what came of a damaged file, of which `left` was left."""
        lines = said.splitlines()
        if code is None or code not in (0, 2) or "Traceback" in said:
            return HOLE, "hangs" if code is None else "no exit 0 or 2, or a traceback"
        if code == 2:
            error = lines[-1] if lines and "error:" in lines[-1] else ""
            return (FOUND, "") if names(error, file, self.place) else (HOLE, "no last line that names the file")
        found = self._result(reading, said)
        other = differences(good, found)
        if reading.result and left == (file.read_bytes() if file.exists() else None):  # what was damaged lies there yet
            folder = self.place / reading.result
            own = str(file.relative_to(folder)) if file.is_relative_to(folder) else " "
            other = [key for key in other if key.split(":")[0] != own]
        if not other:
            return HARMLESS, ""
        new = [line for line in lines if line not in said_before]
        if any(names(line, file, self.place) for line in new):
            return SAID, ""
        return HOLE, f"another result, unsaid: {len(other)} values, {', '.join(other[:6])}"

    def _result(self, reading: Reading, said: str) -> dict[str, Any]:
        """What a command left in its folder, or printed where that is all it does."""
        if not reading.result:
            return {f"line {n}": line.rstrip() for n, line in enumerate(said.splitlines())}
        return outcome(self.place / reading.result)

    def _copy(self) -> None:
        """Make a fresh copy of the world; nothing is left of the last one."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.world, self.place)


def names(line: str, file: Path, place: Path) -> bool:
    """Tell whether a line names a file, or the folder it is in where that is name enough."""
    folder = str(file.parent.relative_to(place))
    return file.name in line or (file.parent.name in FOLDERS and folder in line)


def kind_of(file: Path) -> str:
    """Name the kind of a file: its path without numbers and hashes."""
    return "/".join(re.sub(r"[0-9a-f]{8,}|\d+", "#", part) for part in file.parts)
