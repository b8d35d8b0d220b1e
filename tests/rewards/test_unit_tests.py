"""`reward=unit_tests` from outside: programs and tests in, rewards and verdicts out."""

import gzip
import json
import subprocess
import sys

import pytest

from shiqrun.errors import InputError
from shiqrun.rewards.grading import outputs_agree
from shiqrun.rewards.reward import Answered, Bounded, Judging
from shiqrun.rewards.unit_tests import UnitTests
from tests.sandbox.here import usable
from tests.support.helpers import DATA, assistant, user

ADD = "print(sum(map(int, input().split())))"
SUMS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10"}]
PLAIN = {"right": 1.0, "wrong": 0.0, "timeout": 10, "memory": 512, "max_tests": 100, "workers": 2, "sandbox": "guard"}


def made(**settings):
    usable("guard")
    return UnitTests(**(PLAIN | settings))


@pytest.fixture(scope="module")
def reward():
    found = made()
    yield found
    found.close()


def item(text, tests, source="file:7"):
    return Answered([user("solve it")], [assistant(text)], answer=tests, source=source)


def verdicts(reward, tests, *texts):
    return reward.verdicts([item(text, tests) for text in texts])


# ------------------------------------------------------------------ programs that read and print
def test_a_program_is_right_or_wrong(reward):
    found = verdicts(reward, SUMS, ADD, "print(3)", "print(10)", "", "1 / 0", f"{ADD}\nraise SystemExit(1)")
    assert found == ["passed", *["wrong_answer"] * 3, "runtime_error", "runtime_error"]
    assert reward.score([item(ADD, SUMS), item("print(3)", SUMS)]) == [1.0, 0.0]


def test_rewards_of_zero_and_minus_one():
    punishing = made(right=0.0, wrong=-1.0)
    assert punishing.right == 0
    assert punishing.score([item(ADD, SUMS), item("print(3)", SUMS)]) == [0.0, -1.0]
    with pytest.raises(InputError, match=r"reward.right=-1, reward.wrong=0"):
        made(right=-1.0)


def naive(expected, found):
    """The rule, read aloud."""
    ours, theirs = expected.decode().split(), found.decode().split()
    if len(ours) != len(theirs):
        return False
    for one, other in zip(ours, theirs, strict=True):
        try:
            near = abs(float(one) - float(other)) < 1e-5
        except ValueError:
            near = False
        if one.lower() != other.lower() and not near:
            return False
    return True


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (b"1 2\n3", b"1  2 3\n\n", True),
        (b"YES", b"yes", True),
        (b"0.5", b"0.500009", True),
        (b"0.5", b"0.50002", False),
        (b"2", b"2.0", True),
        (b"2", b"+2", True),
        (b"007", b"7", True),
        (b"-0", b"0", True),
        (b"1e3", b"1000", True),
        (b"1 2", b"1", False),
        (b"1", b"1 2", False),
        (b"", b"", True),
        (b"", b"0", False),
        (b"a", b"b", False),
        (b"12", b"1 2", False),
    ],
)
def test_outputs_are_compared_by_words_and_numbers(expected, found, same):
    assert outputs_agree(expected, found) is same
    assert naive(expected, found) is same


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (b"100000000000000000001", b"100000000000000000002"),
        (b"100000000000000000001", b"100000000000000000000.0"),
        (b"inf", b"infinity"),
        (b"1_000", b"1000"),
        (b"nan", b"0"),
        (b"5", "\uff15".encode()),
        (b"5", b"0x5"),
        (b"0", b"--0"),
        (b"0.5", b"0.5.0"),
    ],
)
def test_what_floats_would_mix_up_is_told_apart(expected, found):
    assert not outputs_agree(expected, found)
    assert not outputs_agree(found, expected)


def test_no_output_keeps_the_trainer_busy():
    """It would be for hours: the comparison runs in the trainer, and nothing limits it."""
    code = "from shiqrun.rewards.grading import outputs_agree\nprint(outputs_agree(b'5.5', b'1' * (1 << 20) + b'x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n"


def test_long_integers_are_compared_digit_by_digit():
    assert outputs_agree(b"9" * 9000, b"+" + b"9" * 9000)
    assert not outputs_agree(b"9" * 9000, b"9" * 8999 + b"8")
    assert not outputs_agree(b"1000000000000000000000000000001", b"1e30")
    assert outputs_agree(b"1e30", b"1000000000000000000000000000001")  # who asks for a rounded number gets one


@pytest.mark.parametrize("printed", ["'\\xff'", "'\\u00fc'"])
def test_other_characters_are_compared_as_they_are(reward, printed):
    expected = [{"input": "", "output": "\xff"}]
    right = printed == "'\\xff'"
    assert verdicts(reward, expected, f"print({printed})") == ["passed" if right else "wrong_answer"]


# ------------------------------------------------------------------ functions
CALLS = {
    "entry_point": "f",
    "calls": [{"args": [[1, 2], 2.5], "output": [3.5, [1, 2]]}, {"args": [[], 0], "output": [0, []]}],
}


def test_a_function_is_right_or_wrong(reward):
    found = verdicts(
        reward,
        CALLS,
        "def f(xs, y): return (xs[0] if xs else 0) + y, tuple(xs)",
        "class Solution:\n  def f(self, xs, y): return [(xs[0] if xs else 0) + y + 1e-7, xs]",
        "def f(xs, y): return [y + 1, xs]",
        "def f(xs, y): return xs[0] + y, xs",
        "def g(): pass",
        "f = 3",
        "def f(xs, y): return object()",
        "def f(xs, y):\n  while True: xs.append(0)",
    )
    assert found == ["passed", "passed", "wrong_answer", *["runtime_error"] * 4, "memory_limit"]


def test_calls_take_keywords_and_go_behind_a_prefix(reward):
    tests = {
        "entry_point": "f",
        "prefix": "import math\ndef f(x, y):\n",
        "calls": [{"args": [1], "kwargs": {"y": 4}, "output": 3}],
    }
    assert verdicts(reward, tests, "    return x + math.isqrt(y)\n") == ["passed"]
    assert verdicts(reward, tests, "def f(x, y): return x + math.isqrt(y)") == ["passed"]
    assert verdicts(reward, tests, "    return x\n") == ["wrong_answer"]


CHECK = {
    "entry_point": "root",
    "prefix": "def square(x):\n    return x * x\n\ndef root(x):\n",
    "solution": "    return x ** 0.5\n",
    "check": "def check(candidate):\n  for x in (4.0, 9.0):\n    assert abs(square(candidate(x)) - x) < 1e-3\n"
    "  assert candidate(25) == root(25)\n",
}


def test_code_of_the_data_set_can_be_what_judges(reward):
    found = verdicts(
        reward,
        CHECK,
        "    return x ** 0.5 + (1e-6 if x < 25 else 0)\n",
        "def root(x): return x ** 0.5",
        "    return 2.0\n",
        "    raise ValueError\n",
        "    return type('Any', (float,), {'__eq__': lambda *a: True, '__rsub__': lambda *a: 0})()\n",
        "    import sys; sys.exit(0)\n",
        "    global check\n    check = lambda candidate: None\n    return 0\n",
    )
    assert found == [
        "passed",
        "passed",
        "wrong_answer",
        "runtime_error",
        "runtime_error",
        "wrong_answer",
        "wrong_answer",
    ]


def test_an_exception_is_no_value(reward):
    none = {"entry_point": "f", "check": "def check(g): assert g() is None", "solution": "def f(): pass"}
    assert verdicts(reward, none, "def f(): pass", "def f(): 1 / 0") == ["passed", "runtime_error"]


LOOP = {
    "entry_point": "f",
    "check": "def check(g):\n  for x in map(g, [1, 2]): assert x == 7",
    "solution": "def f(x): return 7",
}


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): raise StopIteration",
        "import os; os.write(3, b'[]'); os._exit(0)",
        "import os; os.write(3, b'[[false, \"StopIteration\"]]'); os._exit(0)",
        "import os; os.write(3, b'[[false, \"SystemExit\"]]'); os._exit(0)",
        "import os; os.write(3, b'[[false, 5]]'); os._exit(0)",
    ],
)
def test_nothing_ends_the_loop_of_a_check(reward, code):
    found = verdicts(reward, LOOP, code, "def f(x): return 7")
    assert found[0] != "passed"
    assert found[1] == "passed"


def test_a_check_may_expect_an_exception(reward):
    tests = {
        "entry_point": "f",
        "check": "def check(g):\n  try: g(-1)\n  except ValueError: return\n  assert False",
        "solution": "def f(x):\n  if x < 0: raise ValueError",
    }
    found = verdicts(reward, tests, "def f(x): raise ValueError('no')", "def f(x): pass", "def f(x): return [][0]")
    assert found == ["passed", "wrong_answer", "runtime_error"]


def test_a_check_that_calls_nothing_is_no_test(reward):
    tests = {"entry_point": "f", "check": "def check(g): pass", "solution": "def f(): pass"}
    with pytest.raises(InputError, match=r"file:7: the problem's own solution .* every program would pass"):
        verdicts(reward, tests, "def f(): 1 / 0")


def nested(depth):
    found = 1
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("def f(x): return x", nested(450)),
        ("def f(x): return x", "ab " * (10 << 20 >> 2)),
        ("def f(x): return x", float("nan")),
        ("def f(x): return x", -0.0),
        ("def f(x): return x", float("-inf")),
        ("def f(x): return x", 10**5000),
    ],
    ids=["deep", "10 MB", "nan", "minus zero", "infinite", "long"],
)
def test_values_out_of_the_common_are_judged(reward, code, value):
    tests = {"entry_point": "f", "calls": [{"args": [value], "output": value}]}
    assert verdicts(reward, tests, code, "def f(x): return [x]") == ["passed", "wrong_answer"]


def test_a_problem_whose_own_solution_fails_names_the_row(reward):
    wrong = CHECK | {"solution": "    return 2.0\n"}
    with pytest.raises(
        InputError, match=r"file:7: the problem's own solution does not pass its tests .*AssertionError"
    ):
        verdicts(reward, wrong, "    return x ** 0.5\n")


def human_eval():
    file = DATA / "HumanEval.jsonl.gz"
    if not file.exists():
        pytest.skip("SHIQRUN_TEST_DATA has no HumanEval.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    names = {"entry_point": "entry_point", "prefix": "prompt", "check": "test", "solution": "canonical_solution"}
    return [(row, {ours: row[theirs] for ours, theirs in names.items()}) for row in rows]


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (lambda row: row["canonical_solution"], 164),
        (lambda row: "    import os; os._exit(0)\n", 0),
        pytest.param(
            lambda row: f"Sure:\n```python\n{row['prompt']}{row['canonical_solution']}```\nDone.",
            164,
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda row: "    pass\n", 0, marks=pytest.mark.slow),
        pytest.param(
            lambda row: "    return type('Any', (), {'__eq__': lambda *a: True, '__hash__': None})()\n",
            0,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["solution", "exit", "fenced", "pass", "equal"],
)
def test_human_eval(reward, answer, passes):
    found = reward.verdicts([item(answer(row), tests, row["task_id"]) for row, tests in human_eval()])
    assert len(found) == 164
    assert found.count("passed") == passes


# ------------------------------------------------------------------ input that cannot work
@pytest.mark.parametrize(
    ("tests", "message"),
    [
        (None, "file:7: no tests to run; reward=unit_tests needs a column `tests`"),
        ([], "file:7: the problem has no tests, so that every program would pass"),
        ({"entry_point": "f", "calls": []}, "file:7: the problem has no tests"),
        ("1 2", "file:7: tests are '1 2'; expected a list"),
        (5, "file:7: tests are 5; expected a list"),
        ([{"input": "1"}], "file:7: test 1 is .*; expected"),
        ([SUMS[0], {"input": "1", "output": 2}], "file:7: test 2 is .*; expected"),
        ([{"input": "\ud800", "output": ""}], "file:7: test 1 is no valid text"),
        ([{"input": "x" * ((64 << 20) + 1), "output": ""}], "file:7: test 1 has more than 64 MiB"),
        ({"calls": [{"args": [], "output": 1}]}, "file:7: tests have entry_point None"),
        ({"entry_point": "f g", "calls": [{"args": [], "output": 1}]}, "file:7: tests have entry_point 'f g'"),
        ({"entry_point": "f", "calls": [{"args": 3, "output": 1}]}, "file:7: call 1 is .*; expected"),
        ({"entry_point": "f", "calls": [{"args": []}]}, "file:7: call 1 is .*; expected"),
        ({"entry_point": "f", "calls": [{"args": [], "kwargs": 3, "output": 1}]}, "file:7: call 1: kwargs are 3"),
        ({"entry_point": "f"}, "file:7: tests have check None; expected"),
        ([SUMS[0]] * 10_000, r"file:7: the problem has 10,000 tests, more than reward.max_tests=100; raise it"),
    ],
)
def test_tests_that_cannot_be_run_name_the_row(reward, tests, message):
    with pytest.raises(InputError, match=message):
        verdicts(reward, tests, ADD)


def test_ten_thousand_tests_run_where_they_are_allowed():
    tests = [*[{"input": "", "output": "1"}] * 20, {"input": "", "output": "2"}] + [{"input": "", "output": "1"}] * 9979
    assert verdicts(made(max_tests=10_000), tests, "print(1)") == ["wrong_answer"]  # stops at the one that fails


def test_a_test_of_10_mb_runs(reward):
    text = "ab " * (10 << 20 >> 2)
    tests = [{"input": text, "output": text}]
    echo = "import sys; sys.stdout.write(sys.stdin.read())"
    assert verdicts(reward, tests, echo, echo + "\nprint('x')", "print('x')") == [
        "passed",
        "wrong_answer",
        "wrong_answer",
    ]


def test_a_completion_that_is_no_text_is_wrong(reward):
    assert verdicts(reward, SUMS, f"{ADD}\n# \ud800", f"{ADD}\n# \0") == ["syntax_error"] * 2


# ------------------------------------------------------------------ the contract
def test_settings_and_contract(reward):
    assert isinstance(reward, Judging)
    assert not isinstance(reward, Bounded)
    reward.refuse_seen([[user("solve it")]])
    same, others = {"workers": 1, "max_tests": 5}, [{"timeout": 11}, {"memory": 513}, {"wrong": -1.0}]
    assert made(**same).fingerprint() == reward.fingerprint()
    assert reward.fingerprint() not in {made(**other).fingerprint() for other in others}
    about = {"name": "unit_tests", "right": 1.0, "wrong": 0.0, "timeout": 10, "memory": 512, "sandbox": "guard"}
    assert reward.about() == about


def test_limits_alone_are_warned_of(caplog):
    made(sandbox="rlimits")
    assert "reward.sandbox=rlimits: programs run with limits" in caplog.text


# ------------------------------------------------------------------ the command line
