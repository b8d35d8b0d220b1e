"""`conclude_comparison` writes the files of a finished comparison, and prints its table and its verdict."""

from shiqrun.console import console, count_of
from shiqrun.errors import InputError
from shiqrun.report.comparison import compared_methods
from shiqrun.report.comparison_files import write_comparison
from shiqrun.report.comparison_tables import printed_table
from shiqrun.report.run_records import collect_runs
from shiqrun.sweeping.state import Sweep


def conclude_comparison(sweep: Sweep) -> None:
    """Write `compare.json`, `compare.csv` and `compare.tex`, and print what they hold."""
    try:
        collected = collect_runs([sweep.folder])
        found = compared_methods(collected.sweeps[0], collected.runs)
    except InputError as error:  # the runs are there, and what is broken can be moved away
        console.print(f"no comparison: {error}", highlight=False, soft_wrap=True, markup=False)
        return
    if not found.chosen:
        console.print("no comparison: no run has measured a reward on validation prompts", soft_wrap=True)
        return
    paths = write_comparison(sweep.folder, found)
    console.print(printed_table(found))
    sentences = [] if found.verdict is None else found.verdict.sentences()
    for sentence in sentences:
        console.print(sentence, style="bold", highlight=False, soft_wrap=True)
    if found.failed:
        console.print(f"{count_of(found.failed, 'run')} without a result", highlight=False)
    for note in found.at_an_end():
        console.print(note, highlight=False, soft_wrap=True)
    for path in paths:
        console.print(path, highlight=False, soft_wrap=True)
