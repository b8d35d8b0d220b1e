"""`with_reference` gives a run its frozen reference: cached scores, a copy, or the policy without its adapter."""

import logging
import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

from shiqrun.batching.rows import Rows
from shiqrun.console import track
from shiqrun.models.reference import AdapterOff, FrozenReference, Reference, scores_in_batch
from shiqrun.models.reference_cache import CachedScores, cache_key, cached_scores
from shiqrun.training.plan import Run

log = logging.getLogger("shiqrun")


def with_reference(run: Run) -> tuple[Run, Reference | None, dict[str, Any]]:
    """Return the run, its frozen reference, and what caching the reference's scores cost or saved, for the summary.

    With `algo.reference=cached` the run's rows get the column `reference`, which the reference hands out.
    """
    kind = run.plan.algo.reference
    if kind == "none":
        return run, None, {}
    if kind == "frozen":
        return run, FrozenReference(run.policy), {}
    if kind == "adapter":
        return run, AdapterOff(run.policy), {}
    run, cost = _with_cached_scores(run)
    return run, scores_in_batch, cost


def _scores_of(run: Run, rows: Rows, name: str) -> CachedScores:
    """Return the reference's scores of a table of rows, read from the cache or computed now."""
    plan = run.plan
    return cached_scores(
        run.policy,
        rows,
        plan.cache_dir,
        key=cache_key(run.policy, rows, run.weights),
        tokens=plan.trainer.micro_batch_tokens,
        device=plan.hardware.device(),
        progress=partial(track, description=f"reference scores of {name}, micro-batches"),
    )


def _with_cached_scores(run: Run) -> tuple[Run, dict[str, Any]]:
    """Return the run with the reference's scores of both splits, read from the cache or computed now."""
    began, found, computing = time.perf_counter(), list[bool](), 0.0
    splits = {"train": run.encoded.train, "val": run.encoded.val}
    for name, rows in splits.items():
        tables = {name: rows} if rows.mismatched is None else {name: rows, f"{name}, mismatched": rows.mismatched}
        scored = {of: _scores_of(run, table, of) for of, table in tables.items()}
        if rows.mismatched is not None:
            joined = scored[f"{name}, mismatched"].scores
            rows = rows.with_mismatched(rows.mismatched.with_column("reference", joined))
        splits[name] = rows.with_column("reference", scored[name].scores)
        found += [table.found for table in scored.values()]
        computing += sum(table.seconds for table in scored.values())
    spent = time.perf_counter() - began
    log.info(
        "reference scores of %d trajectories: %s %.1f s",
        sum(map(len, splits.values())),
        "read from the cache in" if all(found) else "computed in",
        spent,
    )
    computed = computing if math.isfinite(computing) else None
    cost = {"seconds/reference": spent, "seconds/reference_computed": computed, "reference_cached": all(found)}
    return replace(run, encoded=replace(run.encoded, train=splits["train"], val=splits["val"])), cost
