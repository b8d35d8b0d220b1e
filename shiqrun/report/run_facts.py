"""The summary at the top of a report states what was run, how long it took, and which runs did not finish."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shiqrun.report.number_text import format_duration, format_number
from shiqrun.report.run_records import ENDED_BADLY, FINISHED, TO_COME, RunRecord
from shiqrun.report.seed_groups import SeedGroup, setting_text
from shiqrun.util.quoting import portable

MOST_NAMED = 6
"""The largest number of methods that the title names."""
MOST_LISTED = 6
"""The largest number of unfinished runs that are listed without a click."""
Fact = tuple[str, str, str]
"""Name, value and remark; a fact without a value is not shown."""


def page_title(runs: Sequence[RunRecord]) -> tuple[str, str]:
    """Return the title of the report, with methods and data sets, and the line under it."""
    methods, data = _distinct(run.algo for run in runs), _distinct(run.data for run in runs)
    named = ", ".join(methods) if len(methods) <= MOST_NAMED else f"{len(methods)} methods"
    where = runs[0].directory.resolve().name if len(runs) == 1 else f"{len(runs)} runs"
    return f"{named} on {', '.join(data)}", where


def summary_values(
    runs: Sequence[RunRecord], groups: Sequence[SeedGroup], sweeps: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the report's summary shows: facts, the commands of the sweeps, and the runs that did not finish."""
    unfinished = [run for run in runs if run.status in ENDED_BADLY]
    typed = [shlex.join(["shiqrun", *map(str, sweep["typed"])]) for sweep in sweeps if sweep.get("typed")]
    return {
        "facts": [fact for fact in _facts(runs, groups) if fact[1]],
        "commands": _distinct(typed),
        "run_count": len(runs),
        "unfinished": [
            {"name": run.name, "status": run.status, "last_words": run.error or _last_line(run.directory / "run.log")}
            for run in unfinished
        ],
        "most_listed": MOST_LISTED,
        "to_come": _count_by_status(runs, TO_COME),
    }


def _facts(runs: Sequence[RunRecord], groups: Sequence[SeedGroup]) -> list[Fact]:
    betas = sorted({group.beta for group in groups if group.beta is not None})
    return [
        ("methods", ", ".join(_distinct(run.algo for run in runs)), ""),
        ("data", ", ".join(_distinct(map(_data_name, runs))), _fingerprints(runs, "fingerprint/data")),
        ("model", ", ".join(_distinct(map(_model_name, runs))), _fingerprints(runs, "fingerprint/model")),
        ("reward", ", ".join(_distinct(filter(None, map(_reward_name, runs)))), ""),
        _run_counts(runs),
        ("seeds", ", ".join(_distinct(setting_text(run.seed) for run in runs if run.seed is not None)), ""),
        ("β", ", ".join(f"{beta:g}" for beta in betas), "reward units per nat"),
        _steps(runs),
        _duration(runs),
        _evaluation_share(runs),
        _time_saved_by_cache(runs),
        ("git commit", ", ".join(commit[:12] for commit in _distinct(_summary_values(runs, "git_commit"))), ""),
        _versions(runs),
    ]


def _count_by_status(runs: Sequence[RunRecord], statuses: Sequence[str]) -> str:
    """Return the number of runs by status as text, `1 running, 74 waiting`; empty where no run has such a status."""
    counts = {status: sum(run.status == status for run in runs) for status in statuses}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _last_line(log: Path) -> str:
    """Return the last line of a run's log without its time stamp, which often says why a run ended."""
    if not log.exists():
        return "it left no run.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "its run.log is empty")
    return re.sub(r"^\[?[\d\-: ,.T]+\]?\s*", "", last)[:300]


def _distinct(values: Iterable[str]) -> list[str]:
    """Return the values without repeats, in their first order; `?` (unknown) only where there is no other."""
    distinct = dict.fromkeys(values)
    return [value for value in distinct if value != "?"] or list(distinct)


def _summary_values(runs: Sequence[RunRecord], key: str) -> list[str]:
    return [str(run.summary[key]) for run in runs if run.summary.get(key) is not None]


def _fingerprints(runs: Sequence[RunRecord], key: str) -> str:
    """Return the fingerprint that all runs share, or a warning that says how many different ones there are."""
    distinct = _distinct(_summary_values(runs, key))
    if len(distinct) == 1:
        return f"fingerprint {distinct[0][:12]}"
    return f"{len(distinct)} fingerprints" if distinct else ""


def _data_name(run: RunRecord) -> str:
    path = run.config.get("data.path")
    return f"{run.data} {Path(str(path)).name}" if path and run.data != "?" else run.data


def _reward_name(run: RunRecord) -> str:
    """Return the reward that scored the policy's completions, empty where none did."""
    keys = ("eval.reward.path", "eval.reward.name", "eval.reward._target_")
    return next((str(portable(run.config[key])) for key in keys if run.config.get(key)), "")


def _model_name(run: RunRecord) -> str:
    return str(portable(run.config.get("model.path") or run.config.get("model.name") or "?"))


def _run_counts(runs: Sequence[RunRecord]) -> Fact:
    rest = _count_by_status(runs, (*ENDED_BADLY, *TO_COME))
    return "runs", _count_by_status(runs, [FINISHED]) or "0 finished" if rest else str(len(runs)), rest


def _steps(runs: Sequence[RunRecord]) -> Fact:
    steps = sorted({int(run.final["steps"]) for run in runs if "steps" in run.final})
    ends = dict.fromkeys((steps[0], steps[-1])) if steps else {}
    return "optimiser steps", " to ".join(map(format_number, ends)), ""


def _duration(runs: Sequence[RunRecord]) -> Fact:
    seconds = [run.final["seconds"] for run in runs if "seconds" in run.final]
    mean = f"{format_duration(sum(seconds) / len(seconds))} a run" if len(seconds) > 1 else ""
    return "time of all runs" if mean else "time", format_duration(sum(seconds)) if seconds else "", mean


def _evaluation_share(runs: Sequence[RunRecord]) -> Fact:
    """Return the share of the runs' time that evaluation took; from shares alone where no seconds are noted."""
    pairs = [(r.final["seconds/eval"], r.final["seconds"]) for r in runs if {"seconds/eval", "seconds"} <= set(r.final)]
    shares = [run.final["eval_share"] for run in runs if "eval_share" in run.final]
    if total := sum(seconds for _, seconds in pairs):
        share = sum(evaluating for evaluating, _ in pairs) / total
    elif shares:
        share = sum(shares) / len(shares)
    else:
        return "in evaluation", "", ""
    largest = f"{max(shares):.0%} in the run with most" if len(shares) > 1 else ""
    return "in evaluation", f"{share:.1%} of the time", largest


def _time_saved_by_cache(runs: Sequence[RunRecord]) -> Fact:
    """Return the time that the cache of reference scores saved: passes not made, less the time to read the cache."""
    cached = [run for run in runs if run.summary.get("reference_cached") is True]
    saved = sum(r.final.get("seconds/reference_computed", 0.0) - r.final.get("seconds/reference", 0.0) for r in cached)
    if not cached or saved <= 0:
        return "reference", "", ""
    of_runs = f"{len(cached)} of {sum(bool(run.summary) for run in runs)} runs read them from the cache"
    return "reference's scores", f"{format_duration(saved)} saved", of_runs


def _versions(runs: Sequence[RunRecord]) -> Fact:
    keys = _distinct(key for run in runs for key in run.summary if key.startswith("version/"))
    words = [f"{key.removeprefix('version/')} {'/'.join(_distinct(_summary_values(runs, key)))}" for key in keys]
    return "versions", words[0] if words else "", ", ".join(words[1:])
