"""This study trains function calling over several turns (docs/bfcl.md): reference, methods, ablations, two reports.

It runs on a shortened BFCL with a tiny model and takes an hour on two CPU cores.
"""

from collections.abc import Sequence

from experiments.steps import Steps, study_parser

ABLATIONS_BETA = 0.3
"""The only beta of the ablations and of the smaller learning rate, which are compared with ShiQ's runs at this beta."""

AT_THE_END = "shiq,shiq_tk"
"""Methods that are also trained with all rewards at the end; CoPG and DPO read sums alone."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the study of function calling."""
    options = study_parser(__doc__, out="outputs/bfcl", betas="0.1,0.3,1").parse_args(words)
    steps, out, jobs = Steps(dry_run=options.dry_run, threads=1), options.out, options.jobs
    logger = f"logger={options.logger}"
    ground_truth = f"run_dir={out}/ground_truth"
    steps.shiqrun("eval", "data=bfcl", "data.split=all", "eval.policy=ground_truth", ground_truth)
    steps.unless_done(out / "sft", "train", "experiment=bfcl_small_sft", logger)
    grid = ("experiment=bfcl_small", f"seed={options.seeds}", f"model.path={out}/sft/policy", logger)
    betas, beta = f"algo.beta={options.betas}", f"algo.beta={ABLATIONS_BETA}"
    steps.sweep(out / "others", *grid, "algo=copg,dpo", betas, jobs=jobs)
    steps.sweep(out / "shiq", *grid, "algo=shiq", betas, jobs=jobs)
    steps.sweep(out / "ablations", *grid, "algo=shiq_init,shiq_ms,shiq_tk", beta, jobs=jobs)
    steps.sweep(out / "trajectories", *grid, "algo=shiq", "algo.units=trajectory", betas, jobs=jobs)
    steps.sweep(out / "final", *grid, "data.paid=final", f"algo={AT_THE_END}", beta, jobs=jobs)
    steps.sweep(out / "slower", *grid, "algo=shiq,copg,dpo", beta, "trainer.learning_rate=1e-4", jobs=jobs)
    steps.shiqrun("report", f"{out}/shiq", f"{out}/others", "--out", f"{out}/methods.html")
    steps.shiqrun(
        "report", *(f"{out}/{name}" for name in ("shiq", "trajectories", "final")), "--out", f"{out}/units.html"
    )
    compared = sorted(map(str, out.glob(f"shiq/*_{beta}_*"))) or [f"{out}/shiq"]
    steps.shiqrun("report", *compared, f"{out}/ablations", "--out", f"{out}/ablations.html")


if __name__ == "__main__":
    main()
