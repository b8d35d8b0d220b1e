"""Logged rewards of another unit than sampled ones are refused, or warned of where that cannot be known."""

import json

import pytest

from shiqrun.cli import main
from tests.rewards.classifiers import reward, save
from tests.support.online_words import TINY, live, train

SAMPLED = ("algo.reference=frozen", "rollout=local", "rollout.max_new_tokens=4", "dry_run=true", "run_dir=dry")
MIXED = "a step trains on both"
ONE_UNIT = "algo.same_unit=true"


@pytest.fixture
def judge(at_home):
    """A reward model with random weights in the working directory."""
    return at_home / "rm" if (at_home / "rm").exists() else save(at_home / "rm")


def write(name, rewards, **more):
    rows = [
        {"prompt": f"is {n} fine?", "completions": [f"yes {n}", f"no {n}"], "rewards": pair, "answer": f"yes {n}"}
        for n, pair in enumerate(rewards)
    ]
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return ("data=jsonl", f"data.path={name}", "logger=none")


def write_pairs(name):
    talk = "\n\nHuman: is {} fine?\n\nAssistant: {}"
    rows = [{"chosen": talk.format(n, "yes"), "rejected": talk.format(n, "no")} for n in range(8)]
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return ("data=hh", f"data.path={name}", "logger=none")


def told(capfd):
    out = capfd.readouterr()
    return out.err, " ".join((out.out + out.err).split())


CONTINUOUS = [[0.3127 + n / 7, -0.4159 - n / 9] for n in range(8)]


def test_two_levels_of_another_verifier_are_refused_with_both_values_and_the_keys(at_home, capfd):
    words = ("data.rewards=[1,0]", "dry_run=true", "run_dir=dry")
    assert live("shiq", *words, model=TINY) == 2
    line, _ = told(capfd)
    assert line.count("\n") == 1
    for part in ("data=programs", "1 and 0", "0 and -1", "eval.reward.right", "data.rewards", ONE_UNIT):
        assert part in line


def test_only_right_logged_answers_have_the_unit_that_their_data_set_says(at_home, capfd):
    words = ("data.right=1", "data.rewards=[0,-2]", "dry_run=true", "run_dir=dry")  # 0 alone would fit 0 and -1
    assert live("shiq", *words, model=TINY) == 2
    assert "data=programs pays 0 and -2" in told(capfd)[1]


def test_labels_beside_scores_of_a_reward_model_are_refused(judge, capfd):
    data = write("labels.jsonl", [[9, 2]] * 8)
    words = (*SAMPLED, f"eval.reward={judge}")
    assert train("shiq", *words, data=data, model=TINY) == 2
    line, _ = told(capfd)
    assert line.count("\n") == 1
    for part in ("data=jsonl", "9 and 2", "rm", "shiqrun score", "rollout.offline=0", ONE_UNIT):
        assert part in line


def test_an_offset_of_logged_rewards_is_refused_for_sampled_ones_alone(judge, capfd):
    data = write("labels.jsonl", [[9, 2]] * 8)
    alone = (*SAMPLED, f"eval.reward={judge}", "rollout.offline=0")
    assert train("shiq", *alone, "algo.reward_offset=mean", data=data, model=TINY) == 2
    assert "algo.reward_offset=mean" in told(capfd)[1]
    assert train("shiq", *alone, data=data, model=TINY) == 0
    assert MIXED not in told(capfd)[1]


def test_preference_pairs_beside_a_reward_model_are_refused_by_default(judge, capfd):
    words = (*SAMPLED, f"eval.reward={judge}")
    data = write_pairs("pairs.jsonl")
    assert train("shiq", *words, data=data, model=TINY) == 2
    assert "data=hh pays 1 and -1" in told(capfd)[1]
    assert train("shiq", *words, ONE_UNIT, data=data, model=TINY) == 0
    assert MIXED not in told(capfd)[1]


def test_a_loss_that_reads_the_order_alone_mixes_no_units(judge, capfd):
    words = (*SAMPLED, f"eval.reward={judge}", "rollout.samples_per_prompt=2")
    assert train("dpo", *words, data=write_pairs("pairs.jsonl"), model=TINY) == 0
    assert MIXED not in told(capfd)[1]


def test_a_unit_that_cannot_be_known_is_warned_of_once(judge, capfd):
    words = (*SAMPLED, f"eval.reward={judge}")
    assert train("shiq", *words, data=write("scores.jsonl", CONTINUOUS), model=TINY) == 0
    _, out = told(capfd)
    assert out.count("cannot be known to have one unit") == 1
    assert ONE_UNIT in out


def test_data_that_the_reward_has_scored_have_its_unit(judge, capfd):
    (judge.parent / "scored").mkdir(exist_ok=True)
    data = write("scored/scored.jsonl", [[3, 1]] * 8)
    (judge.parent / "scored/summary.json").write_text(json.dumps({"reward/fingerprint": reward(judge).fingerprint()}))
    assert train("shiq", *SAMPLED, f"eval.reward={judge}", data=data, model=TINY) == 0
    assert MIXED not in told(capfd)[1]
    assert train("shiq", *SAMPLED, f"eval.reward={judge}", "eval.reward.scale=2", data=data, model=TINY) == 2
    assert "scored by another reward" in told(capfd)[1]


def test_the_file_of_a_further_source_is_compared_too(at_home, capfd):
    data = write("logged.jsonl", [[1, 0]] * 8)
    write("further.jsonl", [[5, 3]] * 8)
    words = ("rollout.path=further.jsonl", "rollout.sources.further=1", "eval.reward=exact_match")
    assert train("shiq", *SAMPLED, *words, data=data, model=TINY) == 2
    assert "rollout.path=further.jsonl pays 5 and 3" in told(capfd)[1]


def test_values_between_right_and_wrong_are_warned_of(at_home, capfd):
    data = write("shares.jsonl", [[0.75, 0.25]] * 8)
    assert train("shiq", *SAMPLED, "eval.reward=exact_match", data=data, model=TINY) == 0
    assert told(capfd)[1].count("cannot be known to have one unit") == 1


@pytest.mark.parametrize(("rewards", "one_unit"), [([1, -1], False), ([1, 0], True)])
def test_the_return_with_its_kl_is_measured_in_one_unit_alone(at_home, capfd, rewards, one_unit):
    data = write("asked.jsonl", [rewards] * 12)
    run = f"asked{rewards[1]}"
    words = ("eval.every=2", "eval.reward=exact_match", "eval.max_new_tokens=4", "trainer.max_steps=2")
    steps = ("algo=shiq", "trainer.batch_size=4", "data.val_fraction=0.4", f"run_dir={run}")
    assert main(["train", *steps, *data, *TINY, *words]) == 0
    found = json.loads((at_home / run / "summary.json").read_text())
    assert ("val/regularised_return" in found) == one_unit
    assert "val/reward" in found
    assert ("logged rewards are 1 and -1, those of eval.reward 1 and 0" in told(capfd)[1]) != one_unit
    assert main(["eval", f"run={run}", f"run_dir={run}-answers"]) == 0
    again = json.loads((at_home / f"{run}-answers" / "eval.json").read_text())
    assert ("eval/regularised_return" in again) == one_unit
