"""The result of `shiqrun compare` from run directories made by hand: what is chosen, what is written and shown."""

import csv
import json

import pytest

from shiqrun.report.comparison import compared_methods
from shiqrun.report.run_records import collect_runs
from shiqrun.report.run_report import write_report
from shiqrun.sweeping.outcome import conclude
from shiqrun.sweeping.state import Comparison, Job, Sweep
from tests.report import fake_runs

# Method and beta: validation reward, test reward, test KL. Validation does not choose copg's best on the test split.
POINTS = {
    ("shiq", "0.1"): (1.0, 0.9, 4.0),
    ("shiq", "0.5"): (0.6, 0.7, 1.0),
    ("copg", "0.1"): (0.9, 0.2, 4.2),
    ("copg", "0.5"): (0.5, 0.8, 1.1),
}
SEEDS, PROMPTS = (1, 2, 3), 40


def rows(level, kl, seed):
    """Answers whose mean over prompts is `level` plus a hundredth of (seed - 2), in every prompt 0.1 up or down."""
    for n in range(PROMPTS):
        shift = 0.1 if n % 2 else -0.1
        yield {
            "step": 9,
            "prompt_id": f"p{n}",
            "prompt": f"question {n}",
            "completion": f"answer {n}",
            "reward": level + shift + (seed - 2) / 100,
            "kl": kl,
            "reference_completion": f"before {n}",
            "reference_reward": 0.1 + shift,
        }


def comparison(folder, *, without=(), points=POINTS):
    jobs = []
    for (method, beta), (val, test, kl) in points.items():
        for seed in SEEDS:
            number = len(jobs)
            done = (method, beta, seed) not in without
            status = "finished" if done else "failed"
            swept = {"algo": method, "algo.beta": beta, "seed": str(seed)}
            jobs.append(Job(number, str(number), [], swept, status=status))
            summary = {"algo": method, "steps": 10, "seconds/steps": 5.0, "memory/peak": 2**30, "val/reward": val}
            place = fake_runs.write_run(
                folder / str(number),
                settings=fake_runs.config(method, float(beta), seed),
                rows=[{"step": 9, "val/reward": val, "val/kl": kl}],
                summary=summary if done else None,
                answers=[*rows(99.0, kl, seed), *({**row, "step": 10} for row in rows(val, kl, seed))],
            )
            fake_runs.write_lines(place / "test.jsonl", rows(test, kl, seed))
    left_out = {"dro": "needs what is not there"}
    sweep = Sweep(folder, "train", ["compare"], "/", [], jobs, comparison=Comparison(["shiq", "copg"], left_out))
    sweep.save()
    return sweep


def found_in(folder):
    collected = collect_runs([folder])
    return compared_methods(collected.sweeps[0], collected.runs)


def test_of_equal_settings_the_one_nearer_to_the_reference_is_chosen(tmp_path):
    comparison(tmp_path, points={("shiq", "0.1"): (0.6, 0.9, 4.0), ("shiq", "0.5"): (0.6, 0.2, 1.0)})
    assert found_in(tmp_path).chosen["shiq"].beta == 0.5


def test_intervals_of_two_seeds_are_said_to_be_over_prompts_alone(tmp_path, capsys):
    conclude(comparison(tmp_path, without=[(method, beta, 3) for method, beta in POINTS]))
    assert "over prompts alone below 3 seeds" in " ".join(capsys.readouterr().out.split())
    for name in ("compare.json", "compare.tex"):
        assert "over prompts alone below 3 seeds" in (tmp_path / name).read_text()
    assert "95 % interval" in (tmp_path / "compare.tex").read_text()


@pytest.fixture(scope="module")
def concluded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    conclude(comparison(folder))
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_validation_chooses_and_the_test_split_reports(concluded):
    found = {row["method"]: row for row in table(concluded / "compare.csv") if row["chosen"] == "1"}
    assert {name: row["algo.beta"] for name, row in found.items()} == {"shiq": "0.1", "copg": "0.1"}
    assert float(found["copg"]["val/reward"]) == pytest.approx(0.9)
    assert float(found["copg"]["test/reward"]) == pytest.approx(0.2)  # 0.8 at the other beta, which was not chosen
    assert float(found["shiq"]["test/kl"]) == pytest.approx(4.0)
    assert float(found["shiq"]["test/win_rate"]) == 1.0
    assert (float(found["shiq"]["seconds/step"]), float(found["shiq"]["memory/peak"])) == (0.5, 2**30)


def test_an_interval_is_over_prompts_and_seeds(concluded):
    """By hand: seeds 0.89, 0.9, 0.91 and prompts 0.1 up or down."""
    (row,) = [r for r in table(concluded / "compare.csv") if (r["method"], r["algo.beta"]) == ("shiq", "0.1")]
    of_seeds, of_prompts = 0.01**2 / 3, 0.1**2 * PROMPTS / (PROMPTS - 1) / PROMPTS
    half = float(row["test/reward_ci95"])
    assert 2 * (of_seeds + of_prompts) ** 0.5 < half < 2.2 * (of_seeds + of_prompts) ** 0.5


def test_the_verdict_names_who_stands_where(concluded):
    whole = json.loads((concluded / "compare.json").read_text())
    assert whole["standings"]["shiq"]["on_frontier"] is True
    assert whole["standings"]["copg"]["under"]["method"] == "shiq"
    assert whole["verdict"][0].startswith(
        "Improved on the reference, on 40 test prompts over 3 seeds, by reward: shiq (+0.8"
    )
    assert whole["verdict"][1].startswith("shiq alone stands on the frontier")
    assert whole["reference_reward"] == pytest.approx(0.1)
    assert whole["left_out"] == {"dro": "needs what is not there"}
    tries = "algo.beta=0.033,0.1,0.5 tries more"  # one value alone would replace the grid
    assert whole["notes"] == [f"shiq, copg: beta 0.1 is the smallest that was tried; {tries}"]


def test_a_latex_table_has_a_row_a_method(concluded):
    text = (concluded / "compare.tex").read_text()
    assert text.count("\\\\\n") == 3
    assert "\\textbf{shiq}" in text
    assert "test reward" in text


def test_a_setting_of_which_a_seed_failed_is_not_chosen_before_a_whole_one(tmp_path):
    comparison(tmp_path, without=[("shiq", "0.1", 2)])
    found = found_in(tmp_path)
    assert found.chosen["shiq"].values == {"algo.beta": "0.5"}
    assert found.failed == 1


def test_the_page_has_the_comparison_first_and_draws_its_frontier(concluded):
    page = write_report([concluded], formats=("svg",))
    text = page.read_text()
    assert text.index('id="comparison"') < text.index('id="frontier"')
    assert "shiq alone stands on the frontier" in text
    assert (concluded / "report/figures/comparison.svg").is_file()
    assert "needs what is not there" in text


def test_a_sweep_ends_with_a_verdict_on_its_validation_prompts(tmp_path, capsys):
    sweep = comparison(tmp_path)
    sweep.comparison = None
    sweep.save()
    conclude(sweep)
    out = " ".join(capsys.readouterr().out.split())
    assert "Improved on the reference, on 40 validation prompts over 3 seeds, by reward: shiq" in out
    assert "shiq alone stands on the frontier" in out
    assert "chosen on these prompts, which flatters them" in out
