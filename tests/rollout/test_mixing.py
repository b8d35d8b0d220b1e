"""What a step is made of where several sources give it, row by row."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shiqrun.batching.columns import AnchorTokens
from shiqrun.errors import TrainingError
from shiqrun.rollout.mixing import as_rows
from shiqrun.rollout.staleness import staleness_metrics
from shiqrun.training.online import annotate_sampled
from tests.rollout.experience import made as trajectory
from tests.rollout.mixed import STEPS, VALUES, Training, facts, logged
from tests.rollout.sampled import TOKENIZER

MIXED = {"offline": 2 / 3, "sources": {"logged": 1, "replay": 1, "annotated": 1, "further": 1}, "path": "x"}
SHARES = {"online": 4, "logged": 2, "replay": 2, "annotated": 2, "further": 2}


def rows_by_source(batches):
    found = Counter()
    for batch in batches:
        found[batch.source] += len(batch.input_ids)
    return found


def test_a_step_has_of_each_source_exactly_its_share(tmp_path):
    made = Training(tmp_path, **MIXED)
    assert made.data.shares == SHARES
    for step, batches, names in made.steps():
        short = {"replay": 0} if step == 0 else {}
        ends = {"logged": 1} if step % 11 == 10 else {}  # 21 rows by twos: the last step of a pass
        ends |= {"further": 1} if step % 11 == 10 else {}
        assert rows_by_source(batches) == Counter(SHARES | short | ends) - Counter()
        assert [len(n) for n in names] == [len(b.input_ids) for b in batches]
    assert step == STEPS - 1


def test_names_of_rows_say_which_they_are(tmp_path):
    made = Training(tmp_path, **MIXED)
    seen = Counter()
    for _, batches, names in made.steps(last=12):
        known = made.known()
        for batch, named in zip(batches, names, strict=True):
            seen[batch.source] += len(named)
            for row, name in enumerate(named):
                own = int(batch.attention_mask[row].sum())
                ids = batch.input_ids[row, :own].tolist()
                if batch.source in ("online", "replay"):
                    assert known[name].input_ids.tolist() == ids
                else:
                    assert name.startswith("b:" if batch.source == "further" else "a:")
                    assert ("b " in TOKENIZER.decode(ids)) == (batch.source == "further")
    assert seen.keys() == SHARES.keys()


@pytest.mark.parametrize("offset", ["none", "mean", "group_mean", -3.0])
def test_every_row_has_its_own_numbers(tmp_path, offset):
    """Rewards, offsets, prompt values, tokens of the anchor and log-probabilities, by hand from what was sampled."""
    made = Training(tmp_path, offset=offset, anchor=AnchorTokens(3, 320, 1), tokens=60, **MIXED)
    level = {"none": 0.0, "mean": made.train.returns.mean(), "group_mean": None, -3.0: -3.0}[offset]
    seen = Counter()
    for _, batches, names in made.steps(last=6):
        known = made.known()
        of_group = {
            g: np.mean([t.reward for t in known.values() if t.group == g]) for g in {t.group for t in known.values()}
        }
        for batch, named in zip(batches, names, strict=True):
            if batch.source not in ("online", "replay"):
                assert batch.behaviour_logp is None
                continue
            anchored = batch.anchor_tokens
            assert anchored.shape == (*batch.rewards.shape, 3)
            assert 0 <= int(anchored.min()) <= int(anchored.max()) < 320
            for row, t in enumerate(known[name] for name in named):
                n = int(batch.action_mask[row].sum())
                taken = of_group[t.group] if level is None else level
                assert batch.action_index[row, :n].tolist() == list(range(t.start, len(t.input_ids)))
                assert batch.rewards[row].tolist() == pytest.approx(
                    [0] * (n - 1) + [t.reward - taken] + [0] * (batch.rewards.shape[1] - n), abs=1e-5
                )
                assert float(batch.offset[row]) == pytest.approx(taken, rel=1e-6)
                assert float(batch.prompt_value[row]) == pytest.approx(VALUES[t.prompt_id])
                assert batch.behaviour_logp[row, :n].tolist() == t.behaviour_logp.tolist()
                assert batch.acting_logp[row, :n].tolist() == t.policy_logp.tolist()
                assert len({tuple(x) for x in anchored[row, :n].tolist()}) == n
                seen[batch.source] += 1
    assert seen == {"online": 24, "replay": 10}


def test_annotated_rows_are_those_with_a_target_and_keep_all_that_is_theirs(tmp_path):
    made = Training(tmp_path, **MIXED)
    picked = [b for _, batches, _ in made.steps(last=10) for b in batches if b.source == "annotated"]
    targets = [float(x) for b in picked for x in b.value_target[:, 0]]
    assert sorted(targets) == sorted(-row for row in [*range(1, 21, 2)] * 2)
    for batch in picked:
        for row in range(len(batch.input_ids)):
            k = int(-batch.value_target[row, 0])
            assert float(batch.rewards[row].sum()) == made.train.trajectories[k].rewards.sum()
            assert float(batch.prompt_value[row]) == made.train.columns["prompt_value"][k]
            assert batch.value_target[row, 1:].isnan().all()


@pytest.mark.parametrize("tokens", [30, 200])
def test_groups_are_never_cut_where_completions_are_compared(tmp_path, tokens):
    made = Training(tmp_path, together=True, tokens=tokens, offline=2 / 3, sources={"logged": 1, "replay": 1})
    assert made.data.shares == {"online": 4, "replay": 4, "logged": 4}
    count = []
    for _, batches, names in made.steps(last=12):
        known = made.known()
        for batch, named in zip(batches, names, strict=True):
            groups = Counter(batch.group.tolist())
            assert set(groups.values()) == ({3} if batch.source == "logged" else {2})
            if batch.source != "logged":
                assert set(Counter(known[name].group for name in named).values()) == {2}
        count.append(len(batches))
    assert max(count) == (5 if tokens == 30 else 3)


def test_replayed_are_whole_groups_of_earlier_steps_each_once(tmp_path):
    made, before, drawn = Training(tmp_path, offline=0.5, sources={"replay": 1}), set(), Counter()
    for step, batches, names in made.steps():
        by_source = {
            s: [n for b, named in zip(batches, names, strict=True) if b.source == s for n in named]
            for s in ("online", "replay")
        }
        assert len(by_source["online"]) == 6
        assert len(set(by_source["replay"])) == len(by_source["replay"]) == (0 if step == 0 else 6)
        assert set(by_source["replay"]) <= before
        known = made.known()
        assert all(n == 2 for n in Counter(known[name].group for name in by_source["replay"]).values())
        before |= set(by_source["online"])
        drawn.update(by_source["replay"])
    assert len(drawn) > 70  # of 144 draws


@pytest.mark.parametrize(("options", "oldest"), [({"max_staleness": 12}, 12), ({"replay_size": 12}, None)])
def test_replay_draws_from_what_is_new_enough_or_among_the_last(tmp_path, options, oldest):
    made, order, all_ages = Training(tmp_path, offline=0.5, sources={"replay": 1}, **options), [], []
    for step, batches, names in made.steps():
        known, ages = made.known(), []
        for batch, named in zip(batches, names, strict=True):
            if batch.source == "replay":
                ages += [step - known[name].version for name in named]
                if oldest is None:
                    assert set(named) <= set(order[-12:])
        all_ages += ages
        order += [name for b, named in zip(batches, names, strict=True) if b.source == "online" for name in named]
    assert max(all_ages) == (oldest or 11)  # of the last 12 the oldest are from two steps before


@pytest.mark.parametrize("options", [{}, {"max_staleness": 12}, {"replay_size": 12}])
@pytest.mark.parametrize("saved", [10, 20])
def test_a_resumed_run_has_the_same_steps_and_the_same_histogram(tmp_path, saved, options):
    options = MIXED | options
    whole = Training(tmp_path / "whole", **options)
    named = {step: names for step, _, names in whole.steps()}
    killed = Training(tmp_path / "killed", **options)
    list(killed.steps(last=saved + 3))
    killed.engine.close()
    resumed = Training(tmp_path / "killed", after=saved, **options)
    again = {step: names for step, _, names in resumed.steps()}
    assert again == {step: names for step, names in named.items() if step >= saved}
    assert resumed.data.total_staleness() == whole.data.total_staleness()


def test_what_is_told_is_of_the_steps_since_it_was_told_last(tmp_path):
    made, told, since = Training(tmp_path), {}, []
    for step, batches, names in made.steps(last=20):
        since += [n for b, named in zip(batches, names, strict=True) if b.source == "online" for n in named]
        if step + 1 in (1, 4, 15):
            known, found = made.known(), made.data.sampling_metrics()
            mine = [known[name] for name in since]
            assert found["reward"] == pytest.approx(np.mean([t.reward for t in mine]))
            assert found["mean_length"] == pytest.approx(np.mean([len(t.input_ids) - t.start for t in mine]))
            assert found["ended"] == pytest.approx(np.mean([t.ended for t in mine]))
            assert found["temperature"] == pytest.approx(np.mean([t.temperature for t in mine]))
            told[step + 1], since = found, []
    assert [told[k]["staleness_mean"] for k in (1, 4)] == [0, 2]  # steps 2 to 4 are 1, 2 and 3 old
    assert told[15]["staleness_mean"] == pytest.approx((sum(range(4, 10)) + sum(range(5))) / 11)
    assert told[15]["staleness_max"] == 9
    everything = made.data.total_staleness()
    assert (everything["staleness_mean"], everything["staleness_from_0"]) == (4.5, 1.0)
    assert made.data.sampling_metrics()["staleness_mean"] == 7  # steps 16 to 20
    assert made.data.sampling_metrics() == {}


def test_what_is_told_of_replayed_ones_is_of_the_steps_since_it_was_told_last(tmp_path):
    made, ages, steps = Training(tmp_path, offline=2 / 3, sources={"logged": 1, "replay": 1}), [], 0
    for step, batches, names in made.steps(last=15):
        known, steps = made.known(), steps + 1
        again = [n for b, named in zip(batches, names, strict=True) if b.source == "replay" for n in named]
        ages += [step - known[name].version for name in again]
        if step + 1 in (1, 4, 15):
            found = made.data.sampling_metrics()
            if step == 0:
                assert not {"replayed", "replay_staleness"} & found.keys()  # there was none yet
            else:
                assert found["replayed"] == len(ages) / (4 * steps) == 1.0  # four replayed for four online
                assert found["replay_staleness"] == pytest.approx(np.mean(ages))
            assert max(ages, default=0) != found["staleness_max"] or step < 10  # the two are not the same number
            ages, steps = [], 0
    assert made.data.sampling_metrics() == {}


def held(top, link="cross_entropy"):
    """What `annotate_sampled` asks of a run of SPO with such a loss."""
    known = replace(facts(logged()), prompt_values={"p": -1.0})
    return {"plan": SimpleNamespace(link=link, top=top, names={"data": "letters"}), "facts": known}


@pytest.mark.parametrize(("rewards", "top", "link"), [((0, 0.5), 0.5, "cross_entropy"), ((0, 9), 0.5, "square")])
def test_rewards_up_to_the_largest_possible_pass(rewards, top, link):
    found = [trajectory(n, reward=float(r), prompt_id="p") for n, r in enumerate(rewards)]
    rows = annotate_sampled(as_rows(found, 0, together=False, source="online"), **held(top, link))
    assert rows.columns["prompt_value"].tolist() == [-1.0, -1.0]


def test_a_sampled_reward_above_the_largest_possible_ends_the_run():
    found = [trajectory(n, reward=r, prompt_id="p") for n, r in enumerate([0.25, 0.75])]
    rows = as_rows(found, 0, together=False, source="replay")
    told = "earned 0.75, but the cross-entropy takes 0.5 for the largest there can be: set algo.top to .* of letters"
    with pytest.raises(TrainingError, match=told):
        annotate_sampled(rows, **held(0.5))


def test_the_histogram_counts_shares_from_each_edge_on():
    found = staleness_metrics(Counter({0: 3, 9: 1, 10: 2, 19: 1, 20: 1, 49: 1, 50: 2, 99: 1, 100: 3, 5000: 5}))
    assert {k: v for k, v in found.items() if "from" in k} == {
        f"staleness_from_{low}": n / 20 for low, n in {0: 4, 10: 3, 20: 2, 50: 3, 100: 8}.items()
    }
    assert found["staleness_max"] == 5000
    assert found["staleness_mean"] == (9 + 20 + 19 + 20 + 49 + 100 + 99 + 300 + 25000) / 20
    assert staleness_metrics(Counter()) == {}


def test_names_are_kept_until_the_step_was_looked_at(tmp_path):
    """A loss that is no number is read steps later; its rows are named nevertheless."""
    made = Training(tmp_path)
    first = list(chain(*next(iter(made.steps()))[2]))
    for step in range(1, 4):
        made.data.batches_of(step)
    assert list(chain(*(made.data.sources(0, k) for k in range(len(made.data.batches_of(0)))))) == first
    made.data.sampling_metrics()
    with pytest.raises(KeyError):
        made.data.sources(0, 0)


def test_the_data_set_s_epochs_go_by_its_own_share(tmp_path):
    made = Training(tmp_path)
    seen = [
        n
        for _, batches, names in made.steps(last=8)
        for b, ns in zip(batches, names, strict=True)
        if b.source == "logged"
        for n in ns
    ]
    assert made.data.passes(8) == pytest.approx(8 / 4)  # 21 rows, 6 a step
    assert Counter(seen) == Counter({f"a:{n}": 6 for n in range(1, 8)})
    assert Training(tmp_path / "b", offline=0).data.passes(8) == 0.0


def test_all_sources_are_packed_where_the_policy_reads_packed_batches(tmp_path):
    for batch in Training(tmp_path, packed=True).data.batches_of(0):
        assert batch.layout.attention is not None
        assert torch.equal(batch.attention_mask.sum(-1) > 0, torch.ones(len(batch.input_ids), dtype=torch.bool))


@pytest.mark.parametrize(("offset", "taken"), [("none", 0.0), ("mean", -41.0), (-3.0, -3.0)])
def test_trajectories_of_another_file_are_held_at_the_run_s_own_level(tmp_path, offset, taken):
    made = Training(tmp_path, offset=offset, sources={"further": 1}, path="x")
    (batch,) = [b for b, _ in made.data.step_sources["further"].batches_of(0)]
    assert batch.offset.tolist() == pytest.approx([taken] * len(batch.offset))
    assert batch.source == "further"
    assert float(batch.rewards.sum(-1).min()) > 900
