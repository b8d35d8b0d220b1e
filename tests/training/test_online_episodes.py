"""Runs that play an environment while they learn, from outside: what is trained on, stored, resumed and refused."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from shiqrun.batching.encode import encode
from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from tests.environments.counting import CountingEpisode
from tests.support.command_line import command, finished, metrics, summary
from tests.support.online_runs import expect_all_there, recounted, wait_for_steps
from tests.support.online_words import experience
from tests.support.places import working_in

YAML = "_target_: tests.environments.counting.Counting\nmax_messages: {most}\n"
SIZE = ("model=tiny", "model.hidden_size=32", "model.intermediate_size=48", "model.num_layers=2", "model.num_heads=2")
STEPS = ("trainer.max_steps=8", "trainer.batch_size=16", "trainer.log_every=1", "trainer.warmup_steps=0")
DATA = ("--config-dir", "yaml", "data=counting", "logger=none", "eval.every=0", *STEPS)
LEARNED = ("model=hf", "model.path=sft/policy")
SAMPLING = ("rollout.max_new_tokens=3", "rollout.samples_per_prompt=2", "rollout.model_update_interval=3")
SAMPLING = (*SAMPLING, "rollout.temperature=[0.7,1.3]", "rollout.top_p=1")


@pytest.fixture(scope="module")
def home(home):
    """A data set of a user's own, and a reference that counts right now and then."""
    (home / "yaml" / "data").mkdir(parents=True)
    for name, most in (("counting", "null"), ("short", "2")):
        (home / "yaml" / "data" / f"{name}.yaml").write_text(YAML.format(most=most))
    with working_in(home):
        words = ("algo=sft", "trainer.max_steps=25", "trainer.learning_rate=5e-3", "run_dir=sft")
        assert main(["train", *DATA, *SIZE, *words]) == 0
    return home


pytestmark = pytest.mark.usefixtures("at_home")


def train(algo, *words):
    """Exit code of a run from the reference that was trained; it plays unless said."""
    reference = () if algo == "sft" else ("algo.reference=frozen",)
    sampling = () if "rollout=none" in words else ("rollout=local", *SAMPLING)
    return main(["train", *DATA, *LEARNED, f"algo={algo}", *reference, *sampling, *words])


@pytest.fixture(scope="module")
def half(home):
    """ShiQ, half of whose batches are logged."""
    with working_in(home):
        words = ("algo.beta=0.05", "trainer.max_steps=40", "trainer.learning_rate=5e-3", "run_dir=half")
        assert train("shiq", *words) == 0
    return home / "half"


# ------------------------------------------------------------------ what a run does
def test_the_reward_of_what_is_sampled_rises_and_every_episode_is_accounted_for(half):
    rows = metrics(half)
    first, last = (np.mean([row["rollout/reward"] for row in part]) for part in (rows[:8], rows[-8:]))
    assert last > first + 0.3, "of at most 1.5"
    assert rows[0]["train/acting_gap"] < 1e-5, "the policy scores what was sampled as it was sampled"
    assert rows[0]["train/logratio_abs"] == pytest.approx(0, abs=1e-5)
    told = expect_all_there(half, 40)
    assert told["episodes/failed"] == 0
    for row in rows:
        assert row["rollout/reward"] == pytest.approx(row["rollout/reward_per_message"] * row["rollout/messages"])
        assert row["rollout/reward"] == pytest.approx(row["train/reward/online"])
    assert max(row["rollout/messages"] for row in rows) > 1


def replayed(row):
    """Rewards of the environment for what an episode said."""
    episode = CountingEpisode(json.loads(row["answer_json"]))
    assert row["prompt"] == episode.opening
    return [episode.step(m["content"]).reward for m in row["completion"] if m["role"] == "assistant"]


def test_every_stored_message_has_the_reward_that_the_environment_pays_when_it_is_said_again(half):
    rows = experience(half).values()
    assert len(rows) == 40 * 8
    assert all(row["rewards"] == replayed(row) for row in rows)
    assert len({tuple(row["rewards"]) for row in rows}) == 4, "none, one, two and three right numbers"


def test_what_a_run_has_sampled_is_a_data_set_with_its_turns_rewards_and_tokens(half):
    source = Jsonl(path=str(half / "experience"), val_path=None, pair_rewards=None)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(half / "policy")
    rows = {row["uid"]: row for row in experience(half).values()}
    found = [*encode(source.load("train"), tokenizer, dropped := Counter(), max_length=None)]
    assert not dropped
    for row, t in zip(rows.values(), found, strict=True):
        at = [i for start, end in row["action_spans"] for i in range(start, end)]
        assert (t.input_ids.tolist(), t.action_index.tolist()) == (row["input_ids"], at)
        ends = {end - 1: reward for (_, end), reward in zip(row["action_spans"], row["rewards"], strict=True)}
        assert t.rewards.tolist() == [ends.get(i, 0.0) for i in at]
    words = ("data=jsonl", "data.path=half/experience", "data.val_fraction=0.3", *LEARNED, "logger=none", *STEPS)
    assert main(["train", "algo=shiq", *words, "eval.every=0", "run_dir=again"]) == 0
    assert metrics(Path("again"))[0]["train/reward"] > 0


@pytest.mark.parametrize("most", [1, 2])
def test_an_episode_of_too_many_messages_is_ended_and_counted(home, most):
    run_dir = home / f"short{most}"
    words = ("data=short", f"data.max_messages={most}", "trainer.max_steps=2", f"run_dir={run_dir}")
    assert train("shiq", *words) == 0
    rows = experience(run_dir).values()
    assert max(len(row["rewards"]) for row in rows) == most
    cut = [row["truncated"] for row in rows if len(row["rewards"]) == most and row["rewards"][-1]]
    assert set(cut) == {"too many steps"}
    shares = [row["rollout/episodes/too_many_steps"] for row in metrics(run_dir)]
    assert sum(shares) * 8 == pytest.approx(sum(row["truncated"] == "too many steps" for row in rows))


def test_an_episode_that_outgrows_data_max_length_is_ended_and_counted(home):
    """Each right turn takes three tokens behind the first two, and a message of three must fit."""
    words = ("data.max_length=10", "rollout.offline=0", "trainer.max_steps=2", "run_dir=narrow")
    assert train("shiq", *words) == 0
    rows = experience(home / "narrow").values()
    assert max(len(row["input_ids"]) for row in rows) <= 10
    assert {row["truncated"] for row in rows} == {"", "no room"}
    shares = [row["rollout/episodes/no_room"] for row in metrics(home / "narrow")]
    assert sum(shares) * 16 == pytest.approx(sum(row["truncated"] == "no room" for row in rows))


# ------------------------------------------------------------------ methods
ALONE = ("rollout.offline=0",)
METHODS = {
    "shiq": (),
    "shiq_tk": (),
    "shiq_init": (),
    "shiq_ms": (),
    "oreo": (),
    "copg": (),
    "dro": (),
    "dro_v": (),
    "dpo": (),
    "ipo": (),
    "direct": (),
    "rebel": (),
    "tba": (),
    "tbrm": (),
    "agro": (),
    "gvpo": (),
    "ppo": ALONE,
    "grpo": ALONE,
    "rloo": ("rollout.sources.logged=0", "rollout.sources.replay=1"),
    "oapl": ("algo.reference_every=3", "rollout.temperature=[1,1]", *ALONE),
}


@pytest.mark.parametrize("algo", METHODS)
def test_every_method_of_several_turns_trains_on_sampled_episodes(home, algo):
    run_dir = home / f"method_{algo}"
    assert train(algo, "trainer.max_steps=2", f"run_dir={run_dir}", *METHODS[algo]) == 0
    last = metrics(run_dir)[-1]
    assert np.isfinite(last["train/loss"])
    assert last["train/grad_norm"] > 0
    told = summary(run_dir)
    assert told["rollout/trained"] == 2 * (16 if METHODS[algo][-1:] == ALONE else 8)
    assert (told["rollout/lost"], told["rollout/duplicated"]) == (0, 0)


REFUSED = {
    "spo": ("spo", (), "algo=spo reads what the reference earns on each prompt by single completions, but data=coun"),
    "qrpo": ("qrpo", (), "answers back over several turns; choose shiq, oreo, copg, ppo, grpo or rloo"),
    "sft": ("sft", (), "algo=sft learns nothing from the policy's own samples; set rollout=none"),
    "a reward": ("shiq", ("eval.reward=exact_match",), "the environment of data=counting pays its own rewards; leave"),
    "no samples": ("ppo", ("rollout=none",), "logged data do not have: set rollout=local (or ray)\n"),
    "vllm": ("shiq", ("rollout=vllm",), "rollout=vllm samples single completions, and data=counting answers back"),
    "no room": ("shiq", ("data.max_length=10", "rollout.max_new_tokens=9"), "none of the 6 training tasks leaves room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(home, case, capsys):
    algo, words, message = REFUSED[case]
    assert train(algo, *words, f"run_dir={home / 'refused'}") == 2
    out = capsys.readouterr()
    (line,) = [line for line in (out.out + out.err).splitlines() if "error: " in line]
    assert message in line + "\n"


# ------------------------------------------------------------------ kills
STOPPED = ("algo=shiq", "algo.reference=frozen", "trainer.checkpoint_every=4", "trainer.max_steps=14")


@pytest.mark.parametrize(
    "steps", [6, pytest.param(1, marks=pytest.mark.slow), pytest.param(11, marks=pytest.mark.slow)]
)
def test_a_killed_run_that_is_resumed_ends_with_the_bits_of_one_that_was_not(home, whole, steps):
    run_dir = home / f"killed{steps}"
    process = begin(run_dir)
    wait_for_steps(run_dir, steps, process)
    process.kill()
    process.communicate(timeout=30)
    assert not (run_dir / "summary.json").exists()
    code, out = finished(command("train", f"resume={run_dir}"))
    assert code == 0, out
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (run_dir, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    expect_all_there(run_dir, 14)
    same, other = ({u: dict(row, time=0) for u, row in experience(f).items()} for f in (run_dir, whole))
    assert same == other, "the same episodes, to the bit"
    counts, by_step = recounted(run_dir)
    assert by_step == recounted(whole)[1]
    assert counts["lost"] == counts["duplicated"] == 0


def begin(run_dir):
    return command("train", *DATA, *LEARNED, "rollout=local", *SAMPLING, *STOPPED, f"run_dir={run_dir}")


@pytest.fixture(scope="module")
def whole(home):
    """A run that nothing happened to."""
    with working_in(home):
        code, out = finished(begin(home / "whole"))
    assert code == 0, out
    return home / "whole"
