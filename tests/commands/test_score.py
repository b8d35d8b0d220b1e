"""`shiqrun score` through the real command line, with reward models that it trained itself or that lie on disk."""

import json
import math
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from shiqrun.batching.logged_data import DataSettings, both_splits, examples_of, is_held_out, load
from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered
from tests.rewards.classifiers import reward, save
from tests.support.command_line import checkpoint, command, finished, summary
from tests.support.helpers import DATA, STORIES, assistant, needs_stories, user

HH = DATA / "hh_harmless_test_train4of5.jsonl.gz"


pytestmark = pytest.mark.usefixtures("workplace")


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def pairs(count=40):
    return [
        {"prompt": f"ask {i}", "chosen": f"good answer {i}", "rejected": f"bad reply {i}", "topic": f"t{i}"}
        for i in range(count)
    ]


def score(*words):
    return main(["score", "data=jsonl", *words])


def examples(path, split="train", val_path=None, **options):
    source = Jsonl(path=str(path), val_path=val_path, pair_rewards=None)
    plain = {"limit": None, "max_length": None, "val_fraction": 0.1, "completions": "all", "train_on": "assistant"}
    return list(examples_of(source, split, DataSettings(**(plain | options))))


def alone(folder, example):
    """Each completion scored by itself."""
    made = reward(folder)
    return [made.score([Answered(example.messages, completion)])[0] for completion in example.completions]


# ------------------------------------------------------------------ the whole chain
@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A reward model trained on pairs by the command line."""
    home = tmp_path_factory.mktemp("chain")
    write(home / "pairs.jsonl", pairs())
    words = ("data=jsonl", f"data.path={home}/pairs.jsonl", "algo=reward_model", "logger=none", f"run_dir={home}/rm")
    small = ("model.hidden_size=32", "model.num_layers=2", "trainer.batch_size=16", "data.val_fraction=0.3")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", *words, *small, "trainer.max_steps=30", "eval.every=30"]) == 0
    return home


def test_a_trained_reward_model_scores_what_its_training_head_scored(chain):
    folder = chain / "rm" / "reward_model"
    state = checkpoint(chain / "rm")["state_dict"]
    body = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    body.load_state_dict({k.removeprefix("policy.model."): v for k, v in state.items() if ".model." in k})
    head = state["policy.value.linear.weight"][0]
    settings = DataSettings(limit=None, max_length=None, val_fraction=0.0, completions="all", train_on="assistant")
    source = Jsonl(path=str(chain / "pairs.jsonl"), val_path=None, pair_rewards=None)
    rows = load(source, AutoTokenizer.from_pretrained(folder), settings, context=None).train.trajectories
    expected = []
    for row in rows:
        with torch.no_grad():
            hidden = body.model(input_ids=torch.tensor([row.input_ids.tolist()])).last_hidden_state[0]
        expected.append(float(hidden[row.action_index[-1]] @ head))
    talks = [([user(p["prompt"])], [assistant(p[side])]) for p in pairs() for side in ("chosen", "rejected")]
    found = reward(folder).score([Answered(prompt, completion) for prompt, completion in talks])
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.ptp(found) > 0.1
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1


def test_a_trained_reward_model_says_which_prompts_it_saw(chain):
    told = json.loads((chain / "rm" / "reward_model" / "shiqrun.json").read_text())
    rows = {split: examples(chain / "pairs.jsonl", split, val_fraction=0.3) for split in ("train", "val")}
    assert sorted(told["prompts"]["names"]) == sorted(e.prompt_id for e in rows["train"])  # made from the messages
    assert told["prompts"]["count"] == len(rows["train"])
    card = (chain / "rm" / "reward_model" / "README.md").read_text()
    assert told["prompts"]["fingerprint"] in card
    assert f"{len(rows['train'])} prompts" in card
    assert "val/accuracy" in card
    made = reward(chain / "rm" / "reward_model")
    made.refuse_seen([e.messages for e in rows["val"]])
    with pytest.raises(InputError, match=f"trained on 1 of these {len(rows['val']) + 1} prompts"):
        made.refuse_seen([e.messages for e in (*rows["val"], rows["train"][0])])


def test_scoring_pairs_reports_the_accuracy_of_training_and_of_held_out_pairs(chain, capfd):
    model = f"reward={chain}/rm/reward_model"
    assert score(f"data.path={chain}/pairs.jsonl", model, "data.val_fraction=0.3", "run_dir=out") == 0
    told, rows = summary(Path("out")), read("out/scored.jsonl")
    for split in ("train", "val"):
        mine = [r for r in rows if is_held_out(r["prompt_id"], 0.3) == (split == "val")]
        wins = [r["score_chosen"] > r["score_rejected"] for r in mine]
        assert told[f"{split}/accuracy"] == pytest.approx(sum(wins) / len(wins))
        assert told[f"{split}/completions"] == 2 * len(mine) == 2 * told[f"{split}/pairs"]
        numbers = [r[c] for r in mine for c in ("score_chosen", "score_rejected")]
        assert told[f"{split}/score_mean"] == pytest.approx(np.mean(numbers))
        assert told[f"{split}/score_std"] == pytest.approx(np.std(numbers))
        assert (told[f"{split}/score_min"], told[f"{split}/score_max"]) == (min(numbers), max(numbers))
    assert told["val/accuracy"] == summary(chain / "rm")["val/accuracy"]
    out = capfd.readouterr().out
    assert "next: shiqrun train data=jsonl data.path=" in out
    assert "chosen gets reward" not in out
    assert "in the training" not in out


def test_held_out_prompts_that_the_reward_model_was_trained_on_are_told(chain, capfd):
    model = f"reward={chain}/rm/reward_model"
    assert score(f"data.path={chain}/pairs.jsonl", model, "data.val_fraction=0.9", "run_dir=out") == 0
    assert re.search(r"warning: validation split: .* was trained on \d+ of these \d+ prompts", capfd.readouterr().out)


def test_the_command_that_it_prints_trains_on_the_scores(chain, capfd):
    model = f"reward={chain}/rm/reward_model"
    assert score(f"data.path={chain}/pairs.jsonl", model, "data.val_fraction=0.3", "run_dir=out") == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("next: shiqrun "))
    words = line.removeprefix("next: shiqrun ").split()
    small = ("model.hidden_size=32", "logger=none", "trainer.max_steps=1", "eval.every=0", "run_dir=used")
    assert main([*words, *small]) == 0
    told = summary(Path("used"))
    trained = [r for r in read("out/scored.jsonl") if not is_held_out(r["prompt_id"], 0.3)]
    assert told["trajectories/train"] == 2 * len(trained)


# ------------------------------------------------------------------ what is written
ROWS = {
    "pairs": [{"prompt": f"ask {i}", "chosen": f"yes {i}", "rejected": f"no {i}", "topic": i} for i in range(30)],
    "whole chats": [
        {
            "chosen": [user(f"ask {i}"), assistant("hi"), user("and?"), assistant(f"yes {i}")],
            "rejected": [user(f"ask {i}"), assistant("hi"), user("and?"), assistant(f"no {i}")],
            "score_chosen": 5.0,
            "score_rejected": 1.0,
        }
        for i in range(30)
    ],
    "single": [{"prompt": f"ask {i}", "completion": f"yes {i}", "reward": 7, "answer": i} for i in range(30)],
    "several": [
        {"prompt": f"ask {i}", "completions": ["yes", f"no {i}", "maybe"][: 1 + i % 3], "prompt_id": f"own {i}"}
        for i in range(30)
    ],
    "turns": [
        {"messages": [user(f"ask {i}"), assistant("hi"), user("and?"), assistant("yes")], "rewards": [1, 2]}
        for i in range(30)
    ],
    "the answer repeats the prompt": [
        {"prompt": [user("hello")], "completion": [user("hello"), user("hello"), assistant(f"hi {i}")]}
        for i in range(30)
    ],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_file_is_read_back_as_the_same_examples_with_the_scores_as_rewards(rows):
    folder = save(Path("rm"))
    write("in.jsonl", rows)
    assert score("data.path=in.jsonl", f"reward=./{folder}", "run_dir=out", "data.val_fraction=0.3") == 0
    for split in ("train", "val"):
        before, after = (examples(p, split, val_fraction=0.3) for p in ("in.jsonl", "out/scored.jsonl"))
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert list(one.messages) == list(other.messages)
            assert [list(c) for c in one.completions] == [list(c) for c in other.completions]
            assert (one.prompt_id, one.answer, one.alone) == (other.prompt_id, other.answer, other.alone)
            assert one.columns == other.columns
            assert list(other.rewards) == pytest.approx(alone(folder, one), abs=1e-4)
    assert not Path("out/scored_val.jsonl").exists()


def test_a_validation_split_of_its_own_stays_one():
    folder = save(Path("rm"))
    write("train.jsonl", ROWS["single"][:20])
    write("val.jsonl", ROWS["single"][20:])
    words = ("data.path=train.jsonl", "data.val_path=val.jsonl", "run_dir=out", f"reward=./{folder}")
    assert score(*words) == 0
    assert [r["answer"] for r in read("out/scored.jsonl")] == list(range(20))
    assert [r["answer"] for r in read("out/scored_val.jsonl")] == list(range(20, 30))
    told = summary(Path("out"))
    assert (told["train/examples"], told["val/examples"]) == (20, 10)


def test_texts_that_the_model_cannot_read_are_left_out_and_counted_pairs_whole(capfd):
    folder = save(Path("rm"), context=40)
    long = "the weather is fine " * 20
    write("pairs.jsonl", [{"prompt": "hello", "chosen": "yes", "rejected": r} for r in ("no", long, "never")])
    assert score("data.path=pairs.jsonl", f"reward=./{folder}", "run_dir=out") == 0
    assert [r["rejected"][0]["content"] for r in read("out/scored.jsonl")] == ["no", "never"]
    assert "left out: 2 longer than 40 tokens of the reward model (data.max_length)" in capfd.readouterr().out
    write(
        "groups.jsonl", [{"prompt": "hello", "completions": ["yes", long]}, {"prompt": "hello", "completions": [long]}]
    )
    assert score("data.path=groups.jsonl", f"reward=./{folder}", "run_dir=groups") == 0
    (row,) = read("groups/scored.jsonl")
    assert row["completion"][0]["content"] == "yes"
    assert summary(Path("groups"))["dropped/longer than 40 tokens of the reward model (data.max_length)"] == 2


def test_a_shorter_max_length_leaves_more_out_and_a_longer_one_computes_what_is_missing():
    folder = save(Path("rm"))
    write("in.jsonl", [{"prompt": "hello", "completion": "yes " * n} for n in range(1, 9)])
    for limit, run in ((30, "short"), (60, "long")):
        assert score("data.path=in.jsonl", f"reward=./{folder}", f"data.max_length={limit}", f"run_dir={run}") == 0
    short, long = (len(read(f"{run}/scored.jsonl")) for run in ("short", "long"))
    assert 0 < short < long
    assert summary(Path("long"))["scores_from_cache"] == short
    assert summary(Path("long"))["scores_computed"] == long - short


def test_a_reward_without_a_model_scores_too():
    rows = [{"prompt": "2 + 2?", "completion": c, "answer": "4", "level": 1} for c in ("4", "5")]
    write("in.jsonl", rows)
    assert score("data.path=in.jsonl", "reward=exact_match", "run_dir=out") == 0
    found = read("out/scored.jsonl")
    assert [r["reward"] for r in found] == [1, 0]
    assert [(r["answer"], r["level"]) for r in found] == [("4", 1)] * 2


# ------------------------------------------------------------------ what is kept
def test_nothing_is_computed_twice_and_whatever_changed_is():
    folder = save(Path("rm"))
    rows = ROWS["single"][:10]
    write("in.jsonl", rows)

    def counts(run, *words):
        assert score("data.path=in.jsonl", f"reward=./{folder}", f"run_dir={run}", *words) == 0
        told = summary(Path(run))
        return told["scores_computed"], told["scores_from_cache"]

    assert counts("first") == (10, 0)
    assert counts("again") == (0, 10)
    assert read("first/scored.jsonl") == read("again/scored.jsonl")
    write("in.jsonl", [rows[0] | {"prompt": "new"}, *rows[:4], rows[4] | {"completion": "other"}, *rows[5:]])
    assert counts("changed") == (2, 9)
    assert counts("scaled", "reward.scale=2") == (11, 0)
    one, two = ([r["reward"] for r in read(f"{run}/scored.jsonl")] for run in ("changed", "scaled"))
    assert two == pytest.approx([2 * x for x in one], abs=1e-5)  # other companions in a batch
    save(folder, template=None)
    assert counts("template") == (11, 0)


def test_a_damaged_file_of_the_cache_is_computed_again(capfd):
    folder = save(Path("rm"))
    write("in.jsonl", ROWS["single"][:5])
    words = ("data.path=in.jsonl", f"reward=./{folder}")
    assert score(*words, "run_dir=first") == 0
    (kept,) = Path("cache/scores").rglob("*.json")
    kept.write_text(kept.read_text()[:-20])
    assert score(*words, "run_dir=second") == 0
    assert "computed again" in capfd.readouterr().out
    assert read("first/scored.jsonl") == read("second/scored.jsonl")


def test_a_changed_score_of_the_cache_is_computed_again(capfd):
    folder = save(Path("rm"))
    write("in.jsonl", ROWS["single"][:5])
    words = ("data.path=in.jsonl", f"reward=./{folder}")
    assert score(*words, "run_dir=first") == 0
    (kept,) = Path("cache/scores").rglob("*.json")
    text = kept.read_text()
    at = text.index("0.") + 2  # a digit of the first score
    kept.write_text(text[:at] + str(9 - int(text[at])) + text[at + 1 :])
    assert score(*words, "run_dir=second") == 0
    assert "computed again" in capfd.readouterr().out
    assert read("first/scored.jsonl") == read("second/scored.jsonl")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_writes_the_same_bytes():
    folder = save(Path("rm"))
    write("in.jsonl", [{"prompt": f"ask {i}", "completion": f"the weather is fine {i} " * 8} for i in range(2048)])
    words = ("data=jsonl", "data.path=in.jsonl", f"reward=./{folder}", "reward.batch_tokens=200")
    process = command("score", *words, "run_dir=killed")
    end = time.monotonic() + 120
    while len(list(Path("cache").rglob("*.json"))) < 2 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    _, out = finished(process)
    assert process.returncode == -9, out
    left = len(list(Path("cache").rglob("*.json")))
    assert 2 <= left < 8
    assert {p.name for p in Path("killed").iterdir()} <= {".hydra", "run.log", ".run.lock"}
    assert main(["score", "resume=killed"]) == 0
    told = summary(Path("killed"))
    assert told["scores_from_cache"] == 256 * left
    assert told["scores_computed"] == 2048 - 256 * left
    assert main(["score", *words, "run_dir=whole", "cache_dir=fresh"]) == 0
    assert Path("whole/scored.jsonl").read_bytes() == Path("killed/scored.jsonl").read_bytes()
    assert [r["reward"] for r in read("whole/scored.jsonl")][:3] == pytest.approx(
        [x for e in examples("in.jsonl", val_fraction=0.0)[:3] for x in alone(folder, e)], abs=1e-4
    )


@pytest.mark.slow
def test_a_reward_model_of_the_hub_is_read_from_its_cache(chain):
    revision = Path("hub/models--someone--rm")
    (revision / "refs").mkdir(parents=True)
    (revision / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    shutil.copytree(chain / "rm" / "reward_model", revision / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    words = ("data=jsonl", f"data.path={chain}/pairs.jsonl", "data.val_fraction=0.9", "run_dir=out")
    code, out = finished(command("score", *words, "reward=someone/rm", HF_HUB_CACHE=str(Path("hub").absolute())))
    assert code == 0, out
    assert "was trained on" in out  # its shiqrun.json was found too
    assert score(*words[1:3], f"reward={chain}/rm/reward_model", "run_dir=local") == 0
    assert summary(Path("local"))["scores_computed"] == 0


# ------------------------------------------------------------------ bad input
def refused(capfd, *words):
    capfd.readouterr()
    assert score(*words, "run_dir=refused") == 2
    assert not Path("refused").exists()
    return capfd.readouterr().err


def test_what_cannot_work_says_why_and_leaves_no_directory(capfd):
    folder = save(Path("rm"))
    write("in.jsonl", ROWS["single"])
    data = "data.path=in.jsonl"
    assert "give reward=DIR" in refused(capfd, data)
    assert "reward=nowhere" in refused(capfd, data, "reward=nowhere")
    assert "reward.path=./nowhere is not a directory" in refused(capfd, data, "reward=./nowhere")
    assert "3 labels" in refused(capfd, data, f"reward=./{save(Path('labels'), labels=3)}")
    assert "reward.center" in refused(capfd, data, f"reward=./{folder}", "reward.center=nan")
    if not torch.cuda.is_available():
        assert "torch sees no GPU" in refused(capfd, data, f"reward=./{folder}", "hardware=gpu")
    assert "reward.batch_tokens" in refused(capfd, data, f"reward=./{folder}", "reward.batch_tokens=0")
    too_long = refused(capfd, data, f"reward=./{folder}", "data.max_length=300")
    assert "data.max_length=300 is more than the 256 tokens" in too_long
    assert "reads no tokens" in refused(capfd, data, "reward=exact_match", "data.max_length=300")
    assert "no completion to score: 30 longer than 3" in refused(capfd, data, f"reward=./{folder}", "data.max_length=3")
    write("empty.jsonl", [{"prompt": "hello", "completion": " "}])
    assert "1 empty completion" in refused(capfd, "data.path=empty.jsonl", f"reward=./{folder}")


def test_a_dry_run_counts_and_writes_nothing(capfd):
    folder = save(Path("rm"))
    write("in.jsonl", ROWS["pairs"])
    assert score("data.path=in.jsonl", f"reward=./{folder}", "dry_run=true", "run_dir=dry") == 0
    assert "60 completions of 30 examples to score" in capfd.readouterr().out
    assert not Path("dry").exists()
    assert not Path("cache").exists()


# ------------------------------------------------------------------ real data, real model
@needs_stories
@pytest.mark.skipif(not HH.is_file(), reason=f"no HH file {HH}")
def test_real_pairs_by_a_real_model(capfd):
    data = ("data=hh", f"data.path={HH}", "data.limit=40", "data.max_length=300")
    model = ("model=hf", f"model.path={STORIES}", "logger=none", "trainer.max_steps=2", "eval.every=2")
    assert main(["train", "algo=reward_model", *data, *model, "run_dir=rm"]) == 0
    assert main(["score", *data, "reward=rm/reward_model", "run_dir=out"]) == 0
    told, trained = summary(Path("out")), summary(Path("rm"))
    assert told["val/accuracy"] == pytest.approx(trained["val/accuracy"])
    assert told["val/score_mean"] == pytest.approx(trained["val/mean_reward"], abs=1e-4)
    assert 2 * told["train/pairs"] == trained["trajectories/train"]
    rows = read("out/scored.jsonl")
    assert all(math.isfinite(r[c]) for r in rows for c in ("score_chosen", "score_rejected"))
    back = Counter(split for split, _ in both_splits(*_source("out/scored.jsonl"), Counter()))
    assert back == {"train": told["train/pairs"], "val": told["val/pairs"]}


def _source(path):
    settings = DataSettings(limit=None, max_length=None, val_fraction=0.1, completions="all", train_on="assistant")
    return Jsonl(path=path, val_path=None, pair_rewards=None), settings
