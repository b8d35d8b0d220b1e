"""A `SearchRunner` runs the trials of a search: Optuna proposes the values of each by those that have ended."""

import math
import time
from collections.abc import Mapping, Sequence

from shiqrun.console import number
from shiqrun.errors import InputError
from shiqrun.sweeping.run import Runner
from shiqrun.sweeping.search import Search, Value, short
from shiqrun.sweeping.state import Job, Sweep, metrics_of, summary
from shiqrun.sweeping.study import Study
from shiqrun.sweeping.trials import write_trials
from shiqrun.util.metric_directions import direction_of
from shiqrun.util.nearest import did_you_mean
from shiqrun.util.quoting import slug

HOPELESS = 5
"""Failed trials after which a search ends of which no trial has succeeded."""
LOOK_SECONDS = 1.0


class SearchRunner(Runner):
    """A search runner asks Optuna for a trial whenever a slot is free, until all trials of the search have ended.

    Every state of a trial is on disk before the next step: a trial is in `optuna.db` before its jobs are in
    `sweep.json`, and they have ended before the trial has a result. A killed search therefore goes on with the trials
    that have no result, and no trial runs twice or is lost.

    Args:
        sweep: with a search.
        program: the words that start the command.
        parallel: number of processes at a time.
    """

    def __init__(self, sweep: Sweep, program: Sequence[str], parallel: int) -> None:
        super().__init__(sweep, program, parallel)
        assert sweep.search is not None
        self.search: Search = sweep.search
        self.study = Study(sweep.folder, self.search)
        self.wrong: str | None = None
        self._looked_at = 0.0

    def run(self) -> int:
        """Run the trials that have no result; return the exit code as `Runner.run` does.

        Raises:
            InputError: the jobs do not measure `sweep.metric`; or what `Runner.run` raises.
        """
        code = super().run()
        if self.wrong is not None:
            raise InputError(self.wrong)
        return code

    def _unfinished(self) -> list[Job]:
        """Return the jobs of trials without a result; those that a kill left without jobs get them."""
        for trial in self.study.trials():
            if trial.number >= len(self.sweep.jobs) // self.search.jobs_per_trial:
                self._add_jobs(trial.values)
        waiting: list[Job] = []
        for trial in self.study.trials():
            if trial.state == "running":
                self._settle(trial.number)
                waiting += [job for job in self._jobs_of(trial.number) if job.status != "finished"]
        return waiting

    def _refill(self, waiting: list[Job]) -> bool:
        if not waiting and len(self.study.trials()) < self.search.trials and not self._is_hopeless():
            waiting += self._add_jobs(self.study.ask().values)
            self.sweep.save()
        return bool(waiting)

    def _is_hopeless(self) -> bool:
        states = [trial.state for trial in self.study.trials()]
        return "complete" not in states and states.count("fail") >= HOPELESS

    def _add_jobs(self, values: Mapping[str, Value]) -> list[Job]:
        """Add the jobs of the next trial, which has these values, to the sweep, and return them."""
        search, added = self.search, []
        for settings in search.settings(values):
            numbered = len(self.sweep.jobs)
            name = ",".join(f"{key}={short(value)}" for key, value in settings.items())
            added.append(
                Job(
                    numbered,
                    slug(f"{numbered}_{name}"),
                    search.words_of(settings),
                    {key.lstrip("+"): value for key, value in settings.items()},
                    max_steps=search.max_steps,
                    max_epochs=search.max_epochs,
                    gpus=search.gpus,
                )
            )
            self.sweep.jobs.append(added[-1])
        return added

    def _jobs_of(self, trial: int) -> list[Job]:
        each = self.search.jobs_per_trial
        return self.sweep.jobs[trial * each : (trial + 1) * each]

    def _note_end(self, job: Job) -> None:
        self._settle(job.number // self.search.jobs_per_trial)

    def _settle(self, trial: int) -> None:
        """Tell Optuna how a trial has ended, once all its jobs have."""
        jobs = self._jobs_of(trial)
        if any(job.status not in ("finished", "failed") for job in jobs) or self.wrong is not None:
            return
        values = None
        if all(job.status == "finished" for job in jobs):
            values = [self._measured(job) for job in jobs]
            if self.wrong is not None:
                return
        known = [value for value in values or [] if value is not None]
        value = math.fsum(known) / len(known) if values and len(known) == len(jobs) else None
        self.study.tell(trial, value)
        self.sweep.save()
        write_trials(self.sweep, self.study)
        self._say(trial, value)

    def _say(self, trial: int, value: float | None) -> None:
        if value is None:
            self.view.say(f"trial {trial}  failed")
            return
        best = self.study.best()
        told = f"  best {number(best.value)} (trial {best.number})" if best is not None else ""
        self.view.say(f"trial {trial}  {self.search.metric} {number(value)}{told}")

    def _measured(self, job: Job) -> float | None:
        """Return the metric of a finished job, choosing it where none was given; None where the job lacks it."""
        found = metrics_of(summary(self.sweep.directory_of(job)))
        if self.search.metric is None:
            self._choose(found)
        elif self.search.direction == 0:
            self.search.direction = direction_of(self.search.metric) or 1
        names = {**self.view.latest(job), **found}  # a metric that is not finite is in metrics.csv alone
        if self.search.metric not in names and self.study.best() is None:
            self._refuse(names)
        return found.get(self.search.metric or "")

    def _choose(self, found: Mapping[str, float]) -> None:
        self.search.metric = next((name for name in self.search.metrics if name in found), None)
        if self.search.metric is None:
            self._refuse(found)
            return
        self.search.direction = self.search.direction or direction_of(self.search.metric) or 1
        self.sweep.save()

    def _refuse(self, found: Mapping[str, float]) -> None:
        """End the search, because its jobs do not measure what it optimises."""
        metric = self.search.metric or "val/reward"
        near = did_you_mean(metric, found) or f"; measured are {', '.join(sorted(found))}"
        self.wrong = (
            f"sweep.metric={metric}: the jobs do not measure it{near}; go on with  shiqrun sweep "
            f"sweep.resume={self.sweep.folder} sweep.metric=NAME"
        )
        self._asked += 1

    def _watch(self) -> None:
        """Look for the metric among those of a running job's first evaluation, so that a typing error costs little."""
        metric = self.search.metric
        if metric is None or not metric.startswith("val/") or time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        for process in self.running:
            names = self.view.latest(process.job)
            if self.wrong is None and metric not in names and any(name.startswith("val/") for name in names):
                self._refuse(names)
