"""`shiqrun convert FILE... --from NAME` turns logs of other tools into JSON-lines rows for `data=jsonl`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.util.nearest import did_you_mean

DESCRIPTION = """\
Writes a JSON-lines file that `data=jsonl` reads: one row a dialogue, with messages, tools and a reward. docs/data.md
says what is read of each format.
"""
EXAMPLES = """\
examples:
  shiqrun convert spans.jsonl --from otel --to rows.jsonl
  shiqrun convert traces.jsonl --from langfuse --reward correctness
"""


def main(words: Sequence[str]) -> int:
    """Convert logs; return the exit code: 0, or 2 for input that cannot work."""
    from shiqrun.data.convert.registry import FORMATS
    from shiqrun.data.convert.write import convert

    parser = argparse.ArgumentParser(
        "shiqrun convert",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="logs: .jsonl[.gz], .json or .parquet")
    parser.add_argument("--from", dest="name", required=True, metavar="NAME", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--to", type=Path, metavar="OUT.jsonl", help="by default FILE.rows.jsonl in this directory")
    parser.add_argument("--reward", metavar="NAME", help="the score that becomes the reward")
    try:
        given = parser.parse_args(list(words))
    except SystemExit as left:  # --help, or a word that argparse does not know
        return int(left.code or 0)
    out = given.to or Path(f"{given.files[0].name.split('.')[0]}.rows.jsonl")
    try:
        if given.name not in FORMATS:
            known = f"; known are {', '.join(FORMATS)}"
            raise InputError(f"--from {given.name}: unknown format{did_you_mean(given.name, FORMATS)}{known}")
        if not out.name.endswith(".jsonl") or not out.parent.is_dir():
            raise InputError(f"--to {out}: expected a name that ends in .jsonl, in a directory that exists")
        if out.resolve() in [file.resolve() for file in given.files]:
            raise InputError(f"--to {out}: is also a FILE; choose another name, so that the log stays")
        print(convert(given.files, given.name, out, given.reward))
        print(f"next: shiqrun inspect data=jsonl data.path={out}")
    except InputError as error:
        print(f"shiqrun: error: {error}", file=sys.stderr)
        return 2
    return 0
