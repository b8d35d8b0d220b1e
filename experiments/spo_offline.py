"""This study trains SPO on logged programs (docs/spo.md): reference, prompt values, pivotal tokens, ablations.

It takes an hour on two CPU cores.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.steps import Steps, study_parser

EIGHTH = "algo.anchor=12.5"
"""Anchor of SPO's advantage loss: around 0 the warped loss has an eighth of the squared one's curvature."""
LINKS = "algo.link=square,cross_entropy"
BATCH = 2560
"""Completions that are sampled at once."""


def arms(out: Path) -> dict[str, tuple[str, ...]]:
    """Return the settings of every sweep of the study, by the name of its directory."""
    targets = (f"algo.targets={out}/pivotal/pivotal.jsonl",)
    rollouts = (
        "data=jsonl",
        f"data.path={out}/pivotal/rollouts.jsonl",
        f"data.val_path={out}/values/trajectories_val.jsonl",
        "data.distinct=true",
    )
    both, advantage = "algo=spo,spo_nonterminal", "algo=spo_advantage"
    return {
        "losses": (both, LINKS),
        "advantage": (advantage, EIGHTH),
        "targets": (both, "algo.link=cross_entropy", *targets, "algo.monte_carlo=1"),
        "targets_square": (both, "algo.link=square", *targets, "algo.monte_carlo=0.1"),
        "targets_advantage": (advantage, EIGHTH, *targets, "algo.monte_carlo=0.1"),
        "rollouts": ("algo=spo", LINKS, *rollouts),
        "free": ("algo=spo", LINKS, "algo.anchor=0"),
        "free_advantage": (advantage, "algo.anchor=0"),
    }


def prepare(steps: Steps, out: Path, logger: str, *, searched: bool = True) -> None:
    """Train the reference, estimate its prompt values and, where `searched`, search its pivotal tokens."""
    steps.unless_done(out / "sft", "train", "experiment=programs_sft", f"logger={logger}")
    sampled = ("data=programs", "reward=programs", "model=hf", f"model.path={out}/sft/policy")
    values = ("values.max_new_tokens=12", f"values.batch_size={BATCH}")
    steps.unless_done(out / "values", "values", *sampled, *values)
    if not searched:
        return
    pivotal = ("pivotal.max_new_tokens=12", f"pivotal.batch_size={BATCH}", "pivotal.max_trajectories=4000")
    steps.unless_done(out / "pivotal", "pivotal", *sampled, *pivotal)


def main(words: Sequence[str] | None = None) -> None:
    """Run the study of SPO on logged programs."""
    options = study_parser(__doc__, out="outputs/spo-offline").parse_args(words)
    steps, out = Steps(dry_run=options.dry_run, threads=1), options.out
    prepare(steps, out, options.logger)
    values = f"algo.values={out}/values/values.jsonl"
    start = f"model.path={out}/sft/policy"
    grid = ("experiment=spo_offline", f"seed={options.seeds}", start, values, f"logger={options.logger}")
    for name, settings in arms(out).items():
        steps.sweep(out / name, *grid, *settings, jobs=options.jobs)
    steps.python("experiments.spo_offline_figures", str(out))
    steps.shiqrun("report", *(f"{out}/{name}" for name in arms(out)), "--out", f"{out}/report.html")


if __name__ == "__main__":
    main()
