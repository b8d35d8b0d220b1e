import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.data.code_contests import CodeContests
from shiqrun.data.contests import is_python3, statement_name
from shiqrun.data.taco import Taco
from shiqrun.errors import InputError
from shiqrun.rewards.program_tests import Calls, Streams, parse_tests

OPTIONS = {"without": None, "per_problem": 8, "max_tests": 200, "unsolved": "drop", "rewards": [0, -1]}
STORY = "Read two whole numbers, add them up, and print what comes of it"


def pairs(*given, names=("input", "output")):
    return {name: [pair[i] for pair in given] for i, name in enumerate(names)}


def programs(*given):
    return pairs(*given, names=("language", "solution"))


def contest(**columns):
    """A row of deepmind/code_contests."""
    row = {
        "name": "1_A. Sum",
        "description": f"{STORY}.\n\nInput\n\nTwo numbers.\n\nOutput\n\nTheir sum.",
        "public_tests": pairs(("1 2\n", "3\n")),
        "private_tests": pairs(("2 2\n", "4\n")),
        "generated_tests": pairs(("5 5\n", "10\n"), ("0 0\n", "0\n")),
        "source": 2,
        "difficulty": 7,
        "solutions": programs((2, "int main() {}"), (3, "print(sum(map(int, input().split())))"), (1, "print 3")),
        "incorrect_solutions": programs((3, "print(3)"), (4, "class Main {}")),
        "cf_rating": 800,
        "time_limit": {"seconds": 1, "nanos": 0},
        "input_file": "",
        "output_file": "",
    }
    return row | columns


def task(cases=None, solutions=("print(sum(map(int, input().split())))",), **columns):
    """A row of BAAI/TACO."""
    row = {
        "question": f"{STORY}.\n-----Input-----\n\nTwo numbers.",
        "solutions": solutions if isinstance(solutions, str) else json.dumps(solutions),
        "starter_code": "",
        "input_output": json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]} if cases is None else cases),
        "difficulty": "EASY",
        "name": None,
        "source": "codeforces",
        "skill_types": "['Sorting']",
    }
    return row | columns


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contests(path, **options):
    return CodeContests(path=None if path is None else str(path), **(OPTIONS | options))


def taco(path, **options):
    return Taco(path=None if path is None else str(path), **(OPTIONS | options))


def said(example):
    return [completion[0]["content"] for completion in example.completions]


def answer_of(example):
    return [(test["input"], test["output"]) for test in example.answer]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_problem_has_its_python_3_programs_and_all_its_tests(tmp_path, name):
    source = contests(write(tmp_path / name, contest()))
    (example,) = source.load("train")
    assert example.messages == [{"role": "user", "content": contest()["description"]}]
    assert said(example) == ["print(sum(map(int, input().split())))", "print(3)"]
    assert list(example.rewards) == [0, -1]
    assert answer_of(example) == [("1 2\n", "3\n"), ("2 2\n", "4\n"), ("5 5\n", "10\n"), ("0 0\n", "0\n")]
    assert example.columns == {"name": "1_A. Sum", "difficulty": 7, "cf_rating": 800}
    assert isinstance(parse_tests(example.answer, example.source, 10), Streams)
    assert not source.dropped


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"input_file": "sum.in"}, "reads or writes files"),
        ({"output_file": "sum.out"}, "reads or writes files"),
        ({"description": " \n"}, "no statement"),
        ({"solutions": programs((1, "print 3"), (2, "int main() {}"))}, "no Python 3 solution"),
        ({"solutions": None}, "no Python 3 solution"),
        ({key: pairs() for key in ("public_tests", "private_tests", "generated_tests")}, "no tests"),
    ],
)
def test_problems_that_cannot_be_used_are_dropped_and_counted(tmp_path, columns, reason):
    file = write(tmp_path / "a.jsonl", contest(**columns), contest(description="Another one, which is kept."))
    source = contests(file)
    for _ in range(2):
        assert [e.messages[0]["content"] for e in source.load("train")] == ["Another one, which is kept."]
        assert source.dropped == {reason: 1}


def test_languages_may_be_names(tmp_path):
    named = {"solutions": programs(("PYTHON3", "print(1)"), ("PYTHON", "print 1"), ("CPP", "x"))}
    (example,) = contests(write(tmp_path / "a.jsonl", contest(**named, incorrect_solutions=None))).load("train")
    assert said(example) == ["print(1)"]


def test_a_problem_without_a_right_program_may_be_kept(tmp_path):
    file = write(tmp_path / "a.jsonl", contest(solutions=programs()))
    (example,) = contests(file, unsolved="keep").load("train")
    assert said(example) == ["print(3)"]
    assert list(example.rewards) == [-1]


def test_at_most_so_many_different_programs_of_each_kind_are_read(tmp_path):
    right = programs(*[(3, f"print({n})") for n in (0, 0, 1, 2, 3)])
    wrong = programs(*[(3, f"print(-{n})") for n in range(1, 5)])
    file = write(tmp_path / "a.jsonl", contest(solutions=right, incorrect_solutions=wrong))
    (example,) = contests(file, per_problem=2, rewards=[1, 0.5]).load("train")
    assert said(example) == ["print(0)", "print(1)", "print(-1)", "print(-2)"]
    assert list(example.rewards) == [1, 1, 0.5, 0.5]


def test_at_most_so_many_tests_are_read(tmp_path):
    contest_file, task_file = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(contest_file, contest())
    write(task_file, task({"fn_name": "f", "inputs": [[1], [2]], "outputs": [1, 2]}))
    (example,) = contests(contest_file, max_tests=3).load("train")
    assert answer_of(example) == [("1 2\n", "3\n"), ("2 2\n", "4\n"), ("5 5\n", "10\n")]
    (example,) = taco(task_file, max_tests=1).load("train")
    assert example.answer["calls"] == [{"args": [1], "output": 1}]


@pytest.mark.parametrize("bad", ["print('\ud800')", "", " \n"])
def test_programs_that_are_no_text_are_dropped_and_counted(tmp_path, bad):
    source = contests(write(tmp_path / "a.jsonl", contest(solutions=programs((3, bad), (3, "print(1)")))))
    (example,) = source.load("train")
    assert said(example) == ["print(1)", "print(3)"]
    assert source.dropped == {"a program that is empty or not UTF-8": 1}


def test_statements_that_are_no_text_are_dropped_and_counted(tmp_path):
    source = contests(write(tmp_path / "a.jsonl", contest(description="Sum \ud800."), contest()))
    assert len(list(source.load("train"))) == 1
    assert source.dropped == {"a statement that is empty or not UTF-8": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"description": None}, "expected a text in column 'description'"),
        ({"public_tests": [{"input": "1", "output": "2"}]}, "column 'public_tests' is"),
        ({"public_tests": {"input": ["1"], "output": []}}, "lists of equal length"),
        ({"private_tests": pairs((1, "2"))}, "input and output must be texts, found 1"),
        ({"solutions": {"language": [3]}}, "column 'solutions' is"),
        ({"solutions": programs((3, None))}, "a program of column 'solutions' is None"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, columns, message):
    file = write(tmp_path / "a.jsonl", contest(), contest(**columns))
    with pytest.raises(InputError, match=rf"a\.jsonl:2: .*{message}"):
        list(contests(file).load("train"))


@pytest.mark.parametrize(("made", "row", "val"), [(contests, contest, "valid"), (taco, task, "test")])
def test_a_directory_in_the_hubs_layout_brings_its_own_validation_split(tmp_path, made, row, val):
    column = "description" if made is contests else "question"
    for split in {"train", "test", val}:
        write(tmp_path / f"data/{split}-00000-of-00001.parquet", row(**{column: f"about {split}"}))
    source = made(tmp_path)
    assert source.splits == ("train", "val")
    asked = {split: [e.messages[0]["content"] for e in source.load(split)] for split in source.splits}
    assert asked == {"train": ["about train"], "val": [f"about {val}"]}


@pytest.mark.parametrize("made", [contests, taco])
def test_without_a_file_and_a_network_it_says_what_to_pass(made):
    with pytest.raises(InputError, match=r"(deepmind/code_contests|BAAI/TACO) .* pass data\.path=FILE_OR_DIRECTORY"):
        list(made(None).load("train"))


def test_rewards_are_right_above_wrong(tmp_path):
    with pytest.raises(InputError, match=r"data\.rewards=\[-1, 0\]"):
        contests(write(tmp_path / "a.jsonl", contest()), rewards=[-1, 0])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_task_has_programs_of_python_3_alone(tmp_path, name):
    source = taco(write(tmp_path / name, task(solutions=["print(1)", "print 1", "print('\\d')"])))
    (example,) = source.load("train")
    assert said(example) == ["print(1)", "print('\\d')"]
    assert list(example.rewards) == [0, 0]
    assert answer_of(example) == [("1 2\n", "3\n")]
    assert example.columns == {"source": "codeforces", "difficulty": "EASY"}
    assert source.dropped == {"a program that is not Python 3": 1}


def test_python_3_is_told_by_the_grammar():
    assert is_python3("print(1)")
    assert not is_python3("print 1")
    assert not is_python3("x = 1\0")
    assert not is_python3("(" * 10_000)


def test_lines_in_a_list_are_joined(tmp_path):
    cases = {"inputs": [["1", "2"]], "outputs": [["3"]]}
    (example,) = taco(write(tmp_path / "a.jsonl", task(cases))).load("train")
    assert answer_of(example) == [("1\n2", "3")]


def test_a_task_with_a_name_is_a_function_to_write(tmp_path):
    starter = "def add(a, b):\n\t"
    cases = {"fn_name": "add", "inputs": [[1, 2], [5, 5]], "outputs": [3, [10]]}
    (example,) = taco(write(tmp_path / "a.jsonl", task(cases, starter_code=starter))).load("train")
    assert example.messages[0]["content"].endswith("\n\ndef add(a, b):")
    assert example.answer == {
        "entry_point": "add",
        "calls": [{"args": [1, 2], "output": 3}, {"args": [5, 5], "output": [10]}],
    }
    assert isinstance(parse_tests(example.answer, example.source, 10), Calls)


def test_outputs_that_are_all_lists_of_one_value_are_that_value(tmp_path):
    cases = {"fn_name": "add", "inputs": [[1, 2], [5, 5]], "outputs": [[3], [10]]}
    (example,) = taco(write(tmp_path / "a.jsonl", task(cases))).load("train")
    assert [call["output"] for call in example.answer["calls"]] == [3, 10]
    assert example.messages[0]["content"].endswith("Name the function `add`.")


HUGE = '{"inputs": [[1]], "outputs": [' + "9" * 5000 + '], "fn_name": "f"}'


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"input_output": ""}, "no tests"),
        ({"input_output": "{}"}, "no tests"),
        ({"input_output": '{"inputs": [], "outputs": []}'}, "no tests"),
        ({"input_output": HUGE}, "a test with a number too long to be read"),
        ({"input_output": '{"inputs": [5], "outputs": ["x"]}'}, "tests that are neither texts nor lists of lines"),
        ({"input_output": '{"fn_name": "f", "inputs": [1], "outputs": [1]}'}, "calls whose arguments are no list"),
        ({"input_output": '{"fn_name": "a.b", "inputs": [[1]], "outputs": [1]}'}, "a method of a class"),
        ({"question": ""}, "no statement"),
        ({"solutions": ""}, "no Python 3 solution"),
        ({"solutions": "[]"}, "no Python 3 solution"),
        (
            {
                "input_output": '{"fn_name": "f", "inputs": [[1]], "outputs": [1]}',
                "starter_code": "class Solution:\n    def f(self, x):\n",
            },
            "a method of a class",
        ),
    ],
)
def test_tasks_that_cannot_be_used_are_dropped_and_counted(tmp_path, columns, reason):
    source = taco(write(tmp_path / "a.jsonl", task(**columns), task(question="Another one, which is kept.")))
    assert [e.messages[0]["content"] for e in source.load("train")] == ["Another one, which is kept."]
    assert +source.dropped == {reason: 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": 3}, "expected a text in column 'question', found a int"),
        ({"input_output": "{"}, "column 'input_output' holds broken JSON"),
        ({"input_output": "[]"}, "column 'input_output' is .*expected the JSON of an object"),
        ({"input_output": '{"inputs": ["1"], "outputs": []}'}, "`inputs` and `outputs` of equal length"),
        ({"solutions": "{}"}, "column 'solutions' is .*expected the JSON of a list"),
        ({"solutions": "[1]"}, "column 'solutions' must be a list of texts"),
    ],
)
def test_a_task_of_another_form_is_named(tmp_path, columns, message):
    file = write(tmp_path / "a.jsonl", task(), task(**columns))
    with pytest.raises(InputError, match=rf"a\.jsonl:2: .*{message}"):
        list(taco(file).load("train"))


def test_problems_of_the_other_data_set_are_left_out(tmp_path):
    """The story counts, not its layout, its case or what follows it."""
    other = write(tmp_path / "contests.parquet", contest())
    mine = write(
        tmp_path / "taco.jsonl",
        task(question=f"{STORY.upper()} .\n\n-----Input-----\n\nOther words."),
        task(question=f"{STORY} twice.\n-----Input-----\n\nTwo numbers."),
    )
    source = taco(mine, without=str(other))
    assert [e.messages[0]["content"] for e in source.load("train")] == [
        f"{STORY} twice.\n-----Input-----\n\nTwo numbers."
    ]
    assert +source.dropped == {"also in data.without": 1}
    assert len(list(taco(mine).load("train"))) == 2
    assert not list(contests(other, without=str(mine)).load("train"))


def test_a_problem_is_read_once(tmp_path):
    source = contests(write(tmp_path / "a.jsonl", contest(), contest(name="1_A. Sum again")))
    assert [e.columns["name"] for e in source.load("train")] == ["1_A. Sum"]
    assert source.dropped == {"the same problem as an earlier row": 1}


def test_a_short_story_does_not_stand_for_all_that_follows():
    assert statement_name("Sum.\nInput\nTwo numbers") != statement_name("Sum.\nInput\nThree numbers")
    assert statement_name("\ud800 Sum.") != statement_name("Sum, sum.")


def test_the_other_file_must_hold_problems(tmp_path):
    other = write(tmp_path / "other.jsonl", {"prompt": "x"})
    with pytest.raises(
        InputError, match=r"other\.jsonl:1: no text in column 'description' or 'question', found prompt"
    ):
        list(taco(write(tmp_path / "a.jsonl", task()), without=str(other)).load("train"))
