"""The methods of issue B through the real command line: that they train, what they refuse, and the anchor."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shiqrun.cli import main
from tests.support.command_line import (
    checkpoint,
    command,
    finished,
    largest_difference,
    metrics,
    start,
    summary,
    train,
    wait_for_rows,
)

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.mark.parametrize(
    "words",
    [
        ("dpo",),
        ("dpo", "algo.pairing=best_worst", "algo.label_smoothing=0.1"),
        ("ipo",),
        ("kto", "algo.reward_offset=mean"),
        ("tbrm",),
        ("copg",),
        ("rebel", "algo.pairing=best_worst"),
        ("gvpo",),
        ("dro",),
        ("dro", "algo.baseline=group_mean"),
        ("dro_v",),
        ("dro_v", "algo.value=head", "algo.value_lr_ratio=10"),
        ("direct",),
        ("shiq", "algo.lam=0.9", "algo.reward_offset=group_mean"),
        ("shiq", "algo.fade=0.9", "algo.fade_from=turn", "algo.units=trajectory"),
    ],
    ids=" ".join,
)
def test_every_method_trains_and_starts_at_the_reference(home, words):
    name = "_".join(words).replace("=", "_")
    assert train(f"algo={words[0]}", *words[1:], f"run_dir={name}", "trainer.max_steps=4") == 0
    row = next(r for r in metrics(home / name) if r["step"] == 1)
    assert math.isfinite(row["train/loss"])
    assert abs(row["train/logratio_mean"]) < 1e-5
    assert row["train/entropy"] > 0
    assert 0 <= row["train/mean_token_accuracy"] <= 1


def test_dpo_logs_the_names_that_trl_has(home):
    assert train("algo=dpo", "run_dir=dpo_names", "trainer.max_steps=3") == 0
    last = metrics(home / "dpo_names")[-1]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert f"train/{name}" in last
    assert last["train/rewards/margins"] == pytest.approx(
        last["train/rewards/chosen"] - last["train/rewards/rejected"], abs=1e-5
    )


@pytest.mark.parametrize("algo", ["dpo", "copg", "dro"])
def test_compared_completions_give_the_same_step_however_it_is_cut(home, algo):
    extra = ["algo.baseline=group_mean"] if algo == "dro" else []
    for tokens in (10_000, 80):
        words = (f"algo={algo}", *extra, f"run_dir={algo}{tokens}", f"trainer.micro_batch_tokens={tokens}")
        assert train(*words, "trainer.max_steps=6") == 0
    assert largest_difference(home / f"{algo}10000", home / f"{algo}80") < 5e-5


def test_the_value_network_learns_and_stays_out_of_the_policy(home):
    words = ("algo=dro_v", "algo.value_lr_ratio=5", "run_dir=value", "trainer.max_steps=30", "eval.every=0")
    assert train(*words) == 0
    rows = [r for r in metrics(home / "value") if "train/residual_abs" in r]
    assert rows[-1]["train/residual_abs"] < rows[0]["train/residual_abs"]
    assert any(k.startswith("policy.value.") for k in checkpoint(home / "value")["state_dict"])
    assert not list((home / "value" / "policy").glob("*value*"))


def pairs(name, count=40):
    rows = [{"prompt": f"ask {i}", "chosen": f"good answer {i}", "rejected": f"bad reply {i}"} for i in range(count)]
    Path(name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return f"data.path={name}"


def test_a_reward_model_learns_to_order_and_loads_as_a_classifier(home):
    words = ("data=jsonl", pairs("pairs.jsonl"), "algo=reward_model", "logger=none", "trainer.batch_size=16")
    assert main(["train", *words, "trainer.max_steps=40", "run_dir=rm", "eval.every=20"]) == 0
    assert metrics(home / "rm")[-1]["val/accuracy"] == 1.0
    folder = home / "rm" / "reward_model"
    scorer, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    scores = []
    for answer in ("good answer 3", "bad reply 3"):
        talk = [{"role": "user", "content": "ask 3"}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        with torch.no_grad():
            scores.append(float(scorer(torch.tensor([ids])).logits))
    assert scores[0] > scores[1]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("dpo",), marks=SLOW),
        pytest.param(("reward_model",), marks=SLOW),
        pytest.param(("kto", "algo.reward_offset=mean"), marks=SLOW),
        pytest.param(("dro_v", "algo.value=head"), marks=SLOW),
    ],
    ids=" ".join,
)
def test_two_ranks_compare_the_same_completions(home, words):
    """A group is dealt to one rank whole; what no loss reads (the head under a reward model) is not waited for."""
    more = (f"algo={words[0]}", *words[1:], "trainer.max_steps=5", "trainer.batch_size=12", "eval.every=0")
    assert train(*more, f"run_dir=one_{words[0]}") == 0
    ranks = ("hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu")
    code, out = finished(start(*more, f"run_dir=two_{words[0]}", *ranks))
    assert code == 0, out
    assert largest_difference(home / f"one_{words[0]}", home / f"two_{words[0]}") < 5e-5


def test_data_without_rewards_logs_no_reward(home):
    rows = [{"prompt": f"p{i}", "completion": "fine"} for i in range(20)]
    Path("plain.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ("data=jsonl", "data.path=plain.jsonl", "algo=sft", "logger=none", "trainer.max_steps=2")
    assert main(["train", *words, "run_dir=plain"]) == 0
    assert not any("train/reward" in row for row in metrics(home / "plain"))


# ------------------------------------------------------------------ the anchor
def test_the_anchor_starts_at_zero_and_then_pulls_and_cached_and_frozen_hold_the_same_tokens(home):
    for name, extra in (("cached", ()), ("frozen", ()), ("adapter", ("model.lora_r=4",))):
        words = (f"algo.reference={name}", *extra, f"run_dir=anchor_{name}", "trainer.max_steps=6")
        assert train("algo.anchor=1", *words, "trainer.log_every=1") == 0
        rows = [r for r in metrics(home / f"anchor_{name}") if "train/anchor" in r]
        assert rows[0]["train/anchor"] == pytest.approx(0, abs=1e-9)
        assert rows[-1]["train/anchor"] > 0
    assert largest_difference(home / "anchor_cached", home / "anchor_frozen") < 1e-4


def test_a_strong_anchor_keeps_the_sampled_logits_closer_to_the_reference(home):
    for kappa in ("0.001", "100"):
        words = ("algo.anchor_from=policy", "algo.reference=frozen", f"run_dir=kappa{kappa}", "eval.every=0")
        assert train(f"algo.anchor={kappa}", *words, "trainer.max_steps=30") == 0
    weak, strong = (metrics(home / f"kappa{k}")[-1]["train/anchor_gap"] for k in ("0.001", "100"))
    assert strong < weak / 3


@pytest.mark.parametrize(("loss", "together"), [("shiq", False), ("copg", True), ("dpo", True), ("shiq_tk", False)])
def test_the_anchors_sum_is_weighed_so_that_the_step_divides_it_by_actions(loss, together):
    """Units per action, which the step multiplies with before it divides by units, counted by hand."""
    from functools import partial

    from lightning.pytorch import Trainer

    from shiqrun import losses
    from shiqrun.batching.rows import Rows
    from shiqrun.models.policy import Policy
    from shiqrun.settings import AlgoSettings, TrainerSettings
    from shiqrun.training.step.method import Method
    from tests.support import helpers

    given = Rows(helpers.rows(12).trajectories, pad=0, together=together)
    batches = [given.collate(given.units[i] + given.units[i + 1]) for i in range(0, len(given.units), 2)]
    options = {
        "max_steps": 1,
        "max_epochs": None,
        "batch_size": 2,
        "micro_batch_tokens": 64,
        "log_every": 1,
        "prompts_together": False,
    }
    optimiser = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0, "lr_schedule": "constant"}
    method = Method(
        Policy(helpers.llama()),
        None,
        partial(getattr(losses, loss), beta=0.5),
        TrainerSettings(**options, **optimiser, grad_clip=None, checkpoint_every=1),
        max_steps=1,
        seed=0,
        algo=AlgoSettings(reference="frozen", reward_offset="none", anchor=1.0),
        beta=0.5,
    )
    method.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    actions = int(given.actions.sum())
    units = {"shiq": actions, "shiq_tk": 12, "copg": 6, "dpo": 6}[loss]  # twelve rows, two of each prompt, no tie
    assert method._term_weights(batches, method._step_loss(batches)).per_action == pytest.approx(units / actions)


@pytest.mark.slow
def test_a_killed_run_with_a_value_network_goes_on_to_the_same_bits(home):
    words = ("algo=dro_v", "trainer.max_steps=20", "trainer.checkpoint_every=3", "trainer.log_every=1")
    code, out = finished(start("run_dir=value_whole", *words))
    assert code == 0, out
    process = start("run_dir=value_killed", *words)
    wait_for_rows(home / "value_killed", 8, process)
    process.kill()
    process.communicate()
    code, out = finished(command("train", "resume=value_killed"))
    assert code == 0, out
    assert largest_difference(home / "value_whole", home / "value_killed") == 0


@pytest.mark.parametrize("algo", ["shiq", "copg"])
def test_an_anchored_step_does_not_depend_on_how_it_is_cut(home, algo):
    for tokens in (10_000, 80):
        words = (f"algo={algo}", "algo.anchor=1", f"run_dir=anchor_{algo}{tokens}", "trainer.max_steps=6")
        assert train(*words, f"trainer.micro_batch_tokens={tokens}") == 0
    assert largest_difference(home / f"anchor_{algo}10000", home / f"anchor_{algo}80") < 5e-5


def test_a_step_with_fading_weights_does_not_depend_on_how_it_is_cut(home):
    """Divided by the sum of the weights of the whole step, beside the anchor's actions."""
    for tokens in (10_000, 80):
        words = ("algo.fade=0.5", "algo.anchor=1", f"run_dir=fade{tokens}", f"trainer.micro_batch_tokens={tokens}")
        assert train(*words, "trainer.max_steps=6") == 0
    assert largest_difference(home / "fade10000", home / "fade80") < 5e-5


# ------------------------------------------------------------------ what does not fit
def refused(capfd, *words) -> str:
    capfd.readouterr()
    assert train("trainer.max_steps=1", "run_dir=refused", *words) == 2
    assert not Path("refused").exists()
    return capfd.readouterr().err


@pytest.mark.parametrize("algo", ["dpo", "copg", "reward_model"])
def test_single_trajectories_for_a_loss_of_pairs(capfd, algo):
    message = refused(capfd, f"algo={algo}", "data.per_map=1")
    assert f"algo={algo}" in message
    assert "compares completions" in message


def test_a_group_of_one_for_the_groups_mean(capfd):
    assert "algo=dro" in refused(capfd, "algo=dro", "algo.baseline=group_mean", "data.per_map=1")


def test_rows_alone_with_their_prompt_are_counted_and_left_out(home, capfd):
    rows = [{"prompt": f"p{i // 2}", "completion": f"c{i}", "reward": i} for i in range(40)]
    Path("mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, rows[0] | {"prompt": "alone"}]))
    words = ("data=jsonl", "data.path=mixed.jsonl", "data.val_fraction=0", "algo=copg", "logger=none")
    assert main(["train", *words, "trainer.max_steps=1", "run_dir=mixed"]) == 0
    assert summary(home / "mixed")["trajectories/train"] == 40
    assert "1 alone with its prompt" in capfd.readouterr().out


def test_nothing_but_ties_for_a_loss_that_needs_a_winner(capfd):
    rows = [{"prompt": f"p{i // 2}", "completion": f"c{i}", "reward": 1} for i in range(40)]
    Path("ties.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    capfd.readouterr()
    words = ("data=jsonl", "data.path=ties.jsonl", "logger=none", "trainer.max_steps=1", "data.val_fraction=0")
    assert main(["train", *words, "algo=dpo", "run_dir=tied"]) == 2
    assert "tie" in capfd.readouterr().err
    assert main(["train", *words, "algo=copg", "run_dir=tied"]) == 0


@pytest.mark.parametrize("lam", ["-0.1", "1.5"])
def test_lam_outside_its_interval(capfd, lam):
    assert "algo.lam" in refused(capfd, f"algo.lam={lam}")


def test_an_anchor_on_policy_tokens_needs_a_live_reference(capfd):
    assert "algo.reference=frozen" in refused(capfd, "algo.anchor=1", "algo.anchor_from=policy")


def test_a_value_for_a_method_that_has_none(capfd):
    assert "value function" in refused(capfd, "+algo.value=head")


def test_several_updates_on_a_batch_for_a_method_that_holds_the_policy_nowhere(capfd):
    assert "algo.epochs=3" in refused(capfd, "+algo.epochs=3")


def test_logged_data_for_a_method_of_samples(capfd):
    message = refused(capfd, "algo=ppo")
    assert "algo=ppo learns from the policy's own samples" in message
    assert "rollout=local" in message


def test_pairs_without_rewards_for_a_loss_that_needs_them(capfd):
    capfd.readouterr()
    words = ("data=jsonl", pairs("bare.jsonl"), "data.pair_rewards=null", "logger=none", "trainer.max_steps=1")
    assert main(["train", *words, "algo=copg", "run_dir=bare"]) == 2
    message = capfd.readouterr().err
    assert "algo=copg needs rewards" in message
    assert "data.pair_rewards" in message


def test_together_the_prompts_are_read_once(home, capfd):
    read = {}
    for flag in ("false", "true"):
        assert train("run_dir=dry", "dry_run=true", f"trainer.prompts_together={flag}") == 0
        said = re.search(r"reads\W+([\d,]+) tokens an epoch, packed", capfd.readouterr().out)
        read[flag] = int(said[1].replace(",", ""))
    assert read["true"] < 0.6 * read["false"]  # a map's prompt is longer than its paths, and has several
    assert train("run_dir=together", "trainer.prompts_together=true", "trainer.max_steps=2") == 0
    assert metrics(home / "together")[-1]["train/num_tokens"] > 0
