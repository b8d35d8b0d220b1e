"""Losses on real dialogues of several turns, against loops over what the assistant says, token by token, in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval==2025.6.8")

from shiqrun import losses
from shiqrun.batching.rows import Rows
from shiqrun.models.policy import Policy
from shiqrun.models.tiny import Tiny
from tests.data.test_bfcl import bfcl
from tests.losses import naive
from tests.losses.rows import BETA, Row
from tests.support.helpers import encoded

SAMPLES = (46, 11, 50, 133)  # short ones
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "initializer_range": 0.5}


class World:
    """Dialogues of a few samples, a policy and a reference in float64, and the same read by hand.

    Attributes:
        batch: all dialogues.
        talks: (messages, places of the prompt, rewards by message, sample) of each row.
        read: for each row its tokens and, for each assistant message, the positions of its tokens.
    """

    def __init__(self):
        source = bfcl(only=SAMPLES, per_sample=4, corrupt=0.6, result_chars=20)
        examples = [*source.load("train")]
        tiny = Tiny(**SIZES, max_position_embeddings=1024, vocab_size=400)
        self.tokenizer = tiny.tokenizer(source, examples)
        models = [tiny.build(self.tokenizer, seed).double().eval() for seed in (1, 2)]
        self.policy, self.reference = models
        rows, dropped = encoded(self.tokenizer, *examples)
        assert not dropped
        self.batch = Rows(rows, self.tokenizer.pad_token_id, together=True).collate(range(len(rows)))
        flat = [(e, k) for e in examples for k in range(len(e.completions))]
        self.talks = [([*e.messages, *e.completions[k]], e.rewards[k], examples.index(e)) for e, k in flat]
        self.read = [self._by_hand(messages) for messages, _, _ in self.talks]

    def _by_hand(self, messages):
        """The plain template written out; which tokens lie between `Assistant:` and the end of what it says."""
        text, said = "<bos>", []
        for n, message in enumerate(messages):
            text += ("\n\n" if n else "") + message["role"].capitalize() + ":"
            start = len(text)
            text += f" {message['content']}"
            if message["role"] == "assistant":
                text += "<eos>"
                said.append((start, len(text)))
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = [[t for t, (a, _) in enumerate(tokens.offset_mapping) if i <= a < j] for i, j in said]
        return tokens.input_ids, places

    def by_hand(self):
        """Rows for the naive losses, with gradients into the policy's weights; nothing of the batch is used."""
        rows = []
        for (ids, places), (_, rewards, sample) in zip(self.read, self.talks, strict=True):
            ours, theirs = (m(input_ids=torch.tensor([ids])).logits[0] for m in (self.policy, self.reference))
            index = [t for turn in places for t in turn]
            ends = {turn[-1]: reward for turn, reward in zip(places, rewards, strict=True)}
            scores = [
                [f(logits[t - 1], ids[t]) for t in index]
                for logits in (ours, theirs.detach())
                for f in (lambda row, a: row[a], lambda row, a: row.logsumexp(-1))
            ]
            paid = [ends.get(t, 0.0) for t in index]
            rows.append(Row(paid, scores[0], scores[1], [], scores[2], scores[3], index, sample))
        return rows

    def gradients(self, total):
        self.policy.zero_grad()
        total.backward()
        return {name: p.grad.clone() for name, p in self.policy.named_parameters()}


@pytest.fixture(scope="module")
def world():
    return World()


def first_of_messages(rows, read):
    """ShiQ's squares at the first token of every message of the assistant."""
    total = 0.0
    for row, (_, places) in zip(rows, read, strict=True):
        for turn in places:
            t = row.index.index(turn[0])
            total = total + (row.return_to_go(t) - BETA * row.shift(t)) ** 2
    return total, len(rows)


def dialogue_pairs(rows):
    """Every two dialogues of one sample, the first with the larger return or an equal one."""
    found = [(a, b) for n, a in enumerate(rows) for b in rows[n + 1 :] if a.group == b.group]
    return [(a, b) if a.total_reward() >= b.total_reward() else (b, a) for a, b in found]


def multi_turn_dpo(rows):
    pairs = [(a, b) for a, b in dialogue_pairs(rows) if a.total_reward() > b.total_reward()]
    margins = [BETA * (a.total_ratio() - b.total_ratio()) for a, b in pairs]
    return -sum(torch.log(1 / (1 + torch.exp(-m))) for m in margins), len(pairs)


def multi_turn_copg(rows):
    pairs = dialogue_pairs(rows)
    return sum((a.return_to_go(0) - b.return_to_go(0)) ** 2 for a, b in pairs), len(pairs)


LOSSES = {
    "shiq": (losses.shiq, lambda rows, read: naive.shiq(rows)),
    "shiq_ms": (losses.shiq_ms, lambda rows, read: naive.shiq_ms(rows)),
    "shiq_tk": (losses.shiq_tk, first_of_messages),
    "shiq-fades": (
        partial(losses.shiq, fade=0.9, fade_from="turn"),
        lambda rows, read: naive.faded(naive.SQUARES["shiq"], fade=0.9, fade_from="turn")(rows),
    ),
    "dpo": (losses.dpo, lambda rows, read: multi_turn_dpo(rows)),
    "tbrm": (losses.tbrm, lambda rows, read: naive.tbrm(rows)),
    "ipo": (losses.ipo, lambda rows, read: naive.ipo(rows)),
    "copg": (losses.copg, lambda rows, read: multi_turn_copg(rows)),
}


def scored(world):
    with torch.no_grad():
        reference = Policy(world.reference)(world.batch)
    return Policy(world.policy)(world.batch), reference


@pytest.mark.parametrize("name", LOSSES)
def test_on_dialogues_the_loss_and_its_gradient_are_those_of_a_loop_over_what_the_assistant_says(world, name):
    loss, by_hand = LOSSES[name]
    terms = partial(loss, beta=BETA)(world.batch, *scored(world))
    total, count = by_hand(world.by_hand(), world.read)
    assert float(terms.count) == pytest.approx(count)
    torch.testing.assert_close(terms.total, total)
    assert terms.total.dtype == torch.float64
    ours, expected = world.gradients(terms.total), world.gradients(total)
    torch.testing.assert_close(ours, expected)
    assert all(gradient.abs().max() > 0 for gradient in ours.values())


def test_pairs_are_the_dialogues_of_one_sample_and_only_dpo_drops_ties(world):
    returns = [sum(rewards) for _, rewards, _ in world.talks]
    samples = [sample for _, _, sample in world.talks]
    pairs = [(i, j) for j in range(len(returns)) for i in range(j) if samples[i] == samples[j]]
    ties = sum(returns[i] == returns[j] for i, j in pairs)
    assert 0 < ties < len(pairs) == 4 * 6
    dpo, copg = (loss(world.batch, *scored(world), beta=BETA) for loss in (losses.dpo, losses.copg))
    assert int(dpo.count) == len(pairs) - ties
    assert [int(x) for x in dpo.metrics["ties"]] == [ties, len(pairs)]
    assert int(copg.count) == len(pairs)


def test_where_in_the_dialogue_a_reward_fell_matters_to_shiq_and_not_to_what_reads_the_return(world):
    """All rewards of a dialogue moved to its last message."""
    scores = scored(world)
    moved = torch.zeros_like(world.batch.rewards)
    moved[torch.arange(len(moved)), world.batch.action_mask.sum(-1) - 1] = world.batch.rewards.sum(-1)
    late = replace(world.batch, rewards=moved)
    for name, (loss, _) in LOSSES.items():
        a, b = (loss(batch, *scores, beta=BETA).total for batch in (world.batch, late))
        assert torch.isclose(a, b) == (name in {"dpo", "copg", "ipo", "tbrm"}), name


def test_what_tools_and_users_say_has_no_loss_of_its_own(world):
    """Only tokens of the assistant are actions: the positions are those that were read by hand."""
    for b, (ids, places) in enumerate(world.read):
        mask = world.batch.action_mask[b]
        assert world.batch.action_index[b, mask].tolist() == [t for turn in places for t in turn]
        assert world.batch.input_ids[b, : len(ids)].tolist() == ids
