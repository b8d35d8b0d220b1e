"""`shiqrun push RUN --repo ORG/NAME` uploads the model of a finished run to the Hugging Face Hub, with its card."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shiqrun.commands.export import FORMS, PRECISIONS
from shiqrun.errors import InputError, TrainingError

if TYPE_CHECKING:
    from shiqrun.sharing.finished_run import FinishedRun

DESCRIPTION = """\
Uploads the model of a finished run to the Hugging Face Hub in one commit: what `shiqrun export` writes, with a card
that says how good it is, with intervals, how it was made, and what to cite. It needs a token with write access
(`hf auth login`, or HF_TOKEN). --dry-run writes the folder and uploads nothing.
"""
EXAMPLES = """\
examples:
  shiqrun push outputs/shiq-jsonl/2026-01-31_12-00-00 --repo my-org/my-model --dry-run
  shiqrun push outputs/shiq-jsonl/2026-01-31_12-00-00 --repo my-org/my-model --private --dtype bf16
"""


def main(words: Sequence[str]) -> int:
    """Push the model of a run; return the exit code: 0, 1 where the Hub failed, 2 for input that cannot work."""
    parser = argparse.ArgumentParser(
        "shiqrun push", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a finished run")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="made where it is not there")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--as", dest="form", choices=FORMS, default="merged", help="what to upload (default: merged)")
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32", help="of the numbers (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="write the folder, upload nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of --dry-run; by default RUN/export/hub")
    try:
        given = parser.parse_args(list(words))
    except SystemExit as left:  # --help, or a word that argparse does not know
        return int(left.code or 0)
    try:
        _push(given)
    except InputError as error:
        print(f"shiqrun: error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"shiqrun: failed: {error}", file=sys.stderr)
        return 1
    return 0


def _push(given: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.config import run_directory as rundir
    from shiqrun.console import say_next
    from shiqrun.sharing import upload as hub
    from shiqrun.sharing.finished_run import finished_run
    from shiqrun.util.quoting import quote_for_shell

    disable_progress_bar()
    set_verbosity_error()
    hub.expect_repo(given.repo)
    if given.out and not given.dry_run:
        raise InputError(f"--out {given.out}: only with --dry-run; a push keeps no folder")
    rundir.load(given.run)  # names the runs nearby where this is none
    run = finished_run(given.run)
    if given.form == "adapter":
        hub.expect_base_on_the_hub(run)
    if given.dry_run:
        folder = given.out or given.run / "export" / "hub"
        _write(run, given, folder)
        print(f"nothing was uploaded to {given.repo}; see {folder / 'README.md'}")
        say_next(f"hf upload {given.repo} {quote_for_shell(folder)}", "the same without --dry-run")
        return
    hub.expect_way_to_the_hub()
    with tempfile.TemporaryDirectory(dir=given.run, prefix=".push-") as place:
        folder = Path(place) / "hub"
        _write(run, given, folder)
        message = f"Upload what {run.config.get('algo.name')} trained on {run.config.get('data.name')}, by shiqrun"
        print(hub.upload(folder, given.repo, private=given.private, message=message))
    say_next(_next(run, given.form, given.repo))


def _write(run: "FinishedRun", given: argparse.Namespace, folder: Path) -> None:
    """Write what is to be uploaded into a new folder, and print its files with their sizes."""
    from shiqrun.sharing.exports import export

    export(run, given.form, folder, given.dtype, place=given.repo, title=given.repo)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size:>15,} bytes  {file.relative_to(folder)}")


def _next(run: "FinishedRun", form: str, repo: str) -> str:
    """Return how the uploaded model is used."""
    if form == "gguf":
        return f"llama-cli -hf {repo} --jinja"
    if run.is_reward_model:
        return f'AutoModelForSequenceClassification.from_pretrained("{repo}") in Python'
    kind = "peft.AutoPeftModelForCausalLM" if form == "adapter" else "AutoModelForCausalLM"
    return f'{kind}.from_pretrained("{repo}") in Python'
