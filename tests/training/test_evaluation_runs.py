"""`shiqrun train` with answers: when they are asked, what is logged of them, and that nothing of it depends on kills,
ranks, seeds or the kind of the reference.
"""

import json
import math
import shutil
import signal

import numpy as np
import pytest

from shiqrun.cli import main
from shiqrun.util.intervals import interval
from tests.evaluation.runs import BETA, PROMPTS, at, make_base, samples, train, words, write_data
from tests.support.command_line import (
    checkpoint,
    command,
    edit_config,
    finished,
    metrics,
    summary,
    timeless,
    wait_for_rows,
)

KEYS = ["step", "prompt_id", "prompt", "completion", "tokens", "ended", "reward", "kl"]
KEYS += ["reference_completion", "reference_reward"]


@pytest.fixture(scope="module")
def home(home):
    make_base(home)
    return home


@pytest.fixture(scope="module")
def done(home):
    assert train(home, "done") == 0
    return home / "done"


def evaluated(run_dir):
    return [{k: v for k, v in r.items() if k[:4] in ("step", "val/")} for r in metrics(run_dir) if "val/reward" in r]


def by_step(run_dir):
    rows = {}
    for row in samples(run_dir):
        rows.setdefault(row["step"], []).append(row)
    return rows


def test_answers_are_asked_before_the_first_step_at_every_third_and_after_the_last(done):
    assert [r["step"] for r in evaluated(done)] == [0, 3, 6, 7]
    assert list(by_step(done)) == [0, 3, 6, 7]


def test_every_row_of_samples_is_complete(done):
    for row in samples(done):
        assert list(row) == KEYS
        kinds = [type(row[key]) for key in KEYS]
        assert kinds == [int, str, str, str, int, bool, float, float, str, float]
        assert row["reward"] == (row["completion"] == "yes")
        assert row["reference_reward"] == (row["reference_completion"] == "yes")
        assert row["prompt"].startswith("user: is ")


def test_the_same_prompts_and_reference_answers_come_at_every_evaluation(done):
    first, *others = [[(r["prompt_id"], r["reference_completion"]) for r in rows] for rows in by_step(done).values()]
    assert len(first) == 16
    assert len({name for name, _ in first}) == 8
    assert all(rows == first for rows in others)


def test_no_prompt_is_one_of_training(home):
    write_data(home / "val.jsonl", words="is {} good?")
    with (home / "val.jsonl").open("a") as file:
        file.write((home / "data.jsonl").read_text())
    both = (f"data.val_path={home / 'val.jsonl'}", "eval.max_prompts=100", "trainer.max_steps=1")
    assert train(home, "both", *both) == 0
    asked = {row["prompt"].removeprefix("user: ") for row in samples(home / "both")}
    assert asked == {f"is {n} good?" for n in range(PROMPTS)}


def test_the_policy_is_its_reference_at_step_zero(done):
    first, *later = evaluated(done)
    assert first["val/kl"] == 0
    assert abs(first["val/win_rate"] - 0.5) <= first["val/win_rate_ci95"]
    assert 0 < first["val/reward"] < 1, "the base should answer right now and then, else this shows nothing"
    assert all(r["val/kl"] > 0.01 for r in later)
    assert later[-1]["val/reward"] > first["val/reward"]


def test_figures_are_means_over_prompts_of_the_rows_of_samples(done):
    for row in evaluated(done):
        rows = by_step(done)[row["step"]]
        for name in ("reward", "kl"):
            means = [np.mean([r[name] for r in rows[i : i + 2]]) for i in range(0, 16, 2)]
            mean, half = interval(means)
            assert row[f"val/{name}"] == pytest.approx(mean, abs=1e-9)
            assert row[f"val/{name}_ci95"] == pytest.approx(half, abs=1e-9)
        assert row["val/regularised_return"] == pytest.approx(row["val/reward"] - BETA * row["val/kl"], abs=1e-9)
        assert row["val/completions/mean_length"] == np.mean([r["tokens"] for r in rows])
        assert row["val/pass@1"] == pytest.approx(row["val/reward"])


def test_the_best_checkpoint_is_best_by_regularised_return(done):
    best = max(evaluated(done)[1:], key=lambda r: r["val/regularised_return"])
    assert checkpoint(done, "best")["global_step"] == best["step"]


def expect_share(found):
    """The share is of a wall time that holds the steps and the evaluations, and nothing is evaluated after the last."""
    spent, steps = found["seconds/eval"], found["seconds/steps"]
    assert 0 < found["eval_share"] <= found["val/eval_share"] <= spent / (spent + steps) + 1e-9


def test_the_share_of_evaluation_is_that_of_the_seconds_in_the_summary(done):
    found = summary(done)
    expect_share(found)
    assert found["seconds/eval"] / found["val/eval_share"] <= found["seconds"], "more wall time than there was"
    assert all(0 < r["val/eval_share"] < 1 for r in evaluated(done))


def test_neither_seed_nor_micro_batches_nor_sampling_batches_change_the_first_answers(done, home):
    others = ("seed=3", "trainer.micro_batch_tokens=64", "eval.batch_size=3", "trainer.max_steps=1")
    assert train(home, "other", *others) == 0
    assert by_step(home / "other")[0] == by_step(done)[0]


def test_the_sampling_has_a_seed_of_its_own(done, home):
    assert train(home, "reseeded", "eval.seed=5", "trainer.max_steps=1") == 0
    ours, theirs = by_step(home / "reseeded")[0], by_step(done)[0]
    assert [r["prompt"] for r in ours] == [r["prompt"] for r in theirs]
    assert [r["completion"] for r in ours] != [r["completion"] for r in theirs]


@pytest.mark.parametrize("reference", ["frozen", "adapter"])
def test_every_kind_of_reference_measures_alike(done, home, reference):
    lora = ("model.lora_r=4",) if reference == "adapter" else ()
    assert train(home, reference, f"algo.reference={reference}", *lora) == 0
    ours, theirs = evaluated(home / reference), evaluated(done)
    assert ours[0]["val/kl"] == 0
    for row in by_step(home / reference).values():
        assert [r["reference_completion"] for r in row] == [r["reference_completion"] for r in by_step(done)[0]]
    if reference == "frozen":
        assert [r["val/kl"] for r in ours] == pytest.approx([r["val/kl"] for r in theirs], abs=1e-5)
    else:
        assert ours[-1]["val/kl"] > 0


@pytest.mark.parametrize("setting", ["eval.temperature=0.5", "eval.top_p=0.9"])
def test_off_the_policys_distribution_nothing_is_called_kl(home, setting):
    assert train(home, setting, setting, "trainer.max_steps=1") == 0
    last = evaluated(home / setting)[-1]
    assert "val/logratio_sum" in last
    assert not {"val/kl", "val/regularised_return"} & set(last)
    assert checkpoint(home / setting, "best")["global_step"] == 1


def test_without_a_reward_only_the_distance_is_measured(home):
    assert train(home, "unscored", "eval.reward=null", "trainer.max_steps=1") == 0
    rows = metrics(home / "unscored")
    assert next(r["val/kl"] for r in rows if "val/kl" in r) == 0
    assert not [k for r in rows for k in r if k in ("val/reward", "val/win_rate", "val/regularised_return")]
    assert {r["reward"] for r in samples(home / "unscored")} == {None}


def test_with_max_prompts_zero_nothing_is_sampled(home):
    assert train(home, "silent", "eval.reward=null", "eval.max_prompts=0", "trainer.max_steps=1") == 0
    assert not (home / "silent" / "samples.jsonl").exists()
    assert "val/loss" in metrics(home / "silent")[0]


def test_sft_on_the_best_answers_is_scored_too(home):
    more = ("data.completions=best", "trainer.max_steps=1")
    assert train(home, "sft", *more, algo="algo=sft") == 0
    found = summary(home / "sft")
    assert found["trajectories/train"] + found["trajectories/val"] == PROMPTS
    assert "val/kl" in found
    assert "val/reward" in metrics(home / "sft")[0]


def test_a_run_killed_before_its_summary_goes_on_to_the_same_summary(done, home):
    late = shutil.copytree(done, home / "late", ignore=shutil.ignore_patterns("summary.json", "policy", "credit.jsonl"))
    assert main(["train", f"resume={late}"]) == 0
    ours, theirs = summary(late), summary(done)
    assert ours["seconds/eval"] >= theirs["seconds/eval"]
    assert {k: v for k, v in ours.items() if k.startswith("val/")} == {
        k: v for k, v in theirs.items() if k.startswith("val/")
    }
    assert (late / "samples.jsonl").read_bytes() == (done / "samples.jsonl").read_bytes()


LONG = ("trainer.max_steps=30", "trainer.checkpoint_every=4", "eval.every=5", "trainer.learning_rate=1e-3")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_rows_and_samples(home):
    code, out = finished(command(*words(home, "whole"), *LONG))
    assert code == 0, out
    process = command(*words(home, "killed"), *LONG)
    wait_for_rows(home / "killed", 14, process)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (home / "killed" / "summary.json").exists()
    with (home / "killed" / "samples.jsonl").open("a") as file:
        file.write('{"step": 15, "prompt_id": "cut sh')
    code, out = finished(command("train", f"resume={home / 'killed'}"))
    assert code == 0, out
    assert timeless(metrics(home / "killed")) == timeless(metrics(home / "whole"))
    ours, theirs = ((home / name / "samples.jsonl").read_bytes() for name in ("killed", "whole"))
    assert ours == theirs
    expect_share(summary(home / "killed"))


@pytest.mark.parametrize(
    ("prompts", "hardware"),
    [
        pytest.param(5, "ddp", marks=pytest.mark.slow),
        pytest.param(1, "ddp", marks=pytest.mark.slow),  # a rank without a prompt
        pytest.param(1, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_measure_what_one_measures(home, prompts, hardware):
    asked = (f"eval.max_prompts={prompts}", "trainer.max_steps=4")
    one, two = f"one{prompts}{hardware}", f"two{prompts}{hardware}"
    assert train(home, one, *asked) == 0
    ranks = (f"hardware={hardware}", "hardware.devices=2", "hardware.accelerator=cpu")
    code, out = finished(command(*words(home, two), *asked, *ranks))
    assert code == 0, out
    ours, theirs = evaluated(home / two), evaluated(home / one)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(timeless(ours), timeless(theirs), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4, nan_ok=True)
    names = ("step", "prompt_id", "completion", "reference_completion", "reward")
    both = [[[r[name] for name in names] for r in samples(home / n)] for n in (two, one)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["eval.every=0"], "eval.reward: nothing would be scored"),
        (["eval.max_prompts=0"], "eval.reward: nothing would be scored"),
        (["algo=reward_model"], "nothing would be scored with data=jsonl, algo=reward_model"),
        (["data.val_fraction=0"], "no prompt to answer: the split is empty"),
        (["eval.max_new_tokens=60"], "no prompt to answer: "),
    ],
)
def test_a_reward_that_would_score_nothing_is_refused_before_anything_is_written(home, capsys, more, message):
    algo = {"algo": more[0]} if more[0].startswith("algo=") else {}
    assert train(home, "refused", *more, **algo) == 2
    assert message in capsys.readouterr().err
    assert not (home / "refused").exists()


def test_treasure_takes_no_reward(home, capsys):
    assert main(["train", "logger=none", "eval.reward=exact_match", *at(home, "refused")]) == 2
    assert "nothing would be scored with data=treasure" in capsys.readouterr().err
    assert not (home / "refused").exists()


def test_without_a_reward_prompts_that_do_not_fit_are_a_warning(home, capsys):
    assert train(home, "unfit", "eval.reward=null", "eval.max_new_tokens=60", "trainer.max_steps=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "longer than 4 tokens" in said
    assert "the policy's KL is not measured" in said
    assert not [r for r in metrics(home / "unfit") if "val/kl" in r]


def test_an_example_without_an_answer_is_named(home, capsys):
    write_data(home / "bare.jsonl", answer=None)
    assert train(home, "bare", f"data.path={home / 'bare.jsonl'}") == 2
    assert "reward=exact_match needs a column `answer`" in capsys.readouterr().err


def test_the_token_view_of_answers_has_the_offset_that_training_takes(home):
    """return = advantages + shifted value and residual at the start + offset, for data and answers alike."""
    assert train(home, "shifted", "algo.reward_offset=0.7") == 0
    rows = [json.loads(line) for line in (home / "shifted" / "credit.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"data", "sample"}
    for row in rows:
        start = row["action"].index(True)
        parts = math.fsum(x for x in row["advantage"] if x is not None)
        parts += row["shifted_value"][start] + row["residual"][start]
        assert row["return"] - parts == pytest.approx(0.7, abs=1e-4)


def test_a_run_does_not_go_on_under_another_reward(done, home, capsys):
    late = shutil.copytree(done, home / "misjudged", ignore=shutil.ignore_patterns("summary.json", "policy"))
    edit_config(late, "ignore_case: false", "ignore_case: true")
    assert main(["train", f"resume={late}"]) == 2
    assert "was made with another reward" in capsys.readouterr().err
    assert (late / "metrics.csv").read_bytes() == (done / "metrics.csv").read_bytes()


def test_the_summary_says_what_scored_the_answers(done):
    assert summary(done)["reward/name"] == "exact_match"


def test_a_reward_that_fails_in_the_middle_ends_the_run_after_the_step_is_saved(home, capsys):
    """Calls: the reference's answers, step 0, step 3; the one at step 6 fails, between two checkpoints."""
    folder = home / "own" / "reward"
    folder.mkdir(parents=True)
    (folder / "breaks.yaml").write_text("name: breaks\n_target_: tests.evaluation.runs.Breaks\ncalls: 3\n")
    more = ("eval.reward=breaks", "trainer.checkpoint_every=5", "--config-dir", str(home / "own"))
    assert train(home, "broken", *more) == 1
    assert "the evaluation of step 6 failed: the judge has gone home" in capsys.readouterr().err
    assert checkpoint(home / "broken")["global_step"] == 6
    assert [r["step"] for r in evaluated(home / "broken")] == [0, 3]


@pytest.mark.parametrize(("calls", "stands"), [(3, 6), (4, 5)], ids=["in the middle", "after the last step"])
def test_what_a_failed_evaluation_left_out_is_made_up_for_when_the_run_goes_on(done, home, calls, stands):
    """The judge comes back: the same rows as without its absence; no earlier numbers pass for the last ones."""
    folder = home / f"own{calls}" / "reward"
    folder.mkdir(parents=True)
    lines = f"name: breaks\n_target_: tests.evaluation.runs.Breaks\ncalls: {calls}\n"
    (folder / "breaks.yaml").write_text(lines)
    name = f"back{calls}"
    more = ("eval.reward=breaks", "trainer.checkpoint_every=5", "--config-dir", str(folder.parent))
    assert train(home, name, *more) == 1
    assert checkpoint(home / name)["global_step"] == stands
    edit_config(home / name, f"calls: {calls}", "calls: 99")
    assert main(["train", f"resume={home / name}"]) == 0
    assert timeless(evaluated(home / name)) == timeless(evaluated(done))
    assert summary(home / name)["val/kl"] == summary(done)["val/kl"]
