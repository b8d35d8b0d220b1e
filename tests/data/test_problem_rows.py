"""Rows of the Hub as they lie in its cache, and what local copies of its repositories look like."""

import json
import os
import subprocess
import sys

import datasets
import pytest

from shiqrun.data.code_contests import CodeContests
from shiqrun.data.gsm8k import GSM8K
from shiqrun.data.taco import Taco
from tests.data.test_contests import OPTIONS, contest, task, write

COMMIT = "0" * 40
READ = """
import json, sys
from shiqrun.data.taco import Taco
source = Taco(path=None, **json.loads(sys.argv[1]))
print(json.dumps({split: [x.messages[0]["content"] for x in source.load(split)] for split in source.splits}))
"""


def cached(home, kind):
    """A download of BAAI/TACO: a directory a split, of Arrow or Parquet files, and a script that nobody may run."""
    folder = home / "hub" / "datasets--BAAI--TACO"
    snapshot = folder / "snapshots" / COMMIT
    for split in ("train", "test"):
        rows = [task(question=f"{split} {i}: {'x' * 50}") for i in range(3)]
        made = datasets.Dataset.from_list(rows)
        if kind == "arrow":
            made.save_to_disk(snapshot / split)
        else:
            (snapshot / split).mkdir(parents=True)
            made.to_parquet(snapshot / split / "data-00000-of-00001.parquet")
    (snapshot / "TACO.py").write_text("raise SystemExit('a script was run')")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_files_beside_a_loading_script_are_read_without_it(tmp_path, kind):
    cached(tmp_path, kind)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", READ, json.dumps(OPTIONS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = {
        ours: [f"{split} {i}: {'x' * 50}" for i in range(3)] for ours, split in (("train", "train"), ("val", "test"))
    }
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("made", "files", "row"),
    [
        (
            lambda path: CodeContests(path=path, **OPTIONS),
            [
                "data/train-00000-of-00001-e991a271dbfa9925.parquet",
                "data/valid-00000-of-00001-5e672c5751f060d3.parquet",
            ],
            contest(),
        ),
        (
            lambda path: GSM8K(path=path, rewards=[0, -1]),
            ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
            {"question": "2 + 2?", "answer": "#### 4"},
        ),
        (lambda path: Taco(path=path, **OPTIONS), ["train.jsonl", "test.jsonl"], task()),
    ],
    ids=["code_contests", "gsm8k", "taco"],
)
def test_a_copy_of_the_repository_has_both_splits(tmp_path, made, files, row):
    for file in files:
        write(tmp_path / file, row)
    source = made(str(tmp_path))
    assert source.splits == ("train", "val")
    assert [len(list(source.load(split))) for split in source.splits] == [1, 1]
