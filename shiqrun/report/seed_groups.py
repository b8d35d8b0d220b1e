"""Runs that differ in their seed alone form a group; this module names methods, averages over seeds and ranks betas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shiqrun.report.run_records import FINISHED, RunRecord, natural_order
from shiqrun.util.intervals import interval
from shiqrun.util.quoting import portable

REWARD, KL, RETURN, LOSS = "val/reward", "val/kl", "val/regularised_return", "val/loss"
REFERENCE_REWARD = "val/reference_reward"
RANKING_METRICS = ((REWARD, 1), (LOSS, -1))
"""The metrics by which the best beta is chosen, the first that was measured, and 1 where more is better, -1 where less.

The regularised return is not one of them: it contains beta, so that those of two betas are returns of two problems.
"""
LEAST_SEEDS = 3
"""The number of seeds from which on an interval over them is shown."""
DIRECTIONS = {1: "highest", -1: "lowest"}
ORDER = ("shiq", "shiq_init", "shiq_ms", "shiq_tk", "copg", "dpo", "dro", "dro_v", "direct", "sft")
"""The order of methods in every figure and table; others follow by name."""

UNCOMPARED = (
    *("seed", "run_dir", "resume", "dry_run", "cache_dir", "algo.reference", "logger.", "hydra.", "sweep."),
    *("algo.grid", "algo.grid.", "eval.test_prompts"),
)
"""Keys, and beginnings of keys, that change where things are written or read and nothing that is measured."""
ESTIMATE_FILES = ("algo.targets", "algo.values")
"""Keys of files with estimates; the name of a method has them only where its runs read different files."""


@dataclass(frozen=True)
class Estimate:
    """An estimate holds a mean over seeds, half of its 95 % interval (NaN below `LEAST_SEEDS`), and their number."""

    mean: float
    half: float
    count: int

    @property
    def known(self) -> bool:
        """Return whether the interval could be computed."""
        return math.isfinite(self.half)


def seed_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds with its interval, which fewer than `LEAST_SEEDS` seeds do not give.

    Student's t of two seeds has one degree of freedom: its interval is 12.7 standard errors wide, and says nothing.
    """
    mean, half = interval(values)
    return Estimate(mean, half if len(values) >= LEAST_SEEDS else math.nan, len(values))


@dataclass(frozen=True)
class SeedGroup:
    """A seed group holds the runs of one method at one beta, which differ in their seed alone.

    Attributes:
        method: the loss, and the settings in which its runs differ.
        beta: reward units per nat, None for methods without it.
        runs: finished or not.
    """

    method: str
    beta: float | None
    runs: list[RunRecord]

    @property
    def all_finished(self) -> list[RunRecord]:
        """Return every run that finished, repeats of a seed included."""
        return [run for run in self.runs if run.status == FINISHED]

    @property
    def finished(self) -> list[RunRecord]:
        """Return the last finished run of each seed, which alone counts: a repeat of a seed is no new evidence."""
        return list({str(run.seed): run for run in self.all_finished}.values())

    @property
    def plotted(self) -> list[RunRecord]:
        """Return the runs with curves on the page: the finished ones, or all where none has finished."""
        return self.finished or self.runs

    def final(self, metric: str) -> Estimate | None:
        """Return the mean of a metric at the end of the finished runs; None where none has measured it."""
        values = [run.final[metric] for run in self.finished if metric in run.final]
        return seed_estimate(values) if values else None

    def curve(self, metric: str) -> list[tuple[int, Estimate]]:
        """Return the mean of a metric at each step that at least half of the runs have measured."""
        by_step: dict[int, list[float]] = {}
        for run in self.plotted:
            for step, value in run.history.get(metric, {}).items():
                by_step.setdefault(step, []).append(value)
        most = max(map(len, by_step.values()), default=0)
        return [(s, seed_estimate(v)) for s, v in sorted(by_step.items()) if 2 * len(v) > most]


def is_compared(key: str) -> bool:
    """Return whether a key of the config can make runs differ in what they measure."""
    return key not in UNCOMPARED and not key.startswith(tuple(p for p in UNCOMPARED if p.endswith(".")))


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """Return the compared keys that have different values among the runs, in the order of the configs."""
    configured = [run for run in runs if run.configured]
    keys = dict.fromkeys(key for run in configured for key in run.config if is_compared(key))
    return [key for key in keys if len({repr(run.config.get(key)) for run in configured}) > 1]


def method_names(runs: Sequence[RunRecord]) -> list[str]:
    """Return each run's method: its loss and the settings, beta and seed aside, that differ among runs of that loss."""
    many_data = len({run.data for run in runs if run.data != "?"}) > 1
    keys: dict[tuple[str, str], list[str]] = {}
    for algo, data in {(run.algo, run.data) for run in runs}:
        same = [run for run in runs if run.algo == algo]
        found = [k for k in differing_keys(same) if not k.startswith("data.")]
        found += [k for k in differing_keys([run for run in same if run.data == data]) if k.startswith("data.")]
        found = [k for k in found if k not in ("algo.beta", "data.name") and not k.endswith("_target_")]
        found = [k for k in found if not _is_default_of_another_version(k, same)]
        keys[algo, data] = [k for k in found if k not in ESTIMATE_FILES or _has_several_values(k, same)]
    names = []
    for run in runs:
        words = [run.algo] + ([f"on {run.data}"] if many_data else [])
        for key in keys[run.algo, run.data]:
            is_known = run.configured or key in run.config
            if is_known and not _has_no_effect(key, run) and not _is_off_as_usual(key, run, runs):
                words.append(f"{key.rpartition('.')[2]}={_distinct_text(key, run, runs)}")
        names.append(" ".join(words))
    return names


def _distinct_text(key: str, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """Return a run's value of a key, paths shortened unless other values of the key would then look the same."""
    full = {setting_text(other.config.get(key)) for other in runs}
    text = setting_text(run.config.get(key))
    return str(portable(text)) if len({portable(other) for other in full}) == len(full) else text


def _has_several_values(key: str, runs: Sequence[RunRecord]) -> bool:
    """Return whether the runs that set the key set it to different values."""
    return len({str(run.config[key]) for run in runs if run.config.get(key) is not None}) > 1


def _is_default_of_another_version(key: str, runs: Sequence[RunRecord]) -> bool:
    """Return whether runs differ in a key only because the version of some did not have it.

    The others then have one value, no command line set it, and its node is there without it: the same loss, say.
    """
    node = key.rpartition(".")[0]
    have = [run for run in runs if run.configured and key in run.config]
    lack = [run for run in runs if run.configured and key not in run.config]
    if (
        not (have and lack)
        or _has_several_values(key, runs)
        or any(run.typed is None or key in run.typed for run in have)
    ):
        return False
    targets = {str(run.config.get(f"{node}._target_")) for run in [*have, *lack]}
    return len(targets) == 1 and all(any(k.startswith(f"{node}.") for k in run.config) for run in lack)


def _has_no_effect(key: str, run: RunRecord) -> bool:
    """Return whether a setting has no effect, because it says how to do something that the run does not do."""
    if key.startswith("values."):
        return run.config.get("algo.values", "none are read") is not None
    return key.startswith("algo.anchor_") and _is_off(run.config.get("algo.anchor"))


def _is_off_as_usual(key: str, run: RunRecord, runs: Sequence[RunRecord]) -> bool:
    """Return whether a setting is off in a run, and off by the same value wherever it is off in runs of this loss."""
    same = [other for other in runs if other.configured and other.algo == run.algo]
    off_values = {repr(other.config.get(key)) for other in [run, *same] if _is_off(other.config.get(key))}
    return _is_off(run.config.get(key)) and len(off_values) == 1


def _is_off(value: Any) -> bool:
    return value in (None, "", "none") or (isinstance(value, int | float) and value == 0)


def setting_text(value: Any) -> str:
    """Return a value of a config as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def group_runs(runs: Sequence[RunRecord]) -> list[SeedGroup]:
    """Group runs by method and beta: methods in the order of `ORDER`, each before its variants, betas ascending."""
    members: dict[tuple[str, float | None], list[RunRecord]] = {}
    for name, run in zip(method_names(runs), runs, strict=True):
        members.setdefault((name, run.beta), []).append(run)
    return sorted((SeedGroup(method, beta, same) for (method, beta), same in members.items()), key=_sort_key)


def _sort_key(group: SeedGroup) -> tuple[Any, ...]:
    algo = group.runs[0].algo
    place = ORDER.index(algo) if algo in ORDER else len(ORDER)
    return place, algo, natural_order(group.method), -math.inf if group.beta is None else group.beta


def ranking_metric(groups: Sequence[SeedGroup]) -> tuple[str, int] | None:
    """Return the metric that ranks the groups, and 1 where more is better or -1 where less is.

    It is the first of `RANKING_METRICS` that all finished groups measured, else the first that one did; None where
    none did.
    """
    finished = [group for group in groups if group.finished]
    for metric, sign in RANKING_METRICS:
        if finished and all(group.final(metric) for group in finished):
            return metric, sign
    return next(((m, s) for m, s in RANKING_METRICS if any(group.final(m) for group in finished)), None)


def best_groups(groups: Sequence[SeedGroup]) -> dict[str, SeedGroup]:
    """Return each method's group at its best beta, by the mean over seeds of the method's `ranking_metric`.

    A method of which no run has finished is represented by its first group.
    """
    best: dict[str, SeedGroup] = {}
    for method in dict.fromkeys(group.method for group in groups):
        same = [group for group in groups if group.method == method]
        ranked = ranking_metric(same)
        values = [(ranked[1] * e.mean, g) for g in same if ranked and (e := g.final(ranked[0]))]
        best[method] = max(values, key=lambda pair: pair[0])[1] if values else same[0]
    return best


def training_amounts(groups: Sequence[SeedGroup]) -> dict[str, list[str]]:
    """Return the methods by the amount of data that their finished runs saw: `1,000 trajectories in 32 steps`."""
    amounts: dict[str, list[str]] = {}
    for method in dict.fromkeys(group.method for group in groups):
        finished = [run for group in groups if group.method == method for run in group.finished]
        counts = [
            _count_range(finished, "trajectories/train", "trajectories"),
            _count_range(finished, "steps", "steps"),
        ]
        if amount := " in ".join(filter(None, counts)):
            amounts.setdefault(amount, []).append(method)
    return amounts


def _count_range(runs: Sequence[RunRecord], name: str, unit: str) -> str:
    """Return a count over runs as text, `5 steps` or `5 to 7 steps`; empty where no run has counted."""
    values = sorted({int(run.final[name]) for run in runs if name in run.final})
    ends = dict.fromkeys((values[0], values[-1])) if values else {}
    return f"{' to '.join(f'{value:,}' for value in ends)} {unit}" if ends else ""


def reference_reward(runs: Sequence[RunRecord]) -> float | None:
    """Return the mean reward of the reference over runs; None where it is not known.

    It is the reward of the reference's own completions, else that of the policy at step 0, where it is the reference.
    """
    values = [run.final[REFERENCE_REWARD] for run in runs if REFERENCE_REWARD in run.final]
    values = values or [run.history[REWARD][0] for run in runs if 0 in run.history.get(REWARD, {})]
    return math.fsum(values) / len(values) if values else None
