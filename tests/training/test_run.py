"""`shiqrun train` from outside: what a run does, leaves behind, refuses and survives."""

import json
import math
import re
import signal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shiqrun.models.reference import weights_fingerprint
from shiqrun.models.reference_file import ExpectedScores, write_part
from tests.support.command_line import (
    SMALL,
    checkpoint,
    command,
    finished,
    largest_difference,
    metrics,
    start,
    started_anew,
    summary,
    timeless,
    train,
    wait_for_rows,
)
from tests.support.helpers import STORIES, needs_stories
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def done(home):
    """One finished run of 12 steps."""
    with working_in(home):
        assert train("run_dir=done", "trainer.max_steps=12", "trainer.checkpoint_every=4", "algo.beta=0.5") == 0
    return home / "done"


def test_a_run_directory_holds_what_design_promises(done):
    for name in ("metrics.csv", "summary.json", "run.log", ".hydra/config.yaml", "policy/README.md", "samples.jsonl"):
        assert (done / name).is_file(), name
    assert {p.name for p in (done / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_the_first_the_last_and_every_third_step_are_logged_and_evaluations_at_their_own(done):
    rows = metrics(done)
    assert [int(r["step"]) for r in rows if "train/loss" in r] == [1, 3, 6, 9, 12]
    assert [int(r["step"]) for r in rows if "val/regret" in r] == [0, 5, 10, 12]
    assert [int(r["step"]) for r in rows] == [0, 1, 3, 5, 6, 9, 10, 12]


def test_policy_and_reference_are_equal_at_step_zero(done):
    first = next(r for r in metrics(done) if r["step"] == 1)
    assert abs(first["train/logratio_mean"]) < 1e-5
    assert first["train/logratio_abs"] < 1e-5
    assert metrics(done)[0]["val/kl"] == pytest.approx(0, abs=1e-9)


def test_regret_is_optimum_minus_return_in_every_row(done):
    for row in metrics(done):
        if "val/regret" in row:
            assert row["val/regret"] == pytest.approx(row["val/optimum"] - row["val/regularised_return"], abs=1e-9)


def test_the_saved_policy_has_the_logits_of_the_last_checkpoint(done):
    model = AutoModelForCausalLM.from_pretrained(done / "policy")
    trained = {k.removeprefix("policy.model."): v for k, v in checkpoint(done)["state_dict"].items()}
    saved = model.state_dict()
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[k], trained[k]) for k in saved)
    tokenizer = AutoTokenizer.from_pretrained(done / "policy")
    chat = [{"role": "user", "content": "start r0 c1 goal r2 c3 treasure r1 c1"}]
    assert len(tokenizer.apply_chat_template(chat, return_dict=False)) == 10


def test_a_checkpoint_has_the_policy_once_and_no_reference(done):
    assert all(k.startswith("policy.") for k in checkpoint(done)["state_dict"])


def test_the_best_checkpoint_is_of_the_step_with_the_largest_regularised_return(done):
    evaluated = [r for r in metrics(done) if "val/regularised_return" in r and r["step"] > 0]
    assert checkpoint(done, "best")["global_step"] == max(evaluated, key=lambda r: r["val/regularised_return"])["step"]


def test_the_summary_is_flat_and_says_where_numbers_come_from(done):
    values = summary(done)
    assert not any(isinstance(v, dict | list) for v in values.values())
    assert values["version/torch"] == torch.__version__
    assert values["seed"] == 0
    assert values["val/regret"] == metrics(done)[-1]["val/regret"]
    model = AutoModelForCausalLM.from_pretrained(done / "policy")
    assert values["fingerprint/policy"] == weights_fingerprint(model) != values["fingerprint/model"]


def test_the_model_card_names_method_and_hyperparameters(done):
    card = (done / "policy" / "README.md").read_text()
    assert "`shiq` on `treasure`" in card
    assert "| algo.beta | 0.5 |" in card


def test_samples_are_rows_of_json(done):
    rows = [json.loads(line) for line in (done / "samples.jsonl").read_text().splitlines()]
    assert rows
    assert all({"step", "prompt", "completion", "reward", "kl"} == set(r) for r in rows)


def test_the_same_command_gives_the_same_weights_and_another_seed_others(done, home):
    same = ("trainer.max_steps=12", "trainer.checkpoint_every=4", "algo.beta=0.5")
    assert train("run_dir=again", *same) == 0
    assert largest_difference(done, home / "again") == 0
    assert train("run_dir=other", *same, "seed=1") == 0
    assert largest_difference(done, home / "other") > 0


@pytest.mark.parametrize("tokens", [60, 100, 10_000])
def test_a_step_does_not_depend_on_micro_batches(done, home, tokens):
    words = ("trainer.max_steps=12", "trainer.checkpoint_every=4", "algo.beta=0.5")
    assert train(f"run_dir=cut{tokens}", *words, f"trainer.micro_batch_tokens={tokens}") == 0
    assert largest_difference(done, home / f"cut{tokens}") < 5e-5  # AdamW divides rounding by itself on tiny gradients
    assert metrics(home / f"cut{tokens}")[-1]["train/num_tokens"] == metrics(done)[-1]["train/num_tokens"]


@pytest.mark.parametrize("algo", ["shiq_init", "shiq_ms", "shiq_tk", "sft"])
def test_every_method_trains(home, algo):
    assert train(f"algo={algo}", f"run_dir={algo}", "trainer.max_steps=6") == 0
    assert math.isfinite(summary(home / algo)["train/loss"])


def test_shiq_ms_is_shiq_with_lam_zero(home):
    assert train("algo=shiq_ms", "run_dir=ms", "trainer.max_steps=4") == 0
    assert train("algo=shiq", "algo.lam=0", "run_dir=lam0", "trainer.max_steps=4") == 0
    assert largest_difference(home / "ms", home / "lam0") < 1e-6


def test_references_start_equal_and_train_alike(home):
    last = {}
    for reference in ("frozen", "cached", "adapter"):
        words = ("model.lora_r=4", f"algo.reference={reference}", f"run_dir=ref_{reference}", "trainer.max_steps=6")
        assert train(*words) == 0
        rows = metrics(home / f"ref_{reference}")
        assert abs(next(r for r in rows if r["step"] == 1)["train/logratio_mean"]) < 1e-5
        assert rows[-1]["train/logratio_abs"] > 1e-4
        last[reference] = rows[-1]["train/loss"]
    assert last["cached"] == pytest.approx(last["frozen"], rel=1e-4)
    assert last["adapter"] == pytest.approx(last["frozen"], rel=1e-4)


@pytest.mark.slow
def test_a_sweep_shares_one_pass_of_the_reference(home, capsys):
    assert train("-m", "algo.beta=0.1,0.5", "run_dir=betas", "trainer.max_steps=2", "data.data_seed=7") == 0
    logs = sorted((home / "betas").glob("*/run.log"))
    assert len(logs) == 2
    assert ["computed in" in log.read_text() for log in logs] == [True, False]
    assert ["read from the cache" in log.read_text() for log in logs] == [False, True]


def test_eval_every_zero_evaluates_nothing(home):
    assert train("run_dir=noeval", "eval.every=0", "trainer.max_steps=3") == 0
    assert not any(k.startswith("val/") for r in metrics(home / "noeval") for k in r)


def test_warmup_and_schedule_set_the_learning_rate(home):
    words = ("trainer.warmup_steps=3", "trainer.lr_schedule=linear", "trainer.learning_rate=0.001")
    assert train("run_dir=rate", "trainer.max_steps=9", "trainer.log_every=1", *words) == 0
    rates = [r["train/learning_rate"] for r in metrics(home / "rate") if "train/learning_rate" in r]
    expected = [1 / 3, 2 / 3, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([1e-3 * e for e in expected])


def test_a_reward_offset_is_taken_from_every_return(home):
    assert train("run_dir=offset", "algo.reward_offset=mean", "trainer.max_steps=2", "trainer.batch_size=160") == 0
    assert train("run_dir=plain", "trainer.max_steps=2", "trainer.batch_size=160") == 0
    plain, centred = (metrics(home / name)[1] for name in ("plain", "offset"))
    assert centred["train/reward"] == pytest.approx(plain["train/reward"], abs=1e-5)  # the data's own, in both
    assert summary(home / "offset")["reward_offset"] == pytest.approx(plain["train/reward"], abs=1e-5)
    assert centred["train/loss"] < plain["train/loss"]
    first, second = (row["train/num_tokens"] for row in metrics(home / "plain") if "train/num_tokens" in row)
    assert second == 2 * first > 160, "every step reads all trajectories"


# ------------------------------------------------------------------ ranks
@pytest.mark.parametrize("micro_batch_tokens", [60, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one(home, micro_batch_tokens):
    words = [
        "trainer.max_steps=8",
        "trainer.batch_size=7",
        "data.per_map=1",
        "data.val_maps=3",
        f"trainer.micro_batch_tokens={micro_batch_tokens}",
    ]
    one, two = f"one{micro_batch_tokens}", f"two{micro_batch_tokens}"
    assert train(f"run_dir={one}", *words) == 0
    code, out = finished(
        start(f"run_dir={two}", *words, "hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu")
    )
    assert code == 0, out
    assert largest_difference(home / one, home / two) < 5e-5
    for a, b in zip(timeless(metrics(home / one)), timeless(metrics(home / two)), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    assert not list(home.glob("outputs*"))  # the second rank made no directory of its own


@pytest.mark.slow
def test_a_sweep_over_two_ranks_gives_each_job_its_own_setting_and_directory(home):
    words = ("-m", "seed=3,4", "trainer.max_steps=2", "run_dir=ranks", "hardware=ddp", "hardware.accelerator=cpu")
    code, out = finished(start(*words))
    assert code == 0, out
    assert [summary(d)["seed"] for d in sorted((home / "ranks").glob("*_*"))] == [3, 4]


# ------------------------------------------------------------------ resume
LONG = ("trainer.max_steps=30", "trainer.checkpoint_every=4", "algo.beta=0.5", "trainer.log_every=2")


@pytest.fixture(scope="module")
def whole(home):
    """The run that nothing interrupted, in a new interpreter and so with another hash seed than the others."""
    with working_in(home):
        code, out = finished(started_anew("train", *SMALL, "run_dir=whole", *LONG))
    assert code == 0, out
    return home / "whole"


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bits(whole, home, rows):
    """Killed after so many logged rows: before the first checkpoint, and at two steps between checkpoints."""
    run_dir = home / f"killed{rows}"
    process = start(f"run_dir={run_dir.name}", *LONG)
    wait_for_rows(run_dir, rows, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run_dir / "summary.json").exists(), "it finished before it was killed"
    (run_dir / ".policy.999999.tmp").mkdir()  # as of one that was killed while it saved its policy
    code, out = finished(command("train", f"resume={run_dir.name}"))
    assert code == 0, out
    assert list(run_dir.glob(".policy.*")) == []
    assert largest_difference(whole, run_dir) == 0
    assert timeless(metrics(run_dir)) == timeless(metrics(whole))
    assert summary(run_dir)["fingerprint/policy"] == summary(whole)["fingerprint/policy"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_signal_saves_first_and_exits_130(whole, home, number):
    run_dir = home / f"stopped{number}"
    process = start(f"run_dir={run_dir.name}", *LONG, "trainer.checkpoint_every=1000")
    wait_for_rows(run_dir, 3, process)
    process.send_signal(number)
    code, out = finished(process)
    assert code == 130, out
    step = checkpoint(run_dir)["global_step"]
    assert 0 < step < 30
    assert f"resume={run_dir.name}" in out or f"resume={run_dir}" in out
    code, out = finished(command("train", f"resume={run_dir.name}"))
    assert code == 0, out
    assert largest_difference(whole, run_dir) == 0


def test_a_finished_run_is_not_trained_again(done, capsys):
    before = (done / "metrics.csv").read_bytes()
    assert command_code("train", f"resume={done}") == 0
    assert (done / "metrics.csv").read_bytes() == before


def test_resume_refuses_a_starting_model_that_changed(home, capfd):
    base = home / "base"
    if not base.exists():
        assert train("run_dir=base_run", "trainer.max_steps=1") == 0
        (home / "base_run" / "policy").rename(base)
    words = ("model=hf", f"model.path={base}", "trainer.max_steps=30", "run_dir=moved", "trainer.checkpoint_every=1")
    process = command("train", "logger=none", "data.maps=40", "data.val_maps=4", "trainer.batch_size=8", *words)
    wait_for_rows(home / "moved", 2, process)
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 130
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight += 0.1
    model.save_pretrained(base)
    assert command_code("train", "resume=moved") == 2
    assert "another model" in capfd.readouterr().err


def command_code(*words: str) -> int:
    from shiqrun.cli import main

    return main(list(words))


# ------------------------------------------------------------------ real model, real text
@needs_stories
def test_a_pretrained_model_trains_on_text_with_pairs(home):
    rows = [{"prompt": f"Once upon {n} times", "chosen": "there was a cat.", "rejected": "no."} for n in range(40)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ("data=jsonl", f"data.path={home / 'pairs.jsonl'}", "model=hf", f"model.path={STORIES}", "logger=none")
    code = command_code("train", *words, "trainer.max_steps=4", "trainer.batch_size=8", "run_dir=stories")
    assert code == 0
    first = metrics(home / "stories")[1]
    assert abs(first["train/logratio_mean"]) < 1e-5
    assert first["train/loss"] > 0
    assert "val/loss" in metrics(home / "stories")[0]
    policy = AutoModelForCausalLM.from_pretrained(home / "stories" / "policy")
    assert weights_fingerprint(policy) == summary(home / "stories")["fingerprint/policy"]


def test_without_samples_and_rewards_the_best_checkpoint_has_the_smallest_validation_loss(home):
    rows = [{"prompt": f"go {n % 20}", "completion": f"left {n % 3} of {n % 5}"} for n in range(60)]
    (home / "texts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ("algo=sft", "data=jsonl", f"data.path={home / 'texts.jsonl'}", "model=tiny", "model.hidden_size=32")
    steps = ("trainer.max_steps=4", "trainer.batch_size=8", "trainer.learning_rate=0.01", "eval.every=1")
    assert command_code("train", *words, *steps, "data.val_fraction=0.3", "logger=none", "run_dir=texts") == 0
    losses = {r["step"]: r["val/loss"] for r in metrics(home / "texts") if r["step"] > 0 and "val/loss" in r}
    assert not {"val/reward", "val/regularised_return"} & set(metrics(home / "texts")[-1])
    assert checkpoint(home / "texts", "best")["global_step"] == min(losses, key=losses.get)
    assert losses[1] > min(losses.values()), "the first evaluation was the best: nothing is shown"


def test_the_main_process_alone_speaks_and_lines_are_plain_where_there_is_no_terminal(home):
    code, out = finished(start("run_dir=plainlines", "trainer.max_steps=3"))
    assert code == 0
    assert "step 3/3" in out
    assert re.search(r"policy at step 3:  reward \S+  return \S+ ", out), "the policy's own, and how old it is"
    assert "\x1b[" not in out
    assert len([line for line in out.splitlines() if line.startswith("step ")]) == 2


def test_dry_run_says_what_would_be_done_and_leaves_nothing(home, capsys):
    before = set(home.iterdir())
    assert train("dry_run=true", "run_dir=dry", "trainer.max_steps=12") == 0
    shown = capsys.readouterr().out
    for word in ("160 trajectories", "actions", "12 of 8 trajectories", "parameters", "GiB", "next: the same without"):
        assert word in shown, word
    assert set(home.iterdir()) == before


def test_a_wrong_start_stops_and_says_why(home, capfd):
    """A cache of other scores under the right key: the run must not go on as if its KL were zero."""
    import pyarrow as pa

    assert train("run_dir=warm", "trainer.max_steps=1", "cache_dir=poisoned", "data.data_seed=3") == 0
    for path in (home / "poisoned").glob("*.arrow"):
        table = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
        rows, logit, partition = (table[name].to_pylist() for name in ("row", "logit", "log_partition"))
        counts = np.array([len(x) for _, x in sorted(zip(rows, logit, strict=True))])
        expected = ExpectedScores(table.schema.metadata[b"key"].decode(), counts, further=0)
        numbers = np.stack([np.concatenate(logit) + 1, np.concatenate(partition)], 1)
        write_part(path, expected, np.array(rows), numbers, seconds=0.0)
    capfd.readouterr()
    assert train("run_dir=cold", "trainer.max_steps=1", "cache_dir=poisoned", "data.data_seed=3") == 1
    assert "differ before the first step" in capfd.readouterr().err


def test_activation_checkpointing_recomputes_and_changes_no_weight(done, home):
    words = ("trainer.max_steps=12", "trainer.checkpoint_every=4", "algo.beta=0.5", "model.gradient_checkpointing=true")
    assert train("run_dir=recomputed", *words) == 0
    assert largest_difference(done, home / "recomputed") < 5e-5


def test_bfloat16_runs_on_the_cpu_and_keeps_scores_in_float32(home):
    assert train("run_dir=bf16", "hardware.precision=bf16", "trainer.max_steps=3") == 0
    assert metrics(home / "bf16")[1]["train/logratio_abs"] < 0.1
    assert all(v.dtype == torch.float32 for v in checkpoint(home / "bf16")["state_dict"].values())
