"""This module prints a table of the plan before training, and a table of metrics after it."""

import re
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path

from rich.columns import Columns
from rich.panel import Panel
from rich.table import Table

from shiqrun.console import console, number, say_next
from shiqrun.data.source import ExactEvaluation
from shiqrun.evaluation.result_files import spread
from shiqrun.training.memory_of_run import memory_lines
from shiqrun.training.plan import Run
from shiqrun.training.samples_jsonl import append_samples
from shiqrun.training.verdict import verdict
from shiqrun.util.intervals import is_bound
from shiqrun.util.quoting import quote_for_shell

EPISODES = 6
FIRST = [f"val/{name}" for name in ("regularised_return", "regret", "reward", "kl", "win_rate", "illegal", "loss")]
SHOWN = re.compile(r"val/(pass@\d+|accuracy|reward_per_turn|official_score|completions/(mean_length|eos_rate))")
"""What the last table shows beside FIRST; all other metrics are in its files."""

TESTED = ("test/reward", "test/regret", "test/kl", "test/win_rate", "test/pass@1")
"""The metrics of the test split that a run prints at its end."""


def print_plan_table(run: Run) -> None:
    """Print a table of a run's rows, steps, parameters, estimated memory, and of the rows that were dropped."""
    train, val = run.encoded.train, run.encoded.val
    table = Table(
        title=f"{run.plan.names['algo']} on {run.plan.names['data']}", show_header=False, title_justify="left"
    )
    table.add_column(style="dim")
    table.add_column()
    counts = "{:,} trajectories, {:,} prompts, {:,} tokens, {:,} actions"
    for name, rows in (("train", train), ("val", val)):
        table.add_row(name, counts.format(len(rows), rows.prompts, rows.lengths.sum(), rows.actions.sum()))
    for why, n in run.encoded.dropped.most_common():
        table.add_row("dropped", f"{n:,} {why}")
    if run.plan.algo.reward_offset != "none":
        table.add_row("reward offset", f"{run.plan.algo.reward_offset}: {run.offset:.4g} on average")
    if every := run.plan.algo.reference_every:
        decay = run.plan.algo.reference_decay
        how = f"moves, keeping {decay:g} of its weights," if decay else "becomes the policy"
        table.add_row("reference", f"{how} every {every:,} steps")
    size = run.plan.trainer.batch_size
    logged = run.plan.shares.get("logged", 0)
    epochs = run.max_steps / train.steps_per_epoch(logged) if logged else 0.0
    table.add_row("steps", f"{run.max_steps:,} of {size} trajectories, {epochs:.3g} epochs of the logged ones")
    for name, text in _rollouts(run):
        table.add_row(name, text)
    visits = repeat(1.0) if train.shares is None else train.shares.of_unit().tolist()
    read = round(sum(train.tokens_read(unit) * often for unit, often in zip(train.units, visits, strict=False)))
    table.add_row("reads", f"{read:,} tokens an epoch" + (", packed" if train.packed else " and padding between them"))
    trained = sum(p.numel() for p in run.policy.parameters() if p.requires_grad)
    table.add_row("parameters", f"{sum(p.numel() for p in run.policy.parameters()):,}, {trained:,} trained")
    for line in memory_lines(run):
        table.add_row("memory", line)
    console.print(table)


def _rollouts(run: Run) -> list[tuple[str, str]]:
    """Return the lines of the table about sampling during training; none where the run does not sample."""
    s = run.plan.rollout
    if s is None:
        return []
    of_batch = ", ".join(f"{n:,} {source}" for source, n in run.plan.shares.items())
    low, high = s.temperature
    how = f"temperature {low:g} to {high:g}, top-p {s.top_p:g}, at most {s.max_new_tokens:,} tokens"
    episodes = "episodes " if run.plan.source.environment() is not None else ""
    asked = f"{run.encoded.train.prompts:,} prompts, {s.samples_per_prompt} {episodes}of each at a time"
    return [
        ("batches", f"{of_batch} trajectories"),
        ("rollouts", f"{s.engine}: {asked}, {how}; new weights every {s.model_update_interval} steps"),
    ]


def print_metrics_table(
    run_dir: Path, before: dict[str, float], after: dict[str, float], seconds: float, pairs: int = 0
) -> None:
    """Print the metrics before and after training, with 95 % intervals where they are known, and the run's files."""
    table = Table(title=f"after {seconds:.0f} s", title_justify="left")
    optimum = after.get("val/optimum")
    columns = ["metric", "reference", "trained", *(["optimum"] if optimum is not None else [])]
    for column in columns:
        table.add_column(column, justify="left" if column == "metric" else "right")
    best = {"val/regularised_return": optimum, "val/regret": 0.0}
    best |= {f"val/{name}": after[key] for name in ("reward", "kl") if (key := f"val/optimum_{name}") in after}
    shown, known = main_metrics(after)
    for name in shown:
        row = [
            name,
            number(before[name]) if name in before else "",
            f"{number(after[name])} {spread(after, name)}".strip(),
        ]
        if optimum is not None:
            row.append(number(best[name]) if name in best else "")
        table.add_row(*row)
    console.print(table)
    if known > len(shown):
        console.print(f"{known - len(shown)} more in summary.json; docs/metrics.md explains all", style="dim")
    tested = {name: f"{name} {number(after[name])} {spread(after, name)}" for name in TESTED if name in after}
    if tested:
        console.print(f"on the test split: {', '.join(map(str.strip, tested.values()))}", highlight=False)
    if said := verdict(before, after, pairs):
        console.print(said, style="bold", highlight=False)
    for where in ("policy", "reward_model", "metrics.csv", "summary.json"):
        if (run_dir / where).exists():
            console.print(run_dir / where, highlight=False)
    place = quote_for_shell(run_dir)
    tokens = [f"shiqrun inspect run={place}"] if (run_dir / "credit.jsonl").exists() else []
    say_next(f"shiqrun report {place}", *tokens)


def main_metrics(after: Mapping[str, float]) -> tuple[list[str], int]:
    """Return the names of the metrics that say how a run ended, most important first, and how many there are in all."""
    names = [name for name in after if name.startswith("val/")] or [n for n in after if n.startswith("train/")]
    known = {name for name in names if not is_bound(name) and not name.startswith("val/optimum")}
    known -= {"val/reference_illegal"}
    shown = {name for name in known if name in FIRST or SHOWN.fullmatch(name)} or known
    return sorted(shown, key=_rank), len(known)


def _rank(name: str) -> tuple[int, str]:
    """Return a sort key: the metrics of `FIRST` in that order, the rest by name."""
    padded = re.sub(r"\d+", lambda digits: digits[0].zfill(4), name)  # pass@2 before pass@10
    return FIRST.index(name) if name in FIRST else len(FIRST), padded


def draw_episodes(run: Run, exact: ExactEvaluation) -> None:
    """Draw a few sampled episodes of a problem with an exact optimum and keep them in `samples.jsonl`."""
    policy = run.policy.eval()
    drawn = exact.draw_episodes(policy.model, EPISODES, run.plan.seed)
    policy.train()
    console.print("Episodes of the trained policy on held-out prompts:")
    console.print(Columns([Panel(e.drawing, title=f"reward {e.reward:.2g}", expand=False) for e in drawn]))
    step = run.max_steps
    rows = [
        {"step": step, "prompt": e.prompt, "completion": e.completion, "reward": e.reward, "kl": None} for e in drawn
    ]
    append_samples(run.plan.run_dir / "samples.jsonl", rows)
