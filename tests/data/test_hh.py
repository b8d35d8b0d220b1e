import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from shiqrun.data.hh import HH
from shiqrun.errors import InputError

DATA = Path(os.environ.get("SHIQRUN_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROLE = {"Human": "user", "Assistant": "assistant"}
REAL = DATA / "hh_harmless_test_train4of5.jsonl.gz"


def hh(path, **settings):
    given = {"subset": "both", "split": "train", "pair_rewards": [1, -1], "on_embedded_marker": "drop", **settings}
    return HH(path=None if path is None else str(path), **given)


def write(path, *pairs):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in pairs)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(path, **settings):
    return list(hh(path, **settings).load("train"))


def contents(example):
    return [m["content"] for m in example.messages], [c[0]["content"] for c in example.completions]


P = "\n\nHuman: q\n\nAssistant: x\n\nHuman: r"


def test_a_pair_becomes_one_example_with_a_shared_prompt(tmp_path):
    file = write(tmp_path / "a.jsonl", (P + "\n\nAssistant:  good one.", P + "\n\nAssistant: Assistant: go\n\nbad"))
    (example,) = load(file)
    assert [m["role"] for m in example.messages] == ["user", "assistant", "user"]
    assert contents(example) == (["q", "x", "r"], ["good one.", "Assistant: go\n\nbad"])
    assert [[m["role"] for m in c] for c in example.completions] == [["assistant"], ["assistant"]]
    assert list(example.rewards) == [1, -1]
    assert example.source == f"{file}:1"


def test_pair_rewards_are_announced_and_null_leaves_none(tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", (P + "\n\nAssistant: a", P + "\n\nAssistant: b"))
    with caplog.at_level(logging.INFO, logger="shiqrun"):
        assert load(file, pair_rewards=None)[0].rewards is None
        assert "chosen" not in caplog.text
        load(file, pair_rewards=[2, 0])
    assert "chosen gets reward 2, rejected 0" in caplog.text


def test_consecutive_turns_of_one_role_are_merged(tmp_path):
    prompt = "\n\nHuman: q\n\nAssistant: x\n\nAssistant: y\n\nHuman: r\n\nHuman: s"
    (example,) = load(write(tmp_path / "a.jsonl", (prompt + "\n\nAssistant: a", prompt + "\n\nAssistant: b")))
    assert [m["content"] for m in example.messages] == ["q", "x\n\ny", "r\n\ns"]


def test_an_embedded_marker_is_dropped_kept_or_refused(tmp_path):
    play = P + "\n\nAssistant: a\n\nHuman: more\n\nAssistant: b"
    file = write(tmp_path / "a.jsonl", (play, P + "\n\nAssistant: c"))
    data = hh(file)
    assert list(data.load("train")) == []
    assert data.dropped == {"answer contains a further turn": 1}
    (kept,) = load(file, on_embedded_marker="keep")
    assert contents(kept) == (["q", "x", "r"], ["a\n\nHuman: more\n\nAssistant: b", "c"])
    with pytest.raises(InputError, match=r"a\.jsonl:1: .*on_embedded_marker"):
        load(file, on_embedded_marker="error")


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((P + "\n\nAssistant: ", P + "\n\nAssistant: b"), "empty completion"),
        (("hello", "hello there"), "prompt is not"),
        ((P + "\n\nAssistant: x\n\nAssistant: a", P + "\n\nAssistant: x\n\nAssistant: b"), "prompt is not"),
    ],
)
def test_odd_rows_are_dropped_and_counted(tmp_path, pair, reason):
    data = hh(write(tmp_path / "a.jsonl", pair))
    assert [*data.load("train"), *data.load("train")] == []
    ((why, count),) = data.dropped.items()
    assert why.startswith(reason)
    assert count == 1


@pytest.mark.parametrize("row", [{"chosen": "a"}, {"chosen": [], "rejected": []}])
def test_rows_of_another_kind_are_named(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"a\.jsonl:1: .*column '(chosen|rejected)'.*data=jsonl"):
        load(tmp_path / "a.jsonl")


def test_a_directory_in_the_hubs_layout_is_read_by_subset_and_split(tmp_path):
    for folder in ("harmless-base", "helpful-base"):
        for split in ("train", "test"):
            answer = f"{P}\n\nAssistant: {folder} {split}"
            write(tmp_path / folder / f"{split}.jsonl.gz", (answer + " a", answer + " b"))

    def read(**settings):
        return [e.completions[0][0]["content"] for e in load(tmp_path, **settings)]

    assert read() == ["harmless-base train a", "helpful-base train a"]
    assert read(subset="helpful", split="test") == ["helpful-base test a"]
    assert len(load(tmp_path / "harmless-base", split="test")) == 1
    with pytest.raises(InputError, match=r"no file of split 'dev'; there is test\.jsonl\.gz, train\.jsonl\.gz"):
        read(split="dev")
    shutil.rmtree(tmp_path / "helpful-base")
    with pytest.raises(InputError, match=r"no directory helpful-base .*data\.subset"):
        read()
    assert read(subset="harmless") == ["harmless-base train a"]


def test_loose_files_of_a_directory_are_read_whatever_the_split(tmp_path):
    for name in ("one.jsonl", "two.jsonl.gz"):
        write(tmp_path / name, (P + "\n\nAssistant: a", P + "\n\nAssistant: b"))
    assert len(load(tmp_path)) == 2


def test_without_a_network_the_hub_is_refused_with_the_way_out(tmp_path):
    code = (
        "from shiqrun.data.hh import HH\n"
        "h = HH(path=None, subset='both', split='train', pair_rewards=None, on_embedded_marker='drop')\n"
        "next(h.load('train'))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "InputError: Anthropic/hh-rlhf" in done.stderr
    assert "data.path=" in done.stderr


@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there (set SHIQRUN_TEST_DATA to its directory)")
def test_the_real_file_gives_its_known_counts():
    with gzip.open(REAL, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    # The naive rule: the two texts cut at their own last marker agree on the prompt, and neither answer is blank.
    cut = [[text.rpartition("\n\nAssistant:")[::2] for text in (r["chosen"], r["rejected"])] for r in rows]
    same = [c[0][0] == c[1][0] for c in cut]
    blank = [any(not answer.strip() for _, answer in c) for c in cut]
    data = hh(REAL)
    examples = list(data.load("train"))
    # Of the 2312 rows, those with index % 5 != 4: odd are 1688, 1950, 1952, 2036; blank 86, 516, 925, 1103.
    assert (len(rows), same.count(False), blank.count(True)) == (1850, 4, 4)
    assert data.dropped == {"answer contains a further turn": 4, "empty completion": 4}
    kept = [(i, c) for i, c in enumerate(cut) if same[i] and not blank[i]]
    assert [e.source for e in examples] == [f"{REAL}:{i + 1}" for i, _ in kept]
    for example, (_, c) in zip(examples, kept, strict=True):
        assert contents(example)[1] == [answer.strip() for _, answer in c]
        names = [p.split(":")[0] for p in c[0][0].split("\n\n") if p.startswith(("Human:", "Assistant:"))]
        assert [m["role"] for m in example.messages] == [ROLE[name] for name, _ in groupby(names)]
    assert len(load(REAL, on_embedded_marker="keep")) == 1846
