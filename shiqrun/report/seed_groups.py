"""Runs that differ in their seed alone as one: methods, their betas, means over seeds, the best beta."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shiqrun.report.run_records import FINISHED, Run, natural
from shiqrun.util.intervals import interval

REWARD, KL, RETURN, LOSS = "val/reward", "val/kl", "val/regularised_return", "val/loss"
OF_REFERENCE = "val/reference_reward"
CRITERIA = ((REWARD, 1), (LOSS, -1))
"""What the best beta is best by, the first that is there; and whether more or less is better.

Not the regularised return: it holds beta itself, so that those of two betas are returns of two problems.
"""
WAYS = {1: "highest", -1: "lowest"}
ORDER = ("shiq", "shiq_init", "shiq_ms", "shiq_tk", "copg", "dpo", "dro", "dro_v", "direct", "sft")
"""Of methods in every figure and table; others follow by name."""

PLACES = ("seed", "run_dir", "resume", "dry_run", "cache_dir", "algo.reference", "logger.", "hydra.", "sweep.")
"""Keys, and beginnings of keys, that change where things are written or read and nothing that is measured."""
ESTIMATES = ("algo.targets", "algo.values")
"""Files that runs read if another setting says so; a name has them only where the runs read different ones."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, half the width of its 95 % interval (NaN of one seed), and their number."""

    mean: float
    half: float
    count: int

    @property
    def known(self) -> bool:
        """Whether the interval could be computed."""
        return math.isfinite(self.half)


@dataclass(frozen=True)
class Group:
    """The runs of one method at one beta, one a seed."""

    method: str
    beta: float | None
    runs: list[Run]

    @property
    def ended(self) -> list[Run]:
        """Those that ended well."""
        return [run for run in self.runs if run.status == FINISHED]

    @property
    def finished(self) -> list[Run]:
        """Those whose final numbers count: of each seed the last that ended well, as a repeat is no new evidence."""
        return list({str(run.seed): run for run in self.ended}.values())

    @property
    def drawn(self) -> list[Run]:
        """Those whose curves are drawn: the finished, or all where none has finished."""
        return self.finished or self.runs

    def final(self, metric: str) -> Estimate | None:
        """The metric at the end of the finished runs; None where none has it."""
        values = [run.final[metric] for run in self.finished if metric in run.final]
        return Estimate(*interval(values), len(values)) if values else None

    def curve(self, metric: str) -> list[tuple[int, Estimate]]:
        """The metric at each step that most of the runs have."""
        at: dict[int, list[float]] = {}
        for run in self.drawn:
            for step, value in run.history.get(metric, {}).items():
                at.setdefault(step, []).append(value)
        most = max(map(len, at.values()), default=0)
        return [(s, Estimate(*interval(v), len(v))) for s, v in sorted(at.items()) if 2 * len(v) > most]


def compared(key: str) -> bool:
    """Whether a key of the config can make runs differ in what they measure."""
    return key not in PLACES and not key.startswith(tuple(p for p in PLACES if p.endswith(".")))


def differing(runs: Sequence[Run]) -> list[str]:
    """The compared keys that have different values among the runs, in the order of the configs."""
    whole = [run for run in runs if run.configured]
    keys = dict.fromkeys(key for run in whole for key in run.config if compared(key))
    return [key for key in keys if len({repr(run.config.get(key)) for run in whole}) > 1]


def method_names(runs: Sequence[Run]) -> list[str]:
    """Each run's method: its loss, and what else is on that differs among runs of that loss, but beta and seed."""
    many_data = len({run.data for run in runs if run.data != "?"}) > 1
    keys: dict[tuple[str, str], list[str]] = {}
    for algo, data in {(run.algo, run.data) for run in runs}:
        same = [run for run in runs if run.algo == algo]
        found = [k for k in differing(same) if not k.startswith("data.")]
        found += [k for k in differing([run for run in same if run.data == data]) if k.startswith("data.")]
        found = [k for k in found if k not in ("algo.beta", "data.name") and not k.endswith("_target_")]
        keys[algo, data] = [k for k in found if k not in ESTIMATES or _several(k, same)]
    names = []
    for run in runs:
        words = [run.algo] + ([f"on {run.data}"] if many_data else [])
        for key in keys[run.algo, run.data]:
            if (run.configured or key in run.config) and not _idle(key, run) and not _off(key, run, runs):
                words.append(f"{key.rpartition('.')[2]}={shown(run.config.get(key))}")
        names.append(" ".join(words))
    return names


def _several(key: str, runs: Sequence[Run]) -> bool:
    """Whether the setting has several values where it has one."""
    return len({str(run.config[key]) for run in runs if run.config.get(key) is not None}) > 1


def _idle(key: str, run: Run) -> bool:
    """Whether the setting says how to do something that the run does not do."""
    if key.startswith("values."):
        return run.config.get("algo.values", "none are read") is not None
    return key.startswith("algo.anchor_") and _is_off(run.config.get("algo.anchor"))


def _off(key: str, run: Run, runs: Sequence[Run]) -> bool:
    """Whether a method's runs need not say this setting: it is off, in the only way in which it is off in them."""
    whole = [other for other in runs if other.configured and other.algo == run.algo]
    ways = {repr(other.config.get(key)) for other in [run, *whole] if _is_off(other.config.get(key))}
    return _is_off(run.config.get(key)) and len(ways) == 1


def _is_off(value: Any) -> bool:
    return value in (None, "", "none") or (isinstance(value, int | float) and value == 0)


def shown(value: Any) -> str:
    """A value of a config as YAML would have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by method, in the order of `ORDER`, variants after their method, and beta, from small to large."""
    found: dict[tuple[str, float | None], list[Run]] = {}
    names = method_names(runs)
    for name, run in zip(names, runs, strict=True):
        found.setdefault((name, run.beta), []).append(run)
    groups = [Group(method, beta, members) for (method, beta), members in found.items()]
    return sorted(groups, key=_place)


def _place(group: Group) -> tuple[Any, ...]:
    algo = group.runs[0].algo
    known = ORDER.index(algo) if algo in ORDER else len(ORDER)
    return known, algo, natural(group.method), -math.inf if group.beta is None else group.beta


def criterion(groups: Sequence[Group]) -> tuple[str, int] | None:
    """What every finished group can be ranked by: (metric, 1 where more is better)."""
    done = [group for group in groups if group.finished]
    for metric, sign in CRITERIA:
        if done and all(group.final(metric) for group in done):
            return metric, sign
    return next(((m, s) for m, s in CRITERIA if any(group.final(m) for group in done)), None)


def best(groups: Sequence[Group]) -> dict[str, Group]:
    """Each method's best beta, by the mean over seeds of `criterion` of its own groups; its first where none ended."""
    chosen: dict[str, Group] = {}
    for method in dict.fromkeys(group.method for group in groups):
        mine = [group for group in groups if group.method == method]
        ranked = criterion(mine)
        values = [(ranked[1] * e.mean, g) for g in mine if ranked and (e := g.final(ranked[0]))]
        chosen[method] = max(values, key=lambda pair: pair[0])[1] if values else mine[0]
    return chosen


def trained_on(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What the finished runs of each method were trained on, `1,000 trajectories in 32 steps`, to the methods."""
    found: dict[str, list[str]] = {}
    for method in dict.fromkeys(group.method for group in groups):
        done = [run for group in groups if group.method == method for run in group.finished]
        words = [_range(done, "trajectories/train", "trajectories"), _range(done, "steps", "steps")]
        if said := " in ".join(filter(None, words)):
            found.setdefault(said, []).append(method)
    return found


def _range(runs: Sequence[Run], name: str, unit: str) -> str:
    """`5 steps`, `5 to 7 steps`; empty where no run says it."""
    values = sorted({int(run.final[name]) for run in runs if name in run.final})
    return f"{' to '.join(f'{v:,}' for v in dict.fromkeys((values[0], values[-1])))} {unit}" if values else ""


def reference_reward(runs: Sequence[Run]) -> float | None:
    """The mean over runs of the reference's reward: of its own answers, else the policy's at step 0, where it is it."""
    values = [run.final[OF_REFERENCE] for run in runs if OF_REFERENCE in run.final]
    values = values or [run.history[REWARD][0] for run in runs if 0 in run.history.get(REWARD, {})]
    return math.fsum(values) / len(values) if values else None
