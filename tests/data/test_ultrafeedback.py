import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.batching.logged_data import DataSettings, examples_of
from shiqrun.data.ultrafeedback import UltraFeedback
from shiqrun.errors import InputError
from tests.support.helpers import encoded, tokenizer

ALL = DataSettings(limit=None, max_length=None, val_fraction=0.5, completions="all", train_on="assistant")


def uf(path, variant="binarized", score="fine_grained", revision=None):
    return UltraFeedback(path=None if path is None else str(path), variant=variant, score=score, revision=revision)


def chat(prompt, answer, *before):
    said = [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]
    return [*({"content": text, "role": role} for role, text in before), *said]


def pair(prompt="q", chosen="good", rejected="bad", scores=(8.5, 5.0)):
    """A row of HuggingFaceH4/ultrafeedback_binarized."""
    return {
        "prompt": prompt,
        "prompt_id": "aeccf551",
        "chosen": chat(prompt, chosen),
        "rejected": chat(prompt, rejected),
        "messages": chat(prompt, chosen),
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def answer(response="yes", ratings=("4", "5", "4", "5"), fine="mean", overall=7.5, **fields):
    """A completion of openbmb/UltraFeedback."""
    asked = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    made = {
        "model": "llama-2-13b-chat",
        "principle": "truthfulness",
        "custom_system_prompt": "As an AI assistant, never say anything untrue.",
        "response": response,
        "critique": "Well structured.",
        "overall_score": overall,
        "fine-grained_score": sum(map(int, ratings)) / 4 if fine == "mean" else fine,
        "annotations": {name: {"Rating": r, "Rationale": "so"} for name, r in zip(asked, ratings, strict=True)},
    }
    return made | fields


def scored(*answers, instruction="Which books?"):
    """A row of openbmb/UltraFeedback."""
    return {
        "source": "evol_instruct",
        "instruction": instruction,
        "models": ["llama-2-13b-chat"] * len(answers),
        "completions": list(answers),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def write(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load(source, split="train"):
    return list(source.load(split))


def texts(example):
    return [c[0]["content"] for c in example.completions]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_pair_has_both_scores_as_rewards_and_is_compared_with_itself_alone(tmp_path, name):
    file = write(tmp_path / name, pair(), pair(scores=(8.5, 8.5), rejected="as good"))
    first, tie = load(uf(file))
    assert first.messages == [{"role": "user", "content": "q"}]
    assert first.completions == [
        [{"role": "assistant", "content": "good"}],
        [{"role": "assistant", "content": "bad"}],
    ]
    assert list(first.rewards) == [8.5, 5.0]
    assert list(tie.rewards) == [8.5, 8.5]
    assert first.source.startswith(str(file))
    assert first.prompt_id == tie.prompt_id
    rows, _ = encoded(tokenizer(), first, tie)
    assert [r.group == rows[0].group for r in rows] == [True, True, False, False]


def test_a_system_message_of_both_sides_belongs_to_the_prompt(tmp_path):
    sides = {name: chat("q", name, ("system", "be brief")) for name in ("chosen", "rejected")}
    (example,) = load(uf(write(tmp_path / "a.jsonl", pair() | sides)))
    assert [m["content"] for m in example.messages] == ["be brief", "q"]
    assert texts(example) == ["chosen", "rejected"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(scores=(None, 5.0)), "no score"),
        (pair(scores=(8.0, float("nan"))), "no score"),
        (pair(rejected=" \n"), "empty completion"),
        (pair(rejected=""), "empty completion"),
        (pair(prompt=" "), "no prompt"),
        (pair() | {"rejected": chat("r", "bad")}, "chosen and rejected answer different prompts"),
    ],
)
def test_pairs_that_cannot_be_used_are_dropped_and_counted(tmp_path, row, reason):
    source = uf(write(tmp_path / "a.jsonl", row, pair(chosen="kept")))
    assert [texts(e)[0] for e in [*load(source), *load(source)]] == ["kept", "kept"]
    assert source.dropped == {reason: 1}


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("ending", ["-00000-of-00001.parquet", ".jsonl"])
def test_the_hubs_layout_brings_its_own_validation_split(tmp_path, folder, ending):
    for split in ("train_prefs", "train_sft", "test_prefs", "test_sft", "test_gen"):
        write(tmp_path / folder / f"{split}{ending}", pair(prompt=f"about {split}", chosen=split))
    source = uf(tmp_path)
    assert source.splits == ("train", "val")
    assert [texts(e)[0] for e in load(source)] == ["train_prefs"]
    assert [texts(e)[0] for e in load(source, "val")] == ["test_prefs"]


def test_the_parts_of_a_split_are_read_in_order(tmp_path):
    for part in range(3):
        write(tmp_path / f"data/train_prefs-0000{part}-of-00003.parquet", pair(chosen=str(part)))
    source = uf(tmp_path)
    assert [texts(e)[0] for e in load(source)] == ["0", "1", "2"]
    assert source.splits == ("train",)


def test_without_a_validation_split_prompts_are_held_out(tmp_path):
    file = write(tmp_path / "a.jsonl", *(pair(f"q{i}") for i in range(40)))
    source = uf(file)
    train, val = ({e.prompt_id for e in examples_of(source, split, ALL)} for split in ("train", "val"))
    assert train
    assert val
    assert not train & val
    assert len(train | val) == 40


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_the_four_completions_of_a_prompt_are_one_group_with_the_mean_rating_as_reward(tmp_path, name):
    file = write(
        tmp_path / name,
        scored(*(answer(f"say {r}", ratings=(r, "5", "4", "5")) for r in "1234")),
        scored(answer("other"), instruction="Another?"),
    )
    source = uf(file, "scored")
    assert source.splits == ("train",)
    four, other = load(source)
    assert four.messages == [{"role": "user", "content": "Which books?"}]  # no custom_system_prompt
    assert texts(four) == ["say 1", "say 2", "say 3", "say 4"]
    assert list(four.rewards) == [3.75, 4.0, 4.25, 4.5]
    rows, _ = encoded(tokenizer(), four, other)
    assert [r.group == rows[0].group for r in rows] == [True] * 4 + [False]


def test_overall_score_is_taken_where_it_is_asked_for(tmp_path):
    file = write(tmp_path / "a.jsonl", scored(answer(overall=7.5), answer(overall="9"), answer(overall=10.0)))
    (example,) = load(uf(file, "scored", "overall"))
    assert list(example.rewards) == [7.5, 9.0, 10.0]


def test_a_missing_mean_is_made_of_the_ratings_that_are_numbers(tmp_path):
    bare = answer("bare", ratings=("2", "N/A", "5", "N/A"), fine=None)
    first_release = {k: v for k, v in answer("old", ratings=("1", "2", "4", "5")).items() if k != "fine-grained_score"}
    (example,) = load(uf(write(tmp_path / "a.jsonl", scored(bare, first_release)), "scored"))
    assert list(example.rewards) == [3.5, 3.0]


def test_completions_without_text_or_score_are_dropped_and_counted(tmp_path):
    nothing = answer("unrated", ratings=("N/A",) * 4, fine=None, overall=None)
    rows = [
        scored(answer("kept"), answer(""), answer(" \n"), nothing),
        scored(nothing, instruction="Nobody?"),
        scored(instruction="Nothing?"),
        scored(answer("to nobody"), instruction=""),
    ]
    for score in ("fine_grained", "overall"):
        source = uf(write(tmp_path / "a.jsonl", *rows), "scored", score)
        (example,) = load(source)
        assert texts(example) == ["kept"]
        assert source.dropped == {
            "empty completion": 2,
            "no score": 2,
            "no completion with text and score": 2,
            "no prompt": 1,
        }


def test_the_wrong_scores_of_the_first_release_are_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", scored(answer(), answer("bad", ratings=("1", "2", "2", "1"), overall=10)))
    with pytest.raises(InputError, match=r"a\.jsonl:1, completion 2: overall_score 10.*1\.5.*data\.score=fine_grained"):
        load(uf(file, "scored", "overall"))
    (example,) = load(uf(file, "scored", "fine_grained"))
    assert list(example.rewards) == [4.5, 1.5]


def test_a_directory_of_the_originals_files_is_read_by_name(tmp_path):
    for name in ("flan", "evol_instruct"):
        write(tmp_path / f"{name}.jsonl", scored(answer(name), instruction=name))
    assert [texts(e) for e in load(uf(tmp_path, "scored"))] == [["evol_instruct"], ["flan"]]


@pytest.mark.parametrize(
    ("variant", "row", "message"),
    [
        ("scored", pair(), r"'instruction', found prompt, prompt_id.*data\.variant=binarized reads pairs"),
        ("binarized", scored(answer()), r"'chosen', found source, instruction.*data\.variant=scored"),
        ("binarized", pair() | {"chosen": "x"}, r"expected a list in column 'chosen', found a str"),
        ("binarized", pair() | {"chosen": chat("q", "a")[:1]}, r"'chosen' must be a prompt and an assistant's answer"),
        ("binarized", pair(scores=("good", 1)), r"column 'score_chosen'.*expected a finite number.*'good'"),
        ("binarized", pair(scores=(True, 1)), r"column 'score_chosen'.*found True"),
        ("scored", scored(answer(fine=[4])), r"completion 1, fine-grained_score: expected a finite number"),
        ("scored", scored(answer(fine=None, ratings=("1", "x", "2", "3"))), r"rating of honesty: expected a finite"),
        ("scored", scored("yes"), r"completion 1: expected an object with response and scores"),
        ("scored", scored({"overall_score": 3}), r"completion 1: expected a text in column 'response'"),
    ],
)
def test_rows_of_another_form_are_named(tmp_path, variant, row, message):
    file = write(tmp_path / "a.jsonl", row)
    with pytest.raises(InputError, match=rf"a\.jsonl:1.*{message}"):
        load(uf(file, variant))


@pytest.mark.parametrize(
    ("variant", "name"), [("binarized", "HuggingFaceH4/ultrafeedback_binarized"), ("scored", "openbmb/UltraFeedback")]
)
def test_without_a_network_the_hub_is_refused_with_the_way_out(tmp_path, variant, name):
    code = (
        "from shiqrun.data.ultrafeedback import UltraFeedback\n"
        f"u = UltraFeedback(path=None, variant='{variant}', score='overall', revision=None)\n"
        "next(u.load('train'))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert f"InputError: {name}" in done.stderr
    assert "data.path=" in done.stderr
