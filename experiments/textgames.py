"""`python -m experiments.textgames` asks whether it helps to know at which action a reward fell (docs/textgames.md).

Logged play of text games is written down twice: with each reward at the action that earned it (`step`), and with their
sum at the last action (`final`). A tiny Llama is trained to play as the logged players do; from it every arm, a method
with one of the two files, is trained with several betas and learning rates. The setting with the largest mean return in
validation games is run with further seeds, and test games, whose seeds chose nothing, report. A job whose results are
there is not run again. `--arms` runs some arms only, so that several processes may share the work: start the others
once the first has made the references.
"""

import argparse
import itertools
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.chains import Chain, Command, run_all
from experiments.steps import OFFLINE, study_parser
from experiments.textgames_figures import Arm, draw, read_episodes, tables
from shiqrun.console import console, waiting
from shiqrun.data.textworld_express import Kind, TextWorldExpress
from shiqrun.environments.text_games.environment import Rewards
from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_writer

Settings = list[str]
REWARDED: dict[str, Settings] = {
    "shiq": ["algo=shiq"],
    "shiq_tk": ["algo=shiq_tk"],
    "shiq units=trajectory": ["algo=shiq", "algo.units=trajectory"],
    "shiq_ms": ["algo=shiq_ms"],
    "oreo": ["algo=oreo"],
}
"""Methods that read the place of a reward, and their settings."""
SUMMED: dict[str, Settings] = {
    "copg": ["algo=copg"],
    "dro group_mean": ["algo=dro", "algo.baseline=group_mean"],
    "dro none": ["algo=dro"],
    "dpo": ["algo=dpo"],
    "sft best": ["algo=sft", "data.completions=best"],
}
"""Methods that read the sum of a trajectory's rewards alone: both files are the same to them."""
FIRST = ("shiq, step", "shiq, final", "shiq_tk, step", "shiq_tk, final", "copg", "dro group_mean", "dro none")
"""The arms that answer the question most directly; they are run first."""
RATES, BETAS = "5e-4,2e-3", "0.1,0.5"
LOGGED = {"gold": 1, "half": 1, "random": 1}
"""Trajectories of a logged game, by player."""
SIZES: dict[Kind, dict[str, int]] = {
    "simonsays": {},
    "peckingorder": {},
    "twc": {"numLocations": 1, "numItemsToPutAway": 1, "includeDoors": 0, "limitInventorySize": 0},
}
"""The games that are played, and how large they are."""
MAX_STEPS: dict[Kind, int] = {"simonsays": 8, "peckingorder": 10, "twc": 8}
"""Largest number of actions in an episode; the solutions have 5, 9, and 2 to 5."""
FIRST_SEED = {"val": 600, "test": 700}
"""The first game that is kept for choosing, and for reporting; those before are logged.

All are training seeds of TextWorldExpress: its other folds have other words, and a model without any language before
cannot say `take umbrella` when it has never read of one.
"""


class Setting(NamedTuple):
    """A `Setting` is what is chosen for an arm: a learning rate, and beta in reward units per nat; sft has no beta."""

    rate: str
    beta: str


def all_arms() -> list[str]:
    """Return the names of all arms, METHOD or METHOD, step|final, the most telling ones first."""
    names = [f"{method}, {rewards}" for method in REWARDED for rewards in ("step", "final")] + list(SUMMED)
    return [*FIRST, *(name for name in names if name not in FIRST)]


class Study:
    """A `Study` knows the commands of the runs on one kind of game, and plays and reads their evaluations.

    Args:
        kind: of games.
        options: of the command line.
    """

    def __init__(self, kind: Kind, options: argparse.Namespace) -> None:
        self.kind, self.size, self.out = kind, SIZES[kind], Path(options.out) / kind
        self.only_reference: int | None = int(options.seeds.split(",")[0]) if options.one_reference else None
        self.steps, self.sft_steps = options.steps, options.sft_steps
        self.games, self.val_games, self.test_games = options.games, options.val_games, options.test_games
        self.logger = options.logger
        self.rates, self.betas = options.rates.split(","), options.betas.split(",")

    def grid(self, arm: str) -> list[Setting]:
        """Return the settings that an arm is tried with."""
        betas = ["none"] if arm.startswith("sft") else self.betas
        return [Setting(*pair) for pair in itertools.product(self.rates, betas)]

    def logged(self, name: str) -> Path:
        """Return the file of logged play: `reference`, `step` or `final`."""
        return self.out / "logged" / f"{name}.jsonl"

    def reference(self, seed: int) -> Command:
        """Return the words of `shiqrun` that make a seed's reference, and its run directory."""
        seed = seed if self.only_reference is None else self.only_reference
        folder = self.out / f"reference_{seed}"
        words = ["train", "experiment=textgames_small_sft", f"data.path={self.logged('reference')}", f"seed={seed}"]
        return [*words, f"trainer.max_steps={self.sft_steps}", f"logger={self.logger}", f"run_dir={folder}"], folder

    def trained(self, arm: str, setting: Setting, seed: int) -> Command:
        """Return the words of `shiqrun` that train an arm, and its run directory."""
        method, _, rewards = arm.partition(", ")
        folder = self.out / f"{arm}_{setting.rate}_{setting.beta}_{seed}".replace(", ", "_").replace(" ", "_")
        words = ["train", "experiment=textgames_small", *(REWARDED | SUMMED)[method], f"seed={seed}"]
        words += [
            f"logger={self.logger}",
            f"data.path={self.logged(rewards or 'final')}",
            f"model.path={self.reference(seed)[1]}/policy",
        ]
        words += [f"trainer.learning_rate={setting.rate}", f"trainer.max_steps={self.steps}", f"run_dir={folder}"]
        return words + ([] if setting.beta == "none" else [f"algo.beta={setting.beta}"]), folder

    def played(self, run: Path, split: str) -> Command:
        """Return the words of `shiqrun` that let a run's policy play games of a split, and their directory."""
        count, first = self.val_games if split == "val" else self.test_games, FIRST_SEED[split]
        size = [f"data.params.{self.kind}.{key}={value}" for key, value in self.size.items()]
        words = ["eval", f"run={run}", "data=textworld_express", f"data.games=[{self.kind}]", *size]
        words += [f"data.train_seeds=[{','.join(map(str, range(first, first + count)))}]", "eval.split=train"]
        words += ["data.show_valid_actions=false", f"data.max_steps={MAX_STEPS[self.kind]}", "eval.batch_size=512"]
        return [*words, f"eval.max_prompts={count}", f"run_dir={run / split}"], run / split

    def record(self) -> None:
        """Write the files of logged play that are missing; `step` and `final` hold the same play."""
        own: dict[str, tuple[int, Rewards]] = {
            "step": (0, "step"),
            "final": (0, "final"),
            "reference": (self.games, "step"),
        }
        for name, (first, rewards) in own.items():
            if not self.logged(name).is_file():
                write_play(self.logged(name), [*range(first, first + self.games)], self.kind, rewards)

    def chosen(self, arm: str, seed: int) -> Setting:
        """Return the setting whose run with a seed has the largest mean return in validation games."""

        def mean_return(setting: Setting) -> float:
            folder = self.played(self.trained(arm, setting, seed)[1], "val")[1]
            return float(json.loads((folder / "eval.json").read_text())["eval/reward"])

        return max(self.grid(arm), key=mean_return)


def write_play(path: Path, seeds: list[int], kind: Kind, rewards: Rewards) -> None:
    """Write logged play of the training games of a kind and some seeds as rows of `data=jsonl`.

    Raises:
        InputError: the games or Java are not installed, or a game could not be played.
    """
    source = TextWorldExpress(
        games=[kind],
        params={kind: SIZES[kind]},
        train_seeds=seeds,
        eval_seeds=1,
        split="val",
        rewards=rewards,
        max_steps=MAX_STEPS[kind],
        show_valid_actions=False,
        step_seconds=10.0,
        data_seed=0,
        **LOGGED,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting(f"playing {len(seeds)} games of {kind}, {path.name}"), atomic_writer(path) as file:
        for e in source.load("train"):
            row = {"prompt": e.messages, "completions": e.completions, "rewards": e.rewards, "prompt_id": e.prompt_id}
            file.write(json.dumps(row) + "\n")
        if source.dropped:
            raise InputError(f"{path}: games could not be played: {', '.join(source.dropped)}")


def references(study: Study, seeds: Sequence[int]) -> list[Chain]:
    """Return the commands that make the references of some seeds, and play the test games by them."""
    made = {folder: words for words, folder in map(study.reference, seeds)}
    return [[(words, folder), study.played(folder, "test")] for folder, words in made.items()]


def trained_and_played(study: Study, arm: str, setting: Setting, seed: int, split: str) -> Chain:
    """Return the commands that train an arm, and play the games of a split by its policy."""
    command = study.trained(arm, setting, seed)
    return [command, study.played(command[1], split)]


def trials(study: Study, arms: Sequence[str], seed: int) -> list[Chain]:
    """Return the commands that try every setting of some arms, setting by setting."""
    return [trained_and_played(study, arm, setting, seed, "val") for arm in arms for setting in study.grid(arm)]


def run_arms(study: Study, arms: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Run some arms: every setting with the first seed, and the chosen one with all of them."""
    run_all(references(study, seeds), jobs)
    run_all(trials(study, arms, seeds[0]), jobs)
    chosen = {arm: study.chosen(arm, seeds[0]) for arm in arms}
    run_all([trained_and_played(study, arm, chosen[arm], seed, "test") for arm in arms for seed in seeds], jobs)


def results(study: Study, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Arm]:
    """Return what the reference and each arm earned in the test games."""
    found = {"reference": Arm("", [read_episodes(study.reference(s)[1] / "test") for s in seeds])}
    for arm in arms:
        setting = study.chosen(arm, seeds[0])
        runs = [study.trained(arm, setting, seed)[1] for seed in seeds]
        ends = [
            f"{value} (end)" if len(tried) > 2 and value in (tried[0], tried[-1]) else value
            for value, tried in zip(setting, (study.rates, study.betas), strict=True)
        ]
        found[arm] = Arm(", ".join(ends), [read_episodes(run / "test") for run in runs])
    return found


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the study."""
    parser = study_parser(__doc__, out="outputs/textgames", betas=BETAS)
    parser.add_argument("--kinds", default=",".join(SIZES), help=f"kinds of games (default: {','.join(SIZES)})")
    parser.add_argument("--one-reference", action="store_true", help="all seeds start from the reference of the first")
    parser.add_argument("--rates", default=RATES, help=f"values of trainer.learning_rate (default: {RATES})")
    parser.add_argument("--arms", help=f"separated by semicolons (default: all: {'; '.join(all_arms())})")
    parser.add_argument("--games", type=int, default=300, help="logged games of each kind (default: 300)")
    parser.add_argument("--val-games", type=int, default=60, help="validation games of each kind (default: 60)")
    parser.add_argument("--test-games", type=int, default=100, help="test games of each kind (default: 100)")
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps of a method (default: 50)")
    parser.add_argument("--sft-steps", type=int, default=500, help="optimiser steps of a reference (default: 500)")
    options = parser.parse_args(words)
    if 2 * options.games > FIRST_SEED["val"] or options.val_games > FIRST_SEED["test"] - FIRST_SEED["val"]:
        parser.error("--games is at most 300, --val-games at most 100: others have their seeds")
    options.arms = [name.strip() for name in options.arms.split(";")] if options.arms else all_arms()
    options.kinds = options.kinds.split(",")
    for option, given, known in (("arms", options.arms, all_arms()), ("kinds", options.kinds, [*SIZES])):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"--{option} {'; '.join(unknown)}: not among {'; '.join(known)}")
    return options


def run_study(study: Study, options: argparse.Namespace) -> dict[str, Arm]:
    """Run the arms on one kind of game, print the tables, and return what the arms earned."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    study.record()
    together = [options.arms] if options.jobs > 1 else [[arm] for arm in options.arms]
    for number, arms in enumerate(together, 1):
        console.print(f"{study.kind}, {number} of {len(together)}: {'; '.join(arms)}")
        run_arms(study, arms, seeds, options.jobs)
    found = results(study, options.arms, seeds)
    for table in tables(found, study.kind, study.out):
        console.print(table)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Run the study, print its tables and draw its picture."""
    options = parsed(words)
    studies = [Study(kind, options) for kind in options.kinds]
    if options.dry_run:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        chains = [c for one in studies for c in [*references(one, seeds), *trials(one, options.arms, seeds[0])]]
        for command, _ in itertools.chain(*chains):
            print(f"shiqrun {shlex.join(command)}")
        return
    for name, value in (OFFLINE | {"OMP_NUM_THREADS": "1"}).items():  # before PyTorch is imported
        os.environ.setdefault(name, value)
    found: dict[str, dict[str, Arm]] = {study.kind: run_study(study, options) for study in studies}
    picture = options.out / "textgames.png"
    draw(found, picture)
    console.print(f"{picture}")


if __name__ == "__main__":
    main()
