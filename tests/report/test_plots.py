"""What the figures draw, read back from their axes; where labels stand is measured by matplotlib's renderer."""

import itertools
import math
import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from shiqrun.report import plots
from shiqrun.report.curve_plot import curve_plot, panel_height
from shiqrun.report.frontier_plot import frontier_plot, frontier_points, known_optima
from shiqrun.report.run_records import FINISHED, RunRecord, collect_runs
from shiqrun.report.seed_groups import ORDER, SeedGroup, group_runs
from shiqrun.toy.plotting import DPI
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
    assert len({look["color"] for look in looks.values()}) == min(len(names), 10)


def test_a_long_name_is_written_whole():
    assert plots.method_labels([ANCHORED], 22)[ANCHORED].split() == ANCHORED.split()
    assert plots.method_labels([ANCHORED], 40)[ANCHORED] == ANCHORED


def test_different_methods_are_never_called_alike():
    names = [f"shiq {'a' * 60} {'b' * 60} learning_rate={rate}" for rate in (1, 2, 3)]
    called = plots.method_labels(names, 22)
    assert len(set(called.values())) == 3
    assert max(len(line) for label in called.values() for line in label.split("\n")) <= 22 + len("… #3")


def drawn(plot, size=plots.WIDE):
    """The axes of a figure that is laid out as the files are."""
    with matplotlib.rc_context(plots.RC_PARAMS):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        plot(figure)
        figure.canvas.draw()
    (axes,) = figure.axes
    return axes


def boxes(axes):
    """The box of each text that is written in the axes, by text."""
    return [(text.get_text(), text.get_window_extent()) for text in axes.texts if text.get_text()]


def overlapping(boxes):
    return [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]


def group_of(method, beta, results, **more):
    """A group of runs with these final (KL, reward), one a seed."""
    runs = []
    for seed, (kl, reward) in enumerate(results):
        config = {"algo.name": method, "algo.beta": beta, "seed": seed}
        final = {"val/kl": kl, "val/reward": reward, **more}
        runs.append(RunRecord(Path(f"{seed}"), f"{seed}", FINISHED, config, True, "", final, {}))
    return SeedGroup(method, beta, runs)


def frontier_of(groups, size=plots.WIDE, reference=0.1):
    plot = frontier_plot(
        frontier_points(groups), plots.method_styles([g.method for g in groups]), reference, known_optima(groups)
    )
    return drawn(plot, size)


def ten_methods():
    """Ten methods at four betas, close together; seeds differ by a tenth."""
    for place, method in enumerate(ORDER):
        for beta, reach in ((0.03, 9.0), (0.1, 6.0), (0.3, 2.0), (1.0, 0.5)):
            kl, reward = reach * (1 + place / 40), math.log(1 + reach) * (1 - place / 30)
            yield group_of(method, beta, [(kl * (1 + d), reward + d) for d in (-0.1, 0.0, 0.1)])


def test_a_band_below_nothing_does_not_fill_a_logarithmic_axis(tmp_path):
    """The means are 500, 50 and .505; at step 3 the interval over .01, .505 and 1 goes to .505 - 4.3 * .286 < 0."""
    losses = {1: (400.0, 40.0, 0.01), 2: (600.0, 60.0, 1.0), 3: (500.0, 50.0, 0.505)}
    for seed, values in losses.items():
        rows = [{"step": step, "train/loss": loss} for step, loss in enumerate(values, 1)]
        fake_runs.write_run(
            tmp_path / str(seed), settings=fake_runs.config(seed=seed), rows=rows, summary={"train/loss": 1.0}
        )
    groups = group_runs(collect_runs([tmp_path]).runs)
    axes = drawn(curve_plot("train/loss", groups, "loss", plots.method_styles(["shiq"])))
    assert axes.get_yscale() == "log"
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.505)
    assert axes.get_ylim()[0] > 0.1


@pytest.mark.parametrize("size", [plots.WIDE, plots.NARROW], ids=["wide", "narrow"])
def test_ten_methods_at_four_betas_are_named_where_they_end_and_no_label_covers_another(size):
    axes = frontier_of(list(ten_methods()), size)
    found = boxes(axes)
    assert overlapping(found) == []
    names = [text for text, _ in found]
    assert sorted(set(names) - {"0.03", "0.1", "0.3", "1"}) == sorted([*ORDER, "reference"])
    if size == plots.WIDE:
        assert [names.count(beta) for beta in ("0.03", "0.1", "0.3", "1")] == [10] * 4
    assert axes.figure.legends == []
    assert list(axes.collections) == [], "no surface joins the intervals"
    window = axes.figure.bbox
    assert all(window.x0 <= box.x0 and box.x1 <= window.x1 for _, box in found)
    axes.figure.set_dpi(DPI)  # as the file for print
    axes.figure.canvas.draw()
    assert overlapping(boxes(axes)) == []


def test_a_name_stands_near_the_end_of_its_line():
    axes = frontier_of([group_of("shiq", beta, [(kl, reward)]) for beta, kl, reward in ((1, 1, 1.0), (0.1, 5, 1.5))])
    ((_, box),) = [found for found in boxes(axes) if found[0] == "shiq"]
    x, y = axes.transData.transform((5, 1.5))
    assert math.dist((x, y), ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)) < 40


def test_intervals_do_not_set_the_axes():
    """Rewards 1 and .5 over seeds, far apart or close together, with the same means."""
    limits = set()
    for spread in (0.001, 50.0):
        groups = [
            group_of(name, 0.1, [(2.0 + place, mean - spread), (2.0 + place, mean), (2.0 + place, mean + spread)])
            for place, (name, mean) in enumerate((("shiq", 1.0), ("dpo", 0.5)))
        ]
        axes = frontier_of(groups)
        limits.add((*map(round, axes.get_xlim(), (6, 6)), *map(round, axes.get_ylim(), (6, 6))))
    ((left, right, bottom, top),) = limits
    assert (left, right) == pytest.approx((0 - 0.08 * 3, 3 + 0.08 * 3))
    assert (bottom, top) == pytest.approx((0.1 - 0.08 * 0.9, 1 + 0.08 * 0.9))


def whiskers(axes):
    """The lines of two ends that lie level or upright, of no axis."""
    lines = [line.get_xydata() for line in axes.lines if line.get_linewidth() == 0.8 and len(line.get_xdata()) == 2]
    return [ends for ends in lines if not {0.0, 1.0} <= {*ends.ravel()}]


def test_two_seeds_draw_no_interval_and_three_do():
    for seeds, count in ((2, 0), (3, 4)):
        results = [[(kl + 0.1 * seed, kl + 0.1 * seed) for seed in range(seeds)] for kl in (2.0, 3.0)]
        axes = frontier_of([group_of(f"m{i}", 0.1, same) for i, same in enumerate(results)])
        assert len(whiskers(axes)) == count


def test_one_beta_of_all_is_said_once():
    axes = frontier_of([group_of(name, 0.5, [(2.0, 1.0)]) for name in ("shiq", "dpo")])
    assert axes.get_title(loc="left") == "β = 0.5"
    assert "0.5" not in [text for text, _ in boxes(axes)]


OPTIMUM = {"val/optimum": 0.9, "val/optimum_kl": 1.5, "val/optimum_reward": 1.65}


def test_the_known_optimum_is_a_star():
    axes = frontier_of(
        [group_of(name, 0.5, [(2.0, reward)], **OPTIMUM) for name, reward in (("shiq", 1.6), ("dpo", 1))]
    )
    (star,) = [line for line in axes.lines if line.get_gid() == "optimum0"]
    assert star.get_xydata().tolist() == [[1.5, 1.65]]
    assert "optimum" in [text for text, _ in boxes(axes)]
    assert axes.get_ylim()[1] > 1.65


def test_of_a_known_return_alone_the_line_is_drawn_that_no_policy_exceeds():
    axes = frontier_of([group_of(n, 0.5, [(2.0, r)], **{"val/optimum": 0.9}) for n, r in (("shiq", 1.6), ("dpo", 1))])
    ends = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [[0, 0.9], [pytest.approx(2.16), pytest.approx(0.9 + 0.5 * 2.16)]] in ends


def test_an_optimum_far_away_does_not_squeeze_the_methods():
    far = OPTIMUM | {"val/optimum_reward": 90.0}
    axes = frontier_of([group_of(name, 0.5, [(2.0, reward)], **far) for name, reward in (("shiq", 1.6), ("dpo", 1))])
    assert axes.get_ylim()[1] < 2
    assert "optimum of β 0.5 outside: KL 1.5, reward 90" in axes.get_title(loc="left")


def test_the_best_return_is_a_line_of_its_curve():
    groups = [group_of("shiq", 0.5, [(1.0, 1.0)])]
    groups[0].runs[0].history["val/regularised_return"] = {0: 0.1, 10: 0.5}
    axes = drawn(curve_plot("val/regularised_return", groups, "", plots.method_styles(["shiq"]), None, 0.9))
    assert [0.9, 0.9] in [list(line.get_ydata()) for line in axes.lines]
    assert {text.get_text() for text in axes.texts} == {"shiq", "optimum"}


def curves(count, spread):
    """Groups of three seeds whose rewards go from 0 to their place."""
    for place, method in enumerate(ORDER[:count], 1):
        group = group_of(method, 0.1, [(1.0, 1.0)] * 3)
        for run, sign in zip(group.runs, (-1, 0, 1), strict=True):
            run.history["val/reward"] = {0: 0.0, 10: place + sign * spread}
        yield group


def test_bands_do_not_set_the_axes_of_curves_and_are_left_out_of_many():
    for count, bands in ((5, 5), (10, 0)):
        limits = set()
        for spread in (0.001, 99.0):
            axes = drawn(curve_plot("val/reward", list(curves(count, spread)), "", plots.method_styles(ORDER)))
            assert len(axes.collections) == bands
            limits.add(axes.get_ylim())
        assert len(limits) == 1
        assert limits.pop() == pytest.approx((-0.06 * count, 1.06 * count))


def test_ten_names_at_the_ends_of_curves_do_not_meet():
    groups = list(curves(10, 0.0))
    for group in groups:
        for run in group.runs:
            run.history["val/reward"] = {0: 0.0, 10: 1.0}
    plot = curve_plot("val/reward", groups, "a long title", plots.method_styles(ORDER))
    axes = drawn(plot, (plots.PANEL[0], panel_height(groups)))
    found = boxes(axes)
    assert len(found) == 10
    (title,) = [text for text in axes.get_children() if getattr(text, "get_text", str)() == "a long title"]
    assert overlapping([*found, ("title", title.get_window_extent())]) == []


def test_names_at_the_ends_of_curves_do_not_meet(tmp_path):
    """Four names of two lines whose curves end at the same height."""
    for anchor in (0.0, 10.0, 20.0, 30.0, 40.0):
        place = "policy" if anchor else "uniform"
        fake_runs.finished_run(tmp_path / f"{anchor}", algo__anchor=anchor, algo__anchor_from=place)
    groups = group_runs(collect_runs([tmp_path]).runs)
    plot = curve_plot("val/reward", groups, "reward", plots.method_styles([group.method for group in groups]))
    found = boxes(drawn(plot, (plots.PANEL[0], panel_height(groups))))
    assert len(found) == 5
    assert overlapping(found) == []


def test_small_text_and_lines_can_be_read_on_white_and_in_the_dark():
    """The contrast of WCAG: 4.5 for text, 3 for what is drawn; light lines on white have names beside them instead."""
    css = (Path(plots.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = css.split("prefers-color-scheme: dark", 1)
    for part, page in ((light, "#ffffff"), (dark, "#0d1117")):
        for kind, least in (("text", 4.5), ("line", 3.0 if page != "#ffffff" else 2.0)):
            colours = re.findall(rf"--{kind}-\d: (#[0-9a-f]{{6}})", part)
            assert len(colours) == len(plots.PALETTE)
            assert min(contrast(colour, page) for colour in colours) >= least
    assert min(contrast(colour, "#ffffff") for colour in plots.TEXT_COLOURS) >= 4.5


def contrast(one, other):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
