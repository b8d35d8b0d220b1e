import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.data.gsm8k import GSM8K
from shiqrun.errors import InputError
from tests.support.helpers import DATA

REAL = {split: DATA / f"gsm8k_{split}.jsonl.gz" for split in ("train", "test")}
needs_real = pytest.mark.skipif(
    not all(file.is_file() for file in REAL.values()), reason=f"no GSM8K in {DATA} (set SHIQRUN_TEST_DATA)"
)


def gsm8k(path, rewards=(0, -1)):
    return GSM8K(path=None if path is None else str(path), rewards=[*rewards])


def row(answer="2 + 2 = <<2+2=4>>4\n#### 4", question="2 + 2?"):
    return {"question": question, "answer": answer}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_row_is_a_question_with_its_solution(tmp_path, name):
    source = gsm8k(write(tmp_path / name, row()), rewards=(1, 0))
    (example,) = source.load("train")
    assert source.splits == ("train",)
    assert example.messages == [{"role": "user", "content": "2 + 2?"}]
    assert example.completions == [[{"role": "assistant", "content": row()["answer"]}]]
    assert list(example.rewards) == [1.0]
    assert example.answer == "4"
    assert example.source.startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("end", "number"),
    [("#### 1,234", "1234"), ("#### -3", "-3"), ("####  0.5 \n", "0.5"), ("#### 1,000,000", "1000000")],
)
def test_the_answer_is_the_number_behind_the_mark(tmp_path, end, number):
    (example,) = gsm8k(write(tmp_path / "a.jsonl", row(f"so\n{end}"))).load("train")
    assert example.answer == number


@pytest.mark.parametrize("end", ["4", "#### four", "####", "#### 4 apples", "#### ,"])
def test_a_solution_without_a_number_at_its_end_is_named(tmp_path, end):
    with pytest.raises(InputError, match=r"a\.jsonl:2: column 'answer' ends in .* expected '#### number'"):
        list(gsm8k(write(tmp_path / "a.jsonl", row(), row(f"so {end}"))).load("train"))


@pytest.mark.parametrize(
    ("bad", "message"), [({"question": "q"}, "'answer', found columns question"), (row(4), "'answer', found a int")]
)
def test_a_row_of_another_form_is_named(tmp_path, bad, message):
    with pytest.raises(InputError, match=rf"a\.jsonl:1: expected a text in column {message}"):
        list(gsm8k(write(tmp_path / "a.jsonl", bad)).load("train"))


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("names", ["{}.jsonl", "gsm8k_{}.jsonl", "{}-00000-of-00001.parquet"])
def test_a_directory_with_a_test_file_brings_its_own_validation_split(tmp_path, folder, names):
    for split in ("train", "test"):
        write(tmp_path / folder / names.format(split), row(question=f"about {split}"))
    source = gsm8k(tmp_path)
    assert source.splits == ("train", "val")
    asked = {split: [e.messages[0]["content"] for e in source.load(split)] for split in source.splits}
    assert asked == {"train": ["about train"], "val": ["about test"]}


def test_without_a_file_and_a_network_it_says_what_to_pass():
    with pytest.raises(InputError, match=r"openai/gsm8k .* pass data\.path=FILE_OR_DIRECTORY"):
        list(gsm8k(None).load("train"))


@needs_real
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_the_real_problems_all_have_a_number(split, count):
    examples = list(gsm8k(REAL[split]).load("train"))
    assert len(examples) == count
    rows = [json.loads(line) for line in gzip.decompress(REAL[split].read_bytes()).splitlines()]
    for example, given in zip(examples, rows, strict=True):
        assert example.messages[0]["content"] == given["question"]
        assert re.fullmatch(r"-?\d+(\.\d+)?", example.answer)
        assert given["answer"].replace(",", "").strip().endswith(f"#### {example.answer}")
