"""Which trajectories are searched, through the chat templates that models have."""

import json
from dataclasses import replace

import numpy as np
import pytest

from shiqrun.batching.logged_data import DataSettings
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from shiqrun.estimates.pivotal_inputs import choose_trajectories, score_trajectories
from shiqrun.models.policy import Policy
from shiqrun.rewards.exact_match import ExactMatch
from tests.estimates.test_pivotal_search import ASKED
from tests.support.helpers import CHATML, MARKED_EOS_OUTSIDE, llama, tokenizer

DATA = DataSettings(limit=None, max_length=None, val_fraction=0.0, completions="all", train_on="assistant")
REWARD = ExactMatch(ignore_case=False)
SETTINGS = replace(ASKED, max_new_tokens=40)


def said(name, *completions, answer="yes"):
    return {"prompt": f"is it {name}?", "completions": list(completions), "rewards": [0] * len(completions)} | {
        "answer": answer
    }


def chosen(folder, rows, words, settings=SETTINGS, context=200):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Jsonl(path=str(path), val_path=None, pair_rewards=None)
    return choose_trajectories(source, DATA, words, settings, REWARD, context)


@pytest.mark.parametrize("template", [CHATML, MARKED_EOS_OUTSIDE, None], ids=["chatml", "marked", "plain"])
def test_right_answers_of_every_template_are_searched_with_their_log_probabilities(tmp_path, template):
    words = tokenizer(template)
    found, dropped = chosen(tmp_path, [said("a", "yes", "no"), said("b", "yes", "yes")], words)
    assert [e.messages[0]["content"] for _, e in found] == ["is it a?", "is it b?"]
    assert dropped == {"wrong": 1, "the same as another completion of its prompt": 1}
    policy = Policy(llama(vocabulary=len(words), max_position_embeddings=256)).eval()
    for walk, (t, _) in zip(score_trajectories(policy, found, words), found, strict=True):
        whole = np.concatenate([walk.prompt.tokens, walk.tokens])
        assert whole.tolist() == t.input_ids[: len(whole)].tolist()
        assert words.decode(walk.tokens, skip_special_tokens=True).strip() == walk.text == "yes"
        assert len(walk.logp) == len(walk.tokens)
        assert (walk.logp < 0).all()
        assert walk.reward == 1


def test_what_cannot_be_searched_is_counted_by_reason(tmp_path):
    words = tokenizer(CHATML)
    turns = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "?"}]
    rows = [said("a", "yes"), said("b", [*turns, {"role": "assistant", "content": "yes"}]), said("c", "so " * 25)]
    found, dropped = chosen(tmp_path, rows, words)
    assert len(found) == 1
    assert dropped["of more than one turn"] == 1
    assert dropped["longer than pivotal.max_new_tokens=40"] == 1
    with pytest.raises(InputError, match=r"1 without room for pivotal\.max_new_tokens=40 behind a prefix"):
        chosen(tmp_path, rows[:1], words, context=45)


def test_no_more_is_searched_than_asked_for(tmp_path):
    rows = [said(str(n), "yes") for n in range(5)]
    found, _ = chosen(tmp_path, rows, tokenizer(CHATML), replace(SETTINGS, max_trajectories=3))
    assert len(found) == 3
    every, _ = chosen(tmp_path, [said("a", "yes", "no")], tokenizer(CHATML), replace(SETTINGS, only="all"))
    assert [float(t.rewards.sum()) for t, _ in every] == [1, 0]
