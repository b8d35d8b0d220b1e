"""These functions show measurements in tables and a picture, and keep them in files."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OURS, PEER, TUNED = "#1b6ca8", "#c9c9c9", "#8f8f8f"


def _spread(value: dict[str, float] | None, digits: int = 1) -> str:
    """Return `median (least-most)` of a measurement as text."""
    if value is None:
        return "-"
    text = f"{value['median']:.{digits}f}"
    return text if value["min"] == value["max"] else f"{text} ({value['min']:.{digits}f}-{value['max']:.{digits}f})"


def print_tables(console: Console, result: dict[str, Any]) -> None:
    """Print a table of the measurements for each model."""
    for name, model in result["models"].items():
        tokens = model["tokens"]
        table = Table(
            title=f"model {name}: {tokens['pairs']} pairs, {tokens['useful']:,} tokens, prompts shared "
            f"{tokens['shared_prompt']:,}, {tokens['actions']:,} actions; padded {tokens['padded']:,}, sorted "
            f"{tokens['padded_sorted']:,}"
        )
        table.add_column("side")
        titles = ["1 thread, CPU s", "2 threads, wall s", "memory MiB", "once, s", "tokens read", "µs/token", "of peak"]
        for title in titles:
            table.add_column(title, justify="right")
        for row in model["rows"]:
            table.add_row(row["label"], *_cells(row, tokens))
        console.print(table)
        for line in ratios(model["rows"]):
            console.print(line, highlight=False)


def _cells(row: dict[str, Any], tokens: dict[str, int]) -> list[str]:
    key = "1" if "seconds_1" in row else next(k.removeprefix("seconds_") for k in row if k.startswith("seconds_"))
    return [
        _spread(row.get("seconds_1")),
        _spread(row.get("seconds_2")),
        _spread(row[f"memory_{key}"], 0),
        _spread(row[f"once_{key}"]),
        f"{row['body_tokens']:,}",
        f"{1e6 * row[f'seconds_{key}']['median'] / tokens['useful']:.0f}",
        f"{100 * row[f'peak_share_{key}']:.0f} %",
    ]


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each TRL and each of our dpo in its precision, tuned at most as it is: time and memory."""
    ours = [row for row in rows if row["trainer"] == "ours" and row["algo"] == "dpo"]
    asked = (("seconds_1", "CPU time"), ("seconds_2", "wall time at 2 threads"), ("memory_1", "memory"))
    lines = []
    for row in (row for row in rows if row["trainer"] == "trl"):
        same = [mine for mine in ours if mine["precision"] == row["precision"] and mine["tuned"] <= row["tuned"]]
        for mine in same:
            parts = [
                f"{row[k]['median'] / mine[k]['median']:.1f}x {what}" for k, what in asked if k in row and k in mine
            ]
            lines.append(f"{row['label']} takes {', '.join(parts)} of {mine['label']}")
    return lines


def picture(result: dict[str, Any], path: Path) -> None:
    """Write a PNG with bars of time and memory, a column for each model, ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = result["models"]
    figure, grid = pyplot.subplots(2, len(models), figsize=(7.2 * len(models), 8.4), squeeze=False)
    for column, (name, model) in enumerate(models.items()):
        rows = model["rows"][::-1]
        key = "1" if "seconds_1" in rows[0] else next(k[8:] for k in rows[0] if k.startswith("seconds_"))
        clock = "CPU seconds, one thread" if key == "1" else f"wall seconds, {key} threads"
        title = f"model {name}: {model['tokens']['pairs']} pairs, {clock}"
        _bars(grid[0][column], rows, f"seconds_{key}", title)
        _bars(grid[1][column], rows, f"memory_{key}", "peak memory above the model, MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bars(axes: Any, rows: list[dict[str, Any]], key: str, title: str) -> None:
    values = [row[key]["median"] for row in rows]
    colours = [OURS if r["trainer"] == "ours" else TUNED if r["tuned"] else PEER for r in rows]
    errors = [[v - r[key]["min"] for v, r in zip(values, rows, strict=True)]]
    errors.append([r[key]["max"] - v for v, r in zip(values, rows, strict=True)])
    axes.barh([row["label"] for row in rows], values, color=colours, xerr=errors, ecolor="#444444", height=0.72)
    room = max(values) * 1.16
    for at, (value, most) in enumerate(zip(values, errors[1], strict=True)):
        axes.text(value + most + room * 0.01, at, f"{value:,.1f}" if value < 100 else f"{value:,.0f}", va="center")
    axes.set_xlim(0, room)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def keep_row(file: Path, name: str, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Write a row of results into a JSON file beside those that it has, and return all of them."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found[name] = row
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return dict(found)
