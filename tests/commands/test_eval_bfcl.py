"""`data=bfcl` on the command line: reference answers through the runner, a policy from its training to the report."""

import importlib.util
import json

import pytest

pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")

from shiqrun.batching.logged_data import DataSettings
from shiqrun.cli import main
from shiqrun.config.compose import compose
from shiqrun.config.validate import build
from shiqrun.environments.bfcl.samples import INSTALL
from tests.support.command_line import metrics, summary

TRUTH = ("eval", "data=bfcl", "eval.policy=ground_truth")
DATA = ("data=bfcl", "data.limit=3", "data.functions=none", "data.per_sample=2")
MODEL = ("model.hidden_size=16", "model.intermediate_size=24", "model.num_layers=1", "model.num_heads=2")
SIZE = (*MODEL, "model.vocab_size=600", "model.max_position_embeddings=1024")
STEPS = ("trainer.max_steps=2", "trainer.log_every=1", "eval.every=1", "eval.max_new_tokens=8", "logger=none")
FIGURES = {"episodes", "reward", "reward_per_turn", "official_score", "official_agreement", "kl", "entropy"}
FIGURES |= {"turns/empty", "episodes/no_room", "episodes/too_many_steps", "calls/refused", "calls/stopped"}


pytestmark = pytest.mark.usefixtures("at_home")


def strictly(text):
    raise AssertionError(f"{text} is no JSON")


def lines(path):
    return [json.loads(line, parse_constant=strictly) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluate(folder, *words):
    """`eval.json` and the rows of `episodes.jsonl`; every verdict is the official one."""
    assert main([*words, f"run_dir={folder}"]) == 0
    rows = lines(folder / "episodes.jsonl")
    for row in rows:
        right = all(r == 1 for r, counted in zip(row["turn_rewards"], row["counted"], strict=True) if counted)
        assert row["official"] == (right and not row["ended"])
    return json.loads((folder / "eval.json").read_text(), parse_constant=strictly), rows


@pytest.mark.parametrize(("split", "number"), [("test", 40), ("all", 200)])
def test_the_reference_answers_have_the_full_score(home, split, number):
    found, rows = evaluate(home / split, *TRUTH, f"data.split={split}")
    assert (found["eval/official_score"], found["eval/official_agreement"], found["eval/reward_per_turn"]) == (1, 1, 1)
    assert found["eval/episodes"] == len(rows) == number
    assert found["eval/reward"] == pytest.approx(sum(sum(r["counted"]) for r in rows) / number)
    assert (found["policy"], found["data/split"], found["beta"]) == ("ground_truth", split, None)
    assert sum(k.startswith("eval/reward_per_turn/") and k[-1] != "5" for k in found) == 8 + 2 * (split == "all")
    assert (home / split / "episodes.md").read_text(encoding="utf-8").count("## multi_turn_base_") == number


def test_the_written_reference_answers_are_data_that_are_scored_alike(home):
    _, rows = evaluate(home / "again", *TRUTH, "data.split=train", "data.limit=4")
    path, scored = home / "unscored.jsonl", home / "again" / "episodes.jsonl"
    path.write_text("".join(json.dumps({k: r[k] for k in ("id", "messages")}) + "\n" for r in rows), encoding="utf-8")
    read = [build(compose("eval", ["data=bfcl", f"data.path={p}"]).data, DataSettings)[0] for p in (path, scored)]
    expected = [(r["id"], [r["rewards"]]) for r in rows]
    for source in read:
        assert [(e.prompt_id, e.rewards) for e in source.load("train")] == expected


def test_a_dry_run_says_what_would_be_played_and_leaves_nothing(home, capsys):
    assert main([*TRUTH, "data.limit=3", f"run_dir={home / 'dry'}", "dry_run=true"]) == 0
    assert "3 tasks, played by the scripted policy ground_truth" in capsys.readouterr().out
    assert not (home / "dry").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data=treasure", "eval.policy=ground_truth"),
            "eval.policy=ground_truth: data=treasure does not know it, it has no scripted policy",
        ),
        (("data=bfcl", "eval.policy=ground_truth", "reference=base"), "leave out reference=base"),
        (("data=bfcl", "eval.policy=ground_truth", "reward=exact_match"), "leave out reward=exact_match"),
        (("data=bfcl", "eval.policy=ground_truth", "eval.split=train"), "eval.split=train: "),
        (("data=bfcl", "eval.policy=ground_truth", "eval.max_prompts=0"), "eval.max_prompts=0"),
        (
            ("data=bfcl", "data.functions=none", "data.per_sample=1", "reward=exact_match"),
            "reward: the environment of data=bfcl pays its own rewards",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(home, capsys, words, message):
    assert main(["eval", *words, f"run_dir={home / 'refused'}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_bfcl_eval_the_command_that_installs_it_is_named(home, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "bfcl_eval" else found(name, *a))
    assert main([*TRUTH, f"run_dir={home / 'absent'}"]) == 2
    assert INSTALL in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def sft(home):
    words = ("algo=sft", *DATA, *SIZE, *STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", *words, f"run_dir={home / 'sft'}", f"cache_dir={home / 'cache'}"]) == 0
    return home / "sft"


@pytest.fixture(scope="module")
def shiq(home, sft):
    words = ("algo=shiq", *DATA, "model=hf", f"model.path={sft / 'policy'}", *STEPS, "trainer.learning_rate=1e-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", *words, "trainer.warmup_steps=0", f"run_dir={home / 'shiq'}"]) == 0
    return home / "shiq"


def test_a_run_plays_its_episodes_before_the_first_step_and_at_every_evaluation(sft, shiq):
    for folder in (sft, shiq):
        rows = [r for r in metrics(folder) if "val/reward_per_turn" in r]
        assert [r["step"] for r in rows] == [0, 1, 2]
        assert all({f"val/{name}" for name in FIGURES} <= set(r) for r in rows)
        assert {(r["val/episodes"], r["val/official_agreement"]) for r in rows} == {(3, 1)}
        assert rows[0]["val/kl"] == 0
        assert {f"val/{name}": rows[-1][f"val/{name}"] for name in FIGURES}.items() <= summary(folder).items()
        said = lines(folder / "samples.jsonl")
        assert [s["step"] for s in said] == [0] * 3 + [1] * 3 + [2] * 3
        assert len({s["prompt_id"] for s in said}) == 3
        for row, own in zip(rows, (said[:3], said[3:6], said[6:]), strict=True):
            assert row["val/kl"] == pytest.approx(sum(s["kl"] for s in own) / 3)
            assert row["val/reward"] == pytest.approx(sum(s["reward"] for s in own) / 3)
    last = metrics(shiq)[-1]
    assert abs(last["val/kl"]) > 1e-4, "the policy has moved"
    assert last["val/regularised_return"] == pytest.approx(last["val/reward"] - 0.1 * last["val/kl"])


def test_a_finished_run_is_measured_as_it_measured_itself(home, shiq):
    found, rows = evaluate(home / "by_itself", "eval", f"run={shiq}")
    final = [s for s in lines(shiq / "samples.jsonl") if s["step"] == 2]
    names = {k for k in found if k.startswith("eval/") and found[k] is not None}
    assert {f"eval/{name}" for name in FIGURES} <= names
    expected = {k: summary(shiq)[k.replace("eval/", "val/", 1)] for k in names}
    assert {k: found[k] for k in names} == pytest.approx(expected, abs=1e-5)  # float32, in other batches
    assert (found["data/split"], found["settings/max_new_tokens"], found["beta"]) == ("test", 8, 0.1)
    assert [r["id"] for r in rows] == [s["prompt_id"] for s in final]
    spoken = [[m for m in r["messages"] if m["role"] == "assistant"] for r in rows]
    assert all(m["content"] in s["completion"] for own, s in zip(spoken, final, strict=True) for m in own)


def test_cold_and_on_the_training_samples_a_run_has_a_log_ratio_but_no_kl(home, shiq):
    other = ("data.split=train", "data.limit=2", "eval.temperature=0")
    found, rows = evaluate(home / "cold", "eval", f"run={shiq}", *other)
    assert "eval/logratio_sum" in found
    assert not {"eval/kl", "eval/regularised_return"} & set(found)
    assert found["data/split"] == "train"
    assert {r["messages"][0]["role"] for r in rows} == {"user"}  # the run's data.functions=none stays
    assert {int(r["id"].rsplit("_", 1)[1]) % 5 == 4 for r in rows} == {False}
    assert main(["eval", f"run={shiq}", "eval.policy=ground_truth", f"run_dir={home / 'both'}"]) == 2


def test_a_model_that_reads_too_little_for_any_sample_is_an_error(home, capsys):
    words = (
        "eval",
        "data=bfcl",
        "data.limit=1",
        "data.per_sample=1",
        *SIZE,
        "model.max_position_embeddings=200",
        f"run_dir={home / 'no'}",
    )
    assert main(words) == 2
    assert "no episode leaves room for a message of eval.max_new_tokens=" in " ".join(capsys.readouterr().err.split())


def test_a_run_in_training_is_evaluated_on_test_samples_alone(home, shiq, capsys):
    words = (*DATA, *SIZE, "data.split=train", f"run_dir={home / 'train_side'}", "algo=sft")
    assert main(["train", *words]) == 2
    assert "shiqrun eval run=RUN_DIR data.split=train" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_run_can_be_looked_into_and_reported(home, shiq, capsys):
    credit = [row for row in lines(shiq / "credit.jsonl") if row["kind"] == "sample"]
    last = lines(shiq / "samples.jsonl")[-len(credit) :]
    assert credit  # whole episodes
    assert [row["prompt_id"] for row in credit] == [row["prompt_id"] for row in last]
    assert [row["return"] for row in credit] == [row["reward"] for row in last]
    assert main(["inspect", *DATA, *SIZE, "limit=1"]) == 0
    shown = capsys.readouterr().out
    assert "multi_turn_base_" in shown
    assert "Done." in shown
    assert main(["inspect", f"run={shiq}", "limit=1", "split=train", f"out={home / 'credit.jsonl'}"]) == 0
    (row,) = lines(home / "credit.jsonl")
    assert row["prompt_id"] == "multi_turn_base_0"
    assert main(["report", str(shiq), "--out", str(home / "page.html")]) == 0
    page = (home / "page.html").read_text(encoding="utf-8")
    assert "multi_turn_base_" in page
    assert "reward of a turn" in page
