"""A comparison is planned from one data set, model and reward: its methods, their grids, and the runs of a sweep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from shiqrun.config import sweep_grid as grid
from shiqrun.config.compose import compose, parsed_overrides
from shiqrun.config.method_configs import GROUP, method_configs, method_names, without_hydra
from shiqrun.config.suggest import unknown_key
from shiqrun.console import console, count_of, say_dry_run
from shiqrun.errors import InputError
from shiqrun.report.number_text import format_duration
from shiqrun.report.seed_groups import ORDER
from shiqrun.sweeping.state import STATE, Comparison, Sweep, load
from shiqrun.util.nearest import did_you_mean

COMMAND, SEED, OF_METHOD = "compare", "seed", f"{GROUP}."
GIVEN_TO_RUNS = ("eval.test_prompts",)
"""Keys of `conf/compare.yaml` that `shiqrun train` has with other values."""

Values = dict[str, list[str]]
"""The values of each key, as they stand on a command line."""


@dataclass(frozen=True)
class Asked:
    """`Asked` is what a command line asks of a comparison.

    Attributes:
        methods: named ones; None for all that the data can feed.
        seeds: of every setting.
        of_methods: values of keys of the methods.
        common: values of other keys with several values, part of every grid.
        fixed: overrides that all runs share.
    """

    methods: list[str] | None
    seeds: list[str]
    of_methods: Values
    common: Values
    fixed: list[str]


def plan_comparison(
    config: DictConfig, overrides: Sequence[str], typed: Sequence[str], command: Any, candidates: Callable[..., Any]
) -> tuple[Sweep, grid.Composed]:
    """Return the sweep of a comparison without its directory, and the config of each of its runs.

    Args:
        config: of the comparison as a whole.
        overrides: of the command line.
        typed: the words after the command, as typed.
        command: checks configs.
        candidates: returns which methods can be compared, from the config of a run with each.

    Raises:
        InputError: an unknown method or key, a method that the data cannot feed, or nothing to compare by.
    """
    if config.sweep.search != "grid" or not grid.uses_own_launcher(config):
        raise InputError("shiqrun compare runs grids, by itself; leave out sweep.search, hydra/launcher, hydra/sweeper")
    asked = _asked(config, overrides)
    if asked.methods is None and not asked.of_methods:
        known = method_configs(asked.fixed, COMMAND)
        configs = {name: known[name] for name in _in_order(list(known))}
    else:
        configs = {name: _of_method(name, asked) for name in asked.methods or _in_order(method_names())}
    _expect_read(asked, configs)
    for one in configs.values():
        command.check(one)
    found = candidates({name: without_hydra(one) for name, one in configs.items()})
    if asked.methods is not None:
        _refuse_named(asked.methods, found.refused)
    left_out = dict(found.refused)
    if asked.methods is None:
        left_out |= {name: f"the same loss as algo={other}" for name, other in found.repeated.items()}
    methods = [name for name in configs if name not in left_out]
    if not methods:
        raise InputError(f"no method can be compared on these data: {'; '.join(dict.fromkeys(left_out.values()))}")
    each = [job for name in methods for job in _runs(name, configs[name], asked, command)]
    keys = [GROUP, *dict.fromkeys(key for name in methods for key in _grid(name, configs[name], asked)), SEED]
    sweep = grid.plan_sweep(COMMAND, each, keys, typed)
    sweep.comparison = Comparison(methods, left_out)
    return sweep, each


def _runs(name: str, config: DictConfig, asked: Asked, command: Any) -> Iterator[tuple[list[str], DictConfig]]:
    """Yield the overrides and a checked config of every run of a method.

    Values that the command line gives are composed and checked; those of the method's own grid and seeds change nothing
    but themselves.
    """
    values, checked = _grid(name, config, asked), dict[tuple[str, ...], DictConfig]()
    for point in product(*values.values()):
        setting = [f"{key}={value}" for key, value in zip(values, point, strict=True)]
        given = tuple(word for word in setting if word.partition("=")[0] in asked.of_methods | asked.common)
        if given not in checked:
            checked[given] = compose(COMMAND, [f"{GROUP}={name}", *given, *_single(config, asked)]) if given else config
            command.check(checked[given])
        for seed in asked.seeds:
            yield [f"{GROUP}={name}", *setting, f"{SEED}={seed}", *_single(config, asked)], checked[given]


def _asked(config: DictConfig, overrides: Sequence[str]) -> Asked:
    """Return what the overrides ask for.

    Raises:
        InputError: a key that all runs share has several values, or a method is unknown.
    """
    swept = set(grid.swept_keys(config, overrides))
    final = {o.get_key_element().lstrip("+"): o for o in parsed_overrides(COMMAND, config, overrides)}
    methods = _values(final.pop(GROUP)) if GROUP in final else None
    known = method_names()
    for name in methods or ():
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise InputError(f"algo={name}: no method of this name{hint}")
    seeds = _values(final.pop(SEED)) if SEED in final else [str(seed) for seed in config.compare.seeds]
    of_methods = {key: _values(o) for key, o in final.items() if key.startswith(OF_METHOD)}
    common = {key: _values(o) for key, o in final.items() if key not in of_methods and o.get_key_element() in swept}
    fixed = [str(o.input_line) for key, o in final.items() if key not in (*of_methods, *common)]
    given = {word.partition("=")[0].lstrip("+") for word in fixed} | set(common)
    fixed += [f"{key}={OmegaConf.select(config, key)}" for key in GIVEN_TO_RUNS if key not in given]
    return Asked(methods, list(dict.fromkeys(seeds)), of_methods, common, fixed)


def _values(override: Override) -> list[str]:
    """Return the values of an override as texts.

    Raises:
        InputError: an interval, of which there is no list.
    """
    if override.is_interval_sweep():
        raise InputError(f"{override.input_line}: a comparison needs values, as in algo.beta=0.03,0.1,0.3")
    if override.is_sweep_override():
        return list(dict.fromkeys(override.sweep_string_iterator()))
    return [str(override.get_value_element_as_str())]


def _in_order(names: Sequence[str]) -> list[str]:
    """Return names of methods in the order of figures and tables."""
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _of_method(name: str, asked: Asked) -> DictConfig:
    """Return the config of a run with a method, without what the comparison varies."""
    config = compose(COMMAND, [f"{GROUP}={name}", *asked.fixed])
    words = _single(config, asked)
    return config if words == asked.fixed else compose(COMMAND, [f"{GROUP}={name}", *words])


def _single(config: DictConfig, asked: Asked) -> list[str]:
    """Return the overrides that all runs of a method share."""
    values = [(key, v[0]) for key, v in asked.of_methods.items() if len(v) == 1 and _has(config, key)]
    return [*asked.fixed, *(f"{key}={value}" for key, value in values)]


def _has(config: DictConfig, key: str) -> bool:
    return key.removeprefix(OF_METHOD).partition(".")[0] in config[GROUP]


def _expect_read(asked: Asked, configs: Mapping[str, DictConfig]) -> None:
    """Check that some method has each key of methods that was given.

    Raises:
        InputError: none has; the message suggests the nearest key.
    """
    known = [f"{OF_METHOD}{key}" for config in configs.values() for key in config[GROUP] if key[0] != "_"]
    for key in asked.of_methods:
        if not any(_has(config, key) for config in configs.values()):
            raise InputError(unknown_key(key, dict.fromkeys(known)))


def _grid(name: str, config: DictConfig, asked: Asked) -> Values:
    """Return the values that a comparison tries of each key for a method: those given, else those of its own grid.

    Raises:
        InputError: the grid of the method's YAML names a key that it does not have.
    """
    own = {f"{OF_METHOD}{key}": [str(v) for v in values] for key, values in config[GROUP].get("grid", {}).items()}
    for key in own:
        if not _has(config, key):
            raise InputError(f"conf/algo/{name}.yaml: grid has {key.removeprefix(OF_METHOD)}, no key of the method")
    given = {key: values for key, values in asked.of_methods.items() if _has(config, key)}
    several = {key: values for key, values in given.items() if len(values) > 1}
    kept = {key: values for key, values in own.items() if key not in given}
    return {**kept, **several, **asked.common}


def _refuse_named(methods: Sequence[str], refused: Mapping[str, str]) -> None:
    """Raise the reason for which a named method cannot be compared.

    Raises:
        InputError: one of them cannot.
    """
    for name in methods:
        if name in refused:
            why = refused[name].removeprefix(f"algo={name} ")
            raise InputError(f"algo={name}: cannot be compared on these data: {why}")


def is_same(folder: Path, typed: Sequence[str]) -> bool:
    """Return whether a folder holds the comparison that these words of the command line make.

    Raises:
        InputError: it holds a sweep that cannot be read.
    """
    return (folder / STATE).is_file() and load(folder).typed == list(typed)


def print_comparison(sweep: Sweep, seconds: float, parallel: int) -> None:
    """Print the runs of a comparison and about how long they take, which is what a dry run does.

    Args:
        sweep: the comparison.
        seconds: that a run takes.
        parallel: runs at a time.
    """
    assert sweep.comparison is not None
    table = Table(
        title=f"{count_of(len(sweep.jobs), 'run')} of {len(sweep.comparison.methods)} methods", title_justify="left"
    )
    for column in ("method", "tried", "seeds", "runs"):
        table.add_column(column, overflow="fold", justify="right" if column == "runs" else "left")
    for name in sweep.comparison.methods:
        own = [job.swept for job in sweep.jobs if job.swept[GROUP] == name]
        keys = [key for key in sweep.swept if key not in (GROUP, SEED) and key in own[0]]
        tried = [f"{key}={','.join(dict.fromkeys(swept[key] for swept in own))}" for key in keys]
        seeds = ",".join(dict.fromkeys(swept[SEED] for swept in own))
        table.add_row(name, " ".join(tried), seeds, str(len(own)))
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, why in sweep.comparison.left_out.items():
        reasons.setdefault(why.replace(f"algo={name} ", ""), []).append(name)
    for why, names in reasons.items():
        console.print(f"left out: {', '.join(names)}: {why}", markup=False, highlight=False, soft_wrap=True)
    one, whole = format_duration(seconds), format_duration(seconds * len(sweep.jobs) / parallel)
    how = f"{parallel} at a time" + " if each has the machine to itself" * (parallel > 1)
    console.print(
        f"about {whole}: {one} a run by a micro-batch and some answers timed here, {how}; value networks take longer",
        highlight=False,
        soft_wrap=True,
    )
    say_dry_run()
