"""Two real ranks that train on one engine: whose rows a step has, what is sampled, and which errors all hear of."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
import torch.distributed as dist

from shiqrun import losses
from shiqrun.errors import InputError, TrainingError
from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference
from shiqrun.rollout.several_ranks import SharedEngine, share_of
from shiqrun.rollout.store.leases import Ledger
from shiqrun.rollout.store.queue import LEASES
from shiqrun.util import ranks
from tests.rollout.experience import made as trajectory
from tests.rollout.mixed import Training
from tests.rollout.sampled import TOKENIZER, Letters, told
from tests.support.helpers import llama
from tests.support.ranks import PROCESSES, on_ranks

MIXED = {"offline": 2 / 3, "sources": {"logged": 1, "replay": 1, "annotated": 1, "further": 1}, "path": "x"}
LAST = 12
PROCESSES.set_forkserver_preload(["tests.support.ranks", "tests.rollout.mixed"])


def dealt(rank, directory, options):
    """Of each step the names of this rank's rows by source, how often each source came, and what was sampled."""
    made = Training(directory, **options)
    found = []
    for _, batches, names in made.steps(LAST):
        pairs = zip(batches, names, strict=True)
        rows = sorted((b.source, name, float(b.rewards[k].sum())) for b, mine in pairs for k, name in enumerate(mine))
        found.append((rows, [b.source for b in batches], [float(b.action_mask.sum()) for b in batches]))
    counts = made.engine.stats()
    known = told(sorted(made.known().values(), key=lambda t: t.uid)) if made.local else []
    made.engine.close()
    return found, {name: counts[name] for name in ("accepted", "trained", "waiting", "lost", "duplicated")}, known


def gradient(rank, directory, name, loss):
    """Sum of a loss's gradients over three steps, all sources and ranks, per unit, float64; then the units."""
    made = Training(directory, **CUTS[name] | MIXED)
    model = Policy(llama(len(TOKENIZER), seed=9, max_position_embeddings=128)).double()
    reference = FrozenReference(Policy(llama(len(TOKENIZER), seed=8, max_position_embeddings=128)).double())
    units = torch.zeros(())
    for _, batches, _ in made.steps(3):
        for batch in batches:
            terms = loss(batch, model(batch), reference(batch), beta=0.5)
            terms.total.backward()
            units += terms.count
    made.engine.close()
    found = [units, *(p.grad for p in model.parameters() if p.grad is not None)]
    if ranks.world() > 1:
        for tensor in found:
            dist.all_reduce(tensor)
    return [t.tolist() if t is units else (t / units).numpy() for t in found]


def without_rounding(trajectories):
    return [{k: v for k, v in t.items() if k not in ("behaviour_logp", "policy_logp")} for t in trajectories]


LOSSES = {"even": losses.shiq, "together": losses.copg}
CUTS = {"even": {"tokens": 60, "even": True}, "together": {"together": True, "tokens": 90}}
ERRORS = [(where, error) for where in (0, 1) for error in (InputError("no such key"), TrainingError("reward is down"))]


def all_of_it(rank, directory):
    """What the ranks do that are started once for most tests here."""
    return {
        "dealt": {name: dealt(rank, directory / name, options | MIXED) for name, options in CUTS.items()},
        "broken": [with_a_broken_reward(rank, directory / f"broken{k}", *e) for k, e in enumerate(ERRORS)],
        "told": with_an_engine(rank),
        "gradients": {name: gradient(rank, directory / f"{name} again", name, loss) for name, loss in LOSSES.items()},
        "whole": until_killed(rank, directory / "whole", 0, None, None),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    return directory, on_ranks(2, all_of_it, directory)


@pytest.mark.parametrize("name", CUTS)
def test_the_shares_of_two_ranks_are_the_batch_of_one_and_so_are_their_samples(both, tmp_path, name):
    alone, counts, sampled = dealt(0, tmp_path, CUTS[name] | MIXED)
    first, second = (found["dealt"][name] for found in both[1])
    for (rows, _, _), mine, theirs in zip(alone, first[0], second[0], strict=True):
        assert sorted(mine[0] + theirs[0]) == rows
        assert list(dict.fromkeys(mine[1])) == list(dict.fromkeys(theirs[1]))  # all log the same names
        assert set(mine[1]) == {source for source, _, _ in rows}
        if name == "even":
            assert mine[1] == theirs[1]
    assert name != "even" or any(0.0 in actions for found in (first, second) for _, _, actions in found[0])
    assert counts == first[1] == second[1]
    assert without_rounding(sampled) == without_rounding(first[2])


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_two_ranks_is_that_of_one(both, tmp_path, name):
    units, *alone = gradient(0, tmp_path, name, LOSSES[name])
    assert units > 20
    for found in both[1]:
        other, *gradients = found["gradients"][name]
        assert other == units
        for mine, theirs in zip(alone, gradients, strict=True):
            assert np.abs(mine - theirs).max() <= 1e-10 * np.abs(mine).max() + 1e-12
    assert max(np.abs(g).max() for g in alone) > 1e-3


def test_ranks_sample_consecutive_numbers_in_whole_groups():
    for n, group, world in [(12, 2, 2), (6, 4, 3), (10, 1, 4), (2, 2, 3)]:
        shares = [share_of(range(5, 5 + n), group, rank, world) for rank in range(world)]
        assert [k for share in shares for k in share] == list(range(5, 5 + n))
        assert all((share.start - 5) % group == 0 for share in shares)


# ------------------------------------------------------------------ errors
class Broken(Letters):
    """Fails on one rank, at its second portion."""

    def __init__(self, error):
        self.asked, self.error = 0, error

    def score(self, items, progress=lambda x, _: x):
        self.asked += 1
        if self.asked == 2:
            raise self.error
        return super().score(items)


def with_a_broken_reward(rank, directory, where, error):
    made = Training(directory, reward=Broken(error) if rank == where else None, batch_size=2, samples_per_prompt=2)
    try:
        list(made.steps(3))
    except (InputError, TrainingError) as raised:
        return type(raised).__name__, str(raised)
    finally:
        made.engine.close()


def test_an_error_of_one_rank_s_reward_is_raised_on_all(both):
    wanted = [(type(error).__name__, str(error)) for _, error in ERRORS]
    assert [found["broken"] for found in both[1]] == [wanted, wanted]


class Failing:
    """An engine that answers twice."""

    def next_batch(self, n, *, step):
        if step > 2:
            raise TrainingError("an actor is dead")
        return [trajectory(10 * step + k) for k in range(n)]

    def trained_trajectories(self):
        return ((1 + n // 8, trajectory(n)) for n in range(2500))


def with_an_engine(rank):
    shared = SharedEngine(Failing() if rank == 0 else None)
    found = [[t.uid for t in shared.next_batch(3, step=step)] for step in (1, 2)]
    before = [(step, t.uid) for step, t in shared.trained_trajectories()]
    with pytest.raises(TrainingError, match="an actor is dead"):
        shared.next_batch(3, step=3)
    return found, before


def test_all_ranks_get_what_the_engine_of_rank_0_answers(both):
    first, second = (found["told"] for found in both[1])
    assert first == second
    assert len(first[0][1]) == 3
    assert first[1] == [(1 + n // 8, trajectory(n).uid) for n in range(2500)]


# ------------------------------------------------------------------ kills
def until_killed(rank, directory, after, victim, at):
    """Train from a checkpoint; one rank is killed in the middle of a step."""
    made = Training(directory, after=after, batch_size=4)
    trained = []
    for step, _, _ in made.steps(LAST):
        trained += [t.uid for t in made.data.fresh]
        if (rank, step) == (victim, at):
            os.kill(os.getpid(), signal.SIGKILL)
    counts = made.engine.stats()
    made.engine.close()
    return trained, counts


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_rank_loses_and_repeats_nothing(both, tmp_path, victim):
    with pytest.raises((BrokenProcessPool, RuntimeError)):
        on_ranks(2, until_killed, tmp_path, 0, victim, 6)
    (trained, counts), _ = on_ranks(2, until_killed, tmp_path, 4, None, None)
    whole, wanted = both[1][0]["whole"]
    assert trained == whole[4 * (len(whole) // LAST) :]
    names = ("accepted", "trained", "leased", "waiting", "lost", "duplicated")
    assert {name: counts[name] for name in names} == {name: wanted[name] for name in names}
    assert counts["lost"] == counts["duplicated"] == 0
    both_leases = [Ledger(place / LEASES, None).leases for place in (tmp_path, both[0] / "whole")]
    assert both_leases[0] == both_leases[1]
