"""`ComparedMethods` are the result of `shiqrun compare`: chosen on validation prompts, reported on test prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shiqrun.report.answers import KL, REFERENCE, REWARD, WIN, Answers, HeldOut, answers_of
from shiqrun.report.run_records import FINISHED, RunRecord, SweepRecord
from shiqrun.report.seed_groups import Estimate, SeedGroup
from shiqrun.report.verdict_of_methods import Curve, Verdict, verdict_of
from shiqrun.util.intervals import LEAST_ROWS, crossed_interval

ALGO, SEED, BETA = "algo", "seed", "algo.beta"
DIGITS = 9
"""Decimals to which rewards of settings are compared: sums of the same rewards differ by rounding."""
SECONDS_A_STEP, MEMORY = "seconds/step", "memory/peak"
NAMES = {REWARD: "reward", KL: "kl", WIN: "win_rate"}
"""The metrics that have intervals over prompts and seeds, as columns name them behind the split."""


@dataclass(frozen=True, eq=False)
class MethodSetting:
    """A method setting is one point of a method's grid with its runs, which differ in their seed alone.

    Attributes:
        method: its name.
        values: of the swept keys but method and seed.
        runs: that finished.
        jobs: number of runs that were asked for.
    """

    method: str
    values: Mapping[str, str]
    runs: list[RunRecord]
    jobs: int

    @property
    def beta(self) -> float | None:
        """Return the KL temperature; None for a method without one."""
        return self.runs[0].beta if self.runs else None

    @cached_property
    def answers(self) -> dict[HeldOut, Answers | None]:
        """Return the answers to the prompts of both held-out splits."""
        return {"val": answers_of(self.runs, "val"), "test": answers_of(self.runs, "test")}

    def estimate(self, split: HeldOut, name: str) -> Estimate | None:
        """Return the mean of a metric of a split, its interval over prompts and seeds, and the number of seeds."""
        answers = self.answers[split]
        if answers is not None and name in answers.values:
            mean, half = crossed_interval(answers.values[name])
            return Estimate(mean, half, len(answers.seeds))
        values = [run.final[key] for run in self.runs if (key := f"{split}/{NAMES[name]}") in run.final]
        return Estimate(math.fsum(values) / len(values), math.nan, len(values)) if values else None

    def mean(self, name: str) -> float | None:
        """Return the mean over runs of a number of their summaries; `SECONDS_A_STEP` is made of two."""
        values = [value for run in self.runs if (value := _number(run, name)) is not None]
        return math.fsum(values) / len(values) if values else None


def _number(run: RunRecord, name: str) -> float | None:
    if name == SECONDS_A_STEP:
        seconds, steps = run.final.get("seconds/steps"), run.final.get("steps")
        return seconds / steps if seconds is not None and steps else None
    return run.final.get(name)


@dataclass(frozen=True, eq=False)
class ComparedMethods:
    """`ComparedMethods` hold every setting of each method of a comparison and the one that was chosen.

    Attributes:
        settings: by method, in the order of the comparison; methods without a measured reward are left out.
        chosen: the setting of each method with the highest mean validation reward.
        left_out: why other methods were not run, or have no result.
        failed: number of runs without a result.
    """

    settings: dict[str, list[MethodSetting]]
    chosen: dict[str, MethodSetting]
    left_out: dict[str, str]
    failed: int

    @cached_property
    def verdict(self) -> Verdict | None:
        """Return the verdict on test prompts; None where it cannot be known."""
        curves = {}
        for method, chosen in self.chosen.items():
            points = [s for s in self.curve(method) if s.answers["test"] is not None]
            if chosen not in points:
                return None
            curves[method] = Curve([p for s in points if (p := s.answers["test"])], points.index(chosen))
        return verdict_of(curves) if curves else None

    def curve(self, method: str) -> list[MethodSetting]:
        """Return a method's settings, one for each beta: of several the one with the highest validation reward."""
        best: dict[float | None, MethodSetting] = {}
        for setting in self.settings[method]:
            known = best.get(setting.beta)
            if known is None or _rank(setting) > _rank(known):
                best[setting.beta] = setting
        return sorted(best.values(), key=lambda s: -math.inf if s.beta is None else s.beta)

    def groups(self, method: str) -> list[SeedGroup]:
        """Return the settings of `curve` as the points of a frontier."""
        return [SeedGroup(method, setting.beta, setting.runs) for setting in self.curve(method)]

    @property
    def reference(self) -> float | None:
        """Return the mean reward of the reference on the test prompts; None where it is not known."""
        found = [s.answers["test"] for s in self.chosen.values()]
        values = [float(a.values[REFERENCE].mean()) for a in found if a is not None and REFERENCE in a.values]
        return math.fsum(values) / len(values) if values else None

    @property
    def intervals_are_over(self) -> str:
        """Return what the intervals of the chosen settings are over: seeds are left out where one has too few."""
        seeds = min((len(setting.runs) for setting in self.chosen.values()), default=0)
        return "prompts and seeds" if seeds >= LEAST_ROWS else f"prompts alone below {LEAST_ROWS} seeds"

    def at_an_end(self) -> list[str]:
        """Return a sentence for each beta that was chosen and is the first or the last that was tried."""
        methods: dict[str, list[str]] = {}
        for method, chosen in self.chosen.items():
            betas = sorted({s.beta for s in self.settings[method] if s.beta is not None})
            if len(betas) > 1 and chosen.beta in (betas[0], betas[-1]):
                smallest = chosen.beta == betas[0]
                more = [float(f"{betas[0] / 3:.2g}"), *betas] if smallest else [*betas, float(f"{betas[-1] * 3:.2g}")]
                said = f"beta {chosen.beta:g} is the {'smallest' if smallest else 'largest'} that was tried; "
                said += f"algo.beta={','.join(f'{beta:g}' for beta in more)} tries more"
                methods.setdefault(said, []).append(method)
        return [f"{', '.join(names)}: {said}" for said, names in methods.items()]


def compared_methods(sweep: SweepRecord, runs: Sequence[RunRecord]) -> ComparedMethods:
    """Return the result of a comparison from its `sweep.json` and its runs.

    Args:
        sweep: the comparison.
        runs: all runs, those of other sweeps among them.

    Raises:
        InputError: a file of a run is broken.
    """
    known = {run.directory.resolve(): run for run in runs}
    jobs: dict[tuple[str, tuple[tuple[str, str], ...]], list[Path]] = {}
    for job in sweep.state["jobs"]:
        values = tuple((key, value) for key, value in job["swept"].items() if key not in (ALGO, SEED))
        jobs.setdefault((job["swept"][ALGO], values), []).append((sweep.directory / job["dir"]).resolve())
    settings: dict[str, list[MethodSetting]] = {}
    failed = 0
    for (method, values), places in jobs.items():
        done = [known[place] for place in places if place in known and known[place].status == FINISHED]
        failed += len(places) - len(done)
        settings.setdefault(method, []).append(MethodSetting(method, dict(values), done, len(places)))
    comparison: dict[str, Any] = sweep.state["comparison"]
    left_out, chosen = dict(comparison["left_out"]), {}
    for method in list(settings):
        settings[method] = [s for s in settings[method] if s.estimate("val", REWARD) is not None]
        if settings[method]:
            chosen[method] = max(settings[method], key=_rank)
        else:
            del settings[method]
            left_out[method] = "no run of it has measured a reward"
    return ComparedMethods(settings, chosen, left_out, failed)


def _rank(setting: MethodSetting) -> tuple[bool, float, float]:
    """Return what orders settings: one of which a seed failed comes behind all others; then validation reward and KL.

    Of equal rewards the one with less KL is larger: a reward that nothing reaches would else choose the smallest beta.
    """
    reward, kl = (setting.estimate("val", name) for name in (REWARD, KL))
    earned = -math.inf if reward is None else round(reward.mean, DIGITS)
    return len(setting.runs) == setting.jobs, earned, -math.inf if kl is None else -kl.mean
