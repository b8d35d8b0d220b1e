"""The LaTeX tables beside the report's page have the numbers of its tables of methods, in the style of booktabs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from shiqrun.report.number_text import NO_NUMBER
from shiqrun.report.page_tables import Cell, Table, methods_table
from shiqrun.report.seed_groups import SeedGroup

SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "β": r"$\beta$",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    NO_NUMBER: "--",
    **{sign: f"\\{sign}" for sign in "$%&#_"},
}
"""How LaTeX writes characters that it would read as commands or does not know."""
HEAD = (
    "% {about}. Made by `shiqrun report`; needs \\usepackage{{booktabs}}.\n"
    "% Means over seeds, with half of the 95 % interval over seeds from three seeds on.\n"
)


def write_latex_files(folder: Path, groups: Sequence[SeedGroup], best: Mapping[str, SeedGroup]) -> list[Path]:
    """Write `methods.tex` and, where a method has several betas, `best.tex`; return their paths.

    Args:
        folder: for the files.
        groups: those with finished runs; without any, no file is written.
        best: each method at its best beta.
    """
    written = []
    at_best = [group for group in groups if best[group.method] is group]
    tables = {"methods.tex": ("Every method and beta, the best beta of a method in bold", groups)}
    if len(at_best) < len(groups):
        tables["best.tex"] = ("Each method at its best beta", at_best)
    for name, (about, rows) in tables.items() if groups else ():
        table = methods_table(rows, best, dict.fromkeys(best, ""))
        path = folder / name
        path.write_text(HEAD.format(about=about) + latex_table(table), encoding="utf-8")
        written.append(path)
    return written


def latex_table(table: Table) -> str:
    r"""Return a table as a LaTeX `tabular`, which a paper puts into its own `table` by \input."""
    columns = "".join("l" if is_text else "r" for is_text in table.is_text)
    lines = [_line([latex_text(title) for title in table.header])]
    for row, bold in zip(table.rows, table.bold, strict=True):
        lines.append(_line([_cell(cell, bold=bold) for cell in row]))
    header, *body = lines
    rules = ["\\toprule", header, "\\midrule", *body, "\\bottomrule"]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", *rules, "\\end{tabular}"]) + "\n"


def latex_text(text: str) -> str:
    """Return plain text as LaTeX that shows it; a sign that pdfLaTeX may not know becomes a question mark."""
    return "".join(SIGNS.get(sign, sign if " " <= sign < "\u0250" and sign != "\x7f" else "?") for sign in _flat(text))


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _cell(cell: Cell, *, bold: bool) -> str:
    text = latex_text(cell.text)
    text = f"\\textbf{{{text}}}" if bold else text
    return f"{text} {latex_text(cell.interval)}".strip()


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"
