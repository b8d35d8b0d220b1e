"""This study compares methods on text (docs/text.md): reference, reward model, scores, methods over betas and seeds.

It takes 48 minutes on two CPU cores. `--data` is a file of preference pairs, `--model` a small pretrained model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.steps import Steps, study_parser

ALGOS = "shiq,shiq_init,shiq_ms,shiq_tk,copg,dpo,dro"
ANCHOR = ("algo.anchor=10", "algo.anchor_tokens=4", "algo.anchor_from=policy", "algo.reference=frozen")


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the study.

    Raises:
        SystemExit: the pairs or the model do not exist, or an option is wrong; the code is 2.
    """
    parser = study_parser(__doc__, out="outputs/hh", betas="0.01,0.03,0.1,0.3")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file of pairs, chosen and rejected")
    parser.add_argument("--model", type=Path, required=True, help="directory of the pretrained model")
    parser.add_argument("--algos", default=ALGOS, help=f"methods without an anchor (default: {ALGOS})")
    options = parser.parse_args(words)
    if not options.dry_run and not (options.data.exists() and options.model.is_dir()):
        parser.error(f"no {options.data} or {options.model}: give --data and --model (make: HH_FILE, HH_MODEL)")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run the study of methods on text."""
    options = arguments(words)
    steps, out = Steps(dry_run=options.dry_run), options.out
    start, logger = f"model.path={out}/sft/policy", f"logger={options.logger}"
    pairs = f"data.path={options.data}"
    pretrained = f"model.path={options.model}"
    steps.unless_done(out / "sft", "train", "experiment=hh_small_sft", pairs, pretrained, logger)
    steps.unless_done(out / "reward", "train", "experiment=hh_small_reward", pairs, start, logger)
    reward = f"{out}/reward/reward_model"
    steps.unless_done(out / "scored", "score", "data=hh", pairs, "data.val_fraction=0.2", f"reward={reward}")
    scored = f"data.path={out}/scored/scored.jsonl"
    varied = (f"algo.beta={options.betas}", f"seed={options.seeds}")
    grid = ("experiment=hh_small", *varied, scored, start, f"eval.reward={reward}", logger)
    steps.sweep(out / "methods", *grid, f"algo={options.algos}", jobs=options.jobs)
    steps.sweep(out / "trajectories", *grid, "algo=shiq", "algo.units=trajectory", jobs=options.jobs)
    steps.sweep(out / "anchored", *grid, "algo=shiq,copg", *ANCHOR, jobs=options.jobs)
    grids = [f"{out}/{name}" for name in ("methods", "trajectories", "anchored")]
    steps.shiqrun("report", *grids)
    steps.python("experiments.frontiers", *grids[:2], "--against", "copg")


if __name__ == "__main__":
    main()
