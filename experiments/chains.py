"""`run_all` runs chains of `shiqrun` commands whose results are not there yet, several side by side."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from shiqrun.cli import main as shiqrun

Command = tuple[list[str], Path]
"""(words of `shiqrun`, directory of the results)"""
Chain = list[Command]
"""Commands that need the results of those before them."""


def run(commands: Iterable[Command]) -> None:
    """Run those commands whose results are not there yet, one after the other.

    Raises:
        SystemExit: one failed; the code is the command's.
    """
    for words, folder in commands:
        if not any((folder / name).is_file() for name in ("summary.json", "eval.json")) and (code := shiqrun(words)):
            raise SystemExit(code)


def run_all(chains: Sequence[Chain], jobs: int) -> None:
    """Run chains of commands, `jobs` of them side by side in processes of their own; a single job in this one.

    Raises:
        SystemExit: a command failed; the chains that are not begun are left out.
    """
    if jobs == 1:
        for chain in chains:
            run(chain)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        begun = [pool.submit(run, chain) for chain in chains]
        try:
            for one in as_completed(begun):
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)
