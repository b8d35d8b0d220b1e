"""Two ranks that sample while they learn, from outside: the numbers of one process, and what a fault leaves."""

import pytest
from safetensors.numpy import load_file

from tests.support.command_line import finished, largest_difference, metrics, started_anew, summary, timeless
from tests.support.online_runs import (
    BUSY,
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

pytestmark = pytest.mark.slow
TWO = {ranks: (f"hardware={ranks}", "hardware.devices=2", "hardware.accelerator=cpu") for ranks in ("ddp", "fsdp")}
STEPS = 14
WORDS = (f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=4")
LAZY = ("rollout=local", "rollout.batch_size=4")
"""A portion of one step: most are sampled by weights that are older than the policy and than the checkpoint."""
SHORT = ("rollout=local", "trainer.max_steps=5", "trainer.warmup_steps=0", "trainer.learning_rate=1e-3")
ONLINE = ("rollout.offline=0", "rollout.temperature=[1,1]", "rollout.top_p=1")
KINDS = {
    "copg": ("rollout.sources.replay=1", "trainer.micro_batch_tokens=90"),
    "shiq": ("algo=shiq", "algo.anchor=1", "rollout.losses.logged=shiq_ms", "algo.reward_offset=mean"),
    "ppo": ("algo=ppo", "algo.epochs=2", "algo.value=head", *ONLINE),
    "grpo": ("algo=grpo", "algo.epochs=2", "rollout.samples_per_prompt=4", "trainer.micro_batch_tokens=90", *ONLINE),
    "adapter": ("model.lora_r=4", "algo.reference=adapter"),
}
MOVES = ("algo=oapl", "algo.reference_every=3", "rollout.samples_per_prompt=4", *ONLINE)


def with_reward(folder, name, **options):
    """Words that let a run find a reward of `tests.rollout.failing` by the name `own`."""
    (folder / "reward").mkdir(parents=True, exist_ok=True)
    lines = {"name": "own", "_target_": f"tests.rollout.failing.{name}", "right": 0.0, "wrong": -1.0} | options
    (folder / "reward" / "own.yaml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
    return "--config-dir", str(folder)


def done(run_dir, *words, reward="programs"):
    code, out = finished(begin(run_dir, *words, reward=reward), 400)
    assert code == 0, out
    return run_dir


def same_numbers(one, two):
    assert largest_difference(one, two) < 1e-5
    skipped = ("transfer", "second")
    for a, b in zip(timeless(metrics(one)), timeless(metrics(two)), strict=True):
        a, b = ({k: v for k, v in row.items() if not any(word in k for word in skipped)} for row in (a, b))
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5, nan_ok=True)
    counts = ("accepted", "trained", "leased", "waiting", "stale", "lost", "duplicated")
    told = [{name: summary(run)[f"rollout/{name}"] for name in counts} for run in (one, two)]
    assert told[0] == told[1]
    assert told[0]["lost"] == told[0]["duplicated"] == told[0]["leased"] == 0


CASES = [
    *((ranks, kind) for ranks in TWO for kind in KINDS),
    ("ddp", "oapl"),
]


@pytest.mark.parametrize(("ranks", "kind"), CASES)
def test_two_ranks_sample_and_train_as_one_process_does(home, ranks, kind):
    words = (*with_reward(home / "conf", "Varied"), *SHORT, *(KINDS | {"oapl": MOVES})[kind])
    one = home / f"one_{kind}"
    if not one.exists():
        done(one, *words, reward="own")
    assert metrics(one)[-1]["train/logratio_abs"] > 1e-3  # it has learned something
    same_numbers(one, done(home / f"{ranks}_{kind}", *words, *TWO[ranks], reward="own"))


# ------------------------------------------------------------------ faults
def other_ranks(process):
    """The processes of the further ranks of a run, of which this one is rank 0."""
    alive = [p for p in below(process.pid) if p.status() != "zombie"]
    return [p for p in alive if "train" in p.cmdline() and p.environ().get("RANK", "0") != "0"]


def killed(run_dir, steps, rank, *words):
    """A run one of whose ranks was killed in or after a step."""
    process = begin(run_dir, *words, *WORDS)
    wait_for_steps(run_dir, steps, process)
    others = other_ranks(process)
    assert len(others) == 1
    kill([process, *others][rank : rank + 1])
    code, out = finished(process, 120)
    assert code == (-9 if rank == 0 else 1), out
    assert rank == 0 or out.count("shiqrun: failed: rank 1 ended by SIGKILL") == 1
    assert all_gone(others)
    assert not (run_dir / "summary.json").exists()
    counts, _ = recounted(run_dir)
    assert counts["lost"] == counts["duplicated"] == 0
    return run_dir


def whole(home, ranks):
    """The weights at the end of a run that nothing happened to."""
    run_dir = home / f"whole_{ranks}"
    return policy_of(run_dir if run_dir.exists() else done(run_dir, *LAZY, *WORDS, *TWO[ranks]))


def policy_of(run_dir):
    return load_file(run_dir / "policy" / "model.safetensors")


KILLS = [("ddp", 1, 0), ("ddp", 6, 1), ("ddp", 9, 0), ("fsdp", 2, 1), ("fsdp", 5, 0), ("fsdp", 10, 1)]


@pytest.mark.parametrize(("ranks", "steps", "victim"), KILLS)
def test_a_local_run_of_which_a_rank_is_killed_ends_with_the_bits_of_one_that_was_not(home, ranks, steps, victim):
    run_dir = killed(home / f"{ranks}{steps}{victim}", steps, victim, *LAZY, *TWO[ranks])
    resumed(run_dir)
    expect_all_there(run_dir, STEPS)
    ends = policy_of(run_dir)
    assert all((ends[name] == value).all() for name, value in whole(home, ranks).items())


def test_a_run_goes_on_with_another_number_of_ranks(home):
    run_dir = killed(home / "other", 6, 1, *LAZY, *TWO["fsdp"])
    elsewhere = ("hardware.devices=1", "hardware.strategy=auto")
    code, out = finished(started_anew("train", f"resume={run_dir}", *elsewhere, **BUSY), 400)
    assert code == 0, out
    expect_all_there(run_dir, STEPS)
    assert all(abs(policy_of(run_dir)[name] - value).max() < 1e-5 for name, value in whole(home, "fsdp").items())


@pytest.mark.parametrize(("ranks", "victim"), [("ddp", 0), ("ddp", 1), ("fsdp", 1)])
def test_a_run_on_ray_one_of_whose_ranks_is_killed_goes_on_and_loses_nothing(home, ranks, victim):
    run_dir = killed(home / f"ray_{ranks}{victim}", 6, victim, *RAY, *TWO[ranks])
    before, _ = recounted(run_dir)
    resumed(run_dir)
    told = expect_all_there(run_dir, STEPS)
    assert told["accepted"] >= before["accepted"] > 0


@pytest.mark.parametrize("victim", ["Sampler", "Store"])
def test_actors_of_two_ranks_that_are_killed_are_started_again(home, victim):
    run_dir = home / victim
    process = begin(run_dir, *RAY, *TWO["ddp"], *WORDS)
    wait_for_steps(run_dir, 4, process)
    kill(called(victim, below(process.pid)))
    code, out = finished(process, 400)
    assert code == 0, out
    told = expect_all_there(run_dir, STEPS)
    assert told["actor_restarts"] == {"Sampler": 2, "Store": 1}[victim]


@pytest.mark.parametrize(
    ("where", "error", "code"), [(1, "input", 2), (0, "training", 1), (1, "training", 1), (1, "defect", 1)]
)
def test_an_error_of_one_rank_s_reward_ends_all_with_one_message(home, where, error, code):
    folder = home / f"{error}{where}"
    own = with_reward(folder, "Failing", where=where, error=error)
    words = (*own, *LAZY, *WORDS, "eval.every=0", *TWO["ddp"])
    ended, out = finished(begin(folder / "run", *words, reward="own"), 200)
    assert ended == code, out
    assert out.count("shiqrun: failed") + out.count("shiqrun: error") == 1, out
    assert out.count("the reward has no answer here") == 1 + (error == "defect"), out  # a traceback shows its line too
    counts, _ = recounted(folder / "run")
    assert counts["lost"] == counts["duplicated"] == 0
