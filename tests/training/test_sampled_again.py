"""What a run has sampled is a data set: read again, its tokens are the ones that the policy drew."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from shiqrun.batching.encode import encode, with_template
from shiqrun.batching.logged_data import DataSettings
from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from shiqrun.rollout.other_sources import load_further_rows
from shiqrun.util.jsonl import append_lines
from tests.support.command_line import summary
from tests.support.online_words import TINY, experience, live
from tests.support.places import working_in

CUT = ("rollout.max_new_tokens=3", "trainer.max_steps=2", "trainer.warmup_steps=0", "run_dir=run")


@pytest.fixture(scope="module")
def run(home):
    """A policy that knows nothing yet, so that nearly every sample is cut off."""
    with working_in(home):
        assert live("copg", *CUT, "rollout.samples_per_prompt=4", "rollout.offline=0", model=TINY) == 0
    return home / "run"


def read_again(path, tokenizer):
    dropped = Counter()
    found = list(
        encode(
            Jsonl(path=str(path), val_path=None, pair_rewards=None).load("train"), tokenizer, dropped, max_length=None
        )
    )
    return found, dropped


def tokenizer_of(run):
    return with_template(AutoTokenizer.from_pretrained(run / "policy"))


def test_samples_that_were_cut_off_have_the_actions_that_the_policy_drew(run):
    rows = [*experience(run).values()]
    assert sum(not row["ended"] for row in rows) > len(rows) / 4
    found, dropped = read_again(run / "experience", tokenizer_of(run))
    assert not dropped
    for row, t in zip(rows, found, strict=True):
        assert t.input_ids.tolist() == row["input_ids"]
        assert t.action_index.tolist() == [*range(row["start"], len(row["input_ids"]))]
        assert t.rewards.tolist() == [0] * (len(t.action_index) - 1) + [pytest.approx(row["reward"])]


def test_a_run_trains_on_every_sample_of_another(run, workplace):
    words = ("data=jsonl", f"data.path={run / 'experience'}", "data.val_fraction=0", "data.distinct=false")
    words += ("model=hf", f"model.path={run / 'policy'}", "trainer.max_steps=1", "eval.every=0", "logger=none")
    assert main(["train", "algo=copg", *words, "trainer.batch_size=32", "run_dir=again"]) == 0
    assert summary(workplace / "again")["trajectories/train"] == len(experience(run))


def test_rollouts_are_mixed_with_the_tokens_of_another_run(run):
    settings = DataSettings(limit=None, max_length=None, val_fraction=0, completions="all", train_on="assistant")
    path = run / "experience"
    source = Jsonl(path=str(path), val_path=None, pair_rewards=None)
    options = {"context": None, "compared_by": None, "together": False}
    rows = load_further_rows(str(path), source, settings, tokenizer_of(run), **options)
    assert [t.input_ids.tolist() for t in rows.trajectories] == [r["input_ids"] for r in experience(run).values()]


def test_tokens_of_another_tokenizer_are_said_and_cut_samples_left_out(run, caplog):
    other = tokenizer_of(run)
    other.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    rows = [*experience(run).values()]
    found, dropped = read_again(run / "experience", other)
    assert len([r for r in caplog.records if "not those of this tokenizer" in r.message]) == 1
    assert dropped["cut off, and its tokens are of another tokenizer"] == sum(not row["ended"] for row in rows)
    assert all(rows[t.example]["ended"] for t in found)


def test_a_text_that_was_changed_is_read_instead_of_its_tokens(run, tmp_path, caplog):
    row = next(row for row in experience(run).values() if row["ended"] or row["completion"])
    row |= {"ended": True, "completion": row["prompt"][0]["content"], "time": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (t,), _ = read_again(tmp_path / "rows.jsonl", tokenizer_of(run))
    assert t.input_ids.tolist() != row["input_ids"]
    assert "not those of this tokenizer" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"start": 0}, "start"),
        ({"start": 999}, "start"),
        ({"input_ids": [1, "2"]}, "input_ids"),
        ({"ended": 1}, "ended"),
    ],
)
def test_a_broken_row_is_refused_by_its_place(run, tmp_path, capsys, workplace, wrong, named):
    row = pq.read_table(min((run / "experience").glob("*.parquet"))).to_pylist()[0] | wrong
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    words = ("data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}", "data.val_fraction=0", "logger=none", "dry_run=true")
    assert main(["train", "algo=sft", *words]) == 2
    assert f"rows.jsonl:1: column '{named}'" in capsys.readouterr().err


@pytest.fixture
def two_shards(run, tmp_path):
    """What a run has sampled, as two shards of the same rows."""
    copy = Path(shutil.copytree(run / "experience", tmp_path / "experience"))
    first = copy / "experience-000000.parquet"
    row = json.loads((copy / "INDEX").read_text().splitlines()[0])
    shutil.copy(first, copy / "experience-000001.parquet")
    del row["line_digest"]
    append_lines(copy / "INDEX", [row | {"name": "experience-000001.parquet"}], sealed=True)
    return copy


def without(file):
    file.unlink()


def with_a_changed_name_of_a_column(file):
    content = file.read_bytes()
    assert b"behaviour_logp" in content
    file.write_bytes(content.replace(b"behaviour_logp", b"behaviour_logq"))


def with_a_flipped_bit(file):
    content = bytearray(file.read_bytes())
    content[300] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [without, with_a_changed_name_of_a_column, with_a_flipped_bit])
def test_a_changed_or_missing_shard_is_named_and_without_its_line_in_the_index_it_is_not_asked_for(
    two_shards, run, damage
):
    first, index, tokenizer = two_shards / "experience-000000.parquet", two_shards / "INDEX", tokenizer_of(run)
    damage(first)
    with pytest.raises(InputError, match=f"{first}: (is missing|has changed|cannot be read)"):
        read_again(two_shards, tokenizer)
    first.unlink(missing_ok=True)
    index.write_text(index.read_text().partition("\n")[2])
    assert len(read_again(two_shards, tokenizer)[0]) == len(experience(run))
