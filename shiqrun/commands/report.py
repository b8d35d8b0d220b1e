"""`shiqrun report DIR...` writes one HTML page of runs and sweeps, which opens from disk."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shiqrun.errors import InputError

DESCRIPTION = """\
Writes one HTML page about every run in and below the directories: what was run, the reward/KL frontier, methods with
their intervals over seeds, learning curves, the completions beside the reference's, and, token by token, what was
learned. Directories of `shiqrun pivotal` show the chance of success along solutions. The page opens from disk and needs
no network. A folder beside it, named like the page, gets the figures as PNG and SVG and the numbers as CSV.
"""
EXAMPLES = """\
examples:
  shiqrun report outputs/shiq-hh/2026-01-31_12-00-00
  shiqrun report outputs/sweep-hh/2026-01-31_12-00-00 --out hh.html
"""


def main(words: Sequence[str]) -> int:
    """Write the report; return the exit code: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(
        "shiqrun report", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder with some of them"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; by default report.html in the first DIR")
    try:
        given = parser.parse_args(list(words))
    except SystemExit as left:  # --help, or a word that argparse does not know
        return int(left.code or 0)
    from shiqrun.report.run_report import write_report

    try:
        print(write_report(given.directories, given.out))
        print("next: open it in a browser")
    except InputError as error:
        print(f"shiqrun: error: {error}", file=sys.stderr)
        return 2
    return 0
