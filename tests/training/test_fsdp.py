"""`hardware=fsdp` with two ranks on the CPU against one process, through the command line."""

import json

import pytest

from shiqrun.cli import main
from shiqrun.models.reference import weights_fingerprint
from tests.support.command_line import (
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

pytestmark = pytest.mark.usefixtures("at_home")
RANKS = ("hardware=fsdp", "hardware.devices=2", "hardware.accelerator=cpu")
SHORT = ("trainer.max_steps=6", "trainer.batch_size=7", "data.per_map=1", "data.val_maps=3")
KINDS = {
    "full": ("trainer.micro_batch_tokens=60",),
    "adapter": ("model.lora_r=4", "trainer.micro_batch_tokens=60"),
    "adapter_reference": ("model.lora_r=4", "algo.reference=adapter"),
    "value_head_and_checkpointing": ("algo=dro_v", "algo.value=head", "model.gradient_checkpointing=true"),
    "value_network": ("algo=dro_v", "algo.value=network"),
    "frozen_reference": ("algo.reference=frozen",),
    "kl_estimate": ("algo=kto", "algo.reward_offset=mean", "algo.undesirable_weight=0.1"),
}
REFUSED = {
    "trainer.optimizer=adamw_8bit": (
        "hardware=fsdp cannot cut the moments of trainer.optimizer=adamw_8bit; set it to adamw"
    ),
    "hardware.devices=0": "hardware.devices: met 0, expected greater than 0",
}


def same(one, two, **tolerance):
    """Losses, norms, evaluations and weights of two runs are equal up to rounding."""
    assert largest_difference(one, two) < 1e-6
    for a, b in zip(timeless(metrics(one)), timeless(metrics(two)), strict=True):
        assert a == pytest.approx(b, **({"rel": 1e-5, "abs": 1e-6} | tolerance))


@pytest.mark.parametrize("kind", [k if k == "full" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_two_ranks_that_share_the_weights_give_the_numbers_of_one(home, kind):
    words = (*SHORT, *KINDS[kind])
    assert train(f"run_dir=one_{kind}", *words) == 0
    code, out = finished(start(f"run_dir=two_{kind}", *words, *RANKS))
    assert code == 0, out
    same(home / f"one_{kind}", home / f"two_{kind}")
    saved = [summary(home / f"{ranks}_{kind}") for ranks in ("one", "two")]
    assert saved[0]["parameters"] == saved[1]["parameters"]
    assert saved[0]["fingerprint/model"] == saved[1]["fingerprint/model"]
    if kind == "full":
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(home / "two_full" / "policy")
        assert weights_fingerprint(loaded) == saved[1]["fingerprint/policy"]
        trained = {k.removeprefix("policy.model."): x for k, x in checkpoint(home / "two_full")["state_dict"].items()}
        assert all(bool((x == loaded.state_dict()[k]).all()) for k, x in trained.items())


@needs_stories
@pytest.mark.slow
def test_two_ranks_share_a_head_that_is_tied_to_the_embeddings(home):
    rows = [{"prompt": f"Once {k}", "completion": f"there was {k}", "reward": k / 10} for k in range(12)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "train",
        "logger=none",
        "data=jsonl",
        f"data.path={home / 'rows.jsonl'}",
        "model=hf",
        f"model.path={STORIES}",
    ]
    words += ["trainer.max_steps=3", "trainer.batch_size=5", "trainer.log_every=1", "eval.every=3"]
    assert main([*words, "run_dir=one_tied"]) == 0
    code, out = finished(command(*words, "run_dir=two_tied", *RANKS))
    assert code == 0, out
    same(home / "one_tied", home / "two_tied", rel=2e-3, abs=1e-4)  # completions in batches of other shapes


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_killed_run_of_two_ranks_goes_on_to_the_same_bits(home, weights):
    words = ("trainer.max_steps=12", "trainer.checkpoint_every=4", f"hardware.weights={weights}", *RANKS)
    code, out = finished(start(f"run_dir=whole_{weights}", *words))
    assert code == 0, out
    process = start(f"run_dir=killed_{weights}", *words)
    wait_for_rows(home / f"killed_{weights}", 4, process)
    process.kill()
    process.communicate()
    code, out = finished(started_anew("train", f"resume=killed_{weights}"))
    assert code == 0, out
    assert largest_difference(home / f"whole_{weights}", home / f"killed_{weights}") == 0


@pytest.mark.parametrize("words", REFUSED)
def test_what_weights_in_parts_cannot_do_is_refused_in_one_line(home, capsys, words):
    assert train("run_dir=refused", *RANKS, *words.split()) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said == f"shiqrun: error: {REFUSED[words]}"
    assert not (home / "refused").exists()
