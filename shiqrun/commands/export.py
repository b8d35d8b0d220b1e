"""`shiqrun export RUN --to FORM` writes the model of a finished run for other programs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shiqrun.errors import InputError

if TYPE_CHECKING:
    from shiqrun.sharing.card import Form
    from shiqrun.sharing.exports import Precision

FORMS = ("merged", "adapter", "gguf")
PRECISIONS = ("fp32", "fp16", "bf16")
DESCRIPTION = """\
Writes the model of a finished run into a directory of its own, with its tokenizer, chat template and a card that says
how it was made and what to cite. A model that has changed since the run saved it is refused.

  merged   the whole model, for transformers, vLLM, lm-eval; a LoRA adapter is merged into it
  adapter  the LoRA adapter alone, for peft
  gguf     one file for llama.cpp (extra `gguf`): Llama, Mistral, Qwen2 and Qwen3 with tokenizers of the BPE kind
"""
EXAMPLES = """\
examples:
  shiqrun export outputs/shiq-jsonl/2026-01-31_12-00-00 --to merged --dtype bf16
  shiqrun export outputs/shiq-jsonl/2026-01-31_12-00-00 --to gguf --out my_model
"""


def main(words: Sequence[str]) -> int:
    """Export the model of a run; return the exit code: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(
        "shiqrun export", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a finished run")
    parser.add_argument("--to", required=True, choices=FORMS, help="what to write")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new directory; by default RUN/export/FORM")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="fp32", help="of the saved numbers (default: %(default)s, as trained)"
    )
    try:
        given = parser.parse_args(list(words))
    except SystemExit as left:  # --help, or a word that argparse does not know
        return int(left.code or 0)
    out = given.out or given.run / "export" / given.to
    try:
        _export(given.run, given.to, out, given.dtype)
    except InputError as error:
        print(f"shiqrun: error: {error}", file=sys.stderr)
        return 2
    return 0


def _export(directory: Path, form: "Form", out: Path, precision: "Precision") -> None:
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.config import run_directory as rundir
    from shiqrun.console import say_next
    from shiqrun.sharing.exports import export
    from shiqrun.sharing.finished_run import finished_run

    disable_progress_bar()
    set_verbosity_error()
    rundir.load(directory)  # names the runs nearby where this is none
    if form == "adapter" and precision != "fp32":
        raise InputError(f"--dtype {precision}: an adapter is kept as it was trained; leave it out")
    run = finished_run(directory)
    export(run, form, out, precision, place=".", title=directory.resolve().name)
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        print(file)
    say_next(_next(run.is_reward_model, form, out))


def _next(is_reward_model: bool, form: str, out: Path) -> str:
    """Return what to do with an exported model."""
    from shiqrun.util.quoting import quote_for_shell

    place = quote_for_shell(out)
    if form == "gguf":
        return f"llama-cli -m {quote_for_shell(next(out.glob('*.gguf')))} --jinja"
    if form == "adapter":
        return f'peft.AutoPeftModelForCausalLM.from_pretrained("{out}") in Python'
    if is_reward_model:
        return f"shiqrun score data=jsonl data.path=FILE reward={place}"
    evaluate = f"lm_eval --model hf --model_args pretrained={place} --tasks TASK --apply_chat_template"
    return f"{evaluate} (pip install 'shiqrun[lm-eval]')"
