"""This study trains while sampling (docs/online.md): SPO, ShiQ, CoPG and policy gradients, and parts of SPO.

All start from one reference. It takes two and a half hours on two CPU cores.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.spo_offline import EIGHTH, prepare
from experiments.steps import Steps, study_parser

REPORTED = ("half", "online", "ppo", "grpo", "rloo", "oapl", "copg", "shiq")
WARM = ("algo.beta=0.0868589", "rollout.temperature=[1,1]", "rollout.top_p=1")
"""Sampling of the other methods: the SPO paper's behaviour temperatures tell them little, because two completions of a
prompt that are drawn cold are often the same."""

GROUP = 8
"""Completions of a prompt, of the methods that compare them with their mean: 16 prompts in a batch."""
LAG = 50
"""Optimiser steps after which OAPL's sampler and reference become the policy: four rounds in a run."""


def arms(out: Path) -> dict[str, tuple[str, ...]]:
    """Return the settings of every sweep of the study, by the name of its directory."""
    spo = (f"algo.values={out}/values/values.jsonl",)
    entropy = (*spo, "algo.link=cross_entropy", "algo.anchor=0")
    replayed = (*WARM, "algo.reference=frozen", "rollout.sources.logged=0", "rollout.sources.replay=1")
    # The loss of Monte-Carlo targets is a cross-entropy, and rollout.losses has no weights: it is mixed with its like.
    targets = (f"algo.targets={out}/pivotal/pivotal.jsonl", "rollout.sources.annotated=1")
    further = ("rollout.sources.further=1", f"rollout.path={out}/pivotal/rollouts.jsonl")
    fresh = ("algo.anchor=0", "rollout.offline=0", *WARM)
    now, groups = "rollout.model_update_interval=1", f"rollout.samples_per_prompt={GROUP}"
    lagged = (f"algo.reference_every={LAG}", f"rollout.model_update_interval={LAG}")
    return {
        "half": entropy,
        "online": (*entropy, "rollout.offline=0"),
        "ppo": ("algo=ppo", *fresh, now),
        "grpo": ("algo=grpo", "algo.epochs=4", *fresh, now, groups),
        "rloo": ("algo=rloo", "algo.epochs=4", *fresh, now, groups),
        "oapl": ("algo=oapl", *fresh, groups, *lagged),
        "copg": ("algo=copg", "algo.anchor=0", "rollout.samples_per_prompt=2", *replayed),
        "shiq": ("algo=shiq", "algo.anchor=10", "algo.reward_offset=mean", *replayed),
        "half_warm": (*entropy, *WARM),
        "online_warm": (*entropy, *WARM, "rollout.offline=0"),
        "updates": (*entropy, "rollout.model_update_interval=1,50"),
        "square": spo,
        "nonterminal": ("algo=spo_nonterminal", "algo.reference=frozen", *entropy),
        "advantage": ("algo=spo_advantage", "algo.reference=frozen", EIGHTH, *spo),
        "targets": (*entropy, *targets, "rollout.losses.annotated=monte_carlo"),
        "rollouts": (*entropy, *further),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run the study of learning while sampling."""
    parser = study_parser(__doc__, out="outputs/spo")
    parser.add_argument("--arms", help=f"sweeps to run, separated by commas (default: {','.join(arms(Path()))})")
    options = parser.parse_args(words)
    chosen = options.arms.split(",") if options.arms else [*arms(options.out)]
    if unknown := [name for name in chosen if name not in arms(options.out)]:
        parser.error(f"--arms {','.join(unknown)}: not among {', '.join(arms(options.out))}")
    steps, out = Steps(dry_run=options.dry_run, threads=1), options.out
    prepare(steps, out, options.logger, searched=not {"targets", "rollouts"}.isdisjoint(chosen))
    start, logger = f"model.path={out}/sft/policy", f"logger={options.logger}"
    grid = ("experiment=spo_programs", f"seed={options.seeds}", start, logger)
    for name in chosen:
        steps.sweep(out / name, *grid, *arms(out)[name], jobs=options.jobs)
    steps.python("experiments.spo_online_figures", str(out))
    steps.shiqrun("report", *(f"{out}/{name}" for name in REPORTED if name in chosen), "--out", f"{out}/methods.html")


if __name__ == "__main__":
    main()
