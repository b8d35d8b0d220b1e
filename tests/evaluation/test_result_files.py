"""The table of an evaluation, as it is printed."""

import math

import pytest
from rich.console import Console

from shiqrun.evaluation.result_files import result_table, spread


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"x_ci95": 0.1234}, "± 0.12"),
        ({"x_ci95": 0.0}, "± 0"),
        ({"x_ci95_low": 0.25, "x_ci95_high": 0.5}, "[0.25, 0.5]"),
        ({"x_ci95": math.nan}, ""),
        ({"x_ci95_low": math.nan, "x_ci95_high": math.nan}, ""),
        ({}, ""),
    ],
)
def test_an_interval_is_said_as_it_is(bounds, text):
    assert spread({"x": 0.3, **bounds}, "x") == text


def test_each_figure_has_a_row_and_its_interval_stands_beside_it():
    console = Console(width=100)
    figures = {"reward": 1.5, "reward_ci95": 0.25, "pass@1": 0.5, "pass@1_ci95_low": 0.375, "pass@1_ci95_high": 0.75}
    with console.capture() as capture:
        console.print(result_table(figures, "title"))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capture.get().splitlines() if "│" in line]
    assert rows == [["reward", "1.5", "± 0.25"], ["pass@1", "0.5", "[0.375, 0.75]"]]
