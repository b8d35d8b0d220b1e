"""The studies through the command line in a reduced form, and what they must find."""

import csv
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shiqrun.cli import main
from shiqrun.toy import (
    bandit_study,
    grid_study,
    init_study,
    lambda_study,
    offset_study,
    propagation_study,
    study_methods,
)
from shiqrun.toy.grid_study import sample_good_and_bad
from shiqrun.toy.learner import Learner
from shiqrun.toy.tabular_problems import grid
from shiqrun.util.intervals import interval, student_quantile
from tests.support.selection import rest_slow

SMALL = {
    "bandit": ["study.steps=6", "study.points=3", "study.batch=8"],
    "grid": ["study.size=3", "study.horizon=6", "study.trajectories=4", "study.batch=4", "study.epochs=[1,2]"],
    "propagation": ["study.lengths=[2,3]"],
    "init": ["study.size=3", "study.horizon=6", "study.trajectories=4", "study.levels=[0,3]", "study.epochs=1"],
    "offset": ["study.steps=4"],
    "lambda": ["study.grid_sizes=[3]", "study.lock_lengths=[3]", "study.trajectories=4", "study.lambdas=[0,1]"],
}
ROWS = {"bandit": 12 * 6 * 4, "grid": 13 * 2 * 2, "propagation": 4 * 2, "init": 2 * 2, "offset": 3 * 9, "lambda": 16}


pytestmark = pytest.mark.usefixtures("workplace")


def records(file):
    with Path(file).open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize("study", rest_slow(SMALL))
def test_a_study_writes_its_numbers_and_figures_and_prints_its_tables(study, capsys):
    assert main(["toy", study, *SMALL[study], "study.seeds=2", "seed=5", "run_dir=out"]) == 0
    rows = records(f"out/{study}.csv")
    assert len(rows) == 2 * ROWS[study]
    assert {row["seed"] for row in rows} == {"5", "6"}
    with Image.open(f"out/{study}.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert Path(f"out/{study}.pdf").read_bytes().startswith(b"%PDF-")
    assert "<svg" in Path(f"out/{study}.svg").read_text()
    told = capsys.readouterr().out
    assert " ± " in told
    assert "pruned" not in told  # the log of the library that embeds fonts
    assert f"out/{study}.svg" in told.replace("\n", "")
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["study"] == study
    assert len(summary) > 10


def test_out_is_where_the_files_go_and_the_run_directory_keeps_the_rest():
    assert main(["toy", "propagation", *SMALL["propagation"], "run_dir=run", "out=figures"]) == 0
    made = sorted(path.name for path in Path("figures").iterdir())
    assert made == ["propagation.csv", "propagation.pdf", "propagation.png", "propagation.svg"]
    assert Path("run/summary.json").is_file()
    assert not Path("run/propagation.csv").exists()


def test_the_same_study_is_the_same_files():
    for out in ("a", "b"):
        assert main(["toy", "offset", "study.steps=3", "study.seeds=3", f"run_dir=run_{out}", f"out={out}"]) == 0
    for kind in ("csv", "svg"):
        assert Path(f"a/offset.{kind}").read_bytes() == Path(f"b/offset.{kind}").read_bytes()


def test_the_word_after_toy_chooses_the_study_before_flags_and_settings(capsys):
    assert main(["toy", "lambda", "--cfg", "job", "seed=3"]) == 0
    told = capsys.readouterr().out
    assert "name: lambda" in told
    assert "seed: 3" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bandti"], "did you mean study=bandit?"),
        (["bandit", "study.steps=0"], "study.steps: met 0"),
        (["bandit", "study.step=5"], "did you mean study.steps?"),
        (["bandit", "study.seeds=1"], "study.seeds: met 1"),
        (["bandit", "study.behaviours=[[0.5,0.6,0.1]]"], "expected 3 positive numbers that sum to 1"),
        (["lambda", "study.lambdas=[1.5]"], "study.lambdas: met [1.5]"),
        (["offset", "study.seen=60"], "expected at most study.arms=50"),
    ],
)
def test_wrong_input_ends_with_2_and_leaves_nothing(words, message, capsys, workplace):
    assert main(["toy", *words, "run_dir=out"]) == 2
    assert message in capsys.readouterr().err
    assert not list(workplace.iterdir())


def test_a_dry_run_writes_nothing(workplace, capsys):
    assert main(["toy", "grid", "dry_run=true"]) == 0
    assert "epochs" in capsys.readouterr().out
    assert not list(workplace.iterdir())


def a_bandit(first_seed=0, **options):
    settings = {"beta": 0.5, "batch": 64, "steps": 700, "learning_rate": 0.02, "value_ratio": 5.0, "points": 1}
    rewards, behaviours = [2.5, 2.0, 1.0], [[0.1, 0.2, 0.7]]
    return bandit_study.study(
        first_seed, **({"seeds": 2, "rewards": rewards, "behaviours": behaviours} | settings | options)
    )


@pytest.fixture(scope="module")
def bandit_regrets():
    found = {}
    for r in a_bandit().records:
        if r["step"] == 700:
            found.setdefault((r["method"], r["rewards"]), []).append(r["regret"])
    return found


LEVELS = pytest.mark.parametrize("level", bandit_study.LEVELS)


@LEVELS
@pytest.mark.parametrize(
    "method", ["ShiQ", "ShiQ/ms", "ShiQ/tk", "ShiQ/init", "direct", "soft-Q", "CoPG", "DRO group mean", "DRO-V"]
)
def test_in_the_bandit_the_consistent_methods_reach_the_optimum(bandit_regrets, method, level):
    assert max(bandit_regrets[method, level]) < 1e-4


@LEVELS
def test_in_the_bandit_dpo_reaches_it_with_noisy_labels_alone(bandit_regrets, level):
    assert max(bandit_regrets["DPO Bradley-Terry", level]) < 0.02  # the labels' noise remains at this learning rate
    assert min(bandit_regrets["DPO 0/1", level]) > 0.05


def test_in_the_bandit_dro_without_a_value_needs_centred_rewards_and_is_biased_even_then(bandit_regrets):
    assert min(bandit_regrets["DRO", "as they are"]) > 0.3
    assert min(bandit_regrets["DRO", "minus data mean"]) > 0.05
    assert max(bandit_regrets["DRO", "minus data mean"]) < 0.2


@pytest.mark.parametrize(
    "method", [study_methods.shiq(0.5), study_methods.copg(0.5), study_methods.dro_group_mean(0.5)]
)
def test_a_batch_of_the_bandit_is_drawn_as_if_completion_by_completion(method):
    behaviour = [0.1, 0.2, 0.7]
    entities = bandit_study._entities(method, 3)
    expected = dict.fromkeys(entities, 0.0)
    for arms in product(range(3), repeat=len(entities[0])):
        expected[tuple(sorted(arms))] += math.prod(behaviour[arm] for arm in arms)
    np.testing.assert_allclose(bandit_study._chances(method, entities, behaviour, [2.5, 2, 1]), list(expected.values()))


def test_a_labelled_pair_has_the_winner_of_bradley_and_terry():
    method = next(m for m in bandit_study._methods(0.5) if m.rewards == "labels")
    entities = bandit_study._entities(method, 3)
    chances = dict(zip(entities, bandit_study._chances(method, entities, [0.1, 0.2, 0.7], [2.5, 2, 1]), strict=True))
    assert sum(chances.values()) == pytest.approx(1)
    assert chances[0, 2] / chances[2, 0] == pytest.approx(math.exp(2.5 - 1))
    assert chances[0, 2] + chances[2, 0] == pytest.approx(2 * 0.1 * 0.7)


def by_seed(findings, seed, value):
    return [r[value] for r in findings.records if r["seed"] == seed]


def test_a_seed_of_the_bandit_does_not_know_the_others():
    many, few = a_bandit(3, seeds=4, steps=20), a_bandit(5, seeds=2, steps=20)
    np.testing.assert_allclose(by_seed(many, 5, "regret"), by_seed(few, 5, "regret"), rtol=0, atol=1e-10)


def test_a_seed_of_the_grid_does_not_know_the_others():
    shape = {"size": 3, "horizon": 6, "step_reward": -0.1, "beta": 0.5, "batch": 4, "learning_rate": 0.1}
    rest = {"final_reward": 7.0, "treasure_reward": 4.0, "goal_reward": 3.0, "value_ratio": 1.0}

    def run(first, seeds):
        return grid_study.study(first, seeds=seeds, trajectories=6, epochs=[2], **shape, **rest)

    many, few = run(3, 4), run(5, 2)
    for value in ("regret", "treasure"):
        np.testing.assert_allclose(by_seed(many, 5, value), by_seed(few, 5, value), rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [2, 5, 9])
def test_the_first_token_has_a_gradient_in_update_1_or_in_update_t(length):
    found = propagation_study.study(0, seeds=3, lengths=[length], actions=3, beta=0.5, learning_rate=0.1)
    updates = {r["method"]: set() for r in found.records}
    for r in found.records:
        updates[r["method"]].add(r["updates"])
    assert updates == {"ShiQ": {1}, "ShiQ(0.9)": {1}, "ShiQ/tk": {1}, "ShiQ/ms": {length}}


def test_the_loss_at_step_0_is_that_of_the_returns_to_go_less_the_level():
    shape = {"size": 3, "horizon": 6, "step_reward": -0.1, "treasure_reward": 4.0, "goal_reward": 3.0}
    found = init_study.study(
        0, seeds=2, levels=[0.0, 6.0], beta=0.5, trajectories=5, batch=4, epochs=1, learning_rate=0.1, **shape
    )
    problem = grid(**shape)
    data = sample_good_and_bad(problem, 0.5, 5, range(2))
    rewards = data.rewards(problem.reward)
    for r in found.records:
        squares = []
        for row, mask in zip(rewards[r["seed"]].tolist(), data.mask[r["seed"]].tolist(), strict=True):
            for t in range(sum(mask)):
                level = 0.5 * r["v_ref"] if r["method"] == "ShiQ/init" else 0.0
                squares.append((sum(row[t:]) - level) ** 2)
        assert r["loss"] == pytest.approx(sum(squares) / len(squares))


def test_unseen_arms_keep_their_q_under_shiq_and_the_level_does_not_matter_to_copg():
    arms = {"arms": 50, "seen": 5, "spread": 0.5, "v_ref": 15.0, "beta": 0.5, "steps": 800, "learning_rate": 0.05}
    found = offset_study.study(0, seeds=2, levels=[-2.0, 0.0, 2.0], **arms)
    mass = {(r["method"], r["level"], r["seed"]): r["seen"] for r in found.records}
    for level in (-2.0, 0.0, 2.0):
        for seed in (0, 1):
            rewards = offset_study._rewards(5, 0.5, seed)
            assert rewards.mean().item() == pytest.approx(0, abs=1e-12)
            weight = torch.exp((level + rewards) / 0.5).sum().item()
            assert mass["ShiQ", level, seed] == pytest.approx(weight / (weight + 45), abs=1e-3)
            assert mass["CoPG", level, seed] == pytest.approx(mass["CoPG", 0.0, seed], abs=1e-6)
            assert mass["ShiQ/init", level, seed] < 1e-3


def test_the_ends_of_lambda_are_shiq_ms_and_shiq():
    settings = {"grid_sizes": [3], "lock_lengths": [], "horizon": 6, "total_reward": 7.0, "beta": 0.5}
    rest = {"trajectories": 5, "batch": 5, "learning_rate": 0.1}
    found = lambda_study.study(0, seeds=2, lambdas=[0.0, 1.0], epochs=[2], **settings, **rest)
    problem = grid(size=3, horizon=6, step_reward=-0.1, goal_reward=7.0, treasure_reward=0.0)
    data = sample_good_and_bad(problem, 0.5, 5, range(2))
    for value, method in ((0.0, study_methods.shiq_ms(0.5)), (1.0, study_methods.shiq(0.5))):
        learner = Learner(method, problem.reference, tables=2, learning_rate=0.1)
        assert list(grid_study.train_epochs(learner, data, problem.reward, batch=5, epochs=[2])) == [2]
        mine = [r["regret"] for r in found.records if r["lam"] == value and r["problem"] == "grid 3x3, sparse"]
        np.testing.assert_allclose(mine, problem.regret(learner.logp(), 0.5).tolist(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("degrees", "quantile"), [(8, 2.3060), (19, 2.0930), (29, 2.0452), (99, 1.9842)])
def test_intervals_use_students_quantiles(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=1e-3)


def test_an_interval_of_twenty_numbers_is_that_of_the_textbook():
    mean, half = interval([float(x) for x in range(20)])
    assert mean == 9.5
    assert half == pytest.approx(2.0930 * math.sqrt(35 / 20), abs=1e-3)
