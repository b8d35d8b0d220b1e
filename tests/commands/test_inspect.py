import json
import re

import pytest

from shiqrun.cli import main
from tests.support.command_line import on_a_terminal

SMALL = ["data=treasure", "data.maps=20", "data.val_maps=5"]


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = main(["inspect", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def chat(*turns):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, turns, strict=False)]


def write(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data=jsonl", "data.path=rows.jsonl", "data.val_fraction=0", "model=tiny"]


def test_actions_stand_in_brackets_with_each_turns_reward_below_its_end(inspect, tmp_path):
    words = write(tmp_path, {"messages": chat("hi", "yes", "more", "no"), "rewards": [0.25, -1]})
    code, out, _ = inspect(*words)
    assert code == 0
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("user       <bos>"))
    shown = lines[start : lines.index("", start)]
    assert [line for line in shown if "Assistant" not in line and re.search("[a-z]", line)] == [
        "user       <bos>User: hi↵",
        "user       User: more↵",
    ]
    for text, reward in (("assistant  Assistant:[ yes<eos>]", "0.25"), ("assistant  Assistant:[ no<eos>]", "-1")):
        at = next(i for i, line in enumerate(shown) if line.startswith(text))
        assert shown[at + 1] == " " * text.index("<eos>") + reward


def test_text_is_shown_as_it_is_and_cannot_steer_the_terminal(inspect, tmp_path):
    words = write(tmp_path, {"prompt": "[red]é日[/red]", "completion": "naïve 本\x1b[31m\ttab\nnew", "reward": 0})
    _, out, _ = inspect(*words, "model.vocab_size=261")  # so few that a letter beyond ASCII is several tokens
    assert "User: [red]é日[/red]↵" in out
    assert "[ naïve 本\\x1b[31m\\ttab↵\n           new<eos>]\n" in out
    assert "\x1b" not in out
    assert re.search(r"^ +0$", out, re.MULTILINE)  # a return of 0 is told from no reward


def test_rows_without_rewards_are_shown_without(inspect, tmp_path):
    _, out, _ = inspect(*write(tmp_path, {"prompt": "a", "completion": "b"}))
    assert "no rewards" in out
    assert re.search(r"return +│ +- │", out)


def test_the_tables_count_rows_prompts_lengths_and_drops(inspect, tmp_path):
    texts = ("x", "yy", "zzz", "".join(map(chr, range(33, 126))))
    rows = [{"prompt": f"p{i % 2}", "completion": t, "reward": len(t)} for i, t in enumerate(texts)]
    rows.append({"prompt": "p0", "completion": "", "reward": 0})
    _, out, _ = inspect(*write(tmp_path, *rows), "model.vocab_size=261", "data.max_length=40")

    def cells(name):
        return next([c.strip() for c in line.split("│")[1:-1]] for line in out.splitlines() if f"│ {name} " in line)

    assert cells("tokens")[:3] == ["train", "3", "2"]
    assert cells("return")[4:] == ["1", "2", "3", "3"]
    assert cells("actions")[4] == "3"  # a blank, x and <eos>; 261 tokens are the bytes, 3 special ones and 2 merges
    assert "longer than max_length (40 tokens) │      1 │" in out
    assert "empty completion                   │      1 │ rows.jsonl:5  assistant: " in out
    assert "│ rows.jsonl:4, " in out


def test_limit_is_the_number_of_trajectories_shown_and_dry_run_shows_none(inspect):
    for words, shown in (([], 3), (["limit=5"], 5), (["limit=0"], 0), (["dry_run=true"], 0)):
        code, out, _ = inspect(*SMALL, *words)
        assert code == 0
        assert out.count("<bos> start") == shown
        assert "│ train │   80 │      20 │ tokens" in out
        assert "data_seed: 0" not in out
        goes_on = (
            "the same without dry_run=true" if words == ["dry_run=true"] else "shiqrun train data=treasure data.maps=20"
        )
        assert out.splitlines()[-1].startswith(f"next: {goes_on}")


def test_the_split_is_chosen(inspect):
    _, out, _ = inspect(*SMALL, "split=val", "limit=20")
    assert out.count("treasure:val:") == 20
    assert "treasure:train:" not in out


def test_nothing_is_written(inspect, tmp_path):
    assert inspect(*SMALL)[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["limit=-1"], "limit: met -1"),
        (["limt=1"], "limt: unknown key; did you mean limit?"),
        (["split=test"], "split: met 'test'"),
        (["out=x.jsonl"], "out=x.jsonl: .*run=RUN_DIR only"),
        (["run=nowhere"], "nowhere: no such directory"),
        (["data=jsonl"], r"data\.path: not set"),
        (["data=jsonl", "data.path=gone.jsonl"], r"gone\.jsonl: no such file"),
        (["data=jsonl", "data.path=x", "data.pair_rewards=[1,a]"], r"data\.pair_rewards: met \[1, 'a'\]"),
        (["data=hh", "data.subset=harmles"], r"data\.subset: met 'harmles'.*harmless"),
        (["data=hh", "data.path=null"], r"Anthropic/hh-rlhf.*data\.path="),
    ],
)
def test_input_that_cannot_work_ends_with_2(inspect, monkeypatch, words, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = inspect(*words)
    assert code == 2
    assert re.search(message, err)


def test_on_a_terminal_actions_are_coloured_instead(tmp_path):
    code, out = on_a_terminal("inspect", *SMALL, "limit=1", cwd=tmp_path)
    assert code == 0
    assert re.search(r"\x1b\[[\d;]*4[26]m \w+\x1b\[0m", out)
    assert "[" not in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out)
