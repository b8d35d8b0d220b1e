"""Kills a process at a chosen moment of a save: before the n-th thing that it does to the files of checkpoints."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def kill_before(number: int, part: str, victims: Callable[[], None]) -> Callable[[], int]:
    """Counts, from the first path with `part` in it on, what happens in its directory; calls `victims` before the n-th.

    Every block that is written counts, too. Returns what tells the count.
    """
    seen, folder = [0], [""]

    def note(path: str) -> None:
        if not folder[0] and part in path:
            folder[0] = path[: path.index(part)]
            _note_blocks(note)
        if folder[0] and path.startswith(folder[0]):
            seen[0] += 1
            if seen[0] == number:
                victims()

    def hook(event: str, arguments: tuple) -> None:
        if event in WATCHED and isinstance(arguments[0], str | os.PathLike):
            note(os.fspath(arguments[0]))

    sys.addaudithook(hook)
    return lambda: seen[0]


def _note_blocks(note: Callable[[str], None]) -> None:
    from shiqrun.evaluation.checkpoint_bytes import _Hashing  # not before the command has made its environment

    write = _Hashing.write
    _Hashing.write = lambda self, data: (note(self.file.name), write(self, data))[1]


def die() -> None:
    """Kills this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_all() -> None:
    """Kills this process and rank 0, with which the kernel ends the ranks that it has started."""
    if parent := os.environ.get("SHIQRUN_PARENT"):
        os.kill(int(parent), signal.SIGKILL)
    die()


def site(folder: Path) -> dict[str, str]:
    """The environment in which the processes of a command heed `KILL`: rank, moment, "one" or "all", part of a path."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "rank, number, who, part = os.environ['KILL'].split()\n"
        "if os.environ.get('RANK', os.environ.get('LOCAL_RANK', '0')) == rank:\n"
        "    from tests.support.killed_saves import die, die_with_all, kill_before\n"
        "    kill_before(int(number), part, die if who == 'one' else die_with_all)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])])}
