"""Facts that took long to find are kept, and nothing depends on their files being whole."""

import json

import pytest

from shiqrun.util.kept_facts import KeptFacts


def test_facts_are_read_as_they_were_written(tmp_path):
    kept = KeptFacts(tmp_path / "new" / "folder")
    assert kept.read("key") is None
    kept.write("key", {"why": None, "n": 3})
    assert kept.read("key") == {"why": None, "n": 3}
    assert kept.read("other") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_text(json.dumps({"n": 3})),
        lambda path: path.write_text(path.read_text().replace("3", "4", 1)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_file_is_no_fact(tmp_path, damage, caplog):
    kept = KeptFacts(tmp_path)
    kept.write("key", {"n": 3})
    damage(tmp_path / "key.json")
    assert kept.read("key") is None
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / 'key.json'}: is damaged; what it held is found anew"
    ]


def test_the_file_of_another_key_is_no_fact(tmp_path):
    kept = KeptFacts(tmp_path)
    kept.write("key", {"n": 3})
    (tmp_path / "key.json").rename(tmp_path / "other.json")
    assert kept.read("other") is None


def test_a_place_that_takes_no_file_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    KeptFacts(tmp_path / "file").write("key", {"n": 3})
    assert KeptFacts(tmp_path / "file").read("key") is None
