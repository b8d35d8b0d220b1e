"""`shiqrun pivotal` and the Monte-Carlo term through the real command line, from a policy that sft has made."""

import json
import math
import re

import pytest

from shiqrun.cli import main
from tests.support.browser import needs_chromium
from tests.support.command_line import command, finished, largest_difference, metrics, summary
from tests.support.places import working_in

PROBLEMS = ("data=programs", "data.base=4", "data.primitives=[reverse,sort,rotate,add,drop]", "data.problems=120")
PROBLEMS = (*PROBLEMS, "data.val_problems=16", "logger=none")
SEARCH = ("reward=programs", "pivotal.max_new_tokens=10", "pivotal.between=[0,0.95]", "pivotal.again=30")


pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def policy(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        trained = ("trainer.max_steps=80", "trainer.batch_size=32", "trainer.learning_rate=3e-3", "eval.every=0")
        small = ("model.hidden_size=32", "model.num_layers=2")
        assert main(["train", "algo=sft", *PROBLEMS, *small, *trained, "run_dir=sft"]) == 0
    return ("model=hf", f"model.path={home / 'sft' / 'policy'}")


@pytest.fixture(scope="module")
def searched(home, policy):
    with working_in(home):
        assert main(["pivotal", *PROBLEMS, *policy, *SEARCH, "run_dir=searched"]) == 0
    return home / "searched"


def spo(policy, *words):
    values = ("eval.reward=programs", "eval.every=0", "values.samples=8", "values.max_new_tokens=10")
    return main(
        ["train", "algo=spo", *PROBLEMS, *policy, *values, "trainer.batch_size=32", "trainer.warmup_steps=0", *words]
    )


def rows_of(searched):
    header, *rows = map(json.loads, (searched / "pivotal.jsonl").read_text().splitlines())
    return header, rows


def test_the_file_says_what_it_is_good_with_and_the_summary_counts(searched, home):
    header, rows = rows_of(searched)
    found = summary(searched)
    assert header["reference"] == found["reference"] == summary(home / "sft")["fingerprint/policy"]
    assert found["pivotal/trajectories"] == len(rows)
    inside = [row for row in rows if row["searched"]]
    assert found["pivotal/searched"] == len(inside) > 10
    assert found["pivotal/found"] == sum(len(r["pivots"]) for r in inside) > 0
    assert 0 < found["pivotal/confirmed"] <= found["pivotal/found"]
    assert all(row["reward"] == 0 for row in rows)  # right ones alone
    assert all(row["rates"][-1]["rate"] == 1 for row in rows)


def test_a_search_that_is_repeated_samples_nothing(policy, searched, home):
    assert main(["pivotal", *PROBLEMS, *policy, *SEARCH, "run_dir=repeated"]) == 0
    assert (home / "repeated" / "pivotal.jsonl").read_bytes() == (searched / "pivotal.jsonl").read_bytes()
    assert (home / "repeated" / "rollouts.jsonl").read_bytes() == (searched / "rollouts.jsonl").read_bytes()
    assert summary(home / "repeated")["pivotal/rollouts"] == 0


def test_the_rollouts_are_a_data_set(policy, searched, home, capsys):
    words = ("data=jsonl", f"data.path={searched / 'rollouts.jsonl'}", "data.val_fraction=0.2", "logger=none")
    train = ("algo=shiq", *policy, "trainer.max_steps=2", "eval.every=0", "run_dir=on_rollouts")
    assert main(["train", *words, *train]) == 0
    sampled = sum(len(json.loads(line)["rewards"]) for line in (searched / "rollouts.jsonl").read_text().splitlines())
    used = summary(home / "on_rollouts")
    assert used["trajectories/train"] + used["trajectories/val"] <= sampled == summary(searched)["pivotal/rollouts"]
    assert used["trajectories/train"] > 0.5 * sampled


def test_the_monte_carlo_term_trains_towards_its_targets(policy, searched, home):
    words = (f"algo.targets={searched / 'pivotal.jsonl'}", "algo.monte_carlo=10", "run_dir=towards")
    fast = ("algo.beta=0.5", "trainer.max_steps=60", "trainer.learning_rate=3e-3", "trainer.log_every=1")
    assert spo(policy, *words, *fast) == 0
    rows = metrics(home / "towards")
    first, last = (sum(r["train/target_gap_abs"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last < 0.85 * first
    weak = ("algo.monte_carlo=1e-9", "run_dir=hardly")
    assert spo(policy, *words[:1], *weak, *fast) == 0
    without = metrics(home / "hardly")
    far, near = (sum(r["train/target_gap_abs"] for r in part[-30:]) / 30 for part in (without, rows))
    assert near < 0.95 * far  # of what the terminal loss alone does for the same targets
    _, found = rows_of(searched)
    there = sum(len(row["visited"]) - 2 for row in found)  # behind actions: all but the prompt's own and the end's
    assert abs(rows[0]["train/logratio_mean"]) < 1e-5
    assert summary(home / "towards")["targets/actions"] == there


def test_its_step_does_not_depend_on_how_it_is_cut(policy, searched, home):
    for tokens in (100_000, 150):
        words = (f"algo.targets={searched / 'pivotal.jsonl'}", "algo.monte_carlo=0.5", f"run_dir=cut{tokens}")
        assert spo(policy, *words, f"trainer.micro_batch_tokens={tokens}", "trainer.max_steps=4") == 0
    assert largest_difference(home / "cut100000", home / "cut150") < 5e-5
    assert spo(policy, "run_dir=without", "trainer.max_steps=4") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("algo.monte_carlo=1",), "needs both a weight and a file"),
        (("algo.targets=searched/pivotal.jsonl",), "needs both a weight and a file"),
        (("algo.monte_carlo=1", "algo.targets=nowhere.jsonl"), "nowhere.jsonl"),
        (("algo.monte_carlo=1", "algo.targets=searched/rollouts.jsonl"), "no file of pivotal tokens"),
        (
            (
                *("algo.monte_carlo=1", "algo.targets=searched/pivotal.jsonl", "data.rewards=[1,0]", "algo.top=1"),
                *("eval.reward.right=1", "eval.reward.wrong=0"),
            ),
            "reward .* there, .* here",
        ),
        (("algo.monte_carlo=1", "algo.targets=searched/pivotal.jsonl", "data.data_seed=9"), "none of its trajectories"),
        (
            ("eval.reward.right=1", "eval.reward.wrong=0"),
            "the data's rewards are 0 and -1, those of the values 1 and 0",
        ),
        (
            ("algo.link=cross_entropy", "data.rewards=[1,0]", "eval.reward.right=1", "eval.reward.wrong=0"),
            "takes 0 for the largest there can be: set algo.top=1",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(policy, searched, capsys, words, told):
    assert spo(policy, *words, "run_dir=refused") == 2
    assert re.search(told, " ".join(capsys.readouterr().err.split()))


def test_targets_of_another_reference_are_refused(searched, capsys):
    other = ("model.hidden_size=32", "model.num_layers=2")
    words = ("algo.monte_carlo=1", f"algo.targets={searched / 'pivotal.jsonl'}", "run_dir=other")
    assert spo(other, *words) == 2
    assert "reference" in capsys.readouterr().err


def test_a_method_without_prompt_values_takes_no_targets(searched, capsys):
    words = ("algo=shiq", "+algo.monte_carlo=1", f"+algo.targets={searched / 'pivotal.jsonl'}", "run_dir=shiq")
    assert main(["train", *PROBLEMS, *words]) == 2
    assert "for methods with prompt values, not shiq" in " ".join(capsys.readouterr().err.split())


def test_a_reward_that_calls_nothing_right_is_refused(policy, home, capsys):
    assert main(["pivotal", *PROBLEMS, *policy, "run_dir=no"]) == 2
    assert "reward: not set" in capsys.readouterr().err
    small = ("model.hidden_size=16", "model.num_layers=1", "eval.every=0", "trainer.max_steps=1", "logger=none")
    (home / "pairs.jsonl").write_text("".join(f'{{"prompt":"a{i}","chosen":"b","rejected":"c"}}\n' for i in range(9)))
    pairs = ("data=jsonl", "data.path=pairs.jsonl", "data.val_fraction=0")
    assert main(["train", "algo=reward_model", *pairs, *small, "run_dir=scorer"]) == 0
    asked = ("pivotal", *PROBLEMS, *policy, f"reward={home / 'scorer' / 'reward_model'}", "run_dir=no")
    assert main([*asked]) == 2
    assert "calls none right" in " ".join(capsys.readouterr().err.split())


def test_a_split_without_right_trajectories_says_why(policy, capsys):
    assert main(["pivotal", *PROBLEMS, *policy, *SEARCH, "data.right=0", "run_dir=none"]) == 2
    assert re.search(r"no trajectory to search: \d+ wrong", " ".join(capsys.readouterr().err.split()))


def test_a_dry_run_counts_and_leaves_nothing(policy, home, capsys):
    assert main(["pivotal", *PROBLEMS, *policy, *SEARCH, "pivotal.max_trajectories=7", "dry_run=true"]) == 0
    assert "7 trajectories, 10 rollouts from each position" in capsys.readouterr().out
    assert not (home / "outputs").exists()


@pytest.mark.slow
def test_a_search_killed_in_the_middle_is_continued(policy, home, searched):
    words = ("pivotal", *PROBLEMS, *policy, *SEARCH, "pivotal.together=4", f"cache_dir={home / 'other'}")
    process = command(*words, "run_dir=killed")
    folder = home / "other" / "pivotal"
    while process.poll() is None:
        kept = [path.read_text().count("\n") for path in folder.glob("*.jsonl")]
        if kept and kept[0] > 8:
            process.kill()
            break
    finished(process)
    assert not (home / "killed" / "summary.json").exists()
    assert main([*words, "run_dir=continued"]) == 0
    told = summary(home / "continued")
    assert 0 < told["pivotal/trajectories_computed"] < told["pivotal/trajectories"]

    def found(run_dir):
        return {row["name"]: [x["rewards"] for x in row["visited"]] for row in rows_of(run_dir)[1]}

    assert found(home / "continued") == found(searched)  # nor does how many are searched together change an estimate


@needs_chromium
def test_the_picture_shows_every_solution_with_its_chances(searched, tmp_path):
    from tests.support.browser import Browser

    page = searched / "report.html"
    browser = Browser(tmp_path)
    try:
        browser.open(page)
        drawn = browser.run("document.querySelectorAll('#pivotal svg').length")
        dots = browser.run("document.querySelectorAll('#pivotal circle').length")
        assert browser.errors == []
    finally:
        browser.close()
    _, rows = rows_of(searched)
    shown = [row for row in rows if row["searched"]]
    assert drawn == min(24, len(shown))
    assert dots >= 2 * drawn


def test_the_terminal_shows_the_tokens(searched, policy, capsys):
    assert main(["pivotal", *PROBLEMS, *policy, *SEARCH, "run_dir=shown"]) == 0
    out = capsys.readouterr().out
    assert "algo.targets=" in out
    assert re.search(r"[▁▂▃▄▅▆▇█]", out)
    assert re.search(r"token \d+\): [+-]\d\.\d\d \d\.\d\d -> \d\.\d\d on fresh rollouts", out)


def test_the_line_between_estimates_is_straight():
    from shiqrun.report.pivotal_view import chance_along_tokens

    row = {
        "tokens": ["a", "b", "c", "d"],
        "rates": [{"at": 0, "rate": 0.2}, {"at": 2, "rate": 0.4}, {"at": 4, "rate": 1}],
    }
    assert chance_along_tokens(row) == pytest.approx([0.2, 0.3, 0.4, 0.7, 1.0])
    assert math.isclose(sum(chance_along_tokens(row)), 2.6)
