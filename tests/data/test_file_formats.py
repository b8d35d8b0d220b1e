"""`data=jsonl` reads Arrow, `save_to_disk`, CSV and the Hub as it reads the same rows in JSON lines."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

from shiqrun.data.files import data_files, read_rows
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from tests.support.command_line import command, finished
from tests.support.hub_server import hub

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": 'b, "c"\nd'}]
SINGLE = [
    {"prompt": "What is 6 * 7?", "completion": "42", "reward": 1.5, "prompt_id": "007"},
    {"prompt": "[not JSON", "completion": "true", "reward": -2.0, "prompt_id": "8"},
]
CHATS = [{"messages": CHAT, "rewards": [0.5], "tests": [{"input": "1", "output": "2"}]}]
PAIRS = [{"prompt": "p", "chosen": "1", "rejected": '["a"]', "score_chosen": 1, "score_rejected": 0}]


def read(path, **options):
    source = Jsonl(path=str(path), val_path=None, pair_rewards=None, **options)
    return [replace(example, source="") for example in source.load("train")]


def json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spelt(rows, separator=","):
    """Rows as CSV: texts as they stand, everything else as JSON."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys(), delimiter=separator)
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    return file.getvalue()


@pytest.mark.parametrize("rows", [SINGLE, CHATS, PAIRS])
@pytest.mark.parametrize("kind", ["csv", "tsv", "stream", "indexed", "saved"])
def test_a_row_is_the_same_example_in_every_format(tmp_path, rows, kind):
    datasets = pytest.importorskip("datasets")
    wanted = read(json_lines(tmp_path / "rows.jsonl", rows))
    if kind in ("csv", "tsv"):
        place = tmp_path / f"rows.{kind}"
        place.write_text(spelt(rows, "\t" if kind == "tsv" else ","), encoding="utf-8-sig")
    elif kind == "saved":
        place = tmp_path / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(str(place))
    else:
        place, table = tmp_path / "rows.arrow", pa.Table.from_pylist(rows)
        made = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with made(str(place), table.schema) as writer:
            writer.write_table(table)
    assert read(place) == wanted
    assert len(wanted) == len(rows)


def test_rows_of_tables_and_lines_of_csv_are_named(tmp_path):
    rows = [{"prompt": f"{n}", "completion": "two\nlines", "reward": n} for n in range(1200)]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    (tmp_path / "b.csv").write_text(spelt(rows[:3]))
    places = [place for place, _ in read_rows(tmp_path / "a.arrow")]
    assert places == [f"{tmp_path}/a.arrow row {n}" for n in range(1, 1201)]
    assert [place for place, _ in read_rows(tmp_path / "b.csv")] == [f"{tmp_path}/b.csv:{n}" for n in (2, 4, 6)]


def test_files_of_a_saved_data_set_are_read_in_its_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{n}", "completion": "c", "reward": 0.0} for n in range(30)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "one"), num_shards=12)
    assert len(data_files(tmp_path / "one")) == 12
    assert [row["prompt"] for _, row in read_rows(tmp_path / "one")] == [str(n) for n in range(30)]
    datasets.DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(InputError, match=rf"splits test, train; name one: {tmp_path}/two/test"):
        data_files(tmp_path / "two")
    (tmp_path / "one" / "data-00003-of-00012.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00003-of-00012\.arrow is missing"):
        data_files(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"state\.json: not as `save_to_disk` writes it"):
        data_files(tmp_path / "one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completion\np\n", r"x\.csv:2: 1 cells, but .*:1 names 2 columns"),
        ("prompt,completion\np,c,d\n", r"x\.csv:2: 3 cells"),
        ("prompt,prompt\np,c\n", r"x\.csv:1: the column 'prompt' stands there twice"),
        ("prompt,,b\np,c,d\n", r"x\.csv:1: column 2 has no name"),
        ('prompt,completion\np,c\np,"c\nd', r"x\.csv:3: broken CSV \(unexpected end of data\)"),
        ("prompt,completion\n", r"x\.csv: the file is empty"),
        ("prompt,completion,reward\np,c,high\n", r"x\.csv:2: column 'reward' is 'high'; expected a finite number"),
        ("prompt,completion,reward\np,,1\n", r"x\.csv:2: missing column completion"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.csv")


def test_a_broken_arrow_file_is_named(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"ARROW1\0\0" + bytes(100))
    with pytest.raises(InputError, match=r"x\.arrow: broken Arrow file"):
        read(tmp_path / "x.arrow")
    (tmp_path / "x.arrow").write_bytes(b"")
    with pytest.raises(InputError, match=r"x\.arrow: broken Arrow file"):
        read(tmp_path / "x.arrow")


CARD = """---
configs:
- config_name: a
  data_files:
  - {split: train, path: a/train.jsonl}
  - {split: test, path: a/test.jsonl}
- config_name: b
  data_files:
  - {split: train, path: b/train.jsonl}
---
"""
HUB = {
    "README.md": CARD.encode(),
    "a/train.jsonl": "".join(json.dumps(row) + "\n" for row in SINGLE).encode(),
    "a/test.jsonl": json.dumps(SINGLE[0] | {"prompt": "other"}).encode(),
    "b/train.jsonl": b'{"prompt": "x", "completion": "y", "reward": 1}',
}
PROGRAM = """
import sys
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError

def read(path="org/logs", val_path=None, **options):
    try:
        source = Jsonl(path=path, val_path=val_path, pair_rewards=None, **options)
        for split in source.splits:
            print(split, [(e.source, e.messages[0]["content"], e.rewards) for e in source.load(split)])
        print(len(source.files()))
    except InputError as error:
        print("InputError", error)
"""


def asked(home, lines, **environment):
    """What the program prints of these calls, with the Hub's cache in `home`."""
    words = os.environ | {"HF_HOME": str(home)} | environment
    found = subprocess.run([sys.executable, "-c", PROGRAM + lines], env=words, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_downloaded_and_then_read_offline(tmp_path):
    pytest.importorskip("datasets")
    whole = "read(config='a', val_split='test')\n"
    rows = [
        "train [('org/logs, train row 1', 'What is 6 * 7?', [1.5]), ('org/logs, train row 2', '[not JSON', [-2.0])]",
        "val [('org/logs, test row 1', 'other', [1.5])]",
        "2",
    ]
    with hub("org/logs", HUB) as address:
        lines = (
            f"{whole}read(config='b', revision='{'1' * 40}')\nread()\nread(config='a', split='dev')\n"
            "read('org/none')\nread(config='a', split='train[:1]')\n"
        )
        said = asked(tmp_path, lines, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert said[:3] == rows
    assert said[3:5] == ["train [('org/logs, train row 1', 'x', [1.0])]", "1"]
    assert "Config name is missing" in said[5]
    assert "['a', 'b']" in said[5]
    assert "data.config" in said[5]
    assert "Unknown split \"dev\". Should be one of ['train', 'test']" in said[6]
    assert "org/none" in said[7]
    assert "exist" in said[7]
    assert "data.split=train[:1]: a whole split is read" in said[8]
    assert len(said) == 9
    assert asked(tmp_path, whole, HF_HUB_OFFLINE="1") == rows
    (said,) = asked(tmp_path, "read('runs/mine')", HF_HUB_OFFLINE="1")
    assert "data.path=runs/mine: no file or directory" in said
    assert "HF_HUB_OFFLINE is set; pass data.path=FILE_OR_DIRECTORY" in said


def test_settings_of_the_hub_are_refused_beside_a_file(tmp_path):
    file = json_lines(tmp_path / "rows.jsonl", SINGLE)
    for key in ("val_split", "config", "revision"):
        with pytest.raises(InputError, match=rf"data\.{key}=x: only for data\.path=ORG/NAME"):
            read(file, **{key: "x"})


def test_a_run_trains_on_a_csv_file(tmp_path):
    rows = [{"prompt": f"count {n}", "completion": f"to {n % 5}", "reward": n % 3} for n in range(30)]
    (tmp_path / "rows.csv").write_text(spelt(rows))
    words = ("algo=shiq", "data=jsonl", f"data.path={tmp_path}/rows.csv", "model=tiny", "model.hidden_size=16")
    steps = ("trainer.max_steps=1", "trainer.batch_size=8", "eval.every=0", "logger=none")
    code, out = finished(command("train", *words, *steps, f"run_dir={tmp_path}/run"))
    assert code == 0, out
