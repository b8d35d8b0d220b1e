"""A mixture joins data sets that are read and stored one by one: ids, groups, splits, and rows from either store."""

import json
from collections import Counter

import numpy as np
import pytest

from shiqrun.batching.logged_data import DataSettings, both_splits, examples_of, load
from shiqrun.batching.mixture import Mixture, Part, PartSettings
from shiqrun.batching.row_store import RowStore
from shiqrun.data.jsonl import Jsonl
from tests.support import helpers

SHARED = DataSettings(limit=None, max_length=None, val_fraction=0.3, completions="all", train_on="assistant")
TOKENIZER = helpers.tokenizer()
ROWS = {
    "mine": [
        {"prompt": f"how are you {n}", "completions": ["fine", "well"], "rewards": [1, 0], "prompt_id": str(n)}
        for n in range(30)
    ],
    "yours": [{"prompt": f"who {n}", "completion": "you", "reward": 0.5, "prompt_id": str(n)} for n in range(20)],
    "theirs": [{"prompt": f"who {n}", "completions": ["they", ""], "rewards": [2, 3]} for n in range(30)],
}


@pytest.fixture
def mixture(tmp_path):
    parts = {}
    for name, rows in ROWS.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = PartSettings(val_fraction=0 if name == "yours" else None)
        parts[name] = Part(Jsonl(path=str(path), val_path=None, pair_rewards=None), own.of_part(SHARED), own.weight)
    return Mixture(parts=parts)


def test_ids_of_files_are_of_their_part_and_no_group_is_of_two(mixture):
    encoded = load(mixture, TOKENIZER, SHARED, context=None, together=True)
    train = encoded.train
    ids = {t.prompt_id for t in train.trajectories}
    assert {"mine/3", "yours/3"} <= ids | {t.prompt_id for t in encoded.val.trajectories}
    assert len([i for i in ids if "/" not in i]) > 10  # hashes of prompts stay as they are
    for unit in train.units:
        assert len({train.parts.name(row) for row in unit}) == 1
    assert len({t.group for t in train.trajectories}) == train.group.max() + 1 == len(train.units)
    for split, rows in (("train", train), ("val", encoded.val)):
        read = {(e.part, e.prompt_id) for e in examples_of(mixture, split, SHARED)}
        assert {(rows.parts.name(n), t.prompt_id) for n, t in enumerate(rows.trajectories)} <= read


def test_each_part_has_the_split_of_a_run_on_it_alone_but_what_others_train_on(mixture):
    encoded = load(mixture, TOKENIZER, SHARED, context=None)
    for number, (name, part) in enumerate(mixture.parts.items()):
        alone = load(part.source, TOKENIZER, part.settings, context=None)
        for split in ("train", "val"):
            rows, own = getattr(encoded, split), getattr(alone, split)
            found = [t for t, n in zip(rows.trajectories, rows.parts.number, strict=True) if n == number]
            expected = [*own.trajectories]
            if (name, split) == ("theirs", "val"):  # `yours` trains on the first 20 prompts
                expected = [t for t in own.trajectories if int(t.source.rpartition(":")[2]) > 20]
                lost = encoded.dropped["theirs: validation, but the prompt is in the training split too"]
                assert (lost, lost > 2, len(expected) > 0) == (len(own) - len(expected), True, True)
            pairs = zip(found, expected, strict=True)
            assert all(np.array_equal(a.input_ids, b.input_ids) and a.source == b.source for a, b in pairs)
    read: Counter = Counter()
    examples = [*both_splits(mixture, SHARED, read)]
    assert encoded.dropped["theirs: empty completion"] == read["theirs: empty completion"] == 30
    assert sum(len(e.completions) for _, e in examples) == 60 + 20 + 30
    assert encoded.prompts == {name for part in mixture.parts.values() for name in _names(part)}


def test_each_part_makes_its_own_test_split(mixture):
    def of(split):
        return Counter((e.part, e.prompt_id) for e in examples_of(mixture, split, SHARED))

    assert of("selection") + of("test") == of("val")
    assert not of("selection") & of("test")
    assert min(len(of("selection")), len(of("test"))) > 3


def _names(part):
    return load(part.source, TOKENIZER, part.settings, context=None).prompts


def test_rows_from_the_store_are_those_in_memory(mixture, tmp_path):
    plain = load(mixture, TOKENIZER, SHARED, context=None, together=True)
    for _ in range(2):
        stored = load(mixture, TOKENIZER, SHARED, context=None, together=True, store=RowStore(tmp_path / "rows"))
        assert len(list((tmp_path / "rows").glob("*.rows"))) == 3
        assert (stored.fingerprint, stored.dropped) == (plain.fingerprint, plain.dropped)
        assert set(stored.prompts) == set(plain.prompts)
        for a, b in ((plain.train, stored.train), (plain.val, stored.val)):
            assert [(t.prompt_id, t.group, t.source) for t in a.trajectories] == [
                (t.prompt_id, t.group, t.source) for t in b.trajectories
            ]
            assert [*map(list, a.units)] == [*map(list, b.units)]
            assert np.array_equal(a.parts.number, b.parts.number)
            assert np.array_equal(a.prompt_number, b.prompt_number)
        assert stored.train.shares == plain.train.shares
