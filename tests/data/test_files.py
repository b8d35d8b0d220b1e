import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.data.files import read_rows
from shiqrun.errors import InputError

ROWS = [{"prompt": "é\u2028x", "reward": 1}, {"prompt": "b", "reward": 0.5}]


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def lines(rows):
    return "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_json_lines_are_read_with_file_and_line(tmp_path, name):
    file = write(tmp_path / name, "\ufeff" + lines(ROWS[:1]) + "\r\n\n" + lines(ROWS[1:]))
    assert list(read_rows(file)) == [(f"{file}:1", ROWS[0]), (f"{file}:3", ROWS[1])]


def test_parquet_is_read_with_file_and_row(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"n": i} for i in range(1300)]), file)
    read = list(read_rows(file))
    assert [row["n"] for _, row in read] == list(range(1300))
    assert read[-1][0] == f"{file} row 1300"


def test_the_files_of_a_directory_are_read_by_name(tmp_path):
    write(tmp_path / "b.jsonl", lines(ROWS[1:]))
    write(tmp_path / "a.jsonl.gz", lines(ROWS[:1]))
    write(tmp_path / "README.md", "no data")
    write(tmp_path / ".hidden.jsonl", "{")
    assert [row for _, row in read_rows(str(tmp_path))] == ROWS


def test_rows_are_streamed(tmp_path):
    file = write(tmp_path / "a.jsonl", lines(ROWS[:1]) + "\n{broken")
    rows = read_rows(file)
    assert next(rows)[1] == ROWS[0]
    with pytest.raises(InputError):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: the file is empty"),
        ("a.jsonl", "\n\n", r"a\.jsonl: the file is empty"),
        ("a.jsonl", '{"a": 1}\n{"a": ', r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, r"a\.jsonl:2: broken JSON"),
        ("a.json", "[{}, {}]", r"a\.json:1: expected a JSON object .* found a list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"a\.jsonl:2: not UTF-8 \(byte 8"),
        ("a.parquet", "PAR1 and no more", r"a\.parquet: broken Parquet"),
        ("a.txt", "a,b", r"a\.txt: cannot tell the format .*\.jsonl\.gz"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        list(read_rows(write(tmp_path / name, content)))


def test_truncated_and_false_gzip_are_named(tmp_path):
    whole = gzip.compress(os.urandom(5000).hex().encode())
    cut, false = tmp_path / "cut.jsonl.gz", tmp_path / "false.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    false.write_text(lines(ROWS))
    for file in (cut, false):
        with pytest.raises(InputError, match=f"{file.name}: broken gzip"):
            list(read_rows(file))


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))


def test_a_directory_without_data_files_says_what_it_holds(tmp_path):
    write(tmp_path / "notes.txt", "")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"no data file .* it holds data/, notes\.txt"):
        list(read_rows(tmp_path))


def test_a_directory_never_mixes_splits(tmp_path):
    for name in ("train-00000-of-00001.jsonl", "my_test.jsonl"):
        write(tmp_path / name, lines(ROWS))
    with pytest.raises(InputError, match=r"different splits \(test, train\)"):
        list(read_rows(tmp_path))


def test_a_file_without_permission_is_named(tmp_path):
    file = write(tmp_path / "a.jsonl", lines(ROWS))
    file.chmod(0)
    user = os.geteuid()
    if user == 0:  # root reads everything: become nobody, who may not even enter tmp_path
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"a\.jsonl: cannot be read: Permission denied"):
            list(read_rows(file))
    finally:
        os.seteuid(user)
