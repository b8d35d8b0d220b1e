"""Episodes that are sampled for training: their tokens, log-probabilities, rewards, ends, and what a failure leaves."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from shiqrun.batching.encode import encode
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError, TrainingError
from shiqrun.models.policy import Policy
from shiqrun.rollout.episode_worker import MOST_TRIES, EpisodeWorker
from shiqrun.rollout.episodes import Tasks, playable
from shiqrun.rollout.mixing import as_rows
from shiqrun.rollout.store.shards import Shards
from shiqrun.rollout.trajectory import Turns
from shiqrun.types import Example
from tests.environments.echoing import EchoingEnvironment, EchoingEpisode
from tests.rollout.sampled import settings, told, wanted
from tests.support.helpers import BARE, CHATML, MARKED_EOS_OUTSIDE, example, llama, tokenizer

TEMPLATES = {"chatml": CHATML, "marked": MARKED_EOS_OUTSIDE, "bare": BARE, "plain": None}
TOKENIZERS = {name: tokenizer(template) for name, template in TEMPLATES.items()}
CHAT = TOKENIZERS["chatml"]


def asked(count=5):
    """The n-th asks for n letters."""
    return [example("x", prompt=["a" * n + "?"], prompt_id=f"p{n}", source=f"f:{n}") for n in range(1, count + 1)]


def policy(seed=0, *, likes=(), context=512):
    """A random model, to which some tokens are likelier than others by 8 nats."""
    made = llama(len(CHAT), seed, max_position_embeddings=context)
    if likes:
        head = torch.nn.Linear(made.lm_head.in_features, made.lm_head.out_features)
        with torch.no_grad():
            head.weight.copy_(made.lm_head.weight)
            head.bias.zero_()
            head.bias[list(likes)] = 8.0
        made.lm_head = head
    return Policy(made).eval().requires_grad_(False)


def stop_of(by):
    """The token that ends a message."""
    return by.convert_tokens_to_ids("<|im_end|>" if by is CHAT else by.eos_token)


def worker(acting=None, *, world=None, by=CHAT, context=512, number=0, tasks=None, **options):
    made = settings(**({"temperature": [0.7, 1.5], "top_p": 0.9, "samples_per_prompt": 2} | options))
    tasks = Tasks(tasks or asked(), world or EchoingEnvironment(), context)
    return EpisodeWorker(copy.deepcopy(acting) if acting else policy(), by, tasks, made, seed=3, number=number)


def replayed(t):
    """Rewards that the environment pays for what a trajectory said, played again by its texts."""
    task = next(e for e in asked() if e.prompt_id == t.prompt_id)
    episode = EchoingEpisode(EchoingEnvironment(), task)
    return [episode.step(text).reward for text in t.turns.said]


# ------------------------------------------------------------------ tokens and log-probabilities
@pytest.mark.parametrize("name", TEMPLATES)
def test_log_probabilities_are_the_policys_scores_of_the_whole_trajectory_under_every_template(name):
    """So the states are those of the sampling: what stands between two messages is what the policy read there."""
    acting = policy(5)
    found = worker(acting, by=TOKENIZERS[name]).sample(12)
    assert {len(t.turns.spans) for t in found} == {3}
    batch = as_rows(found, 0, together=False, source="online").collate(range(12))
    gap = (acting(batch).logp - batch.acting_logp).masked_fill(~batch.action_mask, 0)
    assert float(gap.abs().max()) < 1e-4
    assert not all(t.ended for t in found), "messages that were cut off are among them"
    for t in found:
        assert t.behaviour_logp == pytest.approx(behaviour(acting, t), abs=1e-4)


def behaviour(acting, t):
    """Log-probabilities under the renormalised nucleus at the episode's temperature, by hand."""
    ids, found = torch.from_numpy(t.input_ids).long(), []
    logits = acting.causal_lm(ids[None]).logits[0].double()
    for at in t.action_index.tolist():
        chances = (logits[at - 1] / t.temperature).softmax(-1)
        order = chances.argsort(descending=True)
        nucleus = order[: int((chances[order].cumsum(0) < t.top_p).sum()) + 1]
        found.append(float((chances[ids[at]] / chances[nucleus].sum()).log()))
    return found


@pytest.mark.parametrize("name", ["chatml", "marked", "plain"])
def test_messages_that_the_tokenizer_divides_alike_give_the_trajectory_of_a_logged_dialogue(name):
    """Token by token, with the same actions and rewards; `bare` closes no message, and logged ones only the last."""
    by, alike = TOKENIZERS[name], 0
    words = [by.encode(word)[0] for word in (("you", "fine") if name == "chatml" else (" the", " you", " how"))]
    for t in worker(policy(likes=[stop_of(by), *words]), by=by, max_new_tokens=12).sample(40):
        words = Example(t.messages, [t.turns.messages], [list(t.turns.rewards)], t.prompt_id)
        for row in encode([words], by, Counter(), max_length=None):
            if row.input_ids[row.action_index].tolist() == t.input_ids[t.action_index].tolist():
                alike += 1
                assert row.input_ids[: row.action_index[-1] + 1].tolist() == t.input_ids.tolist()
                assert row.action_index.tolist() == t.action_index.tolist()
                assert row.rewards.tolist() == t.action_rewards.tolist()
    assert alike


def test_a_message_that_was_cut_off_is_closed_by_state_and_not_by_an_action():
    (t, *_) = worker(max_new_tokens=3).sample(2)
    ids = t.input_ids.tolist()
    end = CHAT.convert_tokens_to_ids("<|im_end|>")
    for (_, stop), (start, _) in zip(t.turns.spans, t.turns.spans[1:], strict=False):
        between = ids[stop:start]
        assert between[0] == end
        assert CHAT.decode(between).startswith("<|im_end|>\n<|im_start|>user\n")
        assert CHAT.decode(between).endswith("<|im_start|>assistant\n")
    assert len(ids) == t.turns.spans[-1][1], "what the environment says at last is no state of an action"


# ------------------------------------------------------------------ rewards, ends, numbers
def test_every_message_is_paid_by_the_environment_at_its_last_action():
    for t in worker().sample(10):
        assert list(t.turns.rewards) == replayed(t)
        assert t.reward == pytest.approx(sum(t.turns.rewards))
        (row,) = as_rows([t], 0, together=False, source="online").trajectories
        paid = {int(row.action_index[i]): float(row.rewards[i]) for i in np.flatnonzero(row.rewards)}
        assert paid == {end - 1: pytest.approx(r) for (_, end), r in zip(t.turns.spans, t.turns.rewards, strict=True)}
        assert t.messages == [
            {"role": "system", "content": "Speak."},
            {"role": "user", "content": t.messages[1]["content"]},
        ]
        assert [m["role"] for m in t.turns.messages] == ["assistant", "user", "tool"] * 2 + ["assistant"]


def test_an_episode_that_outgrows_the_context_ends_there_and_says_so():
    whole, short = worker().sample(6), worker(context=110).sample(6)
    assert {t.turns.truncated for t in whole} == {""}
    assert {t.turns.truncated for t in short} == {"no room"}
    for t, longer in zip(short, whole, strict=True):
        assert len(t.input_ids) <= 110 < len(longer.input_ids)
        assert longer.input_ids[: len(t.input_ids)].tolist() == t.input_ids.tolist()
        assert t.turns.rewards[-1] == longer.turns.rewards[len(t.turns.rewards) - 1] - 100, "what the truncation costs"


def test_an_episode_of_too_many_messages_ends():
    found = worker(world=EchoingEnvironment(turns=99, limit=2)).sample(4)
    assert {(t.turns.truncated, len(t.turns.spans)) for t in found} == {("too many steps", 2)}


def test_an_episode_ends_where_the_template_rewrites_what_was_said_before():
    """Then no tokens continue the dialogue as the policy has seen it."""
    by = tokenizer(CHATML.replace("in messages %}", "in messages[-3:] %}"))
    found = worker(by=by).sample(4)
    assert {(t.turns.truncated, len(t.turns.spans)) for t in found} == {("template", 1)}


@pytest.mark.parametrize("portions", [[4, 8], [8, 4], [2] * 6])
def test_what_is_sampled_depends_on_the_numbers_alone(portions):
    made = worker()
    assert told([t for n in portions for t in made.sample(n)]) == wanted(worker().sample(12))
    assert told(worker(number=4).sample(8)) == wanted(worker().sample(12)[4:])


def test_episodes_of_a_task_share_group_and_temperature_and_differ():
    found = worker(samples_per_prompt=3).sample(15)
    for group in (found[k : k + 3] for k in range(0, 15, 3)):
        assert len({(t.group, t.prompt_id, t.temperature) for t in group}) == 1
        assert len({tuple(t.input_ids.tolist()) for t in group}) == 3
    assert sorted(t.prompt_id for t in found) == sorted(3 * [e.prompt_id for e in asked()])
    assert [t.uid for t in found] == [f"w0-0-{n}" for n in range(15)]


# ------------------------------------------------------------------ failures
def test_an_environment_that_fails_is_counted_and_other_tasks_are_played_in_its_place():
    world = EchoingEnvironment(fails={("p2", 0), ("p4", 2)})
    made = worker(world=world)
    found = made.sample(20)
    assert [t.uid for t in found] == [f"w0-0-{n}" for n in range(20)], "no number is missing"
    assert {t.prompt_id for t in found} == {"p1", "p3", "p5"}
    assert all(list(t.turns.rewards) == replayed(t) for t in found)
    assert all(len({t.prompt_id for t in found[k : k + 2]}) == 1 for k in range(0, 20, 2)), "groups are whole"
    assert made.failed >= 2 * 4, "both episodes of each group that was begun with p2 or p4"
    assert world.closed > 20, "also those that failed later"
    good = worker().sample(20)
    kept = [(a, b) for a, b in zip(found, good, strict=True) if b.prompt_id in ("p1", "p3", "p5")]
    assert told([a for a, _ in kept]) == wanted([b for _, b in kept]), "failures change no other episode"


def test_an_environment_that_always_fails_ends_the_run_with_the_task_and_the_cure():
    broken = EchoingEnvironment(fails={(e.prompt_id, 1) for e in asked()})
    made = worker(world=broken)
    with pytest.raises(TrainingError, match=rf"^rollout: {MOST_TRIES} tasks in a row could not be played, last p\d: "):
        made.sample(2)
    assert (made.number, made.failed) == (0, 2 * MOST_TRIES)


def test_tasks_without_room_are_left_out_and_none_at_all_is_refused(caplog):
    long = [*asked(2), example("x", prompt=["a" * 400], prompt_id="long")]
    tasks = playable(long, EchoingEnvironment(), CHAT, settings(max_new_tokens=8), 100)
    assert [e.prompt_id for e in tasks.examples] == ["p1", "p2"]
    assert "2 of 3 training tasks are played" in caplog.text
    with pytest.raises(InputError, match=r"none of the 3 training tasks leaves room for rollout\.max_new_tokens=98"):
        playable(long, EchoingEnvironment(), CHAT, settings(max_new_tokens=98), 100)


# ------------------------------------------------------------------ what is stored
def test_the_store_gives_back_every_episode_and_is_a_data_set_with_turns_rewards_and_tokens(tmp_path):
    found = worker().sample(10) + worker(world=EchoingEnvironment(turns=5), context=110, number=10).sample(4)
    store = Shards(tmp_path / "experience")
    store.append(found)
    assert told(store.read()) == told(found)
    store.close()
    source = Jsonl(path=str(tmp_path / "experience"), val_path=None, pair_rewards=None)
    examples = [*source.load("train")]
    assert not source.dropped
    rows = [*encode(examples, CHAT, dropped := Counter(), max_length=None)]
    assert not dropped
    for t, e, row in zip(found, examples, rows, strict=True):
        assert (e.prompt_id, e.completions[0]) == (t.prompt_id, t.turns.messages)
        assert row.input_ids.tolist() == t.input_ids.tolist()
        assert row.action_index.tolist() == t.action_index.tolist()
        assert row.rewards == pytest.approx(t.action_rewards)


def test_under_another_tokenizer_the_text_of_stored_episodes_is_encoded_where_no_message_was_cut_off(tmp_path):
    found = worker(policy(likes=[stop_of(CHAT), *CHAT.encode("you")]), max_new_tokens=2).sample(20)
    store = Shards(tmp_path / "experience")
    store.append(found)
    store.close()
    examples = [*Jsonl(path=str(tmp_path / "experience"), val_path=None, pair_rewards=None).load("train")]
    rows = [*encode(examples, TOKENIZERS["marked"], dropped := Counter(), max_length=None)]
    assert len(rows) + sum(dropped.values()) == 20
    assert 0 < len(rows) <= sum(t.ended for t in found) < 20


@pytest.mark.parametrize(
    "change", [{"spans": ((5, 7),)}, {"rewards": (1.0,)}, {"messages": [{"role": "user", "content": "?"}]}]
)
def test_turns_that_do_not_agree_with_each_other_are_refused(change):
    (t, *_) = worker().sample(2)
    with pytest.raises(ValueError, match=r"messages, \d spans, \d rewards"):
        replace(t.turns, **change)


def test_rows_of_tokens_with_wrong_spans_name_file_row_and_column(tmp_path):
    row = '{"prompt": "a", "completion": "b", "reward": 1, "input_ids": [1, 2, 3], "start": 1, "ended": true, '
    for spans in ("[[0, 2]]", "[[1, 2], [1, 3]]", "[[2, 2]]", "[1, 2]", "[]", "[[1, 4]]", '[["1", 2]]'):
        (tmp_path / "x.jsonl").write_text(f'{row}"action_spans": {spans}}}\n')
        with pytest.raises(InputError, match=r"x\.jsonl:1: column 'action_spans': expected \[start, end\] of each"):
            [*Jsonl(path=str(tmp_path / "x.jsonl"), val_path=None, pair_rewards=None).load("train")]


def test_an_episode_of_one_message_is_the_completion_of_a_prompt():
    (t, *_) = worker(world=EchoingEnvironment(turns=1)).sample(2)
    alone = replace(t, turns=None)
    assert t.action_index.tolist() == alone.action_index.tolist()
    assert t.action_rewards == pytest.approx(alone.action_rewards)
    assert isinstance(t.turns, Turns)
