"""Exact regret on treasure for many methods and seeds: `python -m bench.treasure methods|anchor|rewards --out DIR`.

Each job is a `shiqrun train` in this process; a job whose summary.json is there is not run again, so that a study can
be stopped and gone on with. Seeds change the reference's initial weights and data order, and the method's data order.
`rewards` also compares arms seed by seed, where both have the same reference and the same order of the data.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from shiqrun.cli import main as shiqrun
from shiqrun.console import console
from shiqrun.util.intervals import interval

METHODS = {
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
ANCHORS = {
    "none": [],
    "uniform .1 x 4": ["algo.anchor=0.1"],
    "policy .1 x 4": ["algo.anchor=0.1", "algo.anchor_from=policy", "algo.reference=frozen"],
    "uniform 1 x 16": ["algo.anchor=1", "algo.anchor_tokens=16"],
    "policy 1 x 1": ["algo.anchor=1", "algo.anchor_tokens=1", "algo.anchor_from=policy", "algo.reference=frozen"],
}

LAST = ["data.rewards=last"]
REWARDS = {
    "shiq": [],
    "shiq, last": LAST,
    "shiq_tk": [],
    "shiq_tk, last": LAST,
    "shiq_ms": [],
    "shiq_ms, last": LAST,
    "copg": [],  # this and the next two see a trajectory's sums only: `last` is the same for them
    "dpo": [],
    "dro": [],
}
RATES = {
    f"{label}, rate {rate}": [*REWARDS[label], f"trainer.learning_rate={rate}"]
    for rate in ("5e-4", "1e-3", "4e-3")
    for label in ("copg", "dpo")
}  # whether a ranking hangs on the one rate that was tuned for shiq
RATED_SEEDS, RICHER_SEEDS = 2, 3
USUAL, RICHER = "data.fillers=0", "data.treasures=3"
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


Arm = tuple[str, str, list[str]]


@dataclass(frozen=True)
class Study:
    """How a study's jobs are run.

    Attributes:
        steps: optimiser steps; 128 are an epoch.
        every: optimiser steps between evaluations.
        arms: (label, problem, settings) of every arm at a seed; a problem is one setting, given to its reference too.
    """

    steps: int
    every: int
    arms: Callable[[int], Iterable[Arm]]


def methods(seed: int) -> Iterable[Arm]:
    """Every method, as it comes."""
    return [(name, USUAL, [f"algo={name.split()[0]}", *extra]) for name, extra in METHODS.items()]


def anchors(seed: int) -> Iterable[Arm]:
    """Three methods with every anchor, in both vocabularies, on data without an illegal token."""
    for fillers in (0, 4000):
        for method in ("shiq", "copg", "dro"):
            for name, extra in ANCHORS.items():
                yield f"{method}, {name}", f"data.fillers={fillers}", [f"algo={method}", "data.illegal=0", *extra]


def rewards(seed: int) -> Iterable[Arm]:
    """Rewards at their turns or all at the last; for the first seeds also other rates, and maps with more to earn."""
    chosen = REWARDS | (RATES if seed < RATED_SEEDS else {})
    for name, extra in chosen.items():
        yield name, USUAL, [f"algo={name.split(',')[0]}", *extra]
    for name in ("shiq", "shiq, last", "copg") if seed < RICHER_SEEDS else ():
        yield name, RICHER, [f"algo={name.split(',')[0]}", *REWARDS[name]]


STUDIES = {"methods": Study(384, 384, methods), "anchor": Study(600, 600, anchors), "rewards": Study(384, 128, rewards)}
Found = dict[tuple[str, str], dict[int, dict[str, float]]]
"""Figures of every (label, problem), by seed."""


def run(out: Path, study: Study, arm: Arm, seed: int) -> dict[str, float]:
    """One job's summary, with the regret `before` and at the first evaluation; makes its reference where there is none.

    References do not depend on the method: all arms of a problem and a seed start from the same.
    """
    label, problem, words = arm
    kind = problem.removeprefix("data.").replace("=", "")
    base = out / f"reference_{kind}_{seed}"
    shared = ["logger=none", f"seed={seed}", problem]
    if not (base / "summary.json").is_file():
        shiqrun(["train", "experiment=demo_reference", *shared, f"run_dir={base}"])
    folder = out / f"{label}_{kind}_{seed}".replace(" ", "_").replace(",", "").replace("=", "")
    if not (folder / "summary.json").is_file():
        rest = [f"trainer.max_steps={study.steps}", f"eval.every={study.every}"]
        rest += [f"trainer.checkpoint_every={study.steps}", "trainer.log_every=100", f"model.path={base}/policy"]
        shiqrun(["train", "experiment=demo", *words, *shared, *rest, f"run_dir={folder}"])
    rows = csv.DictReader((folder / "metrics.csv").open())
    before, first, *_ = [float(row["val/regret"]) for row in rows if row["val/regret"]]
    summary = json.loads((folder / "summary.json").read_text())
    return {**summary, "before": before, "first": first, "fall": 1 - summary["val/regret"] / before}


def shown(values: Iterable[float]) -> str:
    """Mean and half width of its 95 % interval over seeds."""
    mean, half = interval([*values])
    return f"{mean:.3f}" if half != half else f"{mean:.3f} ± {half:.3f}"  # NaN: one seed


def arms_table(title: str, found: Found, out: Path) -> Table:
    """Figures of every arm, also as a CSV file with the values of the seeds."""
    columns = {"first": "first", "regret": "val/regret", "fall": "fall"}
    columns |= {"reward": "val/reward", "KL": "val/kl", "illegal": "val/illegal"}
    table, rows = Table("method", "problem", "seeds", *columns, title=title), []
    for (label, problem), results in found.items():
        figures = [[r[key] for r in results.values()] for key in columns.values()]
        table.add_row(label, problem, str(len(results)), *map(shown, figures))
        rows.append([label, problem, len(results), *(f for figure in figures for f in figure)])
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([["method", "problem", "seeds", "values by seed of", *columns], *rows])
    return table


def differences_table(found: Found) -> Table:
    """Differences of regret seed by seed, first arm less second, of the arms that were run."""
    table = Table("difference of regret", "problem", "seeds", "first", "at the end", "by seed", title="paired")
    for problem in dict.fromkeys(problem for _, problem in found):
        for one, other in PAIRS:
            a, b = found.get((one, problem), {}), found.get((other, problem), {})
            if not (seeds := sorted(a.keys() & b.keys())):
                continue
            first, end = ([a[s][key] - b[s][key] for s in seeds] for key in ("first", "val/regret"))
            by_seed = " ".join(f"{d:.3f}" for d in end)
            table.add_row(f"{one} - {other}", problem, str(len(seeds)), shown(first), shown(end), by_seed)
    return table


def main() -> None:
    """Runs a study and prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES])
    parser.add_argument("--out", type=Path, default=Path("outputs/treasure_study"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="default: 384 (three epochs), anchor 600")
    given = parser.parse_args()
    study = STUDIES[given.study]
    if given.steps:
        study = Study(given.steps, min(study.every, given.steps), study.arms)
    found: Found = {}
    for seed in range(given.seeds):  # one seed of everything before the next
        for label, problem, words in study.arms(seed):
            result = run(given.out / given.study, study, (label, problem, words), seed)
            found.setdefault((label, problem), {})[seed] = result
    title = f"{given.study}: {study.steps} steps, first evaluation after {study.every}"
    console.print(arms_table(title, found, given.out / f"{given.study}.csv"))
    if given.study == "rewards":
        console.print(differences_table(found))


if __name__ == "__main__":
    main()
