"""What a report is about: the facts at its top, and the runs that did not end well."""

import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from shiqrun.report.html_page import facts, folded, note
from shiqrun.report.number_text import duration, number
from shiqrun.report.run_records import ENDED_BADLY, FINISHED, TO_COME, Run
from shiqrun.report.seed_groups import Group, shown

MOST_NAMED = 6
"""Methods in the title."""
MOST_LISTED = 6
"""Runs that are listed without being asked for."""
Fact = tuple[str, str, str]


def title(runs: Sequence[Run]) -> tuple[str, str]:
    """The page's title and the line under it."""
    methods, data = _distinct(run.algo for run in runs), _distinct(run.data for run in runs)
    where = runs[0].directory.resolve().name if len(runs) == 1 else f"{len(runs)} runs"
    return (
        f"{', '.join(methods) if len(methods) <= MOST_NAMED else f'{len(methods)} methods'} on {', '.join(data)}",
        where,
    )


def summary(runs: Sequence[Run], groups: Sequence[Group], sweeps: Sequence[dict[str, Any]]) -> str:
    """The facts, as a grid."""
    betas = sorted({group.beta for group in groups if group.beta is not None})
    entries = [
        ("methods", ", ".join(_distinct(run.algo for run in runs)), ""),
        ("data", ", ".join(_distinct(map(_data, runs))), _fingerprints(runs, "fingerprint/data")),
        ("model", ", ".join(_distinct(map(_model, runs))), _fingerprints(runs, "fingerprint/model")),
        ("reward", ", ".join(_distinct(filter(None, map(_reward, runs)))), ""),
        _runs(runs),
        ("seeds", ", ".join(_distinct(shown(run.seed) for run in runs if run.seed is not None)), ""),
        ("β", ", ".join(f"{beta:g}" for beta in betas), "reward units per nat"),
        _steps(runs),
        _time(runs),
        _evaluation(runs),
        _reference(runs),
        ("git commit", ", ".join(c[:12] for c in _distinct(_all(runs, "git_commit"))), ""),
        _versions(runs),
    ]
    commands = _distinct(shlex.join(["shiqrun", *map(str, sweep["typed"])]) for sweep in sweeps if sweep.get("typed"))
    lines = "".join(f"<p><code>{escape(command)}</code></p>" for command in commands)
    return facts([entry for entry in entries if entry[1]]) + lines


def failures(runs: Sequence[Run]) -> str:
    """The runs that did not end well, each with the last thing that it said, and how many are still to come."""
    coming = _counts(runs, TO_COME)
    words = f"The sweep has not ended: {coming}. They are in no mean below." if coming else ""
    return _broken_off(runs) + (note(words) if words else "")


def _broken_off(runs: Sequence[Run]) -> str:
    left = [run for run in runs if run.status in ENDED_BADLY]
    if not left:
        return ""
    said = [run.error or _last_words(run.directory / "run.log") for run in left]
    each = zip(left, said, strict=True)
    items = "".join(f"<li><b>{escape(run.name)}</b> {run.status}: {escape(why)}</li>" for run, why in each)
    listed = f"<ul>{items}</ul>"
    if len(left) > MOST_LISTED:
        listed = folded(f"the {len(left)} runs and the last thing that each said", listed)
    words = "They are in no mean below; what there is of them is under “Runs and configs”."
    return f'<div class="alert"><p>{len(left)} of {len(runs)} runs did not finish. {words}</p>{listed}</div>'


def _counts(runs: Sequence[Run], statuses: Sequence[str]) -> str:
    """`1 running, 74 waiting`; empty where no run stands so."""
    counts = {status: sum(run.status == status for run in runs) for status in statuses}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _last_words(log: Path) -> str:
    """The last line of a log, less its time."""
    if not log.exists():
        return "it left no run.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "its run.log is empty")
    return re.sub(r"^\[?[\d\-: ,.T]+\]?\s*", "", last)[:300]


def _distinct(values: Iterable[str]) -> list[str]:
    """The values in their first order; `?` only where there is no other."""
    found = dict.fromkeys(values)
    return [value for value in found if value != "?"] or list(found)


def _all(runs: Sequence[Run], key: str) -> list[str]:
    return [str(run.summary[key]) for run in runs if run.summary.get(key) is not None]


def _fingerprints(runs: Sequence[Run], key: str) -> str:
    """The fingerprint where there is one, a warning where there are several."""
    found = _distinct(_all(runs, key))
    return f"fingerprint {found[0][:12]}" if len(found) == 1 else f"{len(found)} fingerprints" if found else ""


def _data(run: Run) -> str:
    path = run.config.get("data.path")
    return f"{run.data} {Path(str(path)).name}" if path and run.data != "?" else run.data


def _reward(run: Run) -> str:
    """What scored the policy's answers, empty where nothing did."""
    keys = ("eval.reward.path", "eval.reward.name", "eval.reward._target_")
    return next((str(run.config[key]) for key in keys if run.config.get(key)), "")


def _model(run: Run) -> str:
    path = run.config.get("model.path")
    return str(path or run.config.get("model.name") or "?")


def _runs(runs: Sequence[Run]) -> Fact:
    rest = _counts(runs, (*ENDED_BADLY, *TO_COME))
    return "runs", _counts(runs, [FINISHED]) or "0 finished" if rest else str(len(runs)), rest


def _steps(runs: Sequence[Run]) -> Fact:
    steps = sorted({int(run.final["steps"]) for run in runs if "steps" in run.final})
    return "optimiser steps", " to ".join(number(s) for s in dict.fromkeys((steps[0], steps[-1]))) if steps else "", ""


def _time(runs: Sequence[Run]) -> Fact:
    seconds = [run.final["seconds"] for run in runs if "seconds" in run.final]
    one = f"{duration(sum(seconds) / len(seconds))} a run" if len(seconds) > 1 else ""
    return "time of all runs" if one else "time", duration(sum(seconds)) if seconds else "", one


def _evaluation(runs: Sequence[Run]) -> Fact:
    pairs = [(r.final["seconds/eval"], r.final["seconds"]) for r in runs if {"seconds/eval", "seconds"} <= set(r.final)]
    shares = [run.final["eval_share"] for run in runs if "eval_share" in run.final]
    if total := sum(all_of_it for _, all_of_it in pairs):
        share = sum(spent for spent, _ in pairs) / total
    elif shares:
        share = sum(shares) / len(shares)
    else:
        return "in evaluation", "", ""
    largest = f"{max(shares):.0%} in the run with most" if len(shares) > 1 else ""
    return "in evaluation", f"{share:.1%} of the time", largest


def _reference(runs: Sequence[Run]) -> Fact:
    """What the cache of the reference's scores saved: the passes not made, less the reading."""
    cached = [run for run in runs if run.summary.get("reference_cached") is True]
    saved = sum(r.final.get("seconds/reference_computed", 0.0) - r.final.get("seconds/reference", 0.0) for r in cached)
    if not cached or saved <= 0:
        return "reference", "", ""
    return (
        "reference's scores",
        f"{duration(saved)} saved",
        f"{len(cached)} of {sum(bool(run.summary) for run in runs)} runs read them from the cache",
    )


def _versions(runs: Sequence[Run]) -> Fact:
    keys = _distinct(key for run in runs for key in run.summary if key.startswith("version/"))
    words = [f"{key.removeprefix('version/')} {'/'.join(_distinct(_all(runs, key)))}" for key in keys]
    return "versions", words[0] if words else "", ", ".join(words[1:])
