"""Rewards at equal KL, where the answer is known, and the tables of two real sweeps."""

import json
import math

import numpy as np
import pytest

from experiments.frontiers import (
    equal_kl_table,
    frontier,
    length_controlled,
    main,
    read_methods,
    resampled,
    token_worth,
)
from shiqrun.cli import main as shiqrun
from shiqrun.errors import InputError
from shiqrun.report.answers import Answers, read_answers
from tests.evaluation.runs import make_base, words


def answers(kl, reward, *, seeds=5, prompts=200, spread=0.1, draw=0):
    """Answers with this mean KL and reward, which vary by prompt; the reference's mean reward is 0."""
    rng = np.random.default_rng(draw)
    easy = np.random.default_rng(7).normal(0, spread, prompts)
    easy -= easy.mean()
    noise = rng.normal(0, spread / 10, (seeds, prompts))
    table = {"reward": reward + easy + noise - noise.mean(), "kl": np.full((seeds, prompts), kl)}
    table["reference"] = np.tile(easy, (seeds, 1))
    return Answers([str(s) for s in range(seeds)], [str(p) for p in range(prompts)], table)


def test_points_that_another_beats_in_both_are_left_out():
    assert frontier([(2.2, 0.06), (0.0, -0.05), (2.1, -0.3), (9.0, 0.2), (5.0, 0.24)]) == [
        (0.0, -0.05),
        (2.2, 0.06),
        (5.0, 0.24),
    ]


def test_between_two_betas_the_reward_is_on_their_line_and_beyond_the_last_there_is_none():
    found = resampled({0.01: answers(4.0, 0.4), 0.1: answers(1.0, 0.1)}, [2.5, 0.5, 4.5])[0]
    assert found[:2] == pytest.approx([0.25, 0.05])
    assert math.isnan(found[2])


def test_what_prompts_share_is_no_part_of_a_difference():
    """The prompts' own spread is ten times the difference, and both methods answer the same ones."""
    one = {0.1: answers(2.0, 0.10, spread=0.3)}
    other = {0.1: answers(2.0, 0.13, spread=0.3, draw=1)}
    a, b = resampled(one, [2.0])[:, 0], resampled(other, [2.0])[:, 0]
    alone, together = np.ptp(np.percentile(a[1:], (2.5, 97.5))), np.ptp(np.percentile((b - a)[1:], (2.5, 97.5)))
    assert (b - a)[0] == pytest.approx(0.03)
    assert together < alone / 4


def test_the_named_method_is_what_others_are_compared_with():
    methods = {"one": {0.1: answers(2.0, 0.1)}, "other": {0.1: answers(2.0, 0.2)}}
    cells = [list(column.cells) for column in equal_kl_table(methods, [2.0, 3.0], "one").columns]
    assert cells[0] == ["one", "other"] * 2
    assert cells[3][0] == ""
    assert cells[3][1].startswith("0.100 (0.1")
    assert cells[2][2:] == ["not reached"] * 2
    assert next(iter(equal_kl_table(methods, [2.0], "other").columns[3].cells)).startswith("-0.100 (-0.1")


def row(step, prompt, tokens, reward):
    answer = {"step": step, "prompt_id": str(prompt), "prompt": "?", "completion": "!", "tokens": tokens}
    return json.dumps(answer | {"reward": reward, "kl": 1.0, "reference_reward": 0.5}) + "\n"


def test_what_length_is_worth_to_the_reference_is_taken_off(tmp_path):
    """A token costs a quarter; the policy earns .5 more than the reference by being shorter, and .25 otherwise."""
    lengths = (4, 8, 12, 16)
    before = "".join(row(0, n, tokens, 3 - tokens / 4) for n, tokens in enumerate(lengths))
    after = "".join(row(9, n, tokens - 2, 3 - (tokens - 2) / 4 + 0.25) for n, tokens in enumerate(lengths))
    (tmp_path / "samples.jsonl").write_text(before + after)
    worth, length = token_worth(tmp_path)
    assert (worth, length) == (pytest.approx(-0.25), 10)
    rows = read_answers(tmp_path, "val")
    values = {name: np.array([[r[name] for r in rows.values()]]) for name in ("reward", "tokens")}
    plain = Answers(["1"], [*rows], values)
    assert plain.values["reward"].mean() == pytest.approx(0.5 + 0.5 + 0.25)
    assert length_controlled(plain, worth, length).values["reward"] == pytest.approx(np.full((1, 4), 0.75))
    (tmp_path / "val.jsonl").write_text(after)
    assert token_worth(tmp_path) == (worth, length), "these are of the trained policy, which a test split leaves apart"
    (tmp_path / "samples.jsonl").write_text(after)
    with pytest.raises(
        InputError, match="--length-controlled needs scored answers of the reference, of several lengths"
    ):
        token_worth(tmp_path)


@pytest.mark.slow
def test_real_sweeps_give_a_row_a_beta(workplace, capsys):
    make_base(workplace)
    for units in ("action", "trajectory"):
        grid = ("algo=shiq", f"algo.units={units}", "algo.beta=0.1,0.5", "seed=1,2", f"run_dir={units}")
        assert shiqrun(["sweep", *words(workplace, units)[1:-1], *grid]) == 0
    capsys.readouterr()
    main(["action", "trajectory", "--kl", "0.0", "--against", "shiq units=trajectory"])
    assert capsys.readouterr().out.count("units=trajectory") == 4
    one = read_methods([workplace / "action"])
    assert [len(a.seeds) for by_beta in one.values() for a in by_beta.values()] == [2, 2]
    with pytest.raises(SystemExit):
        main(["action", "--against", "nobody"])
    assert "--against nobody: no such method; there are shiq" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["action", "--length-controlled"])
    assert "needs scored answers of the reference, of several lengths" in capsys.readouterr().err, "all have one token"
    with pytest.raises(InputError, match="no such directory"):
        read_methods([workplace / "none"])
