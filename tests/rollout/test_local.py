"""`rollout=local`: when it samples, by which weights, and that a resumed one goes on as if nothing had happened."""

from collections import Counter
from functools import lru_cache

import pytest
import torch

from shiqrun.errors import TrainingError
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.store.queue import Buffer
from tests.rollout.sampled import Letters, policy, told, wanted, weights, worker

N, EVERY, STEPS = 4, 10, 25
EACH = [weights(policy(seed)) for seed in (0, 1, 2)]
"""What is published after so many tens of steps."""


def local(directory, *, after=0, every=EVERY, max_staleness=None, steps=STEPS, **options):
    buffer = Buffer(directory, after=after)
    made = worker(number=buffer.counts()["accepted"], **options)
    return LocalEngine(made, buffer, every=every, max_staleness=max_staleness, max_steps=steps)


def run(engine, first=1, last=STEPS, every=EVERY, n=N):
    """(trajectories, what was accepted up to then) of each step, with what training does around it."""
    if engine.transfers.number == 0:
        version = (first - 1) // every * every
        engine.publish(version, EACH[version // every % 3])
    found = []
    for step in range(first, last + 1):
        batch = engine.next_batch(n, step=step)
        found.append((batch, engine.stats()["accepted"]))
        engine.acknowledge(step)
        if step % every == 0:
            engine.publish(step, EACH[step // every % 3])
    return found


def test_it_samples_by_the_latest_weights_all_that_the_steps_until_the_next_ones_need(tmp_path):
    engine = local(tmp_path)
    found = run(engine)
    assert [len(batch) for batch, _ in found] == [N] * STEPS
    assert [accepted for _, accepted in found] == [40] * 10 + [80] * 10 + [100] * 5
    assert [{t.version for t in batch} for batch, _ in found] == [{0}] * 10 + [{10}] * 10 + [{20}] * 5
    ages = Counter(step - t.version for step, (batch, _) in enumerate(found) for t in batch)
    assert ages == Counter({age: N * (3 if age < 5 else 2) for age in range(10)})
    assert len({t.uid for batch, _ in found for t in batch}) == STEPS * N
    counts = engine.stats()
    assert (counts["accepted"], counts["trained"], counts["waiting"]) == (100, 100, 0)
    assert (counts["lost"], counts["duplicated"], counts["stale"]) == (0, 0, 0)


def test_what_it_gives_is_what_a_worker_with_these_weights_samples(tmp_path):
    found = [t for batch, _ in run(local(tmp_path)) for t in batch]
    alone = worker()
    expected = []
    for k, n in enumerate([40, 40, 20]):
        alone.load(10 * k, EACH[k])
        expected += alone.sample(n)
    assert told(found) == wanted(expected)


def test_it_counts_what_it_was_given(tmp_path):
    engine = local(tmp_path)
    run(engine)
    size = sum(p.nbytes for p in EACH[0].values())
    told = engine.stats()
    assert (told["weight_transfers"], told["weight_bytes"]) == (3, 3 * size)
    assert {name for name in told if name.startswith("seconds/")} == {
        f"seconds/{n}" for n in ("sampling", "rewards", "storing", "weights")
    }
    assert told["seconds/sampling"] > 0


def test_a_step_that_asks_again_gets_the_same(tmp_path):
    engine = local(tmp_path)
    engine.publish(0, EACH[0])
    first = engine.next_batch(N, step=1)
    assert [t.uid for t in engine.next_batch(N, step=1)] == [t.uid for t in first]
    assert engine.stats()["accepted"] == 40


def test_a_last_interval_that_is_cut_short_is_sampled_for_its_steps_alone(tmp_path):
    engine = local(tmp_path, steps=3)
    run(engine, last=3)
    assert engine.stats()["accepted"] == 3 * N


def test_what_is_too_old_is_dropped_and_sampled_anew(tmp_path):
    """A step of the next interval has left-overs of the former weights before it: they were leased to no step."""
    engine = local(tmp_path, max_staleness=9)
    run(engine, last=10)
    engine.buffer.put(worker(place=7).sample(6))  # by the reference's weights
    left = run(engine, first=11, last=12)
    assert [{t.version for t in batch} for batch, _ in left] == [{10}, {10}]
    counts = engine.stats()
    assert (counts["stale"], counts["accepted"], counts["lost"]) == (6, 40 + 6 + 40, 0)


def test_without_a_limit_what_is_left_over_is_trained_on_first(tmp_path):
    engine = local(tmp_path)
    run(engine, last=10)
    engine.buffer.put(worker(place=7).sample(6))
    left = run(engine, first=11, last=12)
    assert [[t.version for t in batch] for batch, _ in left] == [[0] * 4, [0, 0, 10, 10]]
    assert engine.stats()["accepted"] == 40 + 40  # six fewer were needed


class Failing(Letters):
    """A reward that works so many times."""

    def __init__(self, times):
        self.left = times

    def score(self, items, progress=lambda x, _: x):
        if not self.left:
            raise TrainingError("the reward is gone")
        self.left -= 1
        return super().score(items, progress)


@pytest.mark.parametrize(("batch_size", "portions"), [(7, [6] * 10), (25, [24, 24, 12]), (2, [3] * 20)])
def test_it_samples_the_same_in_portions_of_whole_groups_that_are_kept_one_by_one(
    tmp_path, monkeypatch, batch_size, portions
):
    whole = local(tmp_path / "whole", samples_per_prompt=3, batch_size=512)
    engine = local(tmp_path / "portions", samples_per_prompt=3, batch_size=batch_size)
    sizes, put = [], Buffer.put
    monkeypatch.setattr(Buffer, "put", lambda self, found: (sizes.append(len(found)), put(self, found))[1])
    expected = run(whole, last=10, n=6)
    assert sizes == [60]
    sizes.clear()
    found = run(engine, last=10, n=6)
    assert sizes == portions
    assert told(t for batch, _ in found for t in batch) == wanted(t for batch, _ in expected for t in batch)
    kept, all_of_it = ([*made.buffer._shards.read(lambda uid: True)] for made in (engine, whole))
    assert told(kept) == wanted(all_of_it)


def test_what_was_scored_before_a_reward_failed_is_kept_and_a_resumed_run_samples_the_rest(tmp_path):
    options = {"samples_per_prompt": 2, "batch_size": 8}
    expected = [t for batch, _ in run(local(tmp_path / "whole", **options), last=10) for t in batch]
    failing = local(tmp_path / "failed", reward=Failing(2), **options)
    with pytest.raises(TrainingError, match="the reward is gone"):
        run(failing)
    failing.close()
    resumed = local(tmp_path / "failed", **options)
    assert resumed.stats()["accepted"] == 16
    assert told(t for batch, _ in run(resumed, last=10) for t in batch) == wanted(expected)
    assert (resumed.stats()["accepted"], resumed.stats()["lost"], resumed.stats()["duplicated"]) == (40, 0, 0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return lru_cache(lambda **options: run(local(tmp_path_factory.mktemp("whole"), **options)))


@pytest.mark.parametrize("options", [{"batch_size": 6}, {"samples_per_prompt": 2, "max_staleness": 9}])
@pytest.mark.parametrize(("reached", "saved"), [(13, 7), (10, 10), (12, 10), (24, 21), (9, 0)])
def test_a_killed_and_resumed_engine_goes_on_as_if_nothing_had_happened(
    tmp_path, uninterrupted, reached, saved, options
):
    whole = uninterrupted(**options)
    killed = local(tmp_path / "killed", **options)
    run(killed, last=reached)
    killed.next_batch(N, step=reached + 1)
    killed.close()
    resumed = local(tmp_path / "killed", after=saved, **options)
    found = run(resumed, first=saved + 1)
    assert told(t for batch, _ in found for t in batch) == wanted(t for batch, _ in whole[saved:] for t in batch)
    counts = resumed.stats()
    assert (counts["accepted"], counts["trained"], counts["lost"], counts["duplicated"]) == (100, 100, 0, 0)
    trained = [(step, t.uid) for step, t in resumed.trained_trajectories()]
    assert trained == [(k + 1, t.uid) for k, (batch, _) in enumerate(whole) for t in batch]


def test_groups_are_leased_whole(tmp_path):
    engine = local(tmp_path, samples_per_prompt=2)
    for batch, _ in run(engine, last=3):
        assert sorted(Counter(t.group for t in batch).values()) == [2, 2]


def test_the_weights_it_was_given_may_change_afterwards(tmp_path):
    """Training goes on in place; what samples has its own copy."""
    engine, given = local(tmp_path), {name: p.clone() for name, p in EACH[0].items()}
    engine.publish(0, given)
    for p in given.values():
        p.zero_()
    assert all(torch.equal(p, EACH[0][name]) for name, p in weights(engine.worker.policy).items())
