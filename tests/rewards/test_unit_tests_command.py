"""`shiqrun score reward=unit_tests` and the data sets whose solutions it judges."""

import gzip
import json
import re
import subprocess
import sys

import pytest

from shiqrun.cli import main
from shiqrun.sandbox.choice import AUTOMATIC
from tests.sandbox.here import usable
from tests.sandbox.test_backends import WITHOUT
from tests.support.command_line import summary
from tests.support.helpers import DATA

ADD = "print(sum(map(int, input().split())))"
SUMS = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10"}]


@pytest.fixture
def workplace(workplace):
    usable("guard")
    return workplace


def score(workplace, rows, *words):
    (workplace / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(["score", "data=jsonl", "data.path=in.jsonl", "reward=unit_tests", "run_dir=out", *words])
    file = workplace / "out" / "scored.jsonl"
    return code, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_command_grades_rows_and_writes_verdicts(workplace, capsys):
    texts = {ADD: "passed", "print(3)": "wrong_answer", "while True: pass": "cpu_limit", "1 / 0": "runtime_error"}
    rows = [
        {"prompt": f"add {i}", "completion": text, "tests": SUMS, "answer": "kept", "topic": i}
        for i, text in enumerate(texts)
    ]
    code, scored = score(workplace, rows, "reward.timeout=1", "reward.right=0", "reward.wrong=-1")
    assert code == 0
    found = [row["verdict"] for row in scored]
    assert ["cpu_limit" if word == "timeout" else word for word in found] == [*texts.values()]  # on a busy machine
    assert [row["reward"] for row in scored] == [0, -1, -1, -1]
    assert all(row["tests"] == SUMS and row["answer"] == "kept" and row["topic"] == i for i, row in enumerate(scored))
    found = summary(workplace / "out")
    assert (found["verdict/passed"], found["verdict/wrong_answer"]) == (1, 1)
    assert found["reward/sandbox"] in AUTOMATIC
    assert "wrong_answer 1" in capsys.readouterr().out


def test_kept_scores_keep_their_verdicts(workplace):
    rows = [{"prompt": "add", "completions": [ADD, "print(3)"], "tests": SUMS}]
    _, first = score(workplace, rows)
    _, second = score(workplace, rows, "run_dir=again")
    again = [json.loads(line) for line in (workplace / "again" / "scored.jsonl").read_text().splitlines()]
    assert first == second == again
    assert again[0]["verdicts"] == ["passed", "wrong_answer"]
    assert summary(workplace / "again")["scores_computed"] == 0


def test_a_scored_file_can_be_scored_and_trained_on(workplace):
    rows = [
        {"prompt": "add", "completion": ADD, "tests": SUMS},
        {"prompt": "more", "completion": "print(3)", "tests": SUMS},
    ]
    _, first = score(workplace, rows)
    _, second = score(workplace, first, "run_dir=out2")
    again = [json.loads(line) for line in (workplace / "out2" / "scored.jsonl").read_text().splitlines()]
    assert again == first == second


def test_pairs_get_a_verdict_each(workplace):
    _, (row,) = score(workplace, [{"prompt": "add", "chosen": ADD, "rejected": "print(3)", "tests": SUMS}])
    assert (row["verdict_chosen"], row["verdict_rejected"]) == ("passed", "wrong_answer")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": ADD}, r"in.jsonl:1, completion 1: no tests to run"),
        ({"completion": ADD, "tests": []}, r"in.jsonl:1, completion 1: the problem has no tests"),
        ({"completion": "\ud800", "tests": SUMS}, r"in.jsonl:1: column 'completion'.* half a surrogate pair"),
        ({"completion": ADD, "tests": SUMS[:1] * 10_000}, r"10,000 tests, more than reward.max_tests=1,000; raise it"),
    ],
)
def test_rows_that_cannot_be_graded_end_with_2(workplace, capfd, row, message):
    assert score(workplace, [{"prompt": "add", **row}]) == (2, [])
    assert re.search(message, capfd.readouterr().err)


def test_a_file_that_is_not_utf8_ends_with_2(workplace, capfd):
    line = json.dumps({"prompt": "say it", "completion": "print('?')", "tests": SUMS}).encode()
    (workplace / "in.jsonl").write_bytes(line.replace(b"?", b"\xff") + b"\n")
    assert main(["score", "data=jsonl", "data.path=in.jsonl", "reward=unit_tests", "run_dir=out"]) == 2
    assert "in.jsonl:1: not UTF-8" in capfd.readouterr().err


def test_the_command_grades_tests_of_10_mb(workplace):
    text = " ".join(["7"] * (5 << 20))
    rows = [
        {"prompt": "say it", "completion": "print(input())", "tests": [{"input": text, "output": text}]},
        {"prompt": "add it", "completion": ADD, "tests": [{"input": text, "output": str(7 * (5 << 20) + 1)}]},
    ]
    code, scored = score(workplace, rows)
    assert code == 0
    assert [row["verdict"] for row in scored] == ["passed", "wrong_answer"]


UNCONFINED = WITHOUT.partition("for choice")[0] + "from shiqrun.cli import main\nsys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_without_a_sandbox_the_command_ends_with_2_unless_the_user_insists(workplace):
    """In a process in which the kernel answers as one without Landlock does, and no bubblewrap."""
    rows = [{"prompt": "add", "completion": ADD, "tests": SUMS}]
    (workplace / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["score", "data=jsonl", "data.path=in.jsonl", "reward=unit_tests", "run_dir=out"]
    command = [sys.executable, "-c", UNCONFINED, *words]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    for said in ("no sandbox for programs that a model wrote", "apt install bubblewrap", "reward.sandbox=rlimits"):
        assert said in refused.stderr
    assert not (workplace / "out" / "scored.jsonl").exists()
    done = subprocess.run([*command, "reward.sandbox=rlimits"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "programs run with limits" in done.stdout + done.stderr
    assert summary(workplace / "out")["verdict/passed"] == 1


# ------------------------------------------------------------------ the data sets
def real(name):
    if not (DATA / name).exists():
        pytest.skip(f"SHIQRUN_TEST_DATA has no {name}")
    return DATA / name


@pytest.mark.slow
def test_all_reference_solutions_of_human_eval_pass_and_spoilt_ones_fail(workplace):
    file = real("HumanEval.jsonl.gz")
    words = ["reward=unit_tests", "reward.right=0", "reward.wrong=-1", "reward.timeout=20", "data.val_fraction=0"]
    assert main(["score", "data=humaneval", f"data.path={file}", *words, "run_dir=out"]) == 0
    found = summary(workplace / "out")
    assert (found["verdict/passed"], found["train/score_mean"]) == (164, 0)

    spoilt = workplace / "spoilt.jsonl"
    with gzip.open(file, "rt", encoding="utf-8") as lines, spoilt.open("w") as out:
        rows = [json.loads(line) for line in lines]
        for row in rows:
            body = row["prompt"] + row["canonical_solution"]
            broken = f"{body}\n{row['entry_point']} = lambda *a, f={row['entry_point']}: [f(*a)]\n"
            tests = {"entry_point": row["entry_point"], "prefix": row["prompt"], "check": row["test"]}
            tests["solution"] = row["canonical_solution"]
            print(json.dumps({"prompt": row["prompt"], "completion": broken, "tests": tests}), file=out)
    assert main(["score", "data=jsonl", f"data.path={spoilt}", *words, "run_dir=spoilt"]) == 0
    assert "verdict/passed" not in summary(workplace / "spoilt")


def test_all_solutions_of_gsm8k_are_right_and_spoilt_ones_wrong(workplace):
    file = real("gsm8k_test.jsonl.gz")
    words = ["reward=math_answer", "data.val_fraction=0"]
    assert main(["score", "data=gsm8k", f"data.path={file}", *words, "run_dir=out"]) == 0
    found = summary(workplace / "out")
    assert (found["train/completions"], found["train/score_min"]) == (1319, 1)

    with gzip.open(file, "rt", encoding="utf-8") as lines, (workplace / "spoilt.jsonl").open("w") as out:
        for row in map(json.loads, lines):
            said = {"prompt": row["question"], "completion": row["answer"] + "1", "answer": row["answer"]}
            print(json.dumps(said), file=out)
    assert main(["score", "data=jsonl", "data.path=spoilt.jsonl", *words, "run_dir=spoilt"]) == 0
    found = summary(workplace / "spoilt")
    assert (found["train/completions"], found["train/score_max"]) == (1319, 0)
