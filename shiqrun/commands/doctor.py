"""`shiqrun doctor` prints what this machine offers: Python, torch, accelerators, and a sandbox, which it proves."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shiqrun.sandbox.backends import WHAT, Backend, Name
from shiqrun.sandbox.choice import AUTOMATIC, NO_SANDBOX, why_unusable
from shiqrun.sandbox.probes import run_probes

DESCRIPTION = """\
Says what this machine offers to shiqrun, and tries the sandboxes for programs that a model wrote (reward=unit_tests)
with programs that read, write and delete files, connect, start processes and send signals. Exit code 0 if a sandbox
holds against all of them, else 1.
"""
WIDTH = 12


def main(words: Sequence[str]) -> int:
    """Run `shiqrun doctor`; return its exit code: 0, 1 without a sandbox that holds, 2 for unknown words."""
    parser = argparse.ArgumentParser(
        "shiqrun doctor", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        parser.parse_args(list(words))
    except SystemExit as left:  # --help, or a word that argparse does not know
        return int(left.code or 0)
    for name, what in (
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("machine", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("torch", _version("torch") or "not installed; see the README"),
        ("accelerator", "; ".join(accelerators()) or "none seen; hardware=cpu"),
        ("bfcl-eval", _version("bfcl-eval") or "not installed; data=bfcl needs: pip install --no-deps bfcl-eval"),
    ):
        _say(name, what)
    holds = _sandbox()
    print("next: shiqrun train experiment=demo_reference   or   shiqrun train --help")
    return 0 if holds else 1


def accelerators() -> list[str]:
    """Return the accelerators that drivers report, found without torch."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = (line.partition(":") for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        names += [value.strip() for key, _, value in lines if key.strip() == "Model"]
    if not names:
        names = [f"NVIDIA, {path}" for path in sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))]
    return names + (["AMD, /dev/kfd"] if Path("/dev/kfd").exists() else [])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sandbox() -> bool:
    """Try every sandbox backend; return whether the one that reward.sandbox=auto takes holds."""
    reasons, held_by = [], dict[str, bool]()
    for name in AUTOMATIC:
        why = why_unusable(name)
        if why is not None:
            _say(name, f"does not work: {why}")
            reasons.append(f"{name}: {why}")
            continue
        _say(name, f"{WHAT[name]}; programs that tried to")
        held_by[name] = _holds(name)
    if not held_by:
        _say("sandbox", NO_SANDBOX.format(reasons="; ".join(reasons)))
        return False
    chosen, good = next(iter(held_by.items()))
    _say("sandbox", f"{chosen}, which reward.sandbox=auto takes: {'holds' if good else 'DOES NOT HOLD'}")
    return good


def _holds(name: Name) -> bool:
    """Return whether a sandbox backend holds: no probe could do harm."""
    every = True
    for probe, outcome, good in run_probes(Backend(name)):
        words = "refused" if good else f"NOT REFUSED ({outcome.verdict})"
        _say("", f"  {probe.what:<24}{words}")
        every &= good
    return every


def _say(name: str, what: str) -> None:
    print(f"{name:<{WIDTH}}{what}")
