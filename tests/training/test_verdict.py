"""The sentence at the end of a run: improved, worse, or not sure, from the numbers that are there."""

import json

import pytest

import shiqrun
from shiqrun.training.verdict import verdict

ANSWERS = {"val/win_rate": 0.6, "val/win_rate_ci95": 0.05, "val/prompts": 128.0, "val/kl": 3.1}
ANSWERS |= {"val/reward": 0.27, "val/reference_reward": -0.05}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            {"val/regret": 0.755},
            {"val/regret": 0.101},
            "Improved: regret on held-out problems fell by 86.6%, from 0.755",
        ),
        ({"val/regret": 0.1}, {"val/regret": 1.0}, "Worse: regret on held-out problems rose by 900.0%"),
        (
            {},
            ANSWERS,
            "Improved: on 128 held-out prompts, win rate 60.0% (95 % interval 55.0% to 65.0%) against the "
            "reference's, reward -0.05 -> ",
        ),
        (
            {},
            ANSWERS | {"val/win_rate": 0.4},
            "Worse: on 128 held-out prompts, win rate 40.0% (95 % interval 35",
        ),
        ({}, ANSWERS | {"val/win_rate": 0.54}, "No sure difference on 128 held-out prompts: win rate 54.0%"),
        ({}, ANSWERS | {"val/win_rate_ci95": float("nan")}, "Too few prompts to tell on 128 held-out prompts"),
        (
            {},
            ANSWERS | {"val/win_rate": 1.0, "val/win_rate_ci95": 0.0},
            "Improved: on 128 held-out prompts, win rate 100.0% (95 % interval 97.7% to 100.0%)",
        ),
        (
            {},
            ANSWERS | {"val/win_rate": 1.0, "val/win_rate_ci95": 0.0, "val/prompts": 4.0},
            "No sure difference on 4 held-out",
        ),
        ({"val/regret": 1.0}, {"val/regret": 1.0}, "Unchanged: regret on held-out problems is 1"),
        (
            {"val/loss": 2.0},
            {"val/loss": 1.0},
            "The loss on held-out data fell from 2 to 1; whether answers improved is",
        ),
    ],
)
def test_the_sentence_says_what_the_numbers_say(before, after, said):
    assert verdict(before, after).startswith(said)


@pytest.mark.parametrize(
    ("share", "pairs", "said"),
    [
        (0.66, 900, "Learned: 66.0% (95 % interval 62.9% to 69.1%) of held-out pairs"),
        (0.52, 256, "Not surely better than chance: 52.0% (95 % interval 45.9% to 58.1%)"),
        (1.0, 4, "Not surely better than chance: 100.0% (95 % interval 25.0% to 100.0%)"),
        (0.9, 0, "Not surely better than chance: 90.0% of held-out pairs"),
    ],
)
def test_a_reward_model_has_learned_where_its_accuracy_is_surely_above_chance(share, pairs, said):
    assert verdict({}, {"val/accuracy": share}, pairs).startswith(said)


def test_a_reward_model_that_learned_says_so_at_its_end(home, capsys):
    words = (("yes", "no"), ("good", "bad"))
    rows = [{"prompt": f"go {n}", "chosen": words[n % 2][0], "rejected": words[n % 2][1]} for n in range(400)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data_path": home / "pairs.jsonl", "model_hidden_size": 16, "trainer_max_steps": 15}
    words = ("algo=reward_model", "data=jsonl", "model=tiny", "logger=none", "trainer.learning_rate=0.01")
    shiqrun.train(*words, **settings, trainer_batch_size=32, run_dir=home / "rm")
    assert "Learned: " in capsys.readouterr().out


def test_nothing_is_said_of_what_was_not_measured():
    assert verdict({}, {"train/loss": 1.0}) is None


def test_a_run_ends_with_a_short_table_the_sentence_and_what_to_do_next(home, capsys):
    settings = {"data_maps": 20, "data_val_maps": 3, "model_hidden_size": 16, "trainer_max_steps": 2}
    shiqrun.train("logger=none", **settings, run_dir=home / "run")
    shown = capsys.readouterr().out
    assert shown.count("│ val/") <= 8
    assert "more in summary.json" in shown
    assert "regret on held-out problems" in shown
    assert f"next: shiqrun report {home}/run" in shown
