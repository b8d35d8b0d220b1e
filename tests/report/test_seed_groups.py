import json
import math

import pytest

from shiqrun.report.number_text import format_duration, format_number, format_plus_minus
from shiqrun.report.run_records import collect_runs
from shiqrun.report.seed_groups import (
    ORDER,
    best_groups,
    differing_keys,
    group_runs,
    method_names,
    reference_reward,
    training_amounts,
)
from shiqrun.sweeping.state import Job, Sweep
from tests.report import fake_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_runs.sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def runs(folder):
    return collect_runs([folder]).runs


def test_runs_that_differ_by_seed_are_one_group(runs):
    groups = group_runs(runs)
    assert [(g.method, g.beta) for g in groups] == [(m, b) for m in fake_runs.METHODS for b in fake_runs.BETAS]
    assert [len(g.finished) for g in groups] == [3] * 12
    assert len(groups[-1].runs) == 5


def test_a_mean_over_seeds_has_students_interval(runs):
    shiq = group_runs(runs)[1].final("val/reward")
    assert shiq.mean == pytest.approx(1.1)
    assert shiq.half == pytest.approx(fake_runs.HALF_OF_REWARD)
    assert shiq.count == 3


def test_the_best_beta_has_the_best_reward(runs):
    """By hand: shiq 1.2 1.1 .8 .4; copg 1.1 1.15 ..; dpo .6 .5 .."""
    assert {m: g.beta for m, g in best_groups(group_runs(runs)).items()} == {"shiq": 0.03, "copg": 0.1, "dpo": 0.03}


def test_the_best_beta_does_not_go_by_a_return_that_holds_beta(runs):
    for run in runs:
        if run.algo == "shiq" and "val/reward" in run.final:
            run.final["val/reward"] = run.beta
    assert {m: g.beta for m, g in best_groups(group_runs(runs)).items()} == {"shiq": 1.0, "copg": 0.1, "dpo": 0.03}


@pytest.mark.parametrize(
    ("typed", "targets", "methods"),
    [
        ([], "same", ["shiq"]),
        (["algo.fade=1"], "same", ["shiq", "shiq fade=1"]),
        (None, "same", ["shiq", "shiq fade=1"]),
        ([], "other", ["shiq", "shiq fade=1"]),
    ],
)
def test_a_default_that_an_older_version_did_not_have_names_no_method(tmp_path, typed, targets, methods):
    """A key that one run lacks names the method if it was typed, if that is not known, or if the loss is another."""
    fake_runs.finished_run(tmp_path / "0", seed=1)
    fake_runs.finished_run(tmp_path / "1", seed=2, algo__fade=1)
    if typed is not None:
        (tmp_path / "1" / ".hydra" / "overrides.yaml").write_text(json.dumps(typed))
    runs = collect_runs([tmp_path]).runs
    if targets == "other":
        runs[0].config["algo._target_"] = "somewhere.else"
    assert sorted({group.method for group in group_runs(runs)}) == methods
    assert "algo.fade" in differing_keys(runs)


def test_a_setting_that_differs_within_a_method_names_it(tmp_path):
    fake_runs.finished_run(tmp_path / "0", seed=1, algo__anchor=0.0)
    fake_runs.finished_run(tmp_path / "1", seed=1, algo__anchor=0.5)
    fake_runs.finished_run(tmp_path / "2", "dpo", seed=2)
    assert method_names(collect_runs([tmp_path]).runs) == ["shiq", "shiq anchor=0.5", "dpo"]


def test_where_estimates_are_read_names_a_method_only_where_they_are_read_from_several_places(tmp_path):
    fake_runs.finished_run(tmp_path / "0", seed=1, algo__monte_carlo=0.0, algo__targets=None)
    fake_runs.finished_run(tmp_path / "1", seed=1, algo__monte_carlo=1.0, algo__targets="a.jsonl")
    assert method_names(collect_runs([tmp_path]).runs) == ["shiq", "shiq monte_carlo=1"]
    fake_runs.finished_run(tmp_path / "2", seed=1, algo__monte_carlo=1.0, algo__targets="b.jsonl")
    two = [name for name in method_names(collect_runs([tmp_path]).runs) if "targets" in name]
    assert two == ["shiq monte_carlo=1 targets=a.jsonl", "shiq monte_carlo=1 targets=b.jsonl"]


def test_another_data_set_is_named_without_its_settings(tmp_path):
    fake_runs.finished_run(tmp_path / "0", seed=1, data__name="one", data__steps=2)
    fake_runs.finished_run(tmp_path / "1", seed=1, data__name="two", data__path="a", values__samples=8)
    assert method_names(collect_runs([tmp_path]).runs) == ["shiq on one", "shiq on two"]
    fake_runs.finished_run(tmp_path / "2", seed=1, data__name="two", data__path="b", values__samples=9)
    assert method_names(collect_runs([tmp_path]).runs) == ["shiq on one", "shiq on two path=a", "shiq on two path=b"]


def test_how_values_are_made_names_a_method_that_makes_them(tmp_path):
    for place, (file, samples) in enumerate([(None, 8), (None, 32), ("v.jsonl", 32)]):
        fake_runs.finished_run(tmp_path / str(place), seed=1, algo__values=file, values__samples=samples)
    assert method_names(collect_runs([tmp_path]).runs) == ["shiq samples=8", "shiq samples=32", "shiq"]


ANCHORED = {"algo__anchor": 10.0, "algo__anchor_from": "policy", "algo__reference": "frozen"}
PLAIN = {"algo__anchor": 0.0, "algo__anchor_from": "uniform", "algo__reference": "cached"}


def test_an_anchor_that_is_off_and_the_references_place_name_nothing(tmp_path):
    fake_runs.finished_run(tmp_path / "0", seed=1, **PLAIN)
    fake_runs.finished_run(tmp_path / "1", seed=2, **PLAIN | {"algo__anchor_from": "policy"})
    fake_runs.finished_run(tmp_path / "2", seed=1, **ANCHORED)
    fake_runs.finished_run(tmp_path / "3", seed=2, **ANCHORED | {"algo__reference": "cached"})
    groups = group_runs(collect_runs([tmp_path]).runs)
    assert [(g.method, len(g.finished)) for g in groups] == [("shiq", 2), ("shiq anchor=10 anchor_from=policy", 2)]


def test_a_job_that_waits_changes_no_name_of_the_others(tmp_path):
    fake_runs.finished_run(tmp_path / "0", **PLAIN)
    fake_runs.finished_run(tmp_path / "1", **ANCHORED)
    Sweep(tmp_path, "train", [], "/", [], [Job(2, "2", [], {"algo": "shiq", "algo.beta": "0.1", "seed": "2"})]).save()
    runs = collect_runs([tmp_path]).runs
    assert method_names(runs) == ["shiq", "shiq anchor=10 anchor_from=policy", "shiq"]


def test_methods_have_an_order_of_their_own(tmp_path):
    """Whatever the order of the runs; variants after their method, by their numbers; unknown methods last, by name."""
    for place, algo in enumerate(["mine", *reversed(ORDER), "another"]):
        fake_runs.finished_run(tmp_path / str(place), algo if algo in fake_runs.REWARD else "dpo", algo__name=algo)
    for anchor in (100.0, 20.0):
        fake_runs.finished_run(tmp_path / f"z{anchor}", algo__anchor=anchor)
    shiq = ["shiq", "shiq anchor=20", "shiq anchor=100"]
    assert list(best_groups(group_runs(collect_runs([tmp_path]).runs))) == [*shiq, *ORDER[1:], "another", "mine"]


def test_what_methods_trained_on_is_told_apart(tmp_path):
    counts = (("shiq", 1, 1188, 38), ("dro", 1, 1188, 38), ("dpo", 1, 1000, 32), ("dpo", 2, 1003, 32))
    for algo, seed, rows, steps in counts:
        run = fake_runs.finished_run(tmp_path / f"{algo}{seed}", "dpo", seed=seed, algo__name=algo)
        values = json.loads((run / "summary.json").read_text()) | {"trajectories/train": rows, "steps": steps}
        (run / "summary.json").write_text(json.dumps(values))
    assert training_amounts(group_runs(collect_runs([tmp_path]).runs)) == {
        "1,188 trajectories in 38 steps": ["shiq", "dro"],
        "1,000 to 1,003 trajectories in 32 steps": ["dpo"],
    }


def test_two_ways_to_be_off_are_told_apart(tmp_path):
    fake_runs.finished_run(tmp_path / "0", seed=1, algo__clip=0)
    fake_runs.finished_run(tmp_path / "1", seed=1, algo__clip=None)
    assert method_names(collect_runs([tmp_path]).runs) == ["shiq clip=0", "shiq clip=null"]


def test_runs_on_two_data_sets_are_not_averaged(tmp_path):
    fake_runs.finished_run(tmp_path / "0", seed=1)
    fake_runs.finished_run(tmp_path / "1", seed=2, data__name="ultrafeedback")
    assert [g.method for g in group_runs(collect_runs([tmp_path]).runs)] == ["shiq on hh", "shiq on ultrafeedback"]


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    for folder in ("a", "b"):
        fake_runs.finished_run(tmp_path / folder, seed=1)
    fake_runs.finished_run(tmp_path / "c", seed=2)
    (group,) = group_runs(collect_runs([tmp_path]).runs)
    assert group.final("val/reward").count == 2
    assert [run.name for run in group.finished] == ["b", "c"]


def test_the_interval_of_one_seed_is_unknown(tmp_path):
    (group,) = group_runs(collect_runs([fake_runs.finished_run(tmp_path / "r")]).runs)
    assert math.isnan(group.final("val/reward").half)


def test_differences_leave_out_what_only_says_where_and_the_seed(runs):
    assert differing_keys(runs) == ["algo._target_", "algo.beta", "algo.name"]


def test_a_curve_is_the_mean_of_each_step(runs):
    """On the line from .1 to 1.1 at step 100, half way."""
    curve = dict(group_runs(runs)[1].curve("val/reward"))
    assert sorted(curve) == [0, 50, 100]
    assert curve[50].mean == pytest.approx(0.6)
    assert curve[50].half == pytest.approx(fake_runs.HALF_OF_REWARD / 2)


def test_a_step_that_few_runs_have_is_not_drawn(tmp_path):
    for seed in (1, 2, 3):
        fake_runs.finished_run(tmp_path / str(seed), seed=seed)
    rows = [*fake_runs.history(1.0, 1.0, 0.1), {"step": 110, "val/reward": 9.0}]
    folder = fake_runs.write_run(tmp_path / "other", settings=fake_runs.config(), rows=rows, summary={"algo": "shiq"})
    assert folder.exists()
    (group,) = group_runs(collect_runs([tmp_path]).runs)
    assert [step for step, _ in group.curve("val/reward")] == [0, 50, 100]


def test_the_reference_is_the_policy_before_any_step(runs):
    assert reference_reward(runs) == pytest.approx(0.1)


def test_the_references_own_answers_go_before(tmp_path):
    runs = collect_runs([fake_runs.finished_run(tmp_path / "r")]).runs
    runs[0].final["val/reference_reward"] = 0.25
    assert reference_reward(runs) == 0.25


@pytest.mark.parametrize(
    ("value", "text"), [(None, "\u2013"), (3.0, "3"), (1234.5, "1234"), (0.123456, "0.1235"), (2.5e-5, "2.50e-05")]
)
def test_numbers_have_four_figures(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((1.23456, 0.0561), ("1.235", "0.056")),
        ((1.23456, 12.3), ("1", "12")),
        ((1.5, math.nan), ("1.5", "")),
        ((0.75, 0.0), ("0.75", "0")),
    ],
)
def test_a_mean_has_the_places_of_its_interval(pair, text):
    assert format_plus_minus(*pair) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.25 s"), (170, "170 s"), (3600, "60 min"), (7500, "2 h 5 min")])
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text
