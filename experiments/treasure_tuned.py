"""`python -m experiments.treasure_tuned` tunes the rate and beta of every method on treasure (docs/treasure.md).

Every method is run with three betas at the middle one of three rates, with the next beta where the best is the first
or last of them, and then with the other rates at the best beta. The setting with the least regret on the validation
maps is run with further seeds, and its regret on the test maps, which chose nothing, is reported. Regret is that of
one problem, whose beta is 0.5, whatever beta a method was trained with: the optimum less reward - 0.5 KL. A job whose
summary.json is there is not run again. `--methods` divides the work among processes: start the others once the first
has made the references.
"""

import argparse
import csv
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from experiments.treasure import Settings, mean_and_half
from shiqrun.cli import main as shiqrun
from shiqrun.console import console

BETA = 0.5
"""Beta of the problem whose regret is measured, reward units per nat."""
RATES = ("5e-4", "1.5e-3", "4.5e-3")
BETAS, LABEL_BETAS = ("0.125", "0.25", "0.5", "1", "2"), ("0.03", "0.1", "0.3", "1", "3")
"""Betas in reward units per nat, and those of methods that read no size of a reward; the first and last wait."""
METHODS: dict[str, Settings] = {
    "shiq": [],
    "copg": [],
    "shiq units=trajectory": ["algo.units=trajectory"],
    "dro group_mean": ["algo.baseline=group_mean"],
    "dpo": [],
    "oreo": [],
    "dro none": [],
    "tbrm": [],
    "shiq_tk": [],
    "kto": [],
    "dro_v": [],
    "ipo": [],
    "dro none, centred": ["algo.reward_offset=mean"],
    "shiq_ms": [],
    "shiq_init": [],
    "direct": [],
}
"""Methods and their settings beside rate and beta; spo, a2po and qrpo need sampled rewards of the reference."""
LABELLED = ("dpo", "ipo", "kto")
COLUMNS = ("regret", "fall", "reward", "KL", "illegal")


class Setting(NamedTuple):
    """A `Setting` is what is chosen for a method: a learning rate, and beta in reward units per nat."""

    rate: str
    beta: str


class Study:
    """A `Study` knows the commands of its runs and reads their figures.

    Args:
        out: directory of the runs.
        steps: optimiser steps of a run; 128 are an epoch.
    """

    def __init__(self, out: Path, steps: int):
        self.out, self.steps = out, steps

    def reference(self, seed: int) -> tuple[Settings, Path]:
        """Return the words of `shiqrun` that make a seed's reference, and its run directory."""
        folder = self.out / f"reference_{seed}"
        return ["train", "experiment=demo_reference", "logger=none", f"seed={seed}", f"run_dir={folder}"], folder

    def solved(self, seed: int, split: str) -> tuple[Settings, Path]:
        """Return the words of `shiqrun` that find the optimum at BETA under a seed's reference, and their directory."""
        folder, policy = self.out / f"optimum_{split}_{seed}", self.reference(seed)[1] / "policy"
        words = ["eval", "model=hf", f"model.path={policy}", f"reference={policy}", "data=treasure", f"seed={seed}"]
        return [*words, f"eval.beta={BETA}", f"eval.split={split}", f"run_dir={folder}"], folder

    def trained(self, method: str, setting: Setting, seed: int) -> tuple[Settings, Path]:
        """Return the words of `shiqrun` that train a method, and its run directory."""
        name = method.replace(",", "").replace(" ", "_").replace("=", "")
        folder = self.out / f"{name}_{setting.rate}_{setting.beta}_{seed}"
        words = ["train", "experiment=demo", f"algo={method.split(maxsplit=1)[0]}", *METHODS[method], "logger=none"]
        words += [f"seed={seed}", f"algo.beta={setting.beta}", f"trainer.learning_rate={setting.rate}"]
        words += [f"{key}={self.steps}" for key in ("trainer.max_steps", "eval.every", "trainer.checkpoint_every")]
        words += ["trainer.log_every=100", "eval.test_prompts=64"]
        return [*words, f"model.path={self.reference(seed)[1]}/policy", f"run_dir={folder}"], folder

    def figures(self, method: str, setting: Setting, seed: int, split: str) -> dict[str, float]:
        """Return the figures of COLUMNS of a run on a split's maps; regret and its fall are at BETA."""
        found = json.loads((self.trained(method, setting, seed)[1] / "summary.json").read_text())
        before = json.loads((self.solved(seed, split)[1] / "eval.json").read_text())
        reward, kl = found[f"{split}/reward"], found[f"{split}/kl"]
        regret = before["eval/optimum"] - (reward - BETA * kl)
        values = (regret, 1 - regret / before["eval/regret"], reward, kl, found[f"{split}/illegal"])
        return dict(zip(COLUMNS, values, strict=True))

    def chosen(self, method: str) -> Setting:
        """Return a method's setting, after running what is missing to choose it.

        Raises:
            SystemExit: a run failed; the code is the command's.
        """
        betas = betas_of(method)
        best = self._run_and_choose(method, [Setting(RATES[1], beta) for beta in betas[1:-1]])
        if best.beta in (betas[1], betas[-2]):
            beyond = betas[0] if best.beta == betas[1] else betas[-1]
            best = self._run_and_choose(method, [best, Setting(RATES[1], beyond)])
        return self._run_and_choose(method, [Setting(rate, best.beta) for rate in RATES])

    def _run_and_choose(self, method: str, settings: Sequence[Setting]) -> Setting:
        """Run what is missing of some settings with the first seed, and return the best."""
        for setting in settings:
            run(self.trained(method, setting, 0))
        return min(settings, key=lambda setting: self.figures(method, setting, 0, "val")["regret"])


def betas_of(method: str) -> tuple[str, ...]:
    """Return the betas that a method may be tried with, in their order."""
    return LABEL_BETAS if method in LABELLED else BETAS


def before_methods(study: Study, seeds: int) -> Iterator[tuple[Settings, Path]]:
    """Yield the commands of the references and of the optimum under each, with their directories."""
    for seed in range(seeds):
        yield study.reference(seed)
        yield from (study.solved(seed, split) for split in ("val", "test"))


def run(command: tuple[Settings, Path]) -> None:
    """Run a command whose results are not there yet.

    Raises:
        SystemExit: it failed; the code is the command's.
    """
    words, folder = command
    if not any((folder / name).is_file() for name in ("summary.json", "eval.json")) and (code := shiqrun(words)):
        raise SystemExit(code)


def table(study: Study, methods: Sequence[str], seeds: int, out: Path) -> Table:
    """Return a table of every method at its chosen setting on the test maps; a CSV file gets the values by seed."""
    rows = []
    shown = Table(
        "method", "rate", "beta", *COLUMNS, title=f"{study.steps} steps, {seeds} seeds, regret at beta {BETA}"
    )
    chosen = {method: study.chosen(method) for method in methods}
    found = {m: [study.figures(m, setting, seed, "test") for seed in range(seeds)] for m, setting in chosen.items()}
    for method in sorted(methods, key=lambda m: sum(one["regret"] for one in found[m])):
        setting, values = chosen[method], {name: [one[name] for one in found[method]] for name in COLUMNS}
        tried = {"rate": RATES, "beta": betas_of(method)}
        ends = [f"{v} (end)" if v in (tried[n][0], tried[n][-1]) else v for n, v in setting._asdict().items()]
        shown.add_row(method, *ends, *(mean_and_half(values[name]) for name in COLUMNS))
        rows.append([method, *setting, *(value for name in COLUMNS for value in values[name])])
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([["method", "rate", "beta", "values by seed of", *COLUMNS], *rows])
    return shown


def main(words: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/treasure_tuned"), help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--steps", type=int, default=384, help="optimiser steps (default: 384, three epochs)")
    parser.add_argument("--methods", help=f"separated by semicolons (default: all: {'; '.join(METHODS)})")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that need no choice, and stop")
    options = parser.parse_args(words)
    methods = [name.strip() for name in options.methods.split(";")] if options.methods else list(METHODS)
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods {'; '.join(unknown)}: not among {'; '.join(METHODS)}")
    study = Study(options.out, options.steps)
    first = [*before_methods(study, options.seeds)]
    sure = [(method, Setting(RATES[1], beta)) for method in methods for beta in betas_of(method)[1:-1]]
    if options.dry_run:
        for settings, _ in [*first, *(study.trained(*each, 0) for each in sure)]:
            print(f"shiqrun {shlex.join(settings)}")
        return
    for command in first:
        run(command)
    for method in methods:
        setting = study.chosen(method)
        for seed in range(1, options.seeds):
            run(study.trained(method, setting, seed))
    console.print(table(study, methods, options.seeds, options.out / "treasure_tuned.csv"))


if __name__ == "__main__":
    main()
