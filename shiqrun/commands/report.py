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
no network. A folder beside it, named like the page, gets what goes into a paper: the figures as PNG (300 dpi), PDF and
SVG, the numbers as CSV, and the tables of methods as LaTeX.
"""
EXAMPLES = """\
examples:
  shiqrun report outputs/shiq-hh/2026-01-31_12-00-00
  shiqrun report outputs/sweep-hh/2026-01-31_12-00-00 --out hh.html
  shiqrun report outputs/sweep-hh/2026-01-31_12-00-00 --figures pdf
"""
FORMATS = ("png", "pdf", "svg")


def main(words: Sequence[str]) -> int:
    """Write the report; return the exit code: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(
        "shiqrun report", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="a run, a sweep, or a folder with some of them"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; by default report.html in the first DIR")
    parser.add_argument(
        "--figures",
        type=_formats,
        metavar="FORMATS",
        default=FORMATS,
        help="formats of the figures' files, with commas; by default png,pdf,svg",
    )
    try:
        given = parser.parse_args(list(words))
    except SystemExit as left:  # --help, or a word that argparse does not know
        return int(left.code or 0)
    from shiqrun.report.run_report import write_report

    try:
        page = write_report(given.directories, given.out, given.figures)
    except InputError as error:
        print(f"shiqrun: error: {error}", file=sys.stderr)
        return 2
    _tell_files(page.with_suffix(""))
    print(page)
    print("next: open it in a browser")
    return 0


def _formats(text: str) -> list[str]:
    """Return the formats of figures that a text with commas names."""
    formats = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in formats if word not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: no format of a figure; give some of {', '.join(FORMATS)}")
    return list(dict.fromkeys(formats))


def _tell_files(folder: Path) -> None:
    """Print where the figures and tables are."""
    figures = sorted((folder / "figures").glob("*.*"))
    tables = sorted(path.name for ending in ("csv", "tex") for path in folder.glob(f"*.{ending}"))
    if figures:
        endings = ", ".join(dict.fromkeys(path.suffix[1:] for path in figures))
        print(f"figures: {folder / 'figures'} ({len({path.stem for path in figures})}, {endings})")
    if tables:
        print(f"tables: {folder} ({', '.join(tables)})")
