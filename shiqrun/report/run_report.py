"""`write_report` turns run directories into `report.html`, with figures and tables in a folder beside it."""

from collections.abc import Sequence
from pathlib import Path

from shiqrun.console import waiting
from shiqrun.errors import InputError
from shiqrun.report.comparison_section import comparison_section
from shiqrun.report.html_page import render_page
from shiqrun.report.pivotal_view import FILE as PIVOTAL
from shiqrun.report.pivotal_view import pivotal_section
from shiqrun.report.plots import FORMATS
from shiqrun.report.report_sections import ReportSections
from shiqrun.report.run_facts import page_title
from shiqrun.report.run_records import collect_runs
from shiqrun.report.seed_groups import group_runs
from shiqrun.util.atomic import write_atomic


def write_report(directories: Sequence[Path], out: Path | None = None, formats: Sequence[str] = FORMATS) -> Path:
    """Write the page about all runs in and below the directories, its figures and its tables.

    Args:
        directories: run directories, sweep directories, folders of them, or searches of `shiqrun pivotal`.
        out: the page, by default `report.html` in the first directory. The folder beside it with the page's name less
            its extension gets `figures/*.png` (300 dpi), `figures/*.pdf`, `figures/*.svg`, `*.csv` and `*.tex`.
        formats: of the figures' files: those of png, pdf and svg that are written.

    Returns:
        The page's path.

    Raises:
        InputError: there is nothing to report on, a file is broken, or the page cannot be written.
    """
    pivotal = [section for directory in directories if (section := pivotal_section(directory))]
    run_directories = [directory for directory in directories if not (directory / PIVOTAL).is_file()]
    out = directories[0] / "report.html" if out is None else out
    if out.is_dir() or not out.suffix:
        raise InputError(f"--out {out}: a directory or a name without ending; give a file such as report.html")
    found = collect_runs(run_directories) if run_directories or not pivotal else None
    try:
        folder = _empty_folder(out.with_suffix(""))
        if found is None:
            html = render_page("Pivotal tokens", str(directories[0]), pivotal, {})
        else:
            report = ReportSections(found.runs, group_runs(found.runs), folder, formats)
            with waiting("drawing the figures of the report"):
                compared = comparison_section(found, folder, formats)
                sections = report.sections([sweep.state for sweep in found.sweeps], pivotal, compared)
            html = render_page(*page_title(found.runs), sections, report.script_data)
        write_atomic(out, html.encode("utf-8", errors="replace"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); choose another place with --out FILE") from None
    return out


def _empty_folder(folder: Path) -> Path:
    """Make the folder for figures and tables, or remove the figures of a former report from it."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in (*figures.glob("frontier*"), *figures.glob("curve_*"), *figures.glob("comparison*")):
        old.unlink()
    for old in (folder / "methods.tex", folder / "best.tex"):
        old.unlink(missing_ok=True)
    return folder
