"""A backend is one way to confine the zygote process: bubblewrap, Landlock with seccomp, or resource limits alone."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import shiqrun
from shiqrun.errors import InputError

Name = Literal["bwrap", "guard", "rlimits"]
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
START = "import sys; sys.path.insert(0, sys.argv[1]); from shiqrun.sandbox.zygote import main; del sys.path[0]; "
START += "main(sys.argv[2])"
WHAT = {
    "bwrap": "name spaces by bubblewrap, a filter of system calls, and Landlock where there is one",
    "guard": "Landlock and a filter of system calls",
    "rlimits": "limits, and a filter of system calls where there is one; files can be read and overwritten",
}
CONFINED: dict[Name, dict[str, bool | None]] = {
    "bwrap": {"landlock": None, "filter": True},
    "guard": {"landlock": True, "filter": True},
    "rlimits": {"landlock": False, "filter": None},
}
"""Whether a backend needs Landlock and the seccomp filter (true), uses them where it can (null), or never (false)."""


@dataclass(frozen=True)
class Backend:
    """A backend builds the command that starts a confined zygote; `choice` finds out whether it works on this machine.

    Attributes:
        name: `bwrap`, `guard` or `rlimits`.
        interpreter: the Python that runs programs, the one below the trainer's virtual environment.
    """

    name: Name
    interpreter: str = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)

    def command(self) -> list[str]:
        """Return the command that starts the zygote.

        Raises:
            InputError: bubblewrap is not installed.
        """
        code = Path(shiqrun.__file__).resolve().parent
        words = json.dumps(
            {**dict[str, object](CONFINED[self.name]), "readable": self._libraries(), "devices": DEVICES}
        )
        python = [self.interpreter, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", START]
        if self.name != "bwrap":
            return [*python, str(code.parent), words]
        return [*self._bubblewrap(code), *python, "/code", words]

    def _libraries(self) -> list[str]:
        """Return the paths that a confined interpreter may read: the standard library and system libraries."""
        prefixes = (sys.base_prefix, sys.base_exec_prefix, "", "/usr")
        places = [f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib64")]
        places += ["/etc/ld.so.cache", "/usr/share/zoneinfo"]
        return [place for place in dict.fromkeys(places) if os.path.exists(place)]

    def _bubblewrap(self, code: Path) -> list[str]:
        program = shutil.which("bwrap")
        if program is None:
            raise InputError("bubblewrap is not installed")
        words = [program, "--unshare-all", "--cap-drop", "ALL"]
        for place in [*self._libraries(), self.interpreter]:
            if os.path.islink(place):
                words += ["--symlink", os.readlink(place), place]
            else:
                words += ["--ro-bind", place, place]
        words += ["--ro-bind", f"{code}/sandbox", "/code/shiqrun/sandbox"]
        words += ["--ro-bind", f"{code}/__init__.py", "/code/shiqrun/__init__.py"]
        for device in DEVICES:
            words += ["--dev-bind", device, device]
        return [*words, "--remount-ro", "/", "--chdir", "/", "--"]
