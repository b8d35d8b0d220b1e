"""A search is planned from overrides with intervals or several values: its space, and what each of its jobs gets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig
from rich.table import Table

from shiqrun.config import sweep_grid as grid
from shiqrun.config.compose import compose, parsed_overrides
from shiqrun.console import console, count_of, say_next
from shiqrun.errors import InputError
from shiqrun.sweeping.search import SEED, Dimension, Search, direction
from shiqrun.sweeping.state import Sweep
from shiqrun.sweeping.wandb_sweep import FILE, wandb_sweep
from shiqrun.util.atomic import write_atomic
from shiqrun.util.nearest import did_you_mean
from shiqrun.util.quoting import as_override, quote_for_shell

GRID, SEARCHES = "grid", ("optuna", "wandb")


def is_search(config: DictConfig) -> bool:
    """Return whether a command line asks for a search instead of a grid.

    Raises:
        InputError: it asks for neither.
    """
    asked = config.get("sweep", {}).get("search", GRID)
    if asked not in (GRID, *SEARCHES):
        known = (GRID, *SEARCHES)
        raise InputError(f"sweep.search: met {asked!r}, expected {', '.join(known)}{did_you_mean(str(asked), known)}")
    return asked in SEARCHES


def plan_search(config: DictConfig, overrides: Sequence[str], typed: Sequence[str]) -> tuple[Sweep, list[DictConfig]]:
    """Return the sweep of a search without its directory, and the configs that stand for all of its jobs.

    The configs have each choice and both ends of each interval once, so that what cannot work is found before it runs.

    Args:
        config: of the sweep as a whole.
        overrides: of the command line.
        typed: the words after the command, as typed.

    Raises:
        InputError: there is nothing to search, a key's values cannot be searched, or the metric has no direction.
    """
    if not grid.uses_own_launcher(config):
        raise InputError(
            f"sweep.search={config.sweep.search}: starts its jobs itself; leave out hydra/launcher and hydra/sweeper"
        )
    if config.sweep.search == "wandb" and config.sweep.metric is None:
        raise InputError("sweep.search=wandb: W&B must know the metric beforehand; set sweep.metric=val/reward, say")
    swept = set(grid.swept_keys(config, overrides))
    final = {o.get_key_element(): o for o in parsed_overrides(grid.COMMAND, config, overrides)}
    searched = {key: override for key, override in final.items() if override.is_sweep_override() and key in swept}
    seeds = _seeds(searched.pop(SEED)) if SEED in searched else []
    space = {key: dimension_of(override) for key, override in searched.items()}
    if not space:
        raise InputError(
            f"sweep.search={config.sweep.search}: nothing to search; give keys several values or an interval, as in  "
            "algo=shiq,copg 'algo.beta=tag(log, interval(0.01, 1))'"
        )
    given = [str(o.input_line) for key, o in final.items() if key not in swept]
    corners = [compose(grid.COMMAND, [*given, *words]) for words in _corners(space, seeds)]
    fixed, first = grid.words_for_jobs(given), corners[0]
    search = Search(
        space,
        trials=config.sweep.trials,
        seeds=seeds,
        seed=config.sweep.seed,
        metric=config.sweep.metric,
        direction=direction(config.sweep.metric, config.sweep.direction),
        words=fixed,
        max_steps=None if "trainer.max_steps" in space else first.trainer.max_steps,
        max_epochs=first.trainer.max_epochs,
        gpus=first.hardware.devices if first.hardware.accelerator in ("gpu", "auto") else 0,
    )
    return Sweep(Path(), grid.JOBS_OF_IT, [grid.COMMAND, *typed], str(Path.cwd()), fixed, [], search), corners


def place(sweep: Sweep, folder: Path, config: DictConfig, config_dir: str | None) -> Sweep:
    """Return the sweep with its directory: its jobs get W&B's group and tags, and the folder of further YAML."""
    sweep.folder, search = folder, sweep.search
    assert search is not None
    of_logger = grid.labels(config, {}, folder)
    words = [f"logger.group={as_override(of_logger['group'])}"] if of_logger else []
    words += ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    tags = [str(tag) for tag in of_logger["tags"]] if of_logger else None
    sweep.search = replace(search, words=[*search.words, *words], tags=tags)
    return sweep


def write_for_wandb(sweep: Sweep, folder: Path | None, config: DictConfig, config_dir: str | None) -> int:
    """Write what `wandb sweep` reads into a directory and print what to do with it; without a directory print it."""
    assert sweep.search is not None
    words = [] if config.logger.name == "wandb" or "wandb" in config.logger.also else ["logger=wandb"]
    words += ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    project = config.logger.get("project") or "shiqrun"
    text = wandb_sweep(sweep.search, folder or Path(config.run_dir), project, words)
    if folder is None:
        print(text, end="")
        return 0
    file = folder / FILE
    write_atomic(file, text)
    console.print(file, highlight=False, soft_wrap=True)
    console.print("wandb sweep prints a line `wandb agent ...`: give that line here, once for each job at a time")
    say_next(f"wandb sweep {quote_for_shell(file)}", f"at the end: shiqrun report {quote_for_shell(folder)}")
    return 0


def print_search(sweep: Sweep) -> None:
    """Print the space of a search and what is optimised, which is what a dry run does."""
    search = sweep.search
    assert search is not None
    seeds = f" by {count_of(len(search.seeds), 'seed')}" if search.seeds else ""
    table = Table(title=f"{count_of(search.trials, 'trial')}{seeds} of shiqrun {sweep.command}", title_justify="left")
    table.add_column("key")
    table.add_column("values", overflow="fold")
    for key, dimension in search.space.items():
        table.add_row(key, dimension.text())
    console.print(table)
    words = {1: "highest", -1: "lowest", 0: "best"}
    what = ", else ".join(search.metrics)
    console.print(f"searched for the {words[search.direction]} {what}", highlight=False, soft_wrap=True)


def dimension_of(override: Override) -> Dimension:
    """Return what a search may give to the key of an override, in Hydra's own syntax of sweeps.

    Raises:
        InputError: the values cannot be searched.
    """
    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        kind: Any = "int" if isinstance(low, int) and isinstance(high, int) else "float"
        if low is None or high is None or not low < high or (log and low <= 0):
            raise InputError(
                f"{override.input_line}: expected interval(LOW, HIGH) with LOW < HIGH, above 0 with tag(log, ...)"
            )
        return Dimension(kind, low=low, high=high, log=log)
    if isinstance(value, RangeSweep) and not log:
        numbers = list(value.range())
        if len(numbers) > 1:
            kind = "int" if all(isinstance(number, int) for number in numbers) else "float"
            return Dimension(kind, low=min(numbers), high=max(numbers), step=abs(numbers[1] - numbers[0]))
    texts = list(dict.fromkeys(override.sweep_string_iterator()))
    if not texts:
        raise InputError(f"{override.input_line}: has no value")
    return Dimension("choice", texts)


def _seeds(override: Override) -> list[str]:
    """Return the seeds of every trial.

    Raises:
        InputError: an interval, which is no list of seeds.
    """
    if override.is_interval_sweep():
        raise InputError(f"{override.input_line}: seeds are not searched; give those of each trial, as seed=1,2,3")
    return list(dict.fromkeys(override.sweep_string_iterator()))


def _corners(space: dict[str, Dimension], seeds: Sequence[str]) -> list[list[str]]:
    """Return the overrides of a few jobs in which each choice and each end of an interval stands once."""
    ends = {key: dimension.ends() for key, dimension in space.items()} | ({SEED: list(seeds)} if seeds else {})
    most = max(map(len, ends.values()))
    return [[f"{key}={values[min(k, len(values) - 1)]}" for key, values in ends.items()] for k in range(most)]
