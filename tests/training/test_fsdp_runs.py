"""What surrounds the steps of two ranks that share the weights: sampling, early ends, and what a run leaves."""

import json

import pytest

from shiqrun.cli import main
from tests.support.command_line import command, finished, metrics, started_anew, summary, timeless
from tests.support.sums import write_sums

pytestmark = [pytest.mark.usefixtures("at_home"), pytest.mark.slow]
RANKS = ("hardware=fsdp", "hardware.devices=2", "hardware.accelerator=cpu")
REWARD = "eval.reward=exact_match"


def on_both(home, name, *words):
    """The run directories of the same run on one process and on two ranks."""
    asked = [*write_sums(home), *words]
    assert main(["train", *asked, f"run_dir=one_{name}"]) == 0
    code, out = finished(command("train", *asked, f"run_dir=two_{name}", *RANKS))
    assert code == 0, out
    return home / f"one_{name}", home / f"two_{name}"


def same_rows(one, two, **tolerance):
    """The rows of `metrics.csv` are equal up to rounding."""
    for a, b in zip(timeless(metrics(one)), timeless(metrics(two)), strict=True):
        assert a == pytest.approx(b, **({"rel": 1e-4, "abs": 1e-5} | tolerance), nan_ok=True)


@pytest.fixture(scope="module")
def sampled(home):
    """Runs whose policy answers five prompts, which two ranks divide into three and two."""
    from tests.support.places import working_in

    with working_in(home):
        return on_both(home, "sampled", REWARD)


def test_two_ranks_leave_what_one_process_leaves(sampled):
    one, two = sampled
    same_rows(one, two)
    left = [{str(p.relative_to(run)) for p in run.rglob("*") if "checkpoints" not in str(p)} for run in sampled]
    assert left[0] == left[1]
    names = ("step", "prompt_id", "completion", "reference_completion", "reward")
    rows = [[json.loads(line) for line in (run / "samples.jsonl").open()] for run in sampled]
    assert [[r[n] for n in names] for r in rows[0]] == [[r[n] for n in names] for r in rows[1]]
    cards = [(run / "policy" / "README.md").read_text().splitlines() for run in sampled]
    names = [[line.split("|")[1] for line in card if line.startswith("|")] for card in cards]
    assert names[0] == names[1]
    credit = [[json.loads(line) for line in (run / "credit.jsonl").open()] for run in sampled]
    assert len(credit[0]) == len(credit[1]) > 0


def test_a_run_of_two_ranks_is_reported_evaluated_and_exported(sampled, home, capsys):
    _, two = sampled
    assert main(["report", str(two)]) == 0
    assert main(["eval", f"run={two}", "run_dir=evaluated"]) == 0
    again = json.loads((home / "evaluated" / "eval.json").read_text())
    last = metrics(two)[-1]
    assert again["eval/reward"] == pytest.approx(last["val/reward"], rel=1e-4)
    assert again["eval/kl"] == pytest.approx(last["val/kl"], rel=1e-3, abs=1e-4)
    assert main(["export", str(two), "--to", "merged"]) == 0


def test_a_run_that_was_killed_before_its_summary_ends(sampled, home):
    _, two = sampled
    said = (two / "credit.jsonl").read_text()
    (two / "summary.json").unlink()
    (two / "credit.jsonl").unlink()
    code, out = finished(started_anew("train", f"resume={two}"))
    assert code == 0, out
    assert summary(two)["steps"] == 4
    assert (two / "credit.jsonl").read_text() == said


@pytest.mark.parametrize("metric", ["val/loss", "train/loss"])
def test_two_ranks_stop_early_at_the_same_step(home, metric):
    evaluated = "eval.every=1" if metric == "val/loss" else "eval.every=0"
    stop = (f"trainer.stop_metric={metric}", "trainer.stop_mode=max", "trainer.stop_patience=1", evaluated)
    one, two = on_both(home, metric.replace("/", "_"), *stop, "eval.max_prompts=0", "trainer.max_steps=12")
    assert summary(one)["steps"] == summary(two)["steps"] < 12
    assert summary(one)["stopped_early"] == summary(two)["stopped_early"]
    same_rows(one, two)


KINDS = {
    "reference=frozen": ("algo.reference=frozen",),
    "reference=adapter": ("algo.reference=adapter", "model.lora_r=4"),
    "spo": ("algo=spo", "algo.same_unit=true", "values.samples=8", "values.max_new_tokens=6"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_that_sample_first_give_the_numbers_of_one_process(home, kind):
    same_rows(*on_both(home, kind, REWARD, *KINDS[kind]))


@pytest.mark.parametrize(
    "words", [("algo=dro_v", "algo.value=head"), ("algo=dro_v", "algo.value=network"), ("algo=reward_model",)]
)
def test_two_ranks_train_a_float32_head_on_bfloat16_weights(home, words):
    asked = (*words, "hardware.weights=bf16", "eval.max_prompts=0")
    one, two = on_both(home, "_".join(words).replace("=", "_"), *asked)
    before, after = ([row["train/loss"] for row in metrics(run) if "train/loss" in row] for run in (one, two))
    assert len(before) == len(after) == 4
    assert before[:2] == pytest.approx(after[:2], rel=0.02)  # then noise of other parts has moved the weights apart
