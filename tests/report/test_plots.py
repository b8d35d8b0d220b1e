"""What the figures draw, read back from their axes."""

import itertools

import pytest
from matplotlib.figure import Figure

from shiqrun.report import plots
from shiqrun.report.run_records import collect_runs
from shiqrun.report.seed_groups import ORDER, group_runs
from tests.report import fake_runs

ANCHORED = "shiq anchor=10 anchor_from=policy"


def test_a_method_looks_the_same_in_every_report():
    alone, others = plots.method_styles(["copg"]), plots.method_styles(["shiq", ANCHORED, "copg", "mine"])
    assert alone["copg"] == others["copg"]
    assert plots.method_styles(["shiq on hh", "shiq on uf"])["shiq on hh"] == others["shiq"]


@pytest.mark.parametrize("names", [ORDER, ("shiq", ANCHORED, *ORDER[1:], "mine"), tuple("abcdefghijkl")])
def test_no_two_of_twelve_methods_look_alike(names):
    looks = plots.method_styles(names)
    assert list(looks) == list(names)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(names)


def test_a_long_name_is_written_whole():
    assert plots.method_labels([ANCHORED], 22)[ANCHORED].split() == ANCHORED.split()
    assert plots.method_labels([ANCHORED], 40)[ANCHORED] == ANCHORED


def test_different_methods_are_never_called_alike():
    names = [f"shiq {'a' * 60} {'b' * 60} learning_rate={rate}" for rate in (1, 2, 3)]
    called = plots.method_labels(names, 22)
    assert len(set(called.values())) == 3
    assert max(len(line) for label in called.values() for line in label.split("\n")) <= 22 + len("… #3")


def axes_of(plot):
    figure = Figure()
    plot(figure)
    (axes,) = figure.axes
    return axes


def test_a_band_below_nothing_does_not_fill_a_logarithmic_axis(tmp_path):
    """The means are 500, 50 and .505; at step 3 the interval over .01, .505 and 1 goes to .505 - 4.3 * .286 < 0."""
    losses = {1: (400.0, 40.0, 0.01), 2: (600.0, 60.0, 1.0), 3: (500.0, 50.0, 0.505)}
    for seed, values in losses.items():
        rows = [{"step": step, "train/loss": loss} for step, loss in enumerate(values, 1)]
        fake_runs.write_run(
            tmp_path / str(seed), settings=fake_runs.config(seed=seed), rows=rows, summary={"train/loss": 1.0}
        )
    groups = group_runs(collect_runs([tmp_path]).runs)
    axes = axes_of(plots.curve_plot("train/loss", groups, "loss", plots.method_styles(["shiq"])))
    assert axes.get_yscale() == "log"
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.505)
    assert axes.get_ylim()[0] > 0.1


def test_the_smallest_marker_can_be_told_from_the_others(tmp_path):
    groups = group_runs(collect_runs([fake_runs.sweep(tmp_path)]).runs)
    axes = axes_of(plots.frontier_plot(groups, plots.method_styles(fake_runs.METHODS), None, wide=True)[0])
    points = [line for line in axes.lines if (line.get_gid() or "").startswith("point")]
    sizes = sorted({line.get_markersize() for line in points})
    assert sizes == pytest.approx([7, 7 + 4 / 3, 7 + 8 / 3, 11])
    assert {line.get_markeredgewidth() for line in points} == {0.6}


def test_names_at_the_ends_of_curves_do_not_meet(tmp_path):
    """Four names of two lines whose curves end at the same height."""
    for anchor in (0.0, 10.0, 20.0, 30.0, 40.0):
        place = "policy" if anchor else "uniform"
        fake_runs.finished_run(tmp_path / f"{anchor}", algo__anchor=anchor, algo__anchor_from=place)
    groups = group_runs(collect_runs([tmp_path]).runs)
    figure = Figure(figsize=plots.PANEL)
    plots.curve_plot("val/reward", groups, "reward", plots.method_styles([group.method for group in groups]))(figure)
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 5
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
