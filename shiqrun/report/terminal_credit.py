"""The token view on a terminal colours every token that a policy chose by its advantage, shifted value or residual."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from shiqrun.report.terminal_tokens import TokenLines, brackets_around, printable, reward_text, rewards_to_show

if TYPE_CHECKING:
    from shiqrun.evaluation.credit import Credit

Quantity = Literal["advantage", "shifted_value", "residual"]
Colours = Literal["", "256", "truecolor"]
"""The colours that the terminal has, as rich names them; empty for none: numbers stand under the tokens instead."""
TITLES: dict[Quantity, str] = {"advantage": "advantage", "shifted_value": "shifted value", "residual": "residual"}
MEANING: dict[Quantity, str] = {
    "advantage": "beta (log pi - log pi_ref): above 0 the token is likelier than under the reference, below 0 rarer",
    "shifted_value": "beta (v - v_ref) before the token: what the policy expects from here on, beyond the reference",
    "residual": "return to go - beta sum D - beta W: above 0 the rest earned more than the policy says, below 0 less",
}
RED_TO_BLUE = ((178, 24, 43), (239, 138, 98), (247, 247, 247), (103, 169, 207), (33, 102, 172))
"""The colours of -1, -.5, 0, .5 and 1: ColorBrewer's RdBu, which colour-blind readers can tell apart."""
IN_256 = (124, 167, 210, 217, 224, 255, 189, 153, 111, 68, 25)
"""The same colours from -1 to 1 among the 256 of a terminal; rounding each separately would break their order."""
BLACK, WHITE = 16, 231  # among 256 colours, of which a terminal's theme may change the first 16
AT_START: dict[Quantity, str] = {"shifted_value": "shifted value at the start", "residual": "residual there"}
ROUNDING = 1e-3  # share of a return that float32 may lose in the sums of a long trajectory
LARGEST = 5  # rows of the table
BEFORE, AFTER = 14, 10  # characters of context before and after a token in the table
CONTEXT_TOKENS = 14  # tokens from which these characters are taken
SATURATED = 0.95  # share of the shown actions whose value has a colour of its own
BAR = 33  # cells of the legend's colour bar


def colour_scale(credits: Sequence["Credit"], quantity: Quantity) -> float:
    """Return the absolute credit that gets the full colour: the 95th percentile, so that no outlier pales the rest."""
    sizes = sorted(abs(x) for credit in credits for x in getattr(credit, quantity) if x is not None)
    if not sizes:
        return 0.0
    return sizes[math.ceil(SATURATED * len(sizes)) - 1] or sizes[-1]


def value_style(value: float, scale: float, colours: Colours = "truecolor") -> Style:
    """Return the style of a token's value: its background, and the letters, black or white, that are readable on it."""
    share = (max(-1.0, min(1.0, value / scale)) + 1) / 2 if scale else 0.5
    if colours == "256":
        behind = Color.from_ansi(IN_256[round(share * (len(IN_256) - 1))])
    else:
        low, rest = divmod(share * (len(RED_TO_BLUE) - 1), 1)
        pair = RED_TO_BLUE[int(low)], RED_TO_BLUE[min(int(low) + 1, len(RED_TO_BLUE) - 1)]
        behind = Color.from_rgb(*(round(a + rest * (b - a)) for a, b in zip(*pair, strict=True)))
    red, green, blue = behind.get_truecolor()
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return Style(color=Color.from_ansi(BLACK if bright else WHITE), bgcolor=behind)


def signed_number(value: float | None, scale: float, more: int = 0) -> str:
    """Return a number with its sign, rounded to two (and `more`) figures of the scale; empty for None."""
    if value is None:
        return ""
    figures = 1 - math.floor(math.log10(scale)) if scale else 2
    text = f"{value:+.{min(max(figures + more, 0), 8)}f}"
    return text if float(text) else text.replace("-", "+")


def credit_lines(credit: "Credit", quantity: Quantity, scale: float, *, width: int, colours: Colours) -> Iterator[Text]:
    """Yield the lines of a trajectory with its credit: a heading with sums, then its tokens.

    With colours every action stands on the colour of its value, without in brackets over its value.

    Args:
        credit: a trajectory with its credit.
        quantity: to show.
        scale: absolute value with the full colour, which also decides how many figures numbers have.
        width: columns of the terminal.
        colours: that the terminal has.
    """
    yield Text(f"{credit.source}, prompt {credit.prompt_id}", style="bold")
    yield Text(f"{len(credit.tokens):,} tokens, {sum(credit.action):,} actions", style="dim")
    yield Text(_sums(credit), style="dim")
    values, lines = getattr(credit, quantity), TokenLines(width)
    earned = rewards_to_show({i: r for i, r in enumerate(credit.reward) if r is not None})
    actions = {i for i, acts in enumerate(credit.action) if acts}
    for i, piece in enumerate(credit.tokens):
        if colours:
            style: str | Style = "dim" if i not in actions else "reverse"
            if i in actions and values[i] is not None:
                style = value_style(values[i], scale, colours)
            lines.add(piece, style, [reward_text(earned, i)], ("", ""))
        else:
            number, reward = signed_number(values[i], scale), reward_text(earned, i, "r=")
            least = max(len(number), reward.cell_len) + 1 if i in actions else 0
            lines.add(piece, "", [Text(number), reward], brackets_around(actions, i, ("[", "]")), least=least)
    yield from lines.finish()


def _sums(credit: "Credit") -> str:
    """Return the trajectory's return and the sums into which it splits."""
    known = {name: [x for x in getattr(credit, name) if x is not None] for name in TITLES}
    parts = {"advantages": math.fsum(known["advantage"])}
    parts |= {name: known[key][0] for key, name in AT_START.items() if known[key]}
    shown = "  ".join(f"{value:+.3g} {name}" for name, value in parts.items())
    if credit.earned is None or not known["residual"]:
        return f"no return; {shown}"
    offset = credit.earned - math.fsum(parts.values())
    rest = f"  {offset:+.3g} reward offset" if abs(offset) > ROUNDING * max(1.0, abs(credit.earned)) else ""
    return f"return {credit.earned:g} = {shown}{rest}"


def largest_table(credit: "Credit", quantity: Quantity, scale: float, *, colours: Colours) -> Table:
    """Return a table of the actions with the largest absolute values of the quantity, in their order."""
    values = getattr(credit, quantity)
    actions = [i for i, acts in enumerate(credit.action) if acts]
    ranked = sorted((i for i in actions if values[i] is not None), key=lambda i: -abs(values[i]))
    shown = sorted(ranked[:LARGEST])
    columns: list[list[Text | str]] = [
        [str(actions.index(i) + 1) for i in shown],
        [_in_context(credit.tokens, i, value_style(values[i], scale, colours) if colours else None) for i in shown],
    ]
    for name in TITLES:
        numbers = [getattr(credit, name)[i] for i in shown]
        size = max((abs(x) for x in numbers if x is not None), default=0.0)
        columns.append([signed_number(x, size, more=1) for x in numbers])
    columns.append(["" if (reward := credit.reward[i]) is None else f"{reward:g}" for i in shown])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("action", f"{'token':>{BEFORE + 5}}", *TITLES.values(), "reward"):
        justify: Literal["left", "right"] = "left" if title.strip() == "token" else "right"
        table.add_column(title, justify=justify, style="bold" if title == TITLES[quantity] else "", no_wrap=True)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _in_context(tokens: Sequence[str], at: int, style: Style | None) -> Text:
    """Return a token between a few characters before and after it, in its colour or in brackets."""
    near = CONTEXT_TOKENS
    before = printable("".join(tokens[max(0, at - near) : at]))[-BEFORE:]
    after = printable("".join(tokens[at + 1 : at + 1 + near]))[:AFTER]
    token = printable(tokens[at])
    shown = Text().append(" " * (BEFORE - cell_len(before)) + before, "dim")
    return shown.append(token if style and token else f"[{token}]", style or "").append(after, "dim")


def legend_lines(quantity: Quantity, scale: float, *, unit: str, colours: Colours) -> Iterator[Text]:
    """Yield the lines that explain the colours, or the numbers under the tokens."""
    if colours:
        bar = Text(f"{TITLES[quantity]}  {signed_number(-scale, scale)} ")
        for cell in range(BAR):
            bar.append(" ", value_style(2 * cell / (BAR - 1) - 1, 1.0, colours))
        bar.append(f" {signed_number(scale, scale)}  {unit}")
        yield bar
        beneath = "a number below a token is its reward; beyond both ends the colour stays the same"
    else:
        beneath = f"under each action stand its {TITLES[quantity]}, in {unit}, and after r= its reward"
    yield Text(f"{TITLES[quantity]} = {MEANING[quantity]};", style="dim")
    yield Text(f"{beneath}.", style="dim")
