"""Rows from the store equal rows in memory; they are encoded once, and nothing torn, damaged or stale is read."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shiqrun.batching import row_keys, row_writer
from shiqrun.batching.logged_data import DataSettings, load
from shiqrun.batching.row_store import RowStore
from shiqrun.batching.steps import Steps
from shiqrun.data.hh import HH
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from tests.support.helpers import BARE, CHATML, assistant, tokenizer, user

CHAT = [user("hi"), assistant("fine, thank you"), user("and you?"), assistant("hello\n")]
ROWS = {
    "chats": lambda n: {
        "messages": [user(f"hi {n % 10}"), assistant(f"weather {n}"), *CHAT[2:]],
        "reward": n - 3.5,
    },
    "turns": lambda n: {"messages": [user(f"how {n % 7}?"), *CHAT[1:]], "rewards": [0.1 * n, -0.0 if n % 2 else 0.3]},
    "pairs": lambda n: {"prompt": f"how {n % 9}?", "chosen": f"fine {n % 4}", "rejected": "" if n % 5 == 0 else "bad"},
    "groups": lambda n: {
        "prompt": f"how {n}? é",
        "completions": ["fine", "fine", "the weather " * (n % 8)][: 1 + n % 3],
        "rewards": [1.0, 2, n][: 1 + n % 3],
    },
    "bare": lambda n: {"prompt": f"hello {n % 11}", "completion": "fine"},
    "named": lambda n: {"prompt": "same", "completion": f"fine {n}", "reward": 1, "prompt_id": f"né{n % 13}"},
}
NUMBERS = ("lengths", "actions", "group", "prompts", "prompt_number", "prompt_lengths", "returns", "rewarded")
OPTIONS = {
    "plain": {},
    "compared": {"compared_by": "dpo"},
    "together": {"together": True},
    "distinct": {"distinct": True},
    "response": {"train_on": "response"},
    "best": {"completions": "best"},
    "limit": {"limit": 31},
}


def settings(**options):
    usual = {"limit": None, "max_length": 60, "val_fraction": 0.3, "completions": "all", "train_on": "assistant"}
    return DataSettings(**(usual | options))


def write(path, kind="pairs", count=48):
    path.write_text("".join(json.dumps(ROWS[kind](n)) + "\n" for n in range(count)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(row_writer, "PART", 10)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "rows.jsonl")


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "cache" / "rows")


def read(file, store, template=None, val=None, **options):
    source = file if isinstance(file, HH) else Jsonl(path=str(file), val_path=val and str(val), pair_rewards=[1, -1])
    outer = {name: options.pop(name) for name in ("compared_by", "together") if name in options}
    return load(source, tokenizer(template), settings(**options), context=1000, store=store, **outer)


def kept(store):
    """Names of the row files."""
    return sorted(path.name for path in store.directory.glob("*.rows"))


def encodings(monkeypatch):
    """A list to which each encoded part adds its first example's number."""
    made, before = [], row_writer.flat_arrays
    monkeypatch.setattr(row_writer, "flat_arrays", lambda rows: (made.append(rows[0].source), before(rows))[1])
    return made


def equal(one, other):
    """Whether two batches agree in every field."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0)), field.name
        elif field.name != "layout":
            assert a == b, field.name
    return torch.equal(one.layout.input_ids, other.layout.input_ids)


def assert_same(found, expected):
    assert found.fingerprint == expected.fingerprint
    assert found.dropped == expected.dropped
    assert found.prompts == expected.prompts
    for a, b in ((found.train, expected.train), (found.val, expected.val)):
        assert len(a) == len(b)
        for name in (
            "lengths",
            "actions",
            "group",
            "prompts",
            "prompt_number",
            "prompt_lengths",
            "returns",
            "rewarded",
        ):
            assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "returns"), name
        assert [list(unit) for unit in a.units] == [list(unit) for unit in b.units]
        for one, other in zip(a.trajectories, b.trajectories, strict=True):
            for field in fields(one):
                x, y = getattr(one, field.name), getattr(other, field.name)
                same = x.tobytes() == y.tobytes() and x.dtype == y.dtype if isinstance(x, np.ndarray) else x == y
                assert same, field.name
    for packed in (True, False):
        shape = {"batch_size": 7, "micro_batch_tokens": 90, "seed": 3, "start": 0, "rank": 0, "world": 1}
        steps = [iter(Steps(e.train.with_layout(packed=packed), **shape)) for e in (found, expected)]
        for _ in range(4):
            for one, other in zip(*map(next, steps), strict=True):
                assert equal(one, other)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ROWS)
def test_stored_rows_are_those_in_memory_at_the_first_start_and_later(tmp_path, store, kind, options):
    if kind == "bare" and options == {"completions": "best"}:
        pytest.skip("they have no rewards to choose by")
    if kind == "bare" and "compared_by" in options:
        options = {"together": True}
    file = write(tmp_path / "rows.jsonl", kind)
    expected = read(file, None, **options)
    assert_same(read(file, store, **options), expected)
    assert_same(read(file, store, **options), expected)
    assert len(kept(store)) == 1
    assert not list(store.directory.glob("*.parts"))


@pytest.mark.parametrize("template", [BARE, CHATML])
def test_templates_without_marks_are_stored_alike(tmp_path, store, template):
    file = write(tmp_path / "rows.jsonl", "turns")
    expected = read(file, None, template)
    for _ in range(2):
        assert_same(read(file, store, template), expected)


def test_a_validation_split_of_its_own_and_several_files_are_stored_alike(tmp_path, store):
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "a.jsonl", "pairs", 25)
    rows = [ROWS["pairs"](n) for n in range(30, 60)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "b.parquet")
    val = write(tmp_path / "val.jsonl", "pairs", 80)
    expected = read(folder, None, val=val)
    for _ in range(2):
        assert_same(read(folder, store, val=val), expected)


def test_hh_is_stored_alike(tmp_path, store):
    texts = [f"\n\nHuman: how {n}?\n\nAssistant: {'fine' if n % 3 else ''}" for n in range(30)]
    lines = [json.dumps({"chosen": text, "rejected": text.replace("fine", "bad")}) for text in texts]
    (tmp_path / "hh.jsonl").write_text("\n".join(lines))
    shape = {"subset": "both", "split": "train", "pair_rewards": [1, -1], "on_embedded_marker": "drop"}
    expected, *found = (read(HH(path=str(tmp_path / "hh.jsonl"), **shape), s) for s in (None, store, store))
    assert expected.dropped == {"empty completion": 10}
    for one in found:
        assert_same(one, expected)


def test_rows_survive_selection_and_pickling(file, store):
    found, expected = read(file, store).train, read(file, None).train
    for rows in (found, pickle.loads(pickle.dumps(found)), pickle.loads(pickle.dumps(found.select([5, 3, 4])))):
        wanted = expected if len(rows) == len(expected) else expected.select([5, 3, 4])
        assert rows.lengths.tolist() == wanted.lengths.tolist()
        assert rows.group.tolist() == wanted.group.tolist()
        assert [t.input_ids.tolist() for t in rows.trajectories] == [t.input_ids.tolist() for t in wanted.trajectories]


def test_every_start_says_what_reading_said(file, store, caplog):
    caplog.set_level(logging.INFO, "shiqrun")
    said = []
    for _ in range(2):
        caplog.clear()
        read(file, store)
        said.append([(r.levelname, r.getMessage()) for r in caplog.records])
    assert said[0] == said[1]
    assert "chosen gets reward 1" in said[0][0][1]


CHANGES = {
    "a row": lambda path: write(path, count=47),
    "as large and as old": lambda path: (
        path.write_text(path.read_text().replace("bad", "fin")),
        os.utime(path, ns=(10**18, 10**18)),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_encoded_again(file, store, change):
    os.utime(file, ns=(10**18, 10**18))
    read(file, store)
    change(file)
    assert_same(read(file, store), read(file, None))
    assert len(kept(store)) == 2


def test_another_tokenizer_template_setting_or_code_has_another_key(file, store, monkeypatch):
    base = {"template": None, "max_length": 60}
    for change in ({}, {"template": BARE}, {"max_length": 50}, {"val_fraction": 0.2}, {"train_on": "response"}):
        read(file, store, **(base | change))
    source = Jsonl(path=str(file), val_path=None, pair_rewards=[2, -1])
    load(source, tokenizer(), settings(), context=1000, store=store)
    load(
        Jsonl(path=str(file), val_path=None, pair_rewards=[1, -1]),
        tokenizer(eos="<e>"),
        settings(),
        context=1000,
        store=store,
    )
    splitting = tokenizer()
    splitting.split_special_tokens = True
    source = Jsonl(path=str(file), val_path=None, pair_rewards=[1, -1])
    load(source, splitting, settings(), context=1000, store=store)
    monkeypatch.setattr(row_keys, "_code", lambda: "changed")
    read(file, store)
    assert len(kept(store)) == 9
    read(file, store, compared_by="dpo")  # of the same rows
    assert len(kept(store)) == 9


def test_rows_with_the_present_date_are_not_kept(file, store):
    read(file, store, template="{{ strftime_now('%d %b %Y') }} " + BARE)
    assert kept(store) == []


def test_a_dry_run_reads_the_store_and_writes_nothing(file, store, monkeypatch):
    dry = RowStore(store.directory, writes=False)
    assert_same(read(file, dry), read(file, None))
    assert not store.directory.exists()
    read(file, store)
    made = encodings(monkeypatch)
    assert_same(read(file, dry), read(file, None))
    assert not made


# ------------------------------------------------------------------ kills, races and damage
def _read_until_killed(file, store, parts):
    row_writer.PART = 10
    before = row_writer.write_row_file

    def dying(path, arrays, facts):
        before(path, arrays, facts)
        if sum(1 for _ in path.parent.glob("*.part")) == parts:
            os.kill(os.getpid(), signal.SIGKILL)

    row_writer.write_row_file = dying
    read(file, store)


def test_a_killed_write_is_never_read_and_its_parts_are_used_again(file, store, monkeypatch):
    process = multiprocessing.get_context("fork").Process(target=_read_until_killed, args=(file, store, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not kept(store)
    (parts,) = store.directory.glob("*.parts")
    assert len(list(parts.glob("*.part"))) == 2
    made = encodings(monkeypatch)
    expected = read(file, None)
    assert_same(read(file, store), expected)
    assert {int(name.rpartition(":")[2]) > 20 for name in made} >= {True}
    assert f"{file}:1" not in made
    assert not list(store.directory.glob("*.parts"))


def test_a_damaged_part_of_a_killed_write_is_encoded_again(file, store, caplog):
    process = multiprocessing.get_context("fork").Process(target=_read_until_killed, args=(file, store, 2))
    process.start()
    process.join()
    part = min(store.directory.glob("*.parts/*.part"))
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    assert_same(read(file, store), read(file, None))
    assert "its rows are encoded again" in caplog.text


def _read_and_count(file, store, made):
    before = row_writer.flat_arrays
    row_writer.flat_arrays = lambda rows: (time.sleep(0.02), made.put(1), before(rows))[2]
    made.put(read(file, store).fingerprint)


def test_processes_that_start_together_encode_once(file, store):
    context = multiprocessing.get_context("fork")
    made = context.SimpleQueue()
    processes = [context.Process(target=_read_and_count, args=(file, store, made)) for _ in range(8)]
    for process in processes:
        process.start()
    got = []
    while sum(isinstance(one, str) for one in got) < len(processes):
        got.append(made.get())
    for process in processes:
        process.join()
    expected = read(file, None)
    assert {one for one in got if isinstance(one, str)} == {expected.fingerprint}
    examples = [len({t.example for t in rows.trajectories}) for rows in (expected.train, expected.val)]
    assert got.count(1) == sum(-(-n // 10) for n in examples)  # the parts of one process


def test_each_phase_of_a_start_shows_how_far_it_is(file, store):
    shown = []

    def progress(items, what):
        shown.append(what)
        yield from items

    source = Jsonl(path=str(file), val_path=None, pair_rewards=[1, -1])
    for phases in (
        ["encoding train", "encoding val", "comparing prompts", "writing rows", "checking stored rows"],
        ["checking stored rows"],
    ):
        load(source, tokenizer(), settings(), context=1000, store=store, progress=progress)
        assert shown == phases
        shown.clear()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_file_is_said_and_written_again(file, store, caplog, damage):
    read(file, store)
    (path,) = store.directory.glob("*.rows")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 4
    path.write_bytes({"cut": content[:-9], "empty": b"", "foreign": b"x" * 999}.get(damage, content))
    assert_same(read(file, store), read(file, None))
    assert f"{path}: " in caplog.text
    assert "encoded again" in caplog.text
    caplog.clear()
    assert_same(read(file, store), read(file, None))
    assert "again" not in caplog.text


def test_every_flipped_byte_of_the_arrays_is_found(file, store, caplog):
    read(file, store)
    (path,) = store.directory.glob("*.rows")
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for at in draw.integers(0, len(whole), 20).tolist():
        content = bytearray(whole)
        content[at] ^= 1
        path.write_bytes(content)
        caplog.clear()
        again = read(file, store)
        assert again.fingerprint == read(file, None).fingerprint
        assert "encoded again" in caplog.text or path.read_bytes() == bytes(content)  # between arrays nothing is read
        path.write_bytes(whole)


def test_a_bad_row_is_an_error_that_leaves_nothing_behind(file, store):
    with file.open("a") as out:
        out.write("{broken\n")
    with pytest.raises(InputError, match=r"rows.jsonl:49: broken JSON"):
        read(file, store)
    assert not kept(store)
    assert not list(store.directory.glob("*.parts"))


def test_a_cache_that_cannot_be_written_is_said_and_done_without(file, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert_same(read(file, RowStore(tmp_path / "cache" / "rows")), read(file, None))
    assert "encoded rows are not kept" in caplog.text


class Own(Jsonl):
    """A user's own class may read more than its files."""


def test_a_data_set_that_does_not_name_its_files_is_not_stored(file, store):
    load(Own(path=str(file), val_path=None, pair_rewards=[1, -1]), tokenizer(), settings(), context=1000, store=store)
    assert not store.directory.exists()
