"""`python -m experiments.treasure methods|anchor|rewards` measures exact regret on treasure (docs/treasure.md).

Each job is a `shiqrun train` in this process; a job whose summary.json is there is not run again, so that a study can
be stopped and gone on with. Seeds change the reference's initial weights and data order, and the method's data order.
`rewards` also compares arms seed by seed, where both have the same reference and the same order of the data.
"""

import argparse
import csv
import json
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from shiqrun.cli import main as shiqrun
from shiqrun.console import console
from shiqrun.util.intervals import interval

Settings = list[str]
METHODS: dict[str, Settings] = {
    "shiq": [],
    "shiq lam=.9": ["algo.lam=0.9"],
    "shiq_ms": [],
    "shiq_tk": [],
    "shiq_init": [],
    "direct": [],
    "copg": [],
    "dpo": [],
    "dro none": [],
    "dro none, centred": ["algo.reward_offset=mean"],
    "dro group_mean": ["algo.baseline=group_mean"],
    "dro_v": ["algo.value_lr_ratio=1"],
}
ANCHORS: dict[str, Settings] = {
    "none": [],
    "uniform .1 x 4": ["algo.anchor=0.1"],
    "policy .1 x 4": ["algo.anchor=0.1", "algo.anchor_from=policy", "algo.reference=frozen"],
    "uniform 1 x 16": ["algo.anchor=1", "algo.anchor_tokens=16"],
    "policy 1 x 1": ["algo.anchor=1", "algo.anchor_tokens=1", "algo.anchor_from=policy", "algo.reference=frozen"],
}

LAST = ["data.rewards=last"]
REWARDS: dict[str, Settings] = {
    "shiq": [],
    "shiq, last": LAST,
    "shiq_tk": [],
    "shiq_tk, last": LAST,
    "shiq_ms": [],
    "shiq_ms, last": LAST,
    "copg": [],  # this and the next two read the sum of a trajectory's rewards: `last` is the same for them
    "dpo": [],
    "dro": [],
}
RATES = {
    f"{label}, rate {rate}": [*REWARDS[label], f"trainer.learning_rate={rate}"]
    for rate in ("5e-4", "1e-3", "4e-3")
    for label in ("copg", "dpo")
}
"""Other learning rates, because the usual one was tuned for shiq."""
RATED_SEEDS, RICHER_SEEDS = 2, 3
"""Numbers of seeds that the other rates and the richer maps are run with."""
USUAL, RICHER = "data.fillers=0", "data.treasures=3"
"""Problems, each one setting."""
PAIRS = [
    ("shiq, last", "shiq"),
    ("shiq_tk, last", "shiq_tk"),
    ("shiq_ms, last", "shiq_ms"),
    ("shiq_tk", "shiq"),
    ("shiq_tk, last", "shiq, last"),
    ("copg", "shiq"),
    ("dpo", "shiq"),
    ("dro", "shiq"),
    ("copg", "shiq, last"),
    ("dpo", "shiq, last"),
    ("dro", "shiq, last"),
]
"""Arms that are compared seed by seed: the first less the second."""
Arm = tuple[str, str, Settings]
"""(label, problem, settings): a problem is one setting, given to the reference too."""
Found = dict[tuple[str, str], dict[int, dict[str, float]]]
"""Figures of every (label, problem), by seed."""


@dataclass(frozen=True)
class Study:
    """A `Study` holds the arms of a study and the length of their runs.

    Attributes:
        steps: optimiser steps of a run; 128 are an epoch.
        every: optimiser steps between evaluations.
        arms: the arms that are run with a seed.
    """

    steps: int
    every: int
    arms: Callable[[int], Iterable[Arm]]


def methods(seed: int) -> Iterable[Arm]:
    """Return an arm for every method with its usual settings."""
    return [(name, USUAL, [f"algo={name.split()[0]}", *extra]) for name, extra in METHODS.items()]


def anchors(seed: int) -> Iterable[Arm]:
    """Yield arms of three methods with every anchor, in two vocabularies, on data without illegal tokens."""
    for fillers in (0, 4000):
        for method in ("shiq", "copg", "dro"):
            for name, extra in ANCHORS.items():
                yield f"{method}, {name}", f"data.fillers={fillers}", [f"algo={method}", "data.illegal=0", *extra]


def rewards(seed: int) -> Iterable[Arm]:
    """Yield arms of methods with rewards at their turns or the last; some seeds add other rates and richer maps."""
    chosen = REWARDS | (RATES if seed < RATED_SEEDS else {})
    for name, extra in chosen.items():
        yield name, USUAL, [f"algo={name.split(',')[0]}", *extra]
    for name in ("shiq", "shiq, last", "copg") if seed < RICHER_SEEDS else ():
        yield name, RICHER, [f"algo={name.split(',')[0]}", *REWARDS[name]]


STUDIES = {"methods": Study(384, 384, methods), "anchor": Study(600, 600, anchors), "rewards": Study(384, 128, rewards)}


def commands(out: Path, study: Study, arm: Arm, seed: int) -> list[tuple[Settings, Path]]:
    """Return (words of `shiqrun`, run directory) of the reference of an arm and of its run, with a seed.

    References do not depend on the method: all arms of a problem and a seed start from the same.
    """
    label, problem, words = arm
    kind = problem.removeprefix("data.").replace("=", "")
    reference = out / f"reference_{kind}_{seed}"
    folder = out / f"{label}_{kind}_{seed}".replace(" ", "_").replace(",", "").replace("=", "")
    shared = ["logger=none", f"seed={seed}", problem]
    rest = [f"trainer.max_steps={study.steps}", f"eval.every={study.every}"]
    rest += [f"trainer.checkpoint_every={study.steps}", "trainer.log_every=100", f"model.path={reference}/policy"]
    return [
        (["train", "experiment=demo_reference", *shared, f"run_dir={reference}"], reference),
        (["train", "experiment=demo", *words, *shared, *rest, f"run_dir={folder}"], folder),
    ]


def run(out: Path, study: Study, arm: Arm, seed: int) -> dict[str, float]:
    """Return the figures of an arm's run with a seed, after making the run and its reference where they are missing.

    Returns:
        summary.json, with the regret `before` training and at the `first` evaluation, and its relative `fall`.

    Raises:
        SystemExit: `shiqrun train` failed; the code is the command's.
    """
    for words, folder in commands(out, study, arm, seed):
        if not (folder / "summary.json").is_file() and (code := shiqrun(words)):
            raise SystemExit(code)
    with (folder / "metrics.csv").open(newline="") as file:
        before, first, *_ = [float(row["val/regret"]) for row in csv.DictReader(file) if row["val/regret"]]
    summary = json.loads((folder / "summary.json").read_text())
    return {**summary, "before": before, "first": first, "fall": 1 - summary["val/regret"] / before}


def mean_and_half(values: Iterable[float]) -> str:
    """Return `mean ± half` with the half width of the 95 % interval over seeds; one seed has no interval."""
    mean, half = interval([*values])
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def arms_table(title: str, found: Found, out: Path) -> Table:
    """Return a table of the figures of every arm, and write them with the values of the seeds to a CSV file."""
    columns = {"first": "first", "regret": "val/regret", "fall": "fall"}
    columns |= {"reward": "val/reward", "KL": "val/kl", "illegal": "val/illegal"}
    table, rows = Table("method", "problem", "seeds", *columns, title=title), []
    for (label, problem), results in found.items():
        figures = [[r[key] for r in results.values()] for key in columns.values()]
        table.add_row(label, problem, str(len(results)), *map(mean_and_half, figures))
        rows.append([label, problem, len(results), *(f for figure in figures for f in figure)])
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([["method", "problem", "seeds", "values by seed of", *columns], *rows])
    return table


def differences_table(found: Found) -> Table:
    """Return a table of differences of regret seed by seed, of the pairs of arms that were run."""
    table = Table("difference of regret", "problem", "seeds", "first", "at the end", "by seed", title="paired")
    for problem in dict.fromkeys(problem for _, problem in found):
        for one, other in PAIRS:
            a, b = found.get((one, problem), {}), found.get((other, problem), {})
            if not (seeds := sorted(a.keys() & b.keys())):
                continue
            first, end = ([a[s][key] - b[s][key] for s in seeds] for key in ("first", "val/regret"))
            by_seed = " ".join(f"{d:.3f}" for d in end)
            table.add_row(
                f"{one} - {other}", problem, str(len(seeds)), mean_and_half(first), mean_and_half(end), by_seed
            )
    return table


def print_commands(out: Path, study: Study, seeds: int) -> None:
    """Print the commands of all runs and references whose summary.json is missing."""
    planned: dict[Path, Settings] = {}
    for seed in range(seeds):
        for arm in study.arms(seed):
            planned |= {folder: words for words, folder in commands(out, study, arm, seed)}
    for folder, words in planned.items():
        if not (folder / "summary.json").is_file():
            print(f"shiqrun {shlex.join(words)}")


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES])
    parser.add_argument("--out", type=Path, default=Path("outputs/treasure_study"), help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument(
        "--steps", type=int, default=None, help="optimiser steps; default: 384 (three epochs), anchor 600"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would run now, and stop")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run a study of regret on treasure and print its tables."""
    options = arguments(words)
    out, study = options.out / options.study, STUDIES[options.study]
    if options.steps:
        study = Study(options.steps, min(study.every, options.steps), study.arms)
    if options.dry_run:
        print_commands(out, study, options.seeds)
        return
    found: Found = {}
    for seed in range(options.seeds):  # all arms with one seed come before the next seed
        for arm in study.arms(seed):
            label, problem, _ = arm
            found.setdefault((label, problem), {})[seed] = run(out, study, arm, seed)
    title = f"{options.study}: {study.steps} steps, first evaluation after {study.every}"
    console.print(arms_table(title, found, options.out / f"{options.study}.csv"))
    if options.study == "rewards":
        console.print(differences_table(found))


if __name__ == "__main__":
    main()
