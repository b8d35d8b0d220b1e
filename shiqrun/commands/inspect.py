"""`shiqrun inspect`: prints trajectories with the actions marked and the rewards under them, and what the data hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from shiqrun.commands import rundir
from shiqrun.commands.validate import Schema, build
from shiqrun.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shiqrun.data.batches import Rows
    from shiqrun.data.encode import EncodedTrajectory
    from shiqrun.data.module import Encoded

SCHEMA = Schema(
    root="shiqrun.commands.inspect.Root",
    nodes={
        "data": "shiqrun.data.module.DataSettings",
        "model": "shiqrun.models.policy.ModelSettings",
        "hardware": None,
        "logger": None,
        "trainer": "shiqrun.commands.inspect.Unused",
    },
)
ACTION_STYLES = ("black on green", "black on cyan")  # in turn, so that the tokens can be told apart
WORD_ROOM = 10  # columns before the right margin where a line is rather broken before a word than within it


@dataclass(frozen=True, kw_only=True)
class Root:
    """Keys of `conf/inspect.yaml` that are no groups."""

    limit: Annotated[int, Ge(0)]
    run: str | None
    dry_run: bool
    seed: Annotated[int, Ge(0)]
    run_dir: str


@dataclass(frozen=True, kw_only=True)
class Unused:
    """The keys of `trainer:` that a model may bring along."""

    learning_rate: float | None


def run(config: DictConfig, run_dir: Path) -> None:
    """Prints what the config's data set is for the config's tokenizer."""
    from shiqrun.console import console, track
    from shiqrun.data.module import DataSettings, examples_of, load
    from shiqrun.models.policy import ModelSettings

    looked_at = _of_run(Path(config.run)) if config.run is not None else config
    source, data = build(looked_at.data, DataSettings)
    choice, _ = build(looked_at.model, ModelSettings)
    tokenizer = choice.tokenizer(source, examples_of(source, "train", data))
    encoded = load(source, tokenizer, data, context=choice.context(), progress=lambda items, what: track(items, what))
    if config.dry_run:
        console.print(OmegaConf.to_yaml(config, resolve=True), highlight=False, markup=False)
    else:
        brackets = ("", "") if console.color_system and not console.no_color else ("[", "]")
        for trajectory in encoded.train.trajectories[: config.limit]:
            for line in rendered(trajectory, tokenizer, width=console.width, brackets=brackets):
                console.print(line, soft_wrap=True, highlight=False)
        if config.limit:
            where = "in brackets" if brackets[0] else "coloured"
            console.print(f"Actions are {where}; a number below is the reward of the action above it.", style="dim")
    for table in tables(encoded):
        console.print(table)


def _of_run(folder: Path) -> DictConfig:
    """The config of a run, whose data and model are to be looked at."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    beside = [o for o in task if o.lstrip("+~").startswith(("data", "model"))]
    if beside:
        raise InputError(f"run={folder} brings its own data and model; leave out {', '.join(beside)}")
    return rundir.load(folder)


def rendered(
    trajectory: "EncodedTrajectory", tokenizer: "PreTrainedTokenizerBase", *, width: int, brackets: tuple[str, str]
) -> Iterator[Text]:
    """A heading, then the tokens in lines of at most `width` columns, each followed by its rewards if it has any.

    Args:
        trajectory: from `encode`.
        tokenizer: that made it.
        width: columns.
        brackets: put around each run of actions.
    """
    t = trajectory
    earned = "no rewards" if t.rewards is None else f"return {t.rewards.sum():g}"
    yield Text(f"{t.source}, completion {t.completion + 1} of prompt {t.prompt_id}", style="bold")
    yield Text(f"{len(t.input_ids):,} tokens, {len(t.action_index):,} actions, {earned}", style="dim")
    number = {int(at): n for n, at in enumerate(t.action_index)}
    shown = _shown_rewards(t)
    lines = _Lines(width)
    for at, piece in enumerate(_pieces(t.input_ids.tolist(), tokenizer)):
        acts = at in number
        opening = brackets[0] * (acts and at - 1 not in number)
        closing = brackets[1] * (acts and at + 1 not in number)
        style = ACTION_STYLES[number[at] % 2] if acts else "dim"
        lines.add(piece, style, shown.get(at, ""), opening, closing)
    lines.end()
    yield from lines.done
    yield Text()


def _shown_rewards(trajectory: "EncodedTrajectory") -> dict[int, str]:
    """Position -> reward, of the rewards that are not 0; of the last action if all are."""
    if trajectory.rewards is None:
        return {}
    pairs = list(zip(trajectory.action_index.tolist(), trajectory.rewards.tolist(), strict=True))
    return {at: f"{reward:g}" for at, reward in pairs if reward} or {pairs[-1][0]: "0"}


def _pieces(ids: list[int], tokenizer: "PreTrainedTokenizerBase", context: int = 8) -> Iterator[str]:
    """The text of each token; a character made of several tokens is the text of the last of them."""

    def text(start: int, end: int) -> str:
        return str(tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False))

    done = 0
    for end in range(1, len(ids) + 1):
        start = max(0, done - context)
        before, after = text(start, done), text(start, end)
        if after.endswith("\ufffd") and end < len(ids):
            yield ""
            continue
        yield after[len(before) :]
        done = end


@dataclass
class _Lines:
    """Lines of tokens, and under each the rewards of its actions."""

    width: int
    done: list[Text] = field(default_factory=list)
    text: Text = field(default_factory=Text)
    below: Text = field(default_factory=Text)

    def add(self, piece: str, style: str, reward: str, opening: str, closing: str) -> None:
        """One token; a line break in it is shown as an arrow and followed."""
        parts = [opening + _printable(part) for part in piece.split("\n")]
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            part = part.removeprefix(opening) if i else part
            part += closing if last else "↵"
            room = self.width - (WORD_ROOM if part.startswith(" ") else 0)
            if self.text.cell_len and self.text.cell_len + cell_len(part) > room:
                self.end()
            if reward and i == 0:
                self._place(reward)
            self.text.append(part, style)
            if not last:
                self.end()

    def _place(self, reward: str) -> None:
        gap = self.text.cell_len - self.below.cell_len
        self.below.append(" " * max(gap, bool(self.below)))
        self.below.append(reward, "bold red" if reward.startswith("-") else "bold yellow")

    def end(self) -> None:
        """Closes the line."""
        self.done += [line for line in (self.text, self.below) if line]
        self.text, self.below = Text(), Text()


def _printable(text: str) -> str:
    """The text with characters that would steer a terminal as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def tables(encoded: "Encoded") -> Iterator[Table | Text]:
    """Rows and prompts with their lengths and returns, a line each; then what was dropped, by reason."""
    lengths = Table(title="lengths and returns", title_justify="left")
    for column in ("split", "rows", "prompts", "of a row", "min", "p50", "p90", "max"):
        lengths.add_column(column, justify="left" if column in ("split", "of a row") else "right")
    for split, rows in (("train", encoded.train), ("val", encoded.val)):
        _add_split(lengths, split, rows)
    yield lengths
    if not encoded.dropped:
        yield Text("dropped: nothing")
        return
    dropped = Table(title="dropped", title_justify="left")
    dropped.add_column("reason")
    dropped.add_column("number", justify="right")
    for reason, count in encoded.dropped.most_common():
        dropped.add_row(reason, f"{count:,}")
    yield dropped


def _add_split(table: Table, split: str, rows: "Rows") -> None:
    head = [split, f"{len(rows):,}", f"{rows.prompts:,}"]
    for name, values in (("tokens", rows.lengths), ("actions", rows.actions), ("return", rows.returns)):
        table.add_row(*head, name, *_quantiles(values), end_section=name == "return")
        head = ["", "", ""]


def _quantiles(values: Any) -> list[str]:
    """Minimum, median, 90th percentile (values that occur, no interpolation) and maximum."""
    import numpy as np

    known = values[~np.isnan(values)]
    if not len(known):
        return ["-"] * 4
    return [f"{q:,.6g}" for q in np.quantile(known, (0, 0.5, 0.9, 1), method="nearest")]
