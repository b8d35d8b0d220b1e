import csv
import json

import pytest

from shiqrun.report.run_report import write_report
from shiqrun.sweeping.outcome import as_table, best_of_methods, conclude, reference_line, write_best
from shiqrun.sweeping.state import Job, Sweep
from tests.report import fake_runs


def sweep_of(folder, *jobs):
    """A sweep of finished jobs: (what was swept, final metrics less `val/`, what else the config has)."""
    listed = []
    for number, (swept, metrics, more) in enumerate(jobs):
        final = {f"val/{name}": value for name, value in metrics.items()}
        algo, beta, seed = swept.get("algo", "shiq"), float(swept.get("algo.beta", 0.1)), int(swept.get("seed", 1))
        fake_runs.write_run(
            folder / str(number),
            settings=fake_runs.config(algo, beta, seed, **more),
            rows=[{"step": 1, **final}],
            summary={"algo": algo, "steps": 5, **final},
        )
        listed.append(Job(number, str(number), [], swept, status="finished"))
    sweep = Sweep(folder, "train", ["sweep"], "/", [], listed)
    sweep.save()
    return sweep


def job(algo, beta, seed, **metrics):
    """A finished job of a sweep over algorithm, beta and seed."""
    return {"algo": algo, "algo.beta": beta, "seed": seed}, metrics, {}


GRID = [
    job("shiq", "0.1", "1", reward=1.0, kl=2.0),
    job("shiq", "0.1", "2", reward=3.0, kl=4.0),
    job("shiq", "0.5", "1", reward=2.5, kl=1.0),
    job("shiq", "0.5", "2", reward=2.7, kl=1.0),
    job("copg", "0.1", "1", reward=0.2, kl=1.0),
    job("copg", "0.5", "1", reward=0.1, kl=1.0),
]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_beta_has_the_best_mean_not_the_best_seed(tmp_path):
    found = best_of_methods(sweep_of(tmp_path, *GRID))
    assert [one.swept for one in found] == [
        {"algo": "shiq", "algo.beta": "0.5"},
        {"algo": "copg", "algo.beta": "0.1"},
    ]
    assert [len(one.group.finished) for one in found] == [2, 1]


def test_of_losses_the_least_is_best(tmp_path):
    sweep = sweep_of(tmp_path, job("shiq", "0.1", "1", loss=2.0), job("shiq", "0.5", "1", loss=1.0))
    (one,) = best_of_methods(sweep)
    assert (one.by, one.swept["algo.beta"]) == (("val/loss", -1), "0.5")


def test_betas_are_ranked_by_reward_and_not_by_a_return_that_holds_beta(tmp_path):
    near = job("shiq", "0.1", "1", reward=1.0, regularised_return=3.0, loss=1.0)
    far = job("shiq", "0.5", "1", reward=2.0, regularised_return=1.0, loss=2.0)
    (one,) = best_of_methods(sweep_of(tmp_path, near, far))
    assert (one.by[0], one.swept["algo.beta"]) == ("val/reward", "0.5")


def test_each_method_goes_by_what_it_has_itself(tmp_path):
    sweep = sweep_of(tmp_path, job("shiq", "1", "1", reward=1.0, loss=1.0), job("sft", "1", "1", loss=1.0))
    found = best_of_methods(sweep)
    assert [(one.swept["algo"], one.by[0]) for one in found] == [("shiq", "val/reward"), ("sft", "val/loss")]
    assert "by highest mean val/reward or lowest mean val/loss over seeds" in str(as_table(found).title)


def test_whatever_else_is_swept_makes_methods(tmp_path):
    jobs = [({"algo": "shiq", "algo.clip": a}, {"reward": 1.0}, {"algo__clip": int(a)}) for a in "12"]
    assert [one.swept for one in best_of_methods(sweep_of(tmp_path, *jobs))] == [
        {"algo": "shiq", "algo.clip": "1"},
        {"algo": "shiq", "algo.clip": "2"},
    ]


def test_jobs_that_differ_in_nothing_that_is_measured_are_one_method(tmp_path):
    """The places of the reference's scores give the same numbers; of the two runs of seed 1 the last counts."""
    jobs = [
        ({"algo.reference": place, "seed": seed}, {"reward": reward}, {"algo__reference": place})
        for place, seed, reward in (("cached", "1", 1.0), ("frozen", "1", 3.0), ("frozen", "2", 5.0))
    ]
    (one,) = best_of_methods(sweep_of(tmp_path, *jobs))
    assert one.swept == {"algo": "shiq", "algo.reference": "frozen"}
    assert one.group.final("val/reward").mean == 4.0


def test_without_a_sweep_over_algorithms_the_run_names_it(tmp_path):
    (one,) = best_of_methods(sweep_of(tmp_path, ({"seed": "1"}, {"reward": 1.0}, {"algo__name": "dpo"})))
    assert one.swept == {"algo": "dpo"}


def test_the_table_of_the_best_has_means_and_intervals(tmp_path):
    third = job("shiq", "0.5", "3", reward=2.6, kl=1.0)
    found = best_of_methods(sweep_of(tmp_path, *GRID, third, job("copg", "0.1", "2", reward=0.4, kl=1.0)))
    write_best(tmp_path / "best.csv", found)
    shiq, copg = table(tmp_path / "best.csv")
    columns = ["algo", "algo.beta", "seeds", "best_by", "val/reward", "val/reward_ci95_over_seeds"]
    assert list(shiq) == [*columns, "val/kl", "val/kl_ci95_over_seeds"]
    assert [shiq[name] for name in columns[:4]] == ["shiq", "0.5", "3", "val/reward"]
    assert float(shiq["val/reward"]) == pytest.approx(2.6)
    assert float(shiq["val/reward_ci95_over_seeds"]) == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-4)  # t(.975, 2)
    assert copg["seeds"] == "2"
    assert copg["val/kl_ci95_over_seeds"] == "", "two seeds give no interval"
    assert "highest mean val/reward" in str(as_table(found).title)


def test_the_end_of_a_sweep_and_its_page_name_the_same_best(tmp_path):
    """Where they could part: a method without reward, a seed that ran twice, methods named by another setting."""
    other = (
        {"algo": "shiq", "algo.beta": "0.5", "seed": "2"},
        {"reward": 9.0, "kl": 1.0},
        {"algo__reference": "frozen"},
    )
    losses = [job("sft", beta, "1", loss=loss) for beta, loss in (("0.1", 2.0), ("0.5", 1.0))]
    sweep = sweep_of(tmp_path, *GRID, *losses, other)
    conclude(sweep)
    write_report([tmp_path], formats=("svg",))
    ours = {row["algo"]: row for row in table(tmp_path / "best.csv")}
    page = {row["method"]: row for row in table(tmp_path / "report" / "methods.csv") if row["best"] == "1"}
    assert list(ours) == list(page) == ["shiq", "copg", "sft"]
    assert float(ours["shiq"]["val/reward"]) == pytest.approx((2.5 + 9.0) / 2)
    for name, row in ours.items():
        assert (float(row["algo.beta"]), row["seeds"]) == (float(page[name]["algo.beta"]), page[name]["seeds"])
        for metric in ("val/reward", "val/kl", "val/loss"):
            assert row[metric] == page[name][metric]
            assert row[f"{metric}_ci95_over_seeds"] == page[name][f"{metric}_ci95_over_seeds"]


def test_a_broken_file_of_a_job_ends_without_a_table_and_is_named(tmp_path, capsys):
    sweep = sweep_of(tmp_path, *GRID)
    (tmp_path / "3" / "metrics.csv").write_text("step,val/reward\n1,2,3\n4,5\n")
    conclude(sweep)
    assert "no best.csv: " in (said := capsys.readouterr().out.replace("\n", ""))
    assert "3/metrics.csv line 2: 3 columns" in said
    assert not (tmp_path / "best.csv").exists()


def test_jobs_without_a_metric_to_go_by_leave_no_table(tmp_path):
    sweep = sweep_of(tmp_path, job("shiq", "1", "1", kl=1.0))
    assert json.loads((tmp_path / "0" / "summary.json").read_text())["val/kl"] == 1.0
    conclude(sweep)
    assert not (tmp_path / "best.csv").exists()


def cost(seconds, computed, cached):
    return {"seconds/reference": seconds, "seconds/reference_computed": computed, "reference_cached": cached}


def test_sharing_the_reference_saved_its_cost_less_the_reading():
    finished = [cost(10.5, 10.0, False), cost(1.0, 10.0, True), cost(2.0, 10.0, True)]
    assert reference_line(finished) == (
        "the reference was scored once (10.0 s) and was read 2 times (3.0 s): 17.0 s saved"
    )


def test_a_reference_that_costs_less_than_reading_it_saves_nothing():
    assert reference_line([cost(2.0, 0.1, True)]) == (
        "the reference had been scored before these jobs and was read once (2.0 s): nothing saved at this size"
    )


def test_without_a_cached_reference_there_is_nothing_to_say():
    assert reference_line([{"val/reward": 1.0}, cost(1.0, None, True)]) is None
