"""What is measured on a policy's episodes, which samples are played, and that every verdict is the official one."""

import itertools
import json
import logging
import pickle
import re

import pytest
import torch

pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")

from shiqrun.errors import InputError
from shiqrun.evaluation.episodes import choose_tasks
from shiqrun.evaluation.result_files import write_results
from shiqrun.models.reference import FrozenReference
from tests.support.bfcl_episodes import (
    Lines,
    agreed,
    dialogues,
    evaluator,
    first_turns,
    official,
    paid,
    policy,
    reference_answers,
    right,
    rules,
    short,
    spoken,
    tasks,
    with_mistakes,
)


@torch.no_grad()
def log_ratio(of, reference, samples):
    """sum_t log pi - log pi_ref over what was sampled, from one row a message and the whole softmax."""
    total = 0.0
    for s in samples:
        ids = torch.tensor([[*s.prompt.tokens.tolist(), *s.tokens.tolist()]])
        ours, theirs = (m.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1) for m in (of, reference))
        for place, token in enumerate(s.tokens.tolist(), len(s.prompt.tokens) - 1):
            total += float(ours[place, token] - theirs[place, token])
    return total


@pytest.mark.parametrize("budget", [100_000, 1])
def test_the_kl_is_the_mean_over_samples_of_the_log_ratio_of_all_that_the_policy_said(budget):
    of, reference, beta = policy(), policy(seed=1), 0.25
    made = evaluator(short(), reference=FrozenReference(reference), beta=beta, samples_per_prompt=2)
    made.tokens = budget
    found = made.run(of)
    ratios = [log_ratio(of, reference, p.completions) for p in agreed(found.played)]
    assert [p.log_ratio for p in found.played] == pytest.approx(ratios)
    assert found.metrics["kl"] == pytest.approx(sum(ratios) / 6)
    returned = [sum(p.rewards) - beta * r for p, r in zip(found.played, ratios, strict=True)]
    assert found.metrics["regularised_return"] == pytest.approx(sum(returned) / 6)
    assert [row["kl"] for row in found.rows(0)] == [p.log_ratio for p in found.played]
    assert min(abs(r) for r in ratios) > 1


@pytest.mark.parametrize("other", [{"temperature": 0.0}, {"temperature": 0.5}, {"top_p": 0.9}])
def test_off_the_policys_distribution_there_is_a_log_ratio_and_no_kl(other):
    found = evaluator(short(2), reference=FrozenReference(policy(seed=1)), beta=0.25, **other).run(policy())
    assert {"logratio_sum", "logratio_sum_ci95"} <= set(found.metrics)
    assert not {"kl", "kl_ci95", "regularised_return"} & set(found.metrics)
    assert {row["kl"] for row in found.rows(0)} == {None}
    assert all(p.log_ratio for p in agreed(found.played))


def test_a_policy_is_no_nat_from_itself_and_without_a_reference_nothing_is_said():
    of = policy()
    assert evaluator(short(2), reference=FrozenReference(of)).run(of).metrics["kl"] == 0
    alone = evaluator(short(2), beta=0.25).run(of)
    assert not {"kl", "logratio_sum", "regularised_return"} & set(alone.metrics)
    assert {p.log_ratio for p in alone.played} == {None}


def test_a_sample_without_room_for_any_message_does_not_hide_the_kl_of_the_others():
    long, brief = (
        max(dialogues(), key=lambda d: len(d.questions[0])),
        min(dialogues(), key=lambda d: len(d.questions[0])),
    )
    found = evaluator([long, brief], reference=FrozenReference(policy(seed=1)), beta=0.25, context=300).run(policy())
    mute, other = agreed(found.played)
    assert (mute.completions, mute.log_ratio, sum(mute.rewards)) == ([], None, 0)
    assert found.metrics["kl"] == pytest.approx(other.log_ratio / 2), "who says nothing is no nat away"


def test_two_ranks_find_what_one_finds(monkeypatch):
    """Each rank plays its share; the exchange, which pickles, is made by hand."""
    asked, options = short(5), {"reference": FrozenReference(policy(seed=1)), "beta": 0.25, "samples_per_prompt": 2}
    one, shares = evaluator(asked, **options).run(policy()), {}

    def exchange(rank):
        def gather(found, mine):
            shares[rank] = pickle.dumps(mine)
            found[:] = [pickle.loads(shares[r]) if r in shares else ([], None) for r in (0, 1)]

        return gather

    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "all_gather_object", exchange(rank))
        both = evaluator(asked, rank=rank, world_size=2, **options).run(policy())
    assert [len(pickle.loads(share)[0]) for share in (shares[0], shares[1])] == [6, 4]
    assert [p.row() for p in both.played] == [p.row() for p in agreed(one.played)]
    assert both.metrics == pytest.approx(one.metrics, nan_ok=True)  # of one sample there is no interval
    assert both.rows(7) == one.rows(7)


def test_a_rank_that_cannot_play_ends_all(monkeypatch):
    """The others would wait for its share."""
    broken = InputError("the initial state does not load")
    share = (spoken(Lines(with_mistakes(0)), short(1)), None)
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda found, mine: found.__setitem__(slice(None), [share, ([], broken)]),
    )
    with pytest.raises(InputError, match="does not load"):
        evaluator(short(2), rank=0, world_size=2, reference=FrozenReference(policy(seed=1))).run(policy())


def test_the_same_few_samples_are_played_whatever_order_they_come_in_and_it_is_said(caplog):
    test = tasks(d for d in dialogues() if d.is_test)
    with caplog.at_level(logging.WARNING, "shiqrun"):
        five = choose_tasks(test, 5, None)
    assert caplog.messages == ["5 of 40 tasks are played (eval.max_prompts=5, data.limit=null)"]
    assert choose_tasks(test[::-1], 5, None) == five[::-1]
    assert five == [task for task in test if task in five], "in the order of the data set"
    assert all(task in choose_tasks(test, 9, None) for task in five), "more are these and others"
    assert five != test[:5]
    assert choose_tasks(test, 200, 5) == test[:5], "as many as are trained on, and the same ones"
    caplog.clear()
    assert choose_tasks(test, 40, 40) == test
    assert not caplog.messages
    for asked, number, key in ((test, 0, r"eval\.max_prompts=0"), ([], 200, "no task falls to this split")):
        with pytest.raises(InputError, match=key):
            choose_tasks(asked, number, None)


@pytest.mark.parametrize("rewards", ["independent", "official_prefix"])
def test_the_official_checker_agrees_on_every_episode_with_mistakes(rewards):
    played = spoken(Lines(with_mistakes(0)), dialogues()[::2], rules(rewards=rewards))
    assert 15 < sum(map(right, played)) < 85, "both verdicts are there"
    assert all(right(p) == official(p) == (sum(paid(p)) == len(paid(p))) for p in played)


def test_reference_answers_are_right_on_every_sample_and_count_one_a_turn():
    found = reference_answers(dialogues())
    assert {right(p) for p in agreed(found.played)} == {True}
    turns = [sum(map(bool, d.truth)) for d in dialogues()]
    assert [sum(p.rewards) for p in found.played] == [len(paid(p)) for p in found.played] == turns
    assert sum(turns) == 742  # of 745, three without a reference answer


def test_the_written_dialogues_hold_every_message_and_verdict(tmp_path):
    found = reference_answers(short(), rules(functions="names"))
    found.played.extend(spoken(Lines(first_turns(1)), short()[:1]))
    write_results(tmp_path, found)
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["id"], r["official"], r["turn_rewards"]) for r in rows] == [
        *((d.id, True, [1.0, 1.0, 1.0]) for d in short()),
        (short()[0].id, False, [1.0, 0.0, 0.0]),
    ]
    assert [r["messages"] for r in rows] == [p.messages for p in found.played]
    text = (tmp_path / "episodes.md").read_text(encoding="utf-8")
    assert text.count("*reward 1*") == 10
    assert text.count("*reward 0: no call*") == 2
    assert text.rindex("*reward 1*") < text.index("*reward 0: no call*"), "the worst episodes come last"
    assert all(str(m["content"]) in text for r in rows for m in r["messages"])
    for d, section in zip(short(), text.split("## ")[1:], strict=False):
        places = [section.index(q) for q in d.questions]
        verdicts = [m.start() for m in re.finditer("reward 1", section)]
        assert all(a < b for a, b in itertools.pairwise(n for pair in zip(places, verdicts, strict=True) for n in pair))
