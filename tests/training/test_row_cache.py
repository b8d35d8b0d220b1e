"""`shiqrun train` on a file: jobs of a sweep encode it once, dry runs write nothing, a changed file is read anew."""

import json

import pytest

from shiqrun.cli import main
from tests.support.command_line import summary
from tests.support.places import working_in

TINY = (
    "data=jsonl",
    "data.path=rows.jsonl",
    "model.hidden_size=16",
    "model.num_layers=1",
    "logger=none",
    "eval.every=0",
)
TINY += ("trainer.batch_size=4", "trainer.max_steps=1", "algo=dpo")


def write(folder, count):
    rows = [{"prompt": f"how {n}?", "chosen": "fine", "rejected": "bad"} for n in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def home(tmp_path):
    write(tmp_path, 30)
    with working_in(tmp_path):
        yield tmp_path


def kept(home):
    return list((home / "cache").glob("rows/*.rows"))


def test_a_dry_run_leaves_no_rows_and_runs_share_them(home):
    assert main(["train", *TINY, "dry_run=true"]) == 0
    assert not kept(home)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main(["train", *TINY, f"seed={seed}", f"run_dir={name}"]) == 0
        assert len(kept(home)) == 1
    first, second, third = (summary(home / name) for name in "abc")
    assert first["fingerprint/data"] == second["fingerprint/data"] == third["fingerprint/data"]
    assert first["fingerprint/policy"] == second["fingerprint/policy"]  # the same batches from arrays and from objects
    write(home, 31)
    assert main(["train", *TINY, "run_dir=d"]) == 0
    assert len(kept(home)) == 2
    assert summary(home / "d")["fingerprint/data"] != first["fingerprint/data"]
