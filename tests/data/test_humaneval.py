import json

import pytest

from shiqrun.data.humaneval import HumanEval
from shiqrun.errors import InputError
from shiqrun.rewards.program_tests import Check, complete_program, extract_code, parse_tests
from tests.support.helpers import DATA

REAL = DATA / "HumanEval.jsonl.gz"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there (set SHIQRUN_TEST_DATA)")
ROW = {
    "task_id": "Made/0",
    "prompt": 'def twice(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "twice",
}


def load(path, rewards=(0, -1)):
    return list(HumanEval(path=str(path), rewards=[*rewards]).load("train"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_is_a_function_to_complete_with_its_reference_solution(tmp_path):
    (example,) = load(write(tmp_path / "a.jsonl", ROW), rewards=(1, 0))
    assert example.messages == [{"role": "user", "content": ROW["prompt"]}]
    assert example.completions == [[{"role": "assistant", "content": ROW["prompt"] + ROW["canonical_solution"]}]]
    assert list(example.rewards) == [1.0]
    assert example.columns == {"task_id": "Made/0"}
    assert example.source == f"{tmp_path / 'a.jsonl'}:1"


def test_the_answer_is_a_problem_that_unit_tests_reads(tmp_path):
    (example,) = load(write(tmp_path / "a.jsonl", ROW))
    read = parse_tests(example.answer, example.source, 10)
    assert isinstance(read, Check)
    spaces = {}
    exec(complete_program(read.prefix, read.entry_point, read.solution) + read.check, spaces)
    spaces["check"](spaces["twice"])
    with pytest.raises(AssertionError):
        spaces["check"](lambda x: x)


@pytest.mark.parametrize("column", ["task_id", "prompt", "canonical_solution", "test", "entry_point"])
def test_a_row_without_a_column_is_named(tmp_path, column):
    file = write(tmp_path / "a.jsonl", ROW, {key: value for key, value in ROW.items() if key != column})
    with pytest.raises(InputError, match=rf"a\.jsonl:2: expected a text in column '{column}'"):
        load(file)


def test_rewards_are_right_above_wrong(tmp_path):
    with pytest.raises(InputError, match=r"data\.rewards=\[0, 0\]"):
        load(write(tmp_path / "a.jsonl", ROW), rewards=(0, 0))


def test_without_a_file_and_a_network_it_says_what_to_pass():
    with pytest.raises(InputError, match=r"openai/openai_humaneval .* pass data\.path=FILE_OR_DIRECTORY"):
        list(HumanEval(path=None, rewards=[0, -1]).load("train"))


@needs_real
def test_all_164_real_problems_are_read_and_their_solutions_are_programs():
    examples = load(REAL)
    assert len(examples) == len({e.prompt_id for e in examples}) == 164
    for example in examples:
        read = parse_tests(example.answer, example.source, 10)
        (completion,) = example.completions
        code = complete_program(read.prefix, read.entry_point, extract_code(completion[0]["content"]))
        compile(code, example.source, "exec")
        assert f"def {read.entry_point}(" in code
        assert "def check(candidate)" in read.check
