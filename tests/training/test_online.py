"""Learning while sampling, through the real command line: what is trained on and what is left behind."""

import json
from collections import Counter

import numpy as np
import pytest

from shiqrun.cli import main
from shiqrun.training import publishing
from tests.support.command_line import metrics, summary
from tests.support.online_words import PROBLEMS, SMALL, experience, live, train
from tests.support.places import working_in

TEMPERATE = "rollout.temperature=[0.5,1.2]"


@pytest.fixture(scope="module")
def home(home):
    """A policy that solves some problems, and where its targets are."""
    trained = ("trainer.max_steps=80", "trainer.batch_size=32", "trainer.learning_rate=3e-3", "eval.every=0")
    with working_in(home):
        assert main(["train", "algo=sft", *PROBLEMS, *SMALL, *trained, "run_dir=sft"]) == 0
    return home


pytestmark = pytest.mark.usefixtures("at_home")


def leases(run_dir):
    """Uids by step."""
    rows = []
    for line in (run_dir / "experience" / "LEASES").read_text().splitlines():
        start = line.index("{")
        rows.append(json.loads(line[start : line.rindex("}") + 1]))
    return {row["step"]: row["uids"] for row in rows if "uids" in row}


def everything_is_accounted_for(run_dir, accepted, trained):
    told = summary(run_dir)
    assert (told["rollout/accepted"], told["rollout/trained"]) == (accepted, trained)
    assert (told["rollout/lost"], told["rollout/duplicated"], told["rollout/leased"]) == (0, 0, 0)
    assert len(experience(run_dir)) == accepted
    return told


# ------------------------------------------------------------------ runs
@pytest.fixture(scope="module")
def half(home):
    """SPO, half of whose batches are logged."""
    with working_in(home):
        assert live("spo", TEMPERATE, "run_dir=half") == 0
    return home / "half"


def test_spo_half_online_learns_from_both_and_counts_all(half):
    told = everything_is_accounted_for(half, accepted=12 * 8, trained=12 * 8)
    assert told["rollout/weight_transfers"] == 3
    assert told["rollout/staleness_mean"] == pytest.approx((2 * sum(range(5)) + 1) / 12)
    rows = metrics(half)
    assert [row["step"] for row in rows] == [1, 4, 8, 12]
    assert rows[0]["train/acting_gap"] < 1e-5 < rows[-1]["train/acting_gap"]
    assert rows[0]["train/logratio_abs"] == pytest.approx(0, abs=1e-5)
    for row in rows:
        assert row["train/reward"] == pytest.approx((row["train/reward/online"] + row["train/reward/logged"]) / 2)
        assert {"rollout/reward", "rollout/mean_length", "rollout/staleness_mean"} <= row.keys()


def test_sampled_trajectories_have_the_soft_value_of_their_prompt_at_the_methods_beta(home):
    words = ("rollout.offline=0", "algo.beta=0.5", "trainer.max_steps=1", "cache_dir=own_values", "run_dir=all_online")
    assert live("spo", *words) == 0
    (file,) = (home / "own_values" / "values").glob("*.jsonl")
    rewards = {row["prompt"][0]["content"]: row["rewards"] for row in map(json.loads, file.open()) if "rewards" in row}
    found = [rewards[t["prompt"][0]["content"]] for t in experience(home / "all_online").values()]
    at = {beta: np.mean([beta * np.log(np.mean(np.exp(np.array(r) / beta))) for r in found]) for beta in (0.5, 0.1)}
    assert at[0.5] != pytest.approx(at[0.1], abs=1e-3)
    assert metrics(home / "all_online")[0]["train/prompt_value"] == pytest.approx(at[0.5], rel=1e-5)


def test_what_is_logged_of_rewards_is_what_the_step_was_given(half):
    kept, given = experience(half), leases(half)
    since = 1
    for row in metrics(half):
        step = int(row["step"])
        mine = [kept[uid] for uid in given[step]]
        assert row["train/reward/online"] == pytest.approx(np.mean([t["reward"] for t in mine]))
        told = [kept[uid] for s in range(since, step + 1) for uid in given[s]]
        assert row["rollout/reward"] == pytest.approx(np.mean([t["reward"] for t in told]))
        ages = [s - 1 - kept[uid]["version"] for s in range(since, step + 1) for uid in given[s]]
        assert row["rollout/staleness_mean"] == pytest.approx(np.mean(ages))
        assert row["rollout/staleness_max"] == max(ages)
        since = step + 1
    assert {t["version"] for t in kept.values()} == {0, 5, 10}
    assert {t["reward"] for t in kept.values()} == {0.0, -1.0}


def test_what_was_sampled_is_a_data_set(half):
    data = (
        "data=jsonl",
        f"data.path={half / 'experience'}",
        "data.val_fraction=0.2",
        "data.distinct=false",
        "logger=none",
    )
    assert train("shiq", "run_dir=again", data=data) == 0
    told, kept = summary(half.parent / "again"), experience(half)
    assert told["trajectories/train"] + told["trajectories/val"] + told.get("dropped/longer", 0) == len(kept)


def test_and_a_source_of_another_run(half):
    words = (
        "rollout.sources.logged=1",
        "rollout.sources.further=3",
        f"rollout.path={half / 'experience'}",
        "algo.reward_offset=mean",
    )
    assert live("shiq", *words, "rollout.losses.further=shiq_ms", "run_dir=with_further") == 0
    rows = metrics(half.parent / "with_further")
    assert {"train/reward/online", "train/reward/logged", "train/reward/further"} <= rows[-1].keys()
    everything_is_accounted_for(half.parent / "with_further", accepted=96, trained=96)


def test_copg_learns_from_pairs_and_from_replayed_ones(home):
    words = (
        "rollout.samples_per_prompt=2",
        "rollout.sources.logged=1",
        "rollout.sources.replay=1",
        TEMPERATE,
        "run_dir=copg",
    )
    assert live("copg", *words) == 0
    everything_is_accounted_for(home / "copg", accepted=96, trained=96)
    kept = experience(home / "copg")
    assert set(Counter(t["group"] for t in kept.values()).values()) == {2}
    for uids in leases(home / "copg").values():
        assert set(Counter(kept[uid]["group"] for uid in uids).values()) == {2}
    rows = metrics(home / "copg")
    assert "train/reward/replay" not in rows[0]
    assert all("train/reward/replay" in row for row in rows[1:])


def test_shiq_learns_from_samples_alone(home):
    words = ("rollout.offline=0", "algo.reward_offset=mean", "algo.anchor=1")
    assert live("shiq", *words, "run_dir=shiq") == 0
    told = everything_is_accounted_for(home / "shiq", accepted=12 * 16, trained=12 * 16)
    assert told["train/reward"] == told["train/reward/online"]
    assert told["train/loss"] == pytest.approx(told["train/loss/online"])
    assert metrics(home / "shiq")[-1]["train/epoch"] == 0


def test_ppo_updates_more_than_once_a_step(home):
    words = ("rollout.offline=0", "algo.epochs=2", "algo.value=head", TEMPERATE)
    assert live("ppo", *words, "run_dir=ppo") == 0
    everything_is_accounted_for(home / "ppo", accepted=192, trained=192)
    rows = metrics(home / "ppo")
    assert all(row["train/importance_mean"] > 0 for row in rows)
    assert live("ppo", *words, "algo.epochs=1", "run_dir=ppo1") == 0
    assert metrics(home / "ppo1")[-1]["train/logratio_abs"] < rows[-1]["train/logratio_abs"]


GROUPS = ("rollout.offline=0", "rollout.samples_per_prompt=4", "rollout.temperature=[1,1.2]", "rollout.top_p=1")


@pytest.mark.parametrize(("algo", "units"), [("grpo", "action"), ("rloo", "trajectory")])
def test_group_gradients_learn_from_groups_however_a_step_is_cut(home, algo, units):
    words = (*GROUPS, f"algo.units={units}", "algo.epochs=2", "trainer.max_steps=4", "trainer.log_every=1")
    for tokens in (10_000, 40):
        name = f"{algo}_{units}_{tokens}"
        assert live(algo, *words, f"trainer.micro_batch_tokens={tokens}", f"run_dir={name}") == 0
        everything_is_accounted_for(home / name, accepted=64, trained=64)
    whole, cut = (metrics(home / f"{algo}_{units}_{tokens}")[-1] for tokens in (10_000, 40))
    assert whole["train/logratio_abs"] > 1e-3
    assert cut["train/logratio_abs"] == pytest.approx(whole["train/logratio_abs"], rel=1e-2)
    rounding = 1e-3 * whole["train/advantage_abs"]  # the policy loss is a mean of advantages that nearly cancel
    for name in ("importance_mean", "same_return", "policy_loss", "advantage_abs"):
        assert cut[f"train/{name}"] == pytest.approx(whole[f"train/{name}"], rel=1e-2, abs=rounding), name
    kept = experience(home / f"{algo}_{units}_40")
    for uids in leases(home / f"{algo}_{units}_40").values():
        assert set(Counter(kept[uid]["group"] for uid in uids).values()) == {4}


def test_oapl_has_the_lagged_sampler_for_its_reference(home):
    sampling = ("rollout.samples_per_prompt=4", "rollout.temperature=[1,1]", "rollout.top_p=1")
    lagged = ("rollout.offline=0", "rollout.model_update_interval=3", "algo.reference_every=3", "trainer.max_steps=7")
    assert live("oapl", *sampling, *lagged, "trainer.log_every=1", "run_dir=oapl") == 0
    told = everything_is_accounted_for(home / "oapl", accepted=112, trained=112)
    assert told["reference/moves"] == 2
    assert {t["version"] for t in experience(home / "oapl").values()} == {0, 3, 6}
    rows = metrics(home / "oapl")
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows)
    assert [row["train/logratio_abs"] < 1e-5 for row in rows] == [step in (1, 4, 7) for step in range(1, 8)]


def test_policy_gradients_of_groups_take_logged_data_of_one_completion_for_their_prompts(home):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "reward": 0, "answer": "4"} for i in range(24)]
    (home / "single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data=jsonl", "data.path=single.jsonl", "data.val_fraction=0", "logger=none")
    words = (*GROUPS, "eval.reward=math_answer", "trainer.max_steps=1", "run_dir=single")
    assert live("rloo", *words, data=data, model=("model=tiny", *SMALL)) == 0
    assert summary(home / "single")["trajectories/train"] == 24
    everything_is_accounted_for(home / "single", accepted=16, trained=16)


def test_annotated_trajectories_are_trained_towards_their_targets_alone(home):
    search = ("reward=programs", "pivotal.max_new_tokens=10", "pivotal.between=[0,0.95]", "pivotal.again=8")
    searched = ("pivotal", *PROBLEMS, "model=hf", "model.path=sft/policy", *search, "data.limit=60", "run_dir=searched")
    assert main([*searched]) == 0
    words = (
        "rollout.sources.logged=1",
        "rollout.sources.annotated=1",
        "rollout.losses.annotated=monte_carlo",
        "run_dir=annotated",
    )
    assert live("spo", *words, "algo.targets=searched/pivotal.jsonl") == 0
    told = everything_is_accounted_for(home / "annotated", accepted=96, trained=96)
    assert told["train/reward/annotated"] == 0  # right ones alone were searched
    assert {"train/target_gap_abs", "train/q_gap_abs"} <= told.keys()


def test_a_sampler_with_other_weights_is_found_out_before_anything_is_trained(home, monkeypatch, capfd):
    true = publishing.trained_weights
    monkeypatch.setattr(publishing, "trained_weights", lambda policy: {n: 1.1 * p for n, p in true(policy).items()})
    assert live("shiq", "run_dir=wrong") == 1
    out = capfd.readouterr()
    assert "samples are not of the policy that is scored" in " ".join((out.out + out.err).split())
    assert not (home / "wrong" / "summary.json").exists()
    assert not (home / "wrong" / "metrics.csv").exists() or not metrics(home / "wrong")


def test_nothing_but_the_policy_s_own_parameters_is_sent(half):
    told = summary(half)
    assert told["rollout/weight_bytes"] == 3 * 4 * told["parameters"]
