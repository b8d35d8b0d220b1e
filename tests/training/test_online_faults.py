"""Runs that sample while they learn, from outside: what a fault of any process leaves, counted again from the files."""

import os
import signal

import pytest
from safetensors.numpy import load_file

from tests.support.command_line import checkpoint, finished
from tests.support.online_runs import (
    RAY,
    all_gone,
    begin,
    below,
    called,
    expect_all_there,
    kill,
    recounted,
    resumed,
    wait_for_steps,
)

STEPS = 14
ENGINES = {"local": ("rollout=local",), "ray": RAY}
WORDS = (f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=4")


@pytest.fixture(scope="module")
def whole(home):
    """The weights at the end of a run in one process that nothing happened to."""
    code, out = finished(begin(home / "whole", *ENGINES["local"], *WORDS))
    assert code == 0, out
    expect_all_there(home / "whole", STEPS)
    return load_file(home / "whole" / "policy" / "model.safetensors")


def policy_of(run_dir):
    return load_file(run_dir / "policy" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5, 8, 11])
def test_a_local_run_killed_at_any_step_ends_with_the_weights_of_one_that_was_not(home, whole, steps):
    run_dir = home / f"killed{steps}"
    process = begin(run_dir, *ENGINES["local"], *WORDS)
    wait_for_steps(run_dir, steps, process)
    process.kill()
    process.communicate(timeout=30)
    assert not (run_dir / "summary.json").exists()
    resumed(run_dir)
    assert same(policy_of(run_dir), whole)
    expect_all_there(run_dir, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_saves_the_step_and_ends_every_process(home, whole, engine, number):
    run_dir = home / f"{engine}-{number.name}"
    words = (*ENGINES[engine], "trainer.max_steps=400", "trainer.checkpoint_every=1000")
    process = begin(run_dir, *words)
    wait_for_steps(run_dir, 3, process)
    started = below(process.pid)
    process.send_signal(number)
    code, out = finished(process)
    assert code == 130
    assert f"to go on: shiqrun train resume={run_dir}" in out
    stands = checkpoint(run_dir)["global_step"]
    assert f"stopped after step {stands}" in out
    assert all_gone(started)
    assert bool(started) == (engine == "ray")
    counts, by_step = recounted(run_dir)
    assert counts["trained"] == stands * 8 == 8 * len(by_step)
    assert counts["lost"] == counts["duplicated"] == 0


@pytest.mark.slow
def test_a_trainer_on_ray_that_is_killed_leaves_no_process_and_goes_on(home):
    run_dir = home / "trainer"
    process = begin(run_dir, *RAY, *WORDS)
    wait_for_steps(run_dir, 6, process)
    started = below(process.pid)
    ours = [p for kind in ("Sampler", "Store", "Board", "Scorer") for p in called(kind, started)]
    assert len(ours) == 6
    process.kill()
    process.communicate(timeout=30)
    assert all_gone(ours)
    before, _ = recounted(run_dir)
    resumed(run_dir)
    told = expect_all_there(run_dir, STEPS)
    assert told["accepted"] >= before["accepted"] > 0
    assert all_gone(started, 150)  # two of Ray's own look only now and then whether they are still needed


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["Sampler", "Store", "Board", "Scorer"])
def test_actors_that_are_killed_are_started_again_and_nothing_is_lost(home, victim):
    """All of a kind, when a third is done; few trajectories wait, so that the rest needs the new ones."""
    run_dir = home / victim
    process = begin(run_dir, *RAY, "trainer.max_steps=30", "trainer.checkpoint_every=100")
    wait_for_steps(run_dir, 10, process)
    kill(called(victim, below(process.pid)))
    code, out = finished(process, 400)
    assert code == 0, out
    told = expect_all_there(run_dir, 30)
    assert told["unscored"] == 0
    assert told["actor_restarts"] == {"Sampler": 2, "Store": 1, "Board": 0, "Scorer": 0}[victim]
    assert ("died and was started again" in out) == bool(told["actor_restarts"])


def hanging(folder, **options):
    """Words for a run whose reward hangs."""
    (folder / "reward").mkdir(parents=True)
    (folder / "notes").mkdir()
    lines = {"name": "hanging", "_target_": "tests.rollout.hanging.Hanging", "right": 0.0, "wrong": -1.0}
    lines |= {"notes": folder / "notes", "every": 20} | options
    (folder / "reward" / "hanging.yaml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
    return ("--config-dir", str(folder), "rollout.reward_timeout=2", "trainer.max_steps=20")


@pytest.mark.slow
@pytest.mark.parametrize("once", [True, False])
def test_a_reward_that_hangs_is_started_again_and_what_it_never_scores_is_left_out(home, once):
    folder = home / f"hanging-{once}"
    process = begin(folder / "run", *RAY, *hanging(folder, once=str(once).lower()), reward="hanging")
    code, out = finished(process, 400)
    assert code == 0, out
    notes = {path: path.read_text().split() for path in (folder / "notes").iterdir()}
    assert notes
    told = expect_all_there(folder / "run", 20)
    if once:
        assert all(len(pids) == 1 for pids in notes.values())
        assert told["unscored"] == 0
    else:
        assert told["unscored"] > 0
        assert told["unscored"] % 8 == 0
        assert "the reward gave no answer within rollout.reward_timeout=2 seconds, twice: 8 trajectories" in out
    assert not [pid for pids in notes.values() for pid in pids if os.path.exists(f"/proc/{pid}")]
