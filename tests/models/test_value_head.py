"""The value head and network: what they read, what they train, and the reward model that is saved from a score."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from shiqrun.batching.encode import encode
from shiqrun.batching.rows import Rows
from shiqrun.models.policy import Policy, ValueHead
from shiqrun.rewards.provenance import provenance_of
from shiqrun.training.artifacts import save_reward_model
from tests.support import helpers


def batch():
    return helpers.rows(4).collate([0, 1, 2, 3])


def changed_from(given, position):
    """The batch with other tokens at and behind a position of every row."""
    ids = given.input_ids.clone()
    ids[:, position:] = (ids[:, position:] + 7) % 47 + 1
    return replace(given, input_ids=ids)


@pytest.mark.parametrize("network", [False, True])
def test_a_states_value_does_not_see_the_action_and_a_score_does(network):
    given, model = batch(), helpers.llama()
    first = int(given.action_index[0, 0])
    for at, sees in (("state", False), ("action", True)):
        head = ValueHead(16, at, copy.deepcopy(model.base_model) if network else None)
        torch.nn.init.normal_(head.linear.weight)
        policy = Policy(model, value=head)
        value, other = (policy(b).value[0, 0].detach() for b in (given, changed_from(given, first)))
        assert (abs(float(value - other)) > 1e-6) == sees
        policy.value.linear.weight.data.zero_()


def test_a_value_head_trains_itself_and_not_the_policy():
    model = helpers.llama()
    policy = Policy(model, value=ValueHead(16, "state"))
    policy(batch()).value.square().sum().backward()
    policy(batch()).value.sum().backward()
    assert policy.value.linear.bias.grad is not None
    assert all(p.grad is None for p in model.parameters())


def test_a_score_trains_the_body():
    model = helpers.llama()
    policy = Policy(model, value=ValueHead(16, "action"))
    policy(batch()).value.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.base_model.parameters())


TEMPLATES = {"plain": None, "chatml": helpers.CHATML, "eos outside": helpers.MARKED_EOS_OUTSIDE, "bare": helpers.BARE}


@pytest.mark.parametrize("pad", ["<pad>", "</s>", None])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_saved_classifier_gives_the_training_score_up_to_the_end_of_the_turn(tmp_path, template, pad):
    from collections import Counter

    tokenizer = helpers.tokenizer(TEMPLATES[template], pad=pad)
    examples = [helpers.example("fine, thank you."), helpers.example("hello there, and you?")]
    rows = Rows(list(encode(examples, tokenizer, Counter(), max_length=None)), pad=0)
    policy = Policy(helpers.llama(len(tokenizer), max_position_embeddings=128), value=ValueHead(16, "action")).eval()
    card = {"algo": "a", "data": "d", "base": "b", "steps": 1, "settings": {}, "metrics": {}}
    save_reward_model(policy, tokenizer, tmp_path, card, provenance_of(()))
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        scores = policy(rows.collate([0, 1])).value
        for row, t in enumerate(rows.trajectories):
            ids = torch.from_numpy(t.input_ids[: t.action_index[-1] + 1]).long()
            expected = float(scores[row, len(t.action_index) - 1])
            assert float(scorer(ids[None]).logits) == pytest.approx(expected, abs=1e-5)
            padded = torch.cat([ids, torch.full((3,), scorer.config.pad_token_id)])
            mask = (torch.arange(len(padded)) < len(ids)).long()
            assert float(scorer(padded[None], attention_mask=mask[None]).logits) == pytest.approx(expected, abs=1e-5)
