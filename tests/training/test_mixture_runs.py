"""`data=mixture` through the real command line: how often rows are trained on, metrics by part, resume, evaluation."""

import json
import signal
import sys
from collections import Counter

import pytest

from shiqrun.cli import main
from tests.support.command_line import (
    command,
    finished,
    largest_difference,
    metrics,
    summary,
    timeless,
    wait_for_rows,
)
from tests.support.places import working_in

pytestmark = pytest.mark.usefixtures("at_home")
NOTED = '''
"""CoPG that writes down every micro-batch that it sees."""
import json
from pathlib import Path

from shiqrun.losses import copg
from shiqrun.losses.pairs import pair_count
from shiqrun.losses.requirements import needs


@needs("rewards", "pairs", units=pair_count)
def noted(batch, policy, reference, *, beta):
    rows = [row[:n].tolist() for row, n in zip(batch.input_ids, batch.attention_mask.sum(1).tolist())]
    with Path("notes.jsonl").open("a") as file:
        print(json.dumps([batch.part, batch.group.tolist(), rows]), file=file)
    return copg(batch, policy, reference, beta=beta)
'''
SMALL = ("logger=none", "model.hidden_size=16", "model.num_layers=1", "trainer.batch_size=8", "eval.max_new_tokens=3")
PARTS = {
    "chat": {"data": "jsonl", "path": "chat.jsonl", "weight": 2},
    "pairs": {"data": "jsonl", "path": "pairs.jsonl"},
}


def mixture(**weights):
    parts = {name: {**part, "weight": weights[name]} for name, part in PARTS.items() if name in weights}
    return ["data=mixture", "data.parts=" + json.dumps(parts).replace('"', "")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with two files: 12 prompts with two or three answers each, and 20 pairs."""
    folder = tmp_path_factory.mktemp("mixture")
    chat = [
        {"prompt": f"go {n}", "completions": [*"abc"][: 2 + n % 2], "rewards": [1, 0, 0.5][: 2 + n % 2], "answer": "a"}
        for n in range(12)
    ]
    pairs = [{"prompt": f"stay {n}", "chosen": f"yes {n}", "rejected": f"no {n}", "answer": "b"} for n in range(20)]
    for name, rows in (("chat", chat), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "noted.py").write_text(NOTED)
    (folder / "conf" / "algo").mkdir(parents=True)
    (folder / "conf" / "algo" / "noted.yaml").write_text("_target_: noted.noted\n_partial_: true\nbeta: 0.5\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def train(*words):
    return main(["train", *SMALL, *words])


def test_a_weight_says_how_often_an_epoch_trains_on_each_row_and_groups_stay_whole(home):
    words = (
        "algo=noted",
        "data.val_fraction=0",
        "trainer.max_epochs=2",
        "eval.every=0",
        "trainer.micro_batch_tokens=90",
    )
    assert train(*mixture(chat=2, pairs=0.5), *words, "run_dir=counted") == 0
    seen, sizes = {"chat": Counter(), "pairs": Counter()}, {"chat": Counter(), "pairs": Counter()}
    for part, groups, rows in map(json.loads, (home / "notes.jsonl").read_text().splitlines()):
        seen[part].update(map(tuple, rows))
        sizes[part].update(Counter(groups).values())
    assert Counter(seen["chat"].values()) == {4: 6 * 2 + 6 * 3}  # every row twice in each of two epochs
    assert Counter(seen["pairs"].values()) == {1: 40}  # half of the pairs in the first, the others in the second
    assert (sizes["chat"], sizes["pairs"]) == ({2: 24, 3: 24}, {2: 20})  # also where a batch has a prompt twice
    last = summary(home / "counted")
    assert last["train/epoch"] == 2.0
    assert (last["trajectories/train/chat"], last["trajectories/train/pairs"]) == (30, 40)


def test_one_part_of_weight_one_is_the_data_set_itself(home):
    words = ("trainer.max_epochs=2", "eval.every=4", "trainer.log_every=1", "data.limit=11", "data.val_fraction=0.5")
    assert train("data=jsonl", "data.path=chat.jsonl", *words, "run_dir=alone") == 0
    kept = {file.name for file in (home / "cache" / "rows").glob("*.rows")}
    assert train(*mixture(chat=1), *words, "run_dir=one") == 0
    assert {file.name for file in (home / "cache" / "rows").glob("*.rows")} == kept  # its rows were there
    alone, one = summary(home / "alone"), summary(home / "one")
    for name in ("data", "model", "policy"):
        assert alone[f"fingerprint/{name}"] == one[f"fingerprint/{name}"]
    without = [{k: v for k, v in row.items() if "/chat" not in k} for row in timeless(metrics(home / "one"))]
    assert without == timeless(metrics(home / "alone"))
    last = metrics(home / "one")[-1]
    assert last["train/loss/chat"] == last["train/loss"]
    assert last["val/kl/chat"] == last["val/kl"]


LONG = (
    "data.val_fraction=0.3",
    "trainer.max_steps=24",
    "trainer.checkpoint_every=5",
    "trainer.log_every=2",
    "eval.every=8",
)


@pytest.fixture(scope="module")
def whole(home):
    with working_in(home):
        assert train(*mixture(chat=2, pairs=0.7), *LONG, "eval.reward=exact_match", "run_dir=whole") == 0
    return home / "whole"


@pytest.mark.slow
def test_a_killed_run_on_a_mixture_goes_on_to_the_same_bits(whole, home):
    words = (*mixture(chat=2, pairs=0.7), *LONG, "eval.reward=exact_match", "run_dir=killed")
    process = command("train", *SMALL, *words)
    wait_for_rows(home / "killed", 6, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (home / "killed" / "summary.json").exists(), "it finished before it was killed"
    assert main(["train", "resume=killed"]) == 0
    assert largest_difference(whole, home / "killed") == 0
    assert repr(timeless(metrics(home / "killed"))) == repr(
        timeless(metrics(whole))
    )  # an interval of one prompt is NaN


def test_metrics_are_logged_by_part(whole):
    rows = metrics(whole)
    trained = [row for row in rows if "train/loss" in row]
    for row in trained:
        of_parts = [row[f"train/reward/{part}"] for part in ("chat", "pairs") if f"train/reward/{part}" in row]
        assert min(of_parts) - 1e-6 <= row["train/reward"] <= max(of_parts) + 1e-6
    assert all(-1 <= row["train/reward/pairs"] <= 1 for row in trained if "train/reward/pairs" in row)
    assert all(0 <= row["train/reward/chat"] <= 1 for row in trained if "train/reward/chat" in row)
    assert {f"val/{n}/{p}" for n in ("loss", "reward", "kl", "win_rate") for p in ("chat", "pairs")} < rows[-1].keys()
    assert not any(name.startswith("val/reward/") and "val/reward" not in row for row in rows for name in row)


@pytest.mark.slow
def test_two_ranks_take_the_same_steps(home):
    words = (*mixture(chat=2, pairs=0.5), "trainer.max_epochs=2", "eval.every=6", "trainer.grad_clip=null")
    assert train(*words, "run_dir=one_rank") == 0
    ranks = ("hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu")
    code, out = finished(command("train", *SMALL, *words, *ranks, "run_dir=two_ranks"))
    assert code == 0, out
    assert largest_difference(home / "one_rank", home / "two_ranks") < 5e-5
    for a, b in zip(timeless(metrics(home / "one_rank")), timeless(metrics(home / "two_ranks")), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_a_run_on_a_mixture_is_evaluated_and_looked_into(whole, capsys):
    assert main(["eval", "run=whole", "data.limit=6", "run_dir=evaluated"]) == 0
    found = json.loads((whole.parent / "evaluated" / "eval.json").read_text())
    assert found["data"] == "mixture"
    capsys.readouterr()
    assert main(["inspect", *mixture(chat=2, pairs=1), "limit=2"]) == 0
    shown = capsys.readouterr().out.partition("part chat\n")[2]
    assert shown.index("go ") < shown.index("part pairs\n") < shown.index("stay ") < shown.index("train pairs")
    assert main(["inspect", "run=whole", "limit=2"]) == 0


def test_jobs_of_a_sweep_differ_in_the_weight_of_a_part(capsys):
    words = ("-m", *mixture(chat=2, pairs=1), "data.parts.chat.weight=1,3", "run_dir=sweep", "dry_run=true")
    assert train(*words) == 0
    out = capsys.readouterr().out
    assert "data.parts.chat.weight=1" in out
    assert "data.parts.chat.weight=3" in out


def test_validation_prompts_that_another_part_trains_on_are_left_out(home):
    same = [{"prompt": f"stay {n}", "completion": "yes", "reward": 1, "prompt_id": str(n)} for n in range(20)]
    (home / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same))
    parts = [f"{n}:{{data:jsonl,path:{n}.jsonl,val_fraction:{f}}}" for n, f in (("pairs", 0.4), ("same", 0))]
    words = ("data=mixture", f"data.parts={{{','.join(parts)}}}", "trainer.max_steps=1", "eval.every=1")
    assert train(*words, "run_dir=shared") == 0
    found = summary(home / "shared")
    dropped = found["dropped/pairs: validation, but the prompt is in the training split too"]
    assert (dropped + found["trajectories/train/pairs"], found["trajectories/train/same"]) == (40, 20)
    assert (found["trajectories/val"], dropped > 4) == (0, True)
