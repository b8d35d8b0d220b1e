"""`shiqrun inspect` prints trajectories with actions and rewards, or what a run's policy learned at each action."""

import re
import shlex
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, MinLen
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.text import Text

from shiqrun.config import run_directory as rundir
from shiqrun.config.choices import build_data
from shiqrun.config.of_run import beta_of_run, data_node
from shiqrun.config.validate import COMMON_NODES, Schema, build, target
from shiqrun.errors import InputError
from shiqrun.report.data_tables import rows_to_show, tables
from shiqrun.report.terminal_credit import (
    Colours,
    Quantity,
    colour_scale,
    credit_lines,
    largest_table,
    legend_lines,
)
from shiqrun.report.terminal_messages import message_lines
from shiqrun.util.quoting import quote_for_shell
from shiqrun.util.summary import SUMMARY, read_summary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shiqrun.batching.logged_data import EncodedData
    from shiqrun.batching.rows import Rows
    from shiqrun.evaluation.credit import Credit
    from shiqrun.evaluation.subject import Trained

SCHEMA = Schema(
    root="shiqrun.commands.inspect.Root",
    nodes=COMMON_NODES,
    groups=[*COMMON_NODES],
)


CHOSEN = ("data", "model")
"""The config groups that training shares with `shiqrun inspect`."""


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/inspect.yaml` that are no groups."""

    limit: Annotated[int, Ge(0)]
    split: Literal["train", "val"]
    run: Annotated[str, MinLen(1)] | None
    checkpoint: Literal["policy", "last", "best"]
    tools: Literal["folded", "shown"]
    show: Quantity
    out: Annotated[str, MinLen(1)] | None
    dry_run: bool
    seed: Annotated[int, Ge(0)]
    run_dir: str


def run(config: DictConfig, run_dir: Path) -> None:
    """Print the trajectories of the config's data set in the tokenizer's tokens, or what a run learned on them."""
    if config.run is not None:
        _look_into(config)
        return
    if config.out is not None:
        raise InputError(f"out={config.out}: there is something to write with run=RUN_DIR only")
    from shiqrun.batching.logged_data import examples_of
    from shiqrun.models.policy import ModelSettings

    source, data = build_data(config.data)
    choice, _ = build(config.model, ModelSettings)
    tokenizer = choice.tokenizer(source, examples_of(source, "train", data))
    encoded = _encode(source, tokenizer, data, choice.context())
    if not config.dry_run:
        _print_data(_split(encoded, config), source, data, encoded.prompts, tokenizer, config)
    _print_tables(encoded)
    _print_methods(encoded)
    _print_next(config)


def _print_data(
    rows: "Rows",
    source: Any,
    data: Any,
    prompts: Set[str],
    tokenizer: "PreTrainedTokenizerBase",
    config: DictConfig,
) -> None:
    """Print the first trajectories, message by message."""
    from shiqrun.batching.row_examples import examples_of_rows
    from shiqrun.console import console

    brackets = ("", "") if console.color_system and not console.no_color else ("[", "]")
    picked = rows_to_show(rows, config.limit)
    examples = examples_of_rows(rows, picked, source, data, config.split, prompts)
    for row, example in zip(picked, examples, strict=True):
        if rows.parts is not None:
            console.print(f"part {rows.parts.name(row)}", style="bold")
        lines = message_lines(
            rows.trajectories[row],
            example,
            tokenizer,
            width=console.width,
            brackets=brackets,
            fold=config.tools == "folded",
        )
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
    if picked:
        where = "in brackets" if brackets[0] else "coloured"
        console.print(f"Actions are {where}; a number below is the reward of the action above it.", style="dim")


def _look_into(config: DictConfig) -> None:
    """Print the token view of a run: trajectories coloured by what the policy learned."""
    from shiqrun.console import console, waiting
    from shiqrun.evaluation.credit import credit, write_credit

    former = rundir.load(Path(config.run))
    source, data = build_data(data_node(config, former, SCHEMA))
    with waiting("loading the run's policy and its reference"):
        trained = _load_run(config, former)
    encoded = _encode(source, trained.tokenizer, data, _context(trained))
    if config.dry_run:
        _print_tables(encoded)
        _print_next(config)
        return
    rows, beta = _split(encoded, config), beta_of_run(former)
    rows = _with_offset(rows, encoded, former, config)
    with waiting("scoring the trajectories"):
        made = credit(
            trained.policy,
            trained.reference,
            rows,
            trained.tokenizer,
            beta=beta or 1.0,
            picked=rows_to_show(rows, config.limit),
        )
    _print_learned(made, config, former)
    _print_tables(encoded)
    if config.out is not None:
        try:
            write_credit(Path(config.out), made)
            console.print(config.out, highlight=False, markup=False)
        except OSError as error:
            raise InputError(f"out={config.out}: cannot be written ({error.strerror}); give another file") from error
    _print_next(config)


def _load_run(config: DictConfig, former: DictConfig) -> "Trained":
    """Return the run's policy and reference, on the device that `hardware` names."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.batching.logged_data import examples_of
    from shiqrun.evaluation.subject import trained_policy
    from shiqrun.models.policy import ModelSettings

    disable_progress_bar()
    set_verbosity_error()
    source, data = build_data(former.data)
    choice, model = build(former.model, ModelSettings)
    trained = trained_policy(
        Path(config.run),
        choice,
        model,
        checkpoint=config.checkpoint,
        seed=former.seed,
        autocast=None,
        weights=target(former.hardware).dtype,
        examples=lambda: examples_of(source, "train", data),
        source=source,
    )
    device = target(config.hardware).device()
    trained.policy.to(device)
    trained.reference.to(device)
    return trained


def _context(trained: "Trained") -> int | None:
    """Return the number of tokens that the policy can read, where its config says so."""
    found: Any = getattr(trained.policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    return found


def _with_offset(rows: "Rows", encoded: "EncodedData", former: DictConfig, config: DictConfig) -> "Rows":
    """Return the rows with the reward offset of the run's training: a mean is the one that the run wrote down."""
    from shiqrun.batching.reward_offsets import offset_center, reward_offsets

    how = former.algo.get("reward_offset", "none")
    summary = read_summary(Path(config.run))
    if how == "mean" and summary:
        how = _number(summary, "reward_offset", Path(config.run) / SUMMARY)
    return rows.with_column("offset", reward_offsets(rows, how, offset_center(encoded.train, how)))


def _number(summary: dict[str, Any], key: str, file: Path) -> float:
    """Return a number of a summary.

    Raises:
        InputError: it is missing or no number.
    """
    found = summary.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"{file}: {key} is {found!r:.40}, expected a number; restore the file")
    return float(found)


def _print_learned(made: "list[Credit]", config: DictConfig, former: DictConfig) -> None:
    from shiqrun.console import console

    known: dict[str, Colours] = {"256": "256", "truecolor": "truecolor"}
    colours = known.get(console.color_system or "", "") if not console.no_color else ""
    scale, quantity = colour_scale(made, config.show), config.show
    beta = beta_of_run(former)
    unit = "nats (the method has no beta)" if beta is None else f"reward units, beta {beta:g}"
    console.print(Text(f"{former.algo.name} on {former.data.name}, {config.run}", style="bold"), soft_wrap=True)
    for credit in made:
        console.print()
        for line in credit_lines(credit, quantity, scale, width=console.width, colours=colours):
            console.print(line, soft_wrap=True, highlight=False)
        console.print()
        console.print(largest_table(credit, quantity, scale, colours=colours))
    console.print()
    for line in legend_lines(quantity, scale, unit=unit, colours=colours) if made else ():
        console.print(line, highlight=False)
    console.print()


def _encode(source: Any, tokenizer: "PreTrainedTokenizerBase", data: Any, context: int | None) -> "EncodedData":
    from shiqrun.batching.logged_data import load
    from shiqrun.console import track

    return load(source, tokenizer, data, context=context, progress=lambda items, what: track(items, what))


def _split(encoded: "EncodedData", config: DictConfig) -> "Rows":
    return encoded.train if config.split == "train" else encoded.val


def _print_next(config: DictConfig) -> None:
    """Print what to do next: train on the same data, or see the run's report."""
    from shiqrun.console import say_dry_run, say_next

    if config.dry_run:
        say_dry_run()
    elif config.run:
        say_next(f"shiqrun report {quote_for_shell(config.run)}")
    else:
        say_next(shlex.join(["shiqrun", "train", *_chosen(), "dry_run=true"]))


def _chosen() -> list[str]:
    """Return the words of the command line that `shiqrun train` takes too, a mixture's parts among them."""
    words = HydraConfig.get().overrides.task
    return [word for word in words if re.match(r"\+*(\w*)", word)[1] in CHOSEN]  # type: ignore[index]


def _print_methods(encoded: "EncodedData") -> None:
    """Print which methods the data can feed, and why not the others, by the checks of `shiqrun train`."""
    from shiqrun.commands import train
    from shiqrun.config.method_configs import method_configs, without_hydra
    from shiqrun.console import console
    from shiqrun.report.data_tables import methods_table
    from shiqrun.training.feeding import facts_of, refusal, repeated_losses

    configs = {name: without_hydra(config) for name, config in method_configs(_chosen()).items()}
    base = train.plan(next(iter(configs.values())), Path())
    plans = {name: train.with_method(base, config) for name, config in configs.items()}
    refused = {name: why for name, plan in plans.items() if (why := refusal(plan, encoded))}
    fed = {name: plan for name, plan in plans.items() if name not in refused}
    console.print(methods_table(facts_of(encoded), list(fed), repeated_losses(fed), refused))


def _print_tables(encoded: "EncodedData") -> None:
    from shiqrun.console import console

    for table in tables(encoded):
        console.print(table)
