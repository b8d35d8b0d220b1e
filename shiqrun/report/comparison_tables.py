"""These functions build the tables and the frontier of a comparison, for the terminal, the page and LaTeX."""

from collections.abc import Mapping, Sequence

from rich.table import Table as Printed

from shiqrun.report.answers import KL, REWARD, WIN
from shiqrun.report.comparison import BETA, MEMORY, SECONDS_A_STEP, ComparedMethods, MethodSetting
from shiqrun.report.frontier_plot import Point
from shiqrun.report.page_tables import Cell, Table, estimate_cell, name_cell, number_cell

COLUMNS = {
    "val reward": ("val", REWARD),
    "test reward": ("test", REWARD),
    "KL, nats": ("test", KL),
    "win rate": ("test", WIN),
}
GIB = 2**30


def chosen_table(found: ComparedMethods, colours: Mapping[str, str]) -> Table:
    """Return a table with each method at its chosen setting; bold are those that stand on the frontier, if not all."""
    verdict = found.verdict
    standing = {} if verdict is None else verdict.standings
    on = {name for name, s in standing.items() if s.under is None}
    settings = list(found.chosen.values())
    return _table(settings, colours, [s.method in on and len(on) < len(settings) for s in settings])


def settings_table(found: ComparedMethods, colours: Mapping[str, str]) -> Table:
    """Return a table with every setting of each method; bold are the chosen ones."""
    settings = [setting for each in found.settings.values() for setting in each]
    return _table(settings, colours, [found.chosen[s.method] is s for s in settings])


def _table(settings: Sequence[MethodSetting], colours: Mapping[str, str], bold: Sequence[bool]) -> Table:
    keys = [key for key in dict.fromkeys(k for s in settings for k in s.values) if key != BETA]
    measured = {t: at for t, at in COLUMNS.items() if any(s.estimate(*at) for s in settings)}  # type: ignore[arg-type]
    regrets = any(s.mean("test/regret") is not None for s in settings)
    header = ["method", "β", *(key.rpartition(".")[2] for key in keys), "seeds", *measured]
    header += [*["regret"] * regrets, "a step, s", "peak, GiB"]
    rows: list[list[Cell]] = []
    for s in settings:
        memory = s.mean(MEMORY)
        rows.append(
            [
                name_cell(s.method, swatch=colours.get(s.method, "")),
                number_cell(s.beta),
                *(_value_cell(s.values.get(key)) for key in keys),
                number_cell(len(s.runs)),
                *(estimate_cell(s.estimate(*at)) for at in measured.values()),  # type: ignore[arg-type]
                *[number_cell(s.mean("test/regret"))] * regrets,
                number_cell(s.mean(SECONDS_A_STEP)),
                number_cell(None if memory is None else round(memory / GIB, 2)),
            ]
        )
    return Table(header, rows, bold)


def _value_cell(text: str | None) -> Cell:
    """Return a cell with the value of a swept key, as a number where it is one."""
    try:
        return number_cell(None if text is None else float(text))
    except ValueError:
        return Cell(str(text), text)


def printed_table(found: ComparedMethods) -> Printed:
    """Return the table of chosen settings for a terminal."""
    table = chosen_table(found, {})
    half = f"± is half of the 95 % interval, over {found.intervals_are_over}"
    title = f"Each method at the setting with the highest mean val/reward; {half}"
    printed = Printed(title=title, title_justify="left")
    for title, is_text in zip(table.header, table.is_text, strict=True):
        printed.add_column(title, justify="left" if is_text else "right")
    for row, bold in zip(table.rows, table.bold, strict=True):
        cells = [f"{cell.text} {cell.interval}".strip() for cell in row]
        printed.add_row(*cells, style="bold" if bold else "")
    return printed


def points_on_test(found: ComparedMethods) -> list[Point]:
    """Return the points of the frontier on test prompts: every method at each beta, joined in the order of beta."""
    points = []
    for method in found.settings:
        for setting, group in zip(found.curve(method), found.groups(method), strict=True):
            kl, reward = setting.estimate("test", KL), setting.estimate("test", REWARD)
            if kl is not None and reward is not None:
                points.append(Point(group, kl, reward))
    return points
