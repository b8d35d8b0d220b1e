"""Exact regret on treasure for many methods and seeds: `python -m bench.treasure methods|anchor --out DIR`.

Each job is a `shiqrun train` in this process; a job whose summary.json is there is not run again, so that a study can
be stopped and gone on with. Seeds change the reference's initial weights and data order, and the method's data order.
"""

import argparse
import csv
import json
import math
import statistics
from pathlib import Path

from rich.table import Table

from shiqrun.cli import main as shiqrun
from shiqrun.console import console

STUDENT = {
    2: 12.71,
    3: 4.30,
    4: 3.18,
    5: 2.78,
    6: 2.57,
    7: 2.45,
    8: 2.36,
    9: 2.31,
    10: 2.26,
}  # two-sided 95 %, n - 1 degrees of freedom
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


def jobs(study: str, seeds: int) -> list[tuple[str, int, int, list[str]]]:
    """(label, filler tokens, seed, settings) of every job, one seed of everything before the next."""
    made = []
    for seed in range(seeds):
        if study == "methods":
            made += [(name, 0, seed, [f"algo={name.split()[0]}", *extra]) for name, extra in METHODS.items()]
            continue
        for fillers in (0, 4000):
            for method in ("shiq", "copg", "dro"):
                for name, extra in ANCHORS.items():
                    words = [f"algo={method}", "data.illegal=0", *extra]
                    made.append((f"{method}, {name}", fillers, seed, words))
    return made


def run(out: Path, steps: int, label: str, fillers: int, seed: int, words: list[str]) -> dict[str, float]:
    """One job's summary; makes its reference first, where it is not there."""
    base = out / f"reference_{fillers}_{seed}"
    shared = ["logger=none", f"seed={seed}", f"data.fillers={fillers}"]
    if not (base / "summary.json").is_file():
        shiqrun(["train", "experiment=demo_reference", *shared, f"run_dir={base}"])
    folder = out / f"{label}_{fillers}_{seed}".replace(" ", "_").replace(",", "").replace("=", "")
    if not (folder / "summary.json").is_file():
        rest = [f"trainer.max_steps={steps}", f"eval.every={steps}", f"trainer.checkpoint_every={steps}"]
        rest += [f"model.path={base}/policy", "trainer.log_every=100", f"run_dir={folder}"]
        shiqrun(["train", "experiment=demo", *words, *shared, *rest])
    first = next(csv.DictReader((folder / "metrics.csv").open()))
    return {**json.loads((folder / "summary.json").read_text()), "before": float(first["val/regret"])}


def interval(values: list[float]) -> str:
    """Mean and half width of its 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = STUDENT.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    """Runs a study and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["methods", "anchor"])
    parser.add_argument("--out", type=Path, default=Path("outputs/treasure_study"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="default: 384 (three epochs), anchor 600")
    given = parser.parse_args()
    steps = given.steps or {"methods": 384, "anchor": 600}[given.study]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for label, fillers, seed, words in jobs(given.study, given.seeds):
        result = run(given.out / given.study, steps, label, fillers, seed, words)
        found.setdefault((label, fillers), []).append(result)
    columns = {"regret": "val/regret", "fall": "", "reward": "val/reward", "KL": "val/kl", "illegal": "val/illegal"}
    table = Table("method", "fillers", "seeds", *columns, title=f"{given.study}: {steps} steps")
    rows = []
    for (label, fillers), results in found.items():
        figures = [
            [1 - r["val/regret"] / r["before"] if not key else r[key] for r in results] for key in columns.values()
        ]
        table.add_row(label, str(fillers), str(len(results)), *map(interval, figures))
        rows.append([label, fillers, len(results), *(f for figure in figures for f in figure)])
    console.print(table)
    with (given.out / f"{given.study}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["method", "fillers", "seeds", "values by seed of", *columns], *rows])


if __name__ == "__main__":
    main()
