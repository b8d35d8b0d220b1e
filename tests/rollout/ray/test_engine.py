"""`rollout=ray`: real actors on a small cluster; what they give, refuse, wait for and say."""

import copy
import os
import subprocess
import sys
import time
from functools import partial
from itertools import product

import pytest
import torch

import shiqrun.rollout.ray.engine as module
from shiqrun.errors import InputError, TrainingError
from shiqrun.models.adapter import with_lora
from shiqrun.models.policy import Policy
from shiqrun.rollout.ray.cluster import connect
from shiqrun.rollout.ray.engine import RayEngine, portion_size
from shiqrun.rollout.ray.packed_weights import pack_weights, unpack_weights
from shiqrun.rollout.ray.sampler import HOPELESS, SamplerSetup
from shiqrun.rollout.settings import RayRollouts
from shiqrun.rollout.store.queue import Buffer
from tests.rollout.sampled import BASIC, TOKENIZER, Letters, policy, prompts, weights
from tests.support.command_line import command, finished
from tests.support.online_runs import BUSY, RUN

N = 4
OWN = {"actors": 2, "waiting": 12, "address": None, "actor_cpus": 0.5, "actor_gpus": 0, "reward_gpus": 0}


def settings(**options):
    return RayRollouts(**(BASIC | OWN | {"samples_per_prompt": 2, "batch_size": 4, "top_p": 1.0} | options))


class Placed(Letters):
    """Letters on any device."""

    def to(self, device):
        pass


class Refusing(Placed):
    def score(self, items, progress=lambda x, _: x):
        raise InputError(f"{items[0].source}: no column `answer`; add it")


class Silent(Placed):
    def score(self, items, progress=lambda x, _: x):
        time.sleep(3600)


def test_a_portion_never_leaves_a_step_short_of_what_has_no_room():
    """Whatever waits: if it is too little for a step, one more portion has room; and all are whole groups."""
    tried = 0
    for room, group, n, most in product(range(2, 25), (1, 2, 3), range(2, 13), (1, 4, 7, 100)):
        if n % group or n > room:
            continue
        size = portion_size(settings(waiting=room, samples_per_prompt=group, batch_size=most), n)
        assert size % group == 0 < size
        assert size <= max(most, group)
        assert all(waiting + size <= room for waiting in range(0, n, group))
        tried += 1
    assert tried > 500


def test_a_step_that_takes_more_than_may_wait_is_refused():
    with pytest.raises(InputError, match=r"rollout\.waiting=12: a step takes 14"):
        portion_size(settings(), 14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_weights_arrive_bit_for_bit_whatever_their_type_and_shape(dtype):
    drawn = (torch.randn(5, 3) * 50).to(dtype)
    sent = {"matrix": drawn, "turned": drawn.T, "part": drawn[::2, 1:], "number": drawn[0, 0]}
    found = unpack_weights(pack_weights(sent))
    assert found.keys() == sent.keys()
    for name, value in sent.items():
        assert found[name].dtype == dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value)


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'shiqrun\[ray\]'"):
        RayEngine(SamplerSetup(policy, TOKENIZER, prompts(), Placed, settings(), 0), tmp_path, n=N, after=0)
    assert not list(tmp_path.iterdir())


def test_ray_is_imported_only_for_it():
    modules = "shiqrun.training.run, shiqrun.training.online, shiqrun.rollout.ray.engine"
    program = f"import sys, {modules}; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split()[-1] == "False"


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this process, in which engines start their actors."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    os.environ.update(BUSY)
    joined = connect(settings(actors=4, actor_cpus=1))
    assert joined.connected
    yield ray
    joined.close()


@pytest.fixture
def engines(cluster, tmp_path):
    """Makes engines in the directory `experience`, and closes them."""
    made = []

    def engine(*, acting=None, reward=Placed, after=0, **options):
        setup = SamplerSetup(
            partial(copy.deepcopy, acting or policy()), TOKENIZER, prompts(), reward, settings(**options), 3
        )
        made.append(RayEngine(setup, tmp_path / "experience", n=N, after=after))
        return made[-1]

    yield engine
    for one in made:
        one.close()


def wait_until(holds, seconds=120):
    """Returns what holds, once it does."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def scored(acting, trajectory):
    """`[A]`, nats: log-probabilities of the actions at temperature 1, from the model's own logits."""
    ids = torch.tensor(trajectory.input_ids)[None].long()
    with torch.no_grad():
        logp = acting.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return logp.gather(-1, ids[0, 1:, None])[trajectory.start - 1 :, 0]


@pytest.mark.slow
class TestEngine:
    def test_steps_get_whole_groups_once_sampled_by_the_weights_that_they_name(self, engines):
        first, second = policy(seed=1), policy(seed=2)
        engine = engines(acting=policy(seed=0))
        wait_until(lambda: len(engine.stats()) and len(engine._reports) == 2)
        assert engine.stats()["accepted"] == 0  # not before there are weights
        engine.publish(0, weights(first))
        seen, step = [], 0
        while {t.version for t in seen} != {0, 4} or {t.uid.split("-")[0] for t in seen} != {"w0", "w1"}:
            step += 1
            assert step < 500
            batch = engine.next_batch(N, step=step)
            again = engine.next_batch(N, step=step)
            assert [t.uid for t in again] == [t.uid for t in batch]
            assert [t.group for t in batch[::2]] == [t.group for t in batch[1::2]]
            engine.acknowledge(step)
            seen += batch
            if step == 4:
                engine.publish(4, weights(second))
        assert len({t.uid for t in seen}) == len(seen) == step * N
        for t in seen:
            acting = first if t.version == 0 else second
            torch.testing.assert_close(torch.from_numpy(t.policy_logp), scored(acting, t), rtol=1e-4, atol=1e-4)
            t.input_ids[0] += 0  # an array of ours
        told = engine.stats()
        size = sum(value.nbytes for value in weights(first).values())
        assert told["trained"] == step * N
        assert told["lost"] == told["duplicated"] == told["actor_restarts"] == 0
        assert told["weight_transfers"] in (2, 3, 4)  # an actor may wait for room, or have begun late
        assert told["weight_bytes"] == told["weight_transfers"] * size
        assert all(told[f"seconds/{name}"] > 0 for name in ("sampling", "rewards", "storing", "waiting"))
        assert [(k, t.uid) for k, t in engine.trained_trajectories()] == [
            (1 + i // N, t.uid) for i, t in enumerate(seen)
        ]

    def test_actors_pause_when_enough_wait(self, engines):
        engine = engines(waiting=10)
        engine.publish(0, weights(policy()))
        wait_until(lambda: engine.stats()["waiting"] > 10 - 4)
        full = engine.stats()["accepted"]
        time.sleep(1)
        assert engine.stats()["accepted"] == full <= 10
        engine.next_batch(N, step=1)
        wait_until(lambda: engine.stats()["accepted"] > full)

    def test_old_trajectories_are_dropped_and_new_ones_take_their_place(self, engines):
        engine = engines(max_staleness=9)
        engine.publish(0, weights(policy()))
        engine.next_batch(N, step=1)
        wait_until(lambda: engine.stats()["waiting"] >= 8)
        engine.publish(20, weights(policy(seed=1)))
        assert {t.version for t in engine.next_batch(N, step=21)} == {20}
        assert engine.stats()["stale"] >= 8

    def test_it_goes_on_with_what_an_earlier_session_left(self, engines, tmp_path):
        engine = engines(actors=1)
        engine.publish(0, weights(policy()))
        batches = {step: [t.uid for t in engine.next_batch(N, step=step)] for step in (1, 2, 3)}
        engine.acknowledge(1)
        engine.acknowledge(2)
        engine.close()
        left = Buffer(tmp_path / "experience", after=1)  # its lock is free
        workers, number = left.workers(), left.counts()["accepted"]
        left.close()
        engine = engines(actors=1, after=1)
        engine.publish(1, weights(policy()))
        for step in (2, 3):
            assert [t.uid for t in engine.next_batch(N, step=step)] == batches[step]
        later = [t.uid for step in range(4, 14) for t in engine.next_batch(N, step=step)]
        new = later[number - 3 * N :]
        assert not {uid for uids in batches.values() for uid in uids} & {*later}
        assert new
        assert not {uid.rpartition("-")[0] for uid in new} & workers
        told = engine.stats()
        assert (told["trained"], told["leased"]) == (N, 12 * N)
        assert told["lost"] == told["duplicated"] == 0

    def test_a_directory_that_somebody_else_writes_to_is_refused_as_without_ray(self, engines, tmp_path):
        held = Buffer(tmp_path / "experience")
        with pytest.raises(InputError, match="another process writes here"):
            engines()
        held.close()

    def test_a_reward_that_raises_ends_the_wait_with_its_own_words(self, engines):
        engine = engines(reward=Refusing)
        engine.publish(0, weights(policy()))
        with pytest.raises(TrainingError, match=r"f:\d: no column `answer`; add it"):
            engine.next_batch(N, step=1)

    def test_a_reward_that_cannot_be_made_ends_the_wait(self, engines):
        engine = engines(reward=unmade)
        engine.publish(0, weights(policy()))
        with pytest.raises(TrainingError, match="no such reward model"):
            engine.next_batch(N, step=1)

    def test_a_reward_that_never_answers_ends_the_wait_and_its_prompts_are_named(self, engines, caplog):
        engine = engines(reward=Silent, reward_timeout=0.2, actors=1)
        engine.publish(0, weights(policy()))
        with pytest.raises(TrainingError, match=rf"reward_timeout=0\.2 seconds.*{HOPELESS} portions in a row"):
            engine.next_batch(N, step=1)
        told = [r.message for r in caplog.records if "trajectories dropped" in r.message]
        assert told
        assert "4 trajectories dropped, of the prompts p" in told[0]
        assert engine.stats()["unscored"] == (HOPELESS - 1) * 4
        assert engine.stats()["accepted"] == 0

    def test_too_small_a_cluster_is_named_with_what_was_asked(self, engines, monkeypatch):
        monkeypatch.setattr(module, "START_SECONDS", 2.0)
        engine = engines(actor_cpus=1000)
        engine.publish(0, weights(policy()))
        with pytest.raises(TrainingError, match=r"rollout\.actors=2 ask for 2000 CPU of \d+ and 0 GPU of \d+"):
            engine.next_batch(N, step=1)

    def test_an_adapter_samples_by_the_adapter_that_was_published(self, engines):
        pytest.importorskip("peft", reason="PEFT is not installed")
        base = policy()
        model = with_lora(copy.deepcopy(base.model), rank=2, alpha=8, target_modules=None)
        acting = Policy(model).eval()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        published = {name: torch.randn_like(p) for name, p in trained.items()}
        engine = engines(acting=Policy(copy.deepcopy(model)).eval().requires_grad_(False))
        engine.publish(0, published)
        found = engine.next_batch(N, step=1)
        for name, p in trained.items():
            p.data.copy_(published[name])
        for t in found:
            torch.testing.assert_close(torch.from_numpy(t.policy_logp), scored(acting, t), rtol=1e-4, atol=1e-4)
            assert (scored(base, t) - scored(acting, t)).abs().max() > 0.01


def unmade():
    raise InputError("no such reward model")


@pytest.mark.slow
def test_more_gpus_than_this_machine_has_are_refused_before_training(tmp_path):
    words = ("rollout=ray", "eval.reward=programs", "rollout.actor_gpus=1", "rollout.actors=64", "trainer.max_steps=2")
    code, out = finished(command("train", *RUN, *words, f"run_dir={tmp_path / 'run'}"))
    assert code == 2, out
    assert "64 GPU of" in out
    assert "lower rollout.actors" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_address_where_no_cluster_is_is_refused_before_training(tmp_path):
    words = ("rollout=ray", "eval.reward=programs", "rollout.address='127.0.0.1:9'", "trainer.max_steps=2")
    code, out = finished(command("train", *RUN, *words, f"run_dir={tmp_path / 'run'}"))
    assert code == 2, out
    assert "rollout.address=127.0.0.1:9: no Ray cluster" in out
