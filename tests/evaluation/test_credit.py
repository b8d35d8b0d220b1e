import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from shiqrun.batching.columns import AnchorTokens
from shiqrun.batching.encode import encode, with_template
from shiqrun.batching.rows import Rows
from shiqrun.evaluation.credit import credit, write_credit
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference, scores_in_batch, weights_fingerprint
from shiqrun.models.reference_cache import cache_key, cached_scores
from shiqrun.types import Example
from tests.support.helpers import llama, rows, tokenizer, trajectory

BETA = 0.3
KEYS = ["kind", "side", "source", "prompt_id", "return", "beta", "tokens", "action"]
NUMBERS = ["advantage", "shifted_value", "residual", "logp", "reference_logp", "reward"]
TOKENIZER = tokenizer()
VOCABULARY = len(TOKENIZER)


def policy(seed):
    return Policy(llama(VOCABULARY, seed))


def two():
    return policy(0), FrozenReference(policy(1))


def looped(t, offset=0.0):
    """The three numbers of each action of a trajectory, one at a time, in float64, from the models' dense logits."""
    logits = []
    for seed in (0, 1):
        with torch.no_grad():
            model = llama(VOCABULARY, seed).double()
            logits.append(model(torch.from_numpy(t.input_ids).long()[None]).logits[0])
    ours, theirs = (x.log_softmax(-1) for x in logits)
    advantage, value, left = [], [], []
    rewards = t.rewards.astype(float).tolist()
    rewards[-1] -= offset
    for at in t.action_index:
        token = int(t.input_ids[at])
        advantage.append(BETA * float(ours[at - 1, token] - theirs[at - 1, token]))
        value.append(BETA * float(logits[0][at - 1].logsumexp(-1) - logits[1][at - 1].logsumexp(-1)))
    for k in range(len(rewards)):
        left.append(sum(rewards[k:]) - sum(advantage[k:]) - value[k])
    return advantage, value, left


def test_the_log_probabilities_of_both_models_are_those_of_their_dense_logits():
    data = rows(vocabulary=VOCABULARY)
    for c, t in zip(credit(*two(), data, TOKENIZER, beta=BETA), data.trajectories, strict=True):
        for seed, numbers in ((0, c.logp), (1, c.reference_logp)):
            with torch.no_grad():
                logits = llama(VOCABULARY, seed).double()(torch.from_numpy(t.input_ids).long()[None]).logits[0]
            at = t.action_index.tolist()
            expected = [float(logits.log_softmax(-1)[i - 1, int(t.input_ids[i])]) for i in at]
            assert of_actions(numbers) == pytest.approx(expected, abs=1e-5)


def test_the_answers_of_a_logged_pair_are_told_apart_and_nothing_else_is_called_so():
    prompt = [{"role": "user", "content": "a"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    pair = Example(messages=prompt, completions=answers, rewards=[1.0, -1.0], prompt_id="p", alone=True)
    group = Example(messages=prompt, completions=answers, rewards=[1.0, -1.0], prompt_id="q")
    words = with_template(tokenizer())
    data = Rows(list(encode([pair, group], words, Counter(), max_length=None)), pad=0)
    for kind, sides in (("data", ["chosen", "rejected", "", ""]), ("sample", [""] * 4)):
        assert [c.side for c in credit(*two(), data, words, beta=BETA, kind=kind)] == sides


def of_actions(numbers):
    return [x for x in numbers if x is not None]


@pytest.mark.parametrize("offset", [0.0, 0.75])
def test_the_numbers_are_those_of_a_loop_over_dense_logits_in_float64(offset):
    data = rows(vocabulary=VOCABULARY)
    data = data.with_column("offset", np.full(len(data), offset, np.float32))
    made = credit(*two(), data, TOKENIZER, beta=BETA)
    assert len(made) == len(data)
    for c, t in zip(made, data.trajectories, strict=True):
        advantage, value, left = looped(t, offset)
        assert of_actions(c.advantage) == pytest.approx(advantage, abs=1e-5)
        assert of_actions(c.shifted_value) == pytest.approx(value, abs=1e-5)
        assert of_actions(c.residual) == pytest.approx(left, abs=1e-5)
        assert of_actions(c.reward) == pytest.approx(t.rewards.tolist())
        assert c.earned == pytest.approx(float(t.rewards.sum()), abs=1e-6)
        explained = sum(advantage) + of_actions(c.shifted_value)[0] + of_actions(c.residual)[0]
        assert explained + offset == pytest.approx(c.earned, abs=1e-5)


def test_every_list_has_an_entry_a_token_and_numbers_on_actions_alone():
    data = rows(vocabulary=VOCABULARY)
    for c, t in zip(credit(*two(), data, TOKENIZER, beta=BETA), data.trajectories, strict=True):
        assert [i for i, acts in enumerate(c.action) if acts] == t.action_index.tolist()
        assert "".join(c.tokens) == TOKENIZER.decode(t.input_ids)
        for name in NUMBERS:
            numbers = getattr(c, name)
            assert [x is not None for x in numbers] == c.action
        assert (c.kind, c.source, c.prompt_id, c.beta) == ("data", t.source, t.prompt_id, BETA)


def test_a_policy_that_is_its_reference_has_learned_nothing():
    data = rows(vocabulary=VOCABULARY)
    for c, t in zip(
        credit(policy(0), FrozenReference(policy(0)), data, TOKENIZER, beta=BETA), data.trajectories, strict=True
    ):
        assert set(of_actions(c.advantage)) == {0.0}
        assert set(of_actions(c.shifted_value)) == {0.0}
        assert of_actions(c.residual) == pytest.approx(np.cumsum(t.rewards[::-1])[::-1].tolist(), abs=1e-6)


def test_neither_order_nor_batching_nor_padding_changes_a_number():
    data = rows(vocabulary=VOCABULARY)
    whole = credit(*two(), data, TOKENIZER, beta=BETA)
    alone = credit(*two(), data, TOKENIZER, beta=BETA, picked=[7, 2, 7], tokens=1, kind="sample")
    assert [c.kind for c in alone] == ["sample"] * 3
    for c, row in zip(alone, (7, 2, 7), strict=True):
        assert c.source == whole[row].source
        for name in NUMBERS:
            assert of_actions(getattr(c, name)) == pytest.approx(of_actions(getattr(whole[row], name)), abs=1e-5)


def test_cached_scores_serve_as_the_reference(tmp_path):
    data, reference = rows(vocabulary=VOCABULARY), policy(1)
    key = cache_key(reference, data, weights_fingerprint(reference.model))
    live = credit(policy(0), FrozenReference(reference), data, TOKENIZER, beta=BETA)
    data = data.with_anchor(AnchorTokens(3, VOCABULARY, 0))
    found = cached_scores(reference, data, tmp_path, key=key, tokens=64, device=torch.device("cpu"))
    data = data.with_column("reference", found[0])
    for a, b in zip(credit(policy(0), scores_in_batch, data, TOKENIZER, beta=BETA), live, strict=True):
        assert of_actions(a.residual) == pytest.approx(of_actions(b.residual), abs=1e-5)


def test_the_policy_is_left_as_it_was():
    trained = policy(0).train()
    before = weights_fingerprint(trained)
    credit(trained, FrozenReference(policy(1)), rows(vocabulary=VOCABULARY), TOKENIZER, beta=BETA)
    assert trained.training
    assert weights_fingerprint(trained) == before
    assert all(p.grad is None for p in trained.parameters())


def test_without_rewards_there_is_no_return_and_no_residual():
    data = Rows([trajectory(0, tokens=[5, 6, 7, 8], action_index=[2, 3])], pad=0)
    (c,) = credit(*two(), data, TOKENIZER, beta=BETA)
    assert c.earned is None
    assert c.reward == c.residual == [None] * 4
    assert len(of_actions(c.advantage)) == len(of_actions(c.shifted_value)) == 2


def test_a_character_of_several_tokens_is_the_text_of_the_last():
    ids = TOKENIZER("say 🙂 now")["input_ids"]
    data = Rows([trajectory(0, tokens=ids, action_index=range(1, len(ids)))], pad=0)
    (c,) = credit(*two(), data, TOKENIZER, beta=BETA)
    assert len(c.tokens) == len(ids)
    assert "".join(c.tokens) == "say 🙂 now"
    assert c.tokens.count("") == 3


def test_the_file_has_a_line_a_trajectory_and_null_for_what_is_no_number(tmp_path):
    data = Rows(
        [
            trajectory(0, tokens=[5, 6, 7], action_index=[1, 2], rewards=[math.inf, 2]),
            trajectory(1, tokens=[5, 6, 7], action_index=[2], rewards=[-1]),
        ],
        pad=0,
    )
    made = credit(*two(), data, TOKENIZER, beta=BETA)
    write_credit(tmp_path / "credit.jsonl", made)
    first, second = map(json.loads, (tmp_path / "credit.jsonl").read_text(encoding="utf-8").splitlines())
    assert sorted(first) == sorted([*KEYS, *NUMBERS])
    assert first["return"] is None
    assert first["reward"] == [None, None, 2.0]
    assert first["residual"][1] is None
    assert second["return"] == -1.0
    assert second["advantage"] == made[1].advantage
    with pytest.raises(AttributeError):
        write_credit(tmp_path / "credit.jsonl", [*made, None])
    assert len((tmp_path / "credit.jsonl").read_text(encoding="utf-8").splitlines()) == 2
