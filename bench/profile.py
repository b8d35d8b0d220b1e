"""This benchmark shows where a run spends its time, by stage and by function: `python -m bench.profile [OVERRIDE ...]`.

One `shiqrun train` with the overrides runs in this process. Every stage is given the CPU seconds of the process while
it was the innermost one: start (imports and config; data and model), reference pass, steps, evaluation (completions of
the reference and of the policy, measuring them, scoring them, loss on data, the rest), export. `--functions N` also
prints the N functions with the most own time of each stage; profiling them makes all of them slower. Without overrides
a tiny model learns from logged programs for 40 steps. Options: `--functions N`, `--json FILE`, `--seconds wall`.
"""

import argparse
import cProfile
import io
import json
import pstats
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SMALL = ("data=programs", "algo=shiq", "eval.reward=programs", "eval.every=20", "trainer.max_steps=40", "logger=none")
START, BETWEEN = "start: imports and config", "between steps"
STAGES: dict[str, str] = {
    "shiqrun.training.prepare:prepare_run": "start: data and model",
    "shiqrun.training.run:execute": BETWEEN,
    "shiqrun.training.run:with_estimates": "prompt values",
    "shiqrun.training.run:with_reference": "reference pass",
    "shiqrun.training.run:_exact": "evaluation: exact",
    "shiqrun.training.step.method:Method.training_step": "steps",
    "shiqrun.rollout.worker:RolloutWorker.sample": "rollouts",
    "shiqrun.training.callbacks:Validation.run": "evaluation: the rest",
    "shiqrun.training.callbacks:Validation._begin": "evaluation: the rest",
    "shiqrun.training.callbacks:Validation._on_data": "evaluation: loss on data",
    "shiqrun.evaluation.evaluator:CompletionEvaluator.begin": "evaluation: the reference",
    "shiqrun.sampling.sampler:CompletionSampler.sample": "evaluation: sampling",
    "shiqrun.sampling.sampler:CompletionSampler.measure": "evaluation: measuring",
    "shiqrun.evaluation.evaluator:score_completions": "evaluation: scoring",
    "shiqrun.evaluation.evaluator:completion_metrics": "evaluation: intervals",
    "shiqrun.training.callbacks:Checkpoints.on_train_batch_end": "checkpoints",
    "shiqrun.training.run:finish": "export",
}
"""Where stages begin; one inside another takes its time from it."""
WHOLE = ("rollouts", "evaluation: the reference")


class Stages:
    """`Stages` gives the seconds of a clock, and the functions called, to the innermost stage.

    Attributes:
        seconds: by stage.
        calls: times that each stage began.
    """

    def __init__(self, clock: Callable[[], float], profiles: bool) -> None:
        self.clock = clock
        self.profiles: dict[str, cProfile.Profile] | None = defaultdict(cProfile.Profile) if profiles else None
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.stack: list[str] = []
        self.since = 0.0
        self.originals: list[tuple[Any, str, Any]] = []

    def _switch(self, change: Callable[[], Any]) -> None:
        if self.stack and self.profiles is not None:
            self.profiles[self.stack[-1]].disable()
        now = self.clock()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        change()
        self.since = self.clock()
        if self.stack and self.profiles is not None:
            self.profiles[self.stack[-1]].enable()

    def enter(self, stage: str) -> None:
        """Begin a stage inside the present one, which keeps its own name where it is to be shown whole."""
        stage = self.stack[-1] if self.stack and self.stack[-1] in WHOLE else stage
        self.calls[stage] += 1
        self._switch(lambda: self.stack.append(stage))

    def leave(self) -> None:
        """End the innermost stage."""
        self._switch(self.stack.pop)

    def watch(self, place: str, stage: str) -> None:
        """Make a function or method, given as MODULE:NAME, a stage."""
        module, _, name = place.partition(":")
        owner: Any = import_module(module)
        *parents, last = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, last)

        @wraps(function)
        def watched(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **options)  # its time goes to the stage that the main thread is in
            self.enter(stage)
            try:
                return function(*args, **options)
            finally:
                self.leave()

        self.originals.append((owner, last, function))
        setattr(owner, last, watched)

    def restore(self) -> None:
        """Put the functions back that were made stages."""
        for owner, name, function in reversed(self.originals):
            setattr(owner, name, function)


def profile(overrides: Sequence[str], *, clock: Callable[[], float], functions: int) -> Stages:
    """Run `shiqrun train` with overrides in this process; return its time by stage.

    Raises:
        SystemExit: the run failed.
    """
    stages = Stages(clock, profiles=functions > 0)
    stages.enter(START)
    for place, stage in STAGES.items():
        stages.watch(place, stage)
    try:
        if code := import_module("shiqrun.cli").main(["train", *overrides]):
            raise SystemExit(code)
    finally:
        stages.restore()
    stages.leave()
    return stages


def show(stages: Stages, functions: int) -> None:
    """Print the stages, and the functions with the most own time in each."""
    whole, console = sum(stages.seconds.values()), Console()
    table = Table("stage", title="where the time goes")
    for column in ("seconds", "share", "times"):
        table.add_column(column, justify="right")
    for name, seconds in sorted(stages.seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.0%}", str(stages.calls[name]))
    evaluation = sum(seconds for name, seconds in stages.seconds.items() if name.startswith("evaluation"))
    table.add_row("all", f"{whole:.2f}", "100%", "")
    table.add_row("evaluation together", f"{evaluation:.2f}", f"{evaluation / whole:.0%}", "")
    console.print(table)
    for name in sorted(stages.profiles or {}, key=lambda name: -stages.seconds[name]):
        text = io.StringIO()
        pstats.Stats(stages.profiles[name], stream=text).strip_dirs().sort_stats("tottime").print_stats(functions)  # type: ignore[index]
        lines = text.getvalue().split("filename:lineno(function)\n")[-1].rstrip().splitlines()
        console.print(f"\n[bold]{name}[/]: own time, functions", highlight=False)
        for line in lines:
            calls, own, _, _, _, function = line.split(maxsplit=5)
            console.print(f"{own:>8} s {calls:>16} calls  {function}", highlight=False, markup=False)


def main() -> None:
    """Profile one run and print its stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of `shiqrun train`; a small run without any")
    parser.add_argument("--functions", type=int, default=0, help="functions to print for each stage")
    parser.add_argument("--seconds", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the seconds by stage here")
    args = parser.parse_args()
    clock = time.process_time if args.seconds == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        places = [f"run_dir={folder}/run", f"cache_dir={folder}/cache"]
        stages = profile([*places, *(args.overrides or SMALL)], clock=clock, functions=args.functions)
    show(stages, args.functions)
    if args.json:
        args.json.write_text(json.dumps(dict(stages.seconds), indent=1) + "\n")


if __name__ == "__main__":
    main()
