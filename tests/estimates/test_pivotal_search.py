"""The search on a reference that can be enumerated: its estimates, its memory, and the targets made of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError
from shiqrun.estimates.jsonl_cache import JsonlCache
from shiqrun.estimates.pivotal_search import KIND, search
from shiqrun.estimates.pivotal_settings import PivotalSettings
from shiqrun.estimates.prefix_sampler import PrefixSampler, SearchedTrajectory
from shiqrun.estimates.value_targets import number_of_targets, prefix_rewards, read_targets, value_targets
from shiqrun.rewards.exact_match import ExactMatch
from shiqrun.sampling.prompts import prompt_of
from shiqrun.types import Example
from tests.rollout.words import TOKENIZER, continuations, reference, said

BETA = 0.4
POLICY, REWARD = reference(), ExactMatch(ignore_case=False)
ASKED = PivotalSettings(
    split="train",
    only="right",
    max_trajectories=None,
    between=[0.0, 1.0],
    rollouts=2000,
    gap=0.01,
    bisect="logp",
    again=1000,
    max_new_tokens=3,
    together=128,
    batch_size=4000,
    seed=0,
)


def walk(asked, answer, reward=1.0):
    """A trajectory that says `answer`, with its stop token where there is room."""
    example = Example([{"role": "user", "content": asked}], [[{"role": "assistant", "content": answer}]], None, asked)
    prompt = replace(prompt_of(example, TOKENIZER), answer=answer)
    tokens = TOKENIZER(answer)["input_ids"]
    tokens = np.array([*tokens, TOKENIZER.eos_token_id] if len(tokens) < 3 else tokens)
    return SearchedTrajectory(prompt, tokens, np.full(len(tokens), -1.0), answer, reward, "here:1")


WALKS = [walk("a b", "c a"), walk("c c", "b"), walk("d a", "d d d")]


def chance(one, at):
    """The reference's chance to say the answer from behind the first actions, within three tokens in all."""
    begun = [*one.prompt.tokens.tolist(), *one.tokens[:at].tolist()]
    found = continuations(POLICY, begun, 3 - at)
    return sum(p for more, p in found.items() if said([*one.tokens[:at].tolist(), *more]) == one.prompt.answer)


def made(folder, walks=WALKS, **settings):
    asked = replace(ASKED, **settings)
    file = JsonlCache(folder / "pivotal.jsonl", KIND, asked.made_with("me", REWARD))
    estimates = PrefixSampler(POLICY, TOKENIZER, REWARD, asked)
    return search(estimates, walks, file), estimates, file


def rows_of(file):
    return [json.loads(line) for line in file.path.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    number, _, file = made(tmp_path_factory.mktemp("pivotal"))
    assert number == 3
    return {row["prompt"][0]["content"]: row for row in rows_of(file)}


def deviation(p, number):
    return math.sqrt(p * (1 - p) / number)


@pytest.mark.parametrize("one", WALKS, ids=lambda w: w.prompt.answer)
def test_the_estimates_are_the_reference_s_chances(rows, one):
    row = rows[one.prompt.messages[0]["content"]]
    assert len(row["rates"]) > 2
    for seen in row["rates"]:
        at = seen["at"]
        exact = 1.0 if at == len(one.tokens) else chance(one, at)
        assert seen["rate"] == pytest.approx(exact, abs=4.5 * deviation(exact, 2000) + 1e-9)


def test_fresh_rollouts_are_others_and_say_the_same(rows):
    for one in WALKS:
        row = rows[one.prompt.messages[0]["content"]]
        assert row["pivots"]
        first = {x["at"]: x for x in row["visited"]}
        for x in row["again"]:
            exact = chance(one, x["at"])
            assert np.mean(x["rewards"]) == pytest.approx(exact, abs=4.5 * deviation(exact, 1000) + 1e-9)
            assert x["rewards"] != first[x["at"]]["rewards"][:1000]
        for pivot in row["pivots"]:
            there = chance(one, pivot["at"] + 1) if pivot["at"] + 1 < len(one.tokens) else 1.0
            assert pivot["delta"] == pytest.approx(there - chance(one, pivot["at"]), abs=0.1)
            assert pivot["confirmed"] == (abs(pivot["delta"]) >= 0.01)


def test_rollouts_begin_with_the_tokens_they_go_on_from(rows):
    for one in WALKS:
        for seen in rows[one.prompt.messages[0]["content"]]["visited"]:
            begun = said(one.tokens[: seen["at"]])
            assert all(text.startswith(begun) and len(text.split()) <= 3 for text in seen.get("texts", ()))


def test_trajectories_that_share_a_beginning_share_its_estimates(tmp_path):
    twins = [walk("a b", "c a"), walk("a b", "c a b"), walk("a b", "c a")]
    twins[1] = replace(twins[1], prompt=twins[0].prompt, reward=0.0)
    number, estimates, file = made(tmp_path, twins, again=0, rollouts=50)
    assert number == 2  # the third is the first
    first, second = sorted(rows_of(file), key=lambda r: len(r["completion"][0]["content"]))
    shared = {x["at"]: x["rewards"] for x in first["visited"] if x["at"] <= 2}
    for x in second["visited"]:
        if x["at"] in shared:
            assert x["rewards"] == shared[x["at"]]
    visited = [(row["input_ids"][: x["at"]]) for row in rows_of(file) for x in row["visited"] if "texts" in x]
    assert len({tuple(ids) for ids in visited}) == estimates.positions == estimates.rollouts / 50 < len(visited)


def test_how_many_are_searched_together_changes_no_estimate(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "all").mkdir()
    *_, one = made(tmp_path / "one", together=1, rollouts=40, again=20)
    *_, together = made(tmp_path / "all", together=128, rollouts=40, again=20)
    assert sorted(map(json.dumps, rows_of(one))) == sorted(map(json.dumps, rows_of(together)))


def test_a_search_that_was_killed_goes_on_where_it_stood(tmp_path):
    *_, whole = made(tmp_path, together=1, rollouts=40, again=20)
    lines = whole.path.read_bytes().splitlines(keepends=True)
    whole.path.write_bytes(b"".join(lines[:2]) + lines[2][:50])  # a torn third line
    number, estimates, again = made(tmp_path, together=1, rollouts=40, again=20)
    assert number == 2
    assert again.path.read_bytes() == b"".join(lines)
    assert made(tmp_path, together=1, rollouts=40, again=20)[1].rollouts == 0
    assert estimates.rollouts > 0


def test_a_prompt_whose_chance_is_outside_is_not_searched(tmp_path):
    _, estimates, file = made(tmp_path, between=[0.9, 1.0], rollouts=50)
    for row in rows_of(file):
        assert not row["searched"]
        assert [x["at"] for x in row["visited"]] == [0, len(row["tokens"])]
    assert estimates.positions == 3


def test_a_file_of_other_searches_is_refused(tmp_path):
    made(tmp_path, rollouts=20, again=0)
    with pytest.raises(InputError, match="rollouts 20 there, 30 here"):
        made(tmp_path, rollouts=30, again=0)


def row_of(one, seen):
    return {"prompt_tokens": tokens_key(one.prompt.tokens), "input_ids": one.tokens.tolist(), "visited": seen}


def trajectory(one, prompt=None):
    prompt = one.prompt.tokens if prompt is None else prompt
    ids = np.concatenate([prompt, one.tokens]).astype(np.int32)
    index = np.arange(len(prompt), len(ids), dtype=np.int32)
    return EncodedTrajectory(ids, index, None, "same", 0, 0, "here", "same")


def test_targets_stand_behind_the_actions_they_were_estimated_behind():
    one, other = WALKS[0], WALKS[1]
    elsewhere = other.prompt.tokens
    rows = Rows([trajectory(other), trajectory(one), trajectory(one, elsewhere)], 0)
    seen = [
        {"at": 0, "rewards": [0.0, 0.0]},
        {"at": 2, "rewards": [1.0, 0.0, 0.0, 0.0]},
        {"at": 3, "rewards": [1.0]},
    ]
    targets = value_targets(rows, prefix_rewards([row_of(one, seen)]), BETA)
    assert number_of_targets(targets) == 1
    assert np.isnan(targets[0]).all()
    assert np.isnan(targets[2]).all()  # the same tokens, but after another prompt
    expected = BETA * math.log(0.25 * math.exp(1 / BETA) + 0.75)
    # nothing behind the last action: what it earns is what the terminal loss regresses to
    np.testing.assert_allclose(targets[1], [np.nan, expected, np.nan], rtol=1e-6)
    batch = rows.with_column("value_target", targets).collate([0, 1])
    np.testing.assert_allclose(batch.value_target[1], [np.nan, expected, np.nan], rtol=1e-6)
    assert batch.value_target.shape == batch.rewards.shape


def test_other_data_have_no_targets():
    rows = Rows([trajectory(WALKS[0], WALKS[1].prompt.tokens)], 0)
    known = prefix_rewards([row_of(WALKS[0], [{"at": 1, "rewards": [1.0]}])])
    assert number_of_targets(value_targets(rows, known, BETA)) == 0


def test_searches_of_two_data_sets_with_equal_prompt_ids_are_told_apart(tmp_path):
    mine, theirs = walk("a b", "c a"), walk("c c", "c a")
    theirs = replace(theirs, prompt=replace(theirs.prompt, prompt_id=mine.prompt.prompt_id))
    made(tmp_path, [mine], rollouts=20, again=0)
    assert made(tmp_path, [theirs], rollouts=20, again=0)[0] == 1
    harder = replace(mine, prompt=replace(mine.prompt, answer="d"))
    assert made(tmp_path, [harder], rollouts=20, again=0)[0] == 1
    assert made(tmp_path, [mine, theirs, harder], rollouts=20, again=0)[0] == 0


@pytest.mark.parametrize("between", [[0.8, 0.2], [-0.1, 0.5], [0.2, 2.0]])
def test_chances_that_are_no_interval_are_refused(between):
    with pytest.raises(InputError, match=r"pivotal\.between="):
        replace(ASKED, between=between)


def test_targets_of_another_reference_or_reward_are_refused(tmp_path):
    *_, file = made(tmp_path, rollouts=20, again=0)
    assert len(read_targets(file.path, "me", REWARD)) == 3
    with pytest.raises(InputError, match="reference me there, you here"):
        read_targets(file.path, "you", REWARD)
    with pytest.raises(InputError, match=r"reward .* there, .* here"):
        read_targets(file.path, "me", ExactMatch(ignore_case=True))


def test_equal_tokens_have_equal_keys_whatever_their_type():
    assert tokens_key(np.array([1, 2], np.int32)) == tokens_key(np.array([1, 2]))
    assert tokens_key(np.array([1, 2])) != tokens_key(np.array([1, 2, 0]))
