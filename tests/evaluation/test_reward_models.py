"""Answers under a reward model: what it cannot read to the end, what it takes for tokens, and whose unit it has."""

import json
from collections import Counter

import numpy as np
import pytest

from shiqrun.data.jsonl import Jsonl
from shiqrun.evaluation.completion_metrics import completion_metrics
from shiqrun.rewards.exact_match import ExactMatch
from shiqrun.rewards.units import LoggedRewards, compare_units, of_source
from shiqrun.sampling.prompts import choose_prompts, fits_reward
from shiqrun.sampling.sampler import SampledCompletion, score_completions
from tests.rewards.classifiers import reward, save, tokens
from tests.support import helpers
from tests.support.completions import prompt, sample

CONTEXT = 32


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A reward model that reads few tokens; its words are single bytes, but for those of its corpus."""
    return save(tmp_path_factory.mktemp("rm"), context=CONTEXT)


def said(text):
    return SampledCompletion(prompt("a"), 0, text, sample("a").tokens, True)


def test_of_an_answer_that_it_cannot_read_the_beginning_is_scored(small):
    long, short = said("€" * 40), said("fine")  # three tokens a character
    scored = score_completions([long, short], reward(small))
    assert [s.cut for s in scored] == [True, False]
    assert [s.text for s in scored] == [long.text, short.text]
    kept = next(n for n in range(40, -1, -1) if len(tokens(small, said("€" * n).for_reward())) <= CONTEXT)
    assert 0 < kept < 40
    assert scored[0].reward == pytest.approx(reward(small).score([said("€" * kept).for_reward()])[0], abs=1e-5)
    assert completion_metrics(scored, None, beta=None, on_policy=True)["completions/cut_for_reward"] == 0.5


def test_prompts_that_leave_the_reward_model_no_room_are_left_out_and_counted(small):
    talks = [helpers.example("x", prompt=(text,), prompt_id=text) for text in ("hi", "€" * 8)]
    made = helpers.tokenizer(helpers.CHATML)
    chosen, left_out = choose_prompts(talks, made, number=9, room=None, fits=fits_reward(reward(small), 4))
    assert [p.messages[0]["content"] for p in chosen] == ["hi"]
    assert left_out == Counter({"too long for the reward model": 1})


@pytest.mark.parametrize("word", ["<|im_end|>", "</s>", "<|im_start|>"])
def test_an_answer_that_spells_a_special_token_is_read_as_letters(tmp_path, word):
    folder = save(tmp_path)
    special = helpers.tokenizer(helpers.CHATML).convert_tokens_to_ids(word)
    once, broken = (tokens(folder, said(text).for_reward()) for text in (f"no {word} yes", "no yes"))
    assert once.count(special) == broken.count(special) + 1, "the words alone would be a token"
    apart = f"{word[0]} {word[1:]}"
    assert reward(folder).score([said(f"no {word} yes").for_reward()]) == pytest.approx(
        reward(folder).score([said(f"no {apart} yes").for_reward()])
    )


def test_data_and_reward_have_one_unit_where_it_scored_the_data(tmp_path, small):
    source = Jsonl(path=str(tmp_path / "scored.jsonl"), val_path=None, pair_rewards=None)
    judge, scores = reward(small), np.array([0.3127, -1.4159])
    assert compare_units(of_source("jsonl", source, scores), judge) == "unknown"
    (tmp_path / "summary.json").write_text(json.dumps({"reward/fingerprint": judge.fingerprint()}))
    scored = of_source("jsonl", source, scores)
    assert compare_units(scored, judge) == "same"
    assert compare_units(scored, reward(small, scale=2.0)) == "other"


@pytest.mark.parametrize(
    ("levels", "said", "verdict"),
    [
        ([1, 0], None, "same"),
        ([0], None, "same"),
        ([0], (0, -1), "other"),
        ([1, 0.5], None, "unknown"),
        ([0, -1], None, "other"),
        ([2, 0], None, "other"),
        ([np.nan], None, "unknown"),
    ],
)
def test_a_verifier_has_the_unit_of_its_two_values(levels, said, verdict):
    logged = LoggedRewards("data=x", np.array(levels, float), said)
    assert compare_units(logged, ExactMatch(ignore_case=False)) == verdict
