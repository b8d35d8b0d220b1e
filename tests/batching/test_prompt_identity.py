"""A prompt is what the model reads: ids that say otherwise are refused, and no split leaks by white space."""

import hashlib
import json
from pathlib import Path

import pytest

from shiqrun.batching.logged_data import DataSettings, examples_of, is_held_out, load
from shiqrun.batching.prompt_identity import prompt_key, rendered_prompt_keys
from shiqrun.batching.selection import SEEN
from shiqrun.cli import main
from shiqrun.data.chats import prompt_name
from shiqrun.data.hh import HH
from shiqrun.data.jsonl import Jsonl
from tests.support import helpers
from tests.support.command_line import summary

pytestmark = pytest.mark.usefixtures("workplace")

TRIMMING = helpers.CHATML.replace("m.content", "m.content | trim")
MODEL = ("model=hf", "model.path=model")
SHORT = ("data=jsonl", "logger=none", "trainer.max_steps=1", "trainer.batch_size=4", "eval.max_prompts=0")


def saved(template):
    tokenizer = helpers.tokenizer(template)
    helpers.llama(vocabulary=len(tokenizer), max_position_embeddings=256).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return tokenizer


def write(rows, name="rows.jsonl"):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return f"data.path={name}"


def asked(texts, **columns):
    return [{"prompt": text, "completion": f"a{k}", "reward": k, **columns} for text in texts for k in range(2)]


def settings(**options):
    plain = {"limit": None, "max_length": None, "val_fraction": 0.3, "completions": "all", "train_on": "assistant"}
    return DataSettings(**(plain | options))


# ------------------------------------------------------------------ prompt_id
ALGOS = [("algo=copg",), ("algo=dpo",), ("algo=shiq", "algo.reward_offset=group_mean"), ("algo=sft",)]


@pytest.mark.parametrize("algo", ALGOS, ids=lambda words: words[0])
def test_an_id_of_different_prompts_is_refused_with_two_rows(capfd, algo):
    rows = asked([f"question {n}" for n in range(4)], prompt_id=0)
    assert main(["train", *SHORT, write(rows), *algo, "run_dir=run"]) == 2
    said = capfd.readouterr().err
    assert "rows.jsonl:3: prompt_id '0' stands for another prompt than in rows.jsonl:1" in said


@pytest.mark.parametrize("command", ["inspect", "values"])
def test_other_commands_refuse_it_too(capfd, command):
    rows = asked([f"question {n}" for n in range(4)], prompt_id=0, answer="a")
    words = ("reward=exact_match", "values.samples=1", "run_dir=run") if command == "values" else ()
    assert main([command, "data=jsonl", write(rows), *words]) == 2
    assert "prompt_id '0' stands for another prompt" in capfd.readouterr().err


def test_an_id_of_prompts_with_equal_tokens_is_one_prompt():
    source = Jsonl(path=write(asked(["ask", "ask "], prompt_id="x"))[10:], val_path=None, pair_rewards=None)
    encoded = load(source, saved(TRIMMING), settings(val_fraction=0.0), context=None, compared_by="copg")
    assert len(encoded.train) == 4
    assert len({*encoded.train.group}) == 1


def test_two_ids_keep_the_completions_of_one_prompt_apart():
    rows = [*asked(["ask"], prompt_id="x"), *asked(["ask"], prompt_id="y")]
    source = Jsonl(path=write(rows)[10:], val_path=None, pair_rewards=None)
    encoded = load(source, helpers.tokenizer(), settings(val_fraction=0.0), context=None, compared_by="copg")
    assert sorted(encoded.train.group) == [0, 0, 1, 1]


# ------------------------------------------------------------------ validation
def texts_on_two_sides(count=12):
    """Texts whose like with a space behind it falls on the other side of a split by thirds."""

    def held(text):
        return is_held_out(prompt_name([helpers.user(text)]), 0.3)

    return [text for n in range(200) if held(text := f"question {n}") != held(f"{text} ")][:count]


def test_validation_prompts_that_the_model_reads_in_training_are_dropped_and_counted():
    pairs = texts_on_two_sides()
    rows = asked([*pairs, *(f"{text} " for text in pairs), *(f"how {n}" for n in range(20))])
    saved(TRIMMING)
    assert main(["train", *SHORT, *MODEL, write(rows), "data.val_fraction=0.3", "run_dir=run"]) == 0
    assert summary(Path("run"))[f"dropped/{SEEN}"] == 2 * len(pairs)


def test_a_template_that_keeps_white_space_tells_the_prompts_apart():
    pairs = texts_on_two_sides()
    source = Jsonl(path=write(asked([*pairs, *(f"{t} " for t in pairs)]))[10:], val_path=None, pair_rewards=None)
    encoded = load(source, saved(helpers.CHATML), settings(), context=None)
    assert not encoded.dropped
    assert (len(encoded.train), len(encoded.val)) == (2 * len(pairs),) * 2


def test_rows_without_such_a_like_keep_their_split():
    """The same sides as by the hash of their ids alone, and all training rows whatever the validation split loses."""
    pairs, others = texts_on_two_sides(), [f"how {n}" for n in range(60)]
    source = Jsonl(
        path=write(asked([*pairs, *(f"{t} " for t in pairs), *others]))[10:], val_path=None, pair_rewards=None
    )
    encoded = load(source, saved(TRIMMING), settings(), context=None)
    for split, rows in (("train", encoded.train), ("val", encoded.val)):
        by_hash = [e.prompt_id for e in examples_of(source, split, settings())]
        unlike = {prompt_name([helpers.user(text)]) for text in others}
        kept = [t.prompt_id for t in rows.trajectories]
        assert [i for i in kept if i in unlike] == [i for i in by_hash if i in unlike]
        if split == "train":
            assert kept == by_hash


@pytest.mark.skipif(not (helpers.DATA / "hh_harmless_test_train4of5.jsonl.gz").is_file(), reason="no hh-rlhf there")
def test_the_splits_of_hh_are_those_of_the_hash_alone():
    path = str(helpers.DATA / "hh_harmless_test_train4of5.jsonl.gz")
    source = HH(path=path, subset="both", split="train", pair_rewards=[1, -1], on_embedded_marker="drop")
    asked_for = settings(val_fraction=0.1, limit=600)
    encoded = load(source, helpers.tokenizer(TRIMMING), asked_for, context=None)
    assert SEEN not in encoded.dropped
    for split, rows in (("train", encoded.train), ("val", encoded.val)):
        sides = {e.source for e in examples_of(source, split, asked_for)}
        assert sides == {t.source for t in rows.trajectories}


def test_rows_of_rollout_path_that_are_validation_prompts_in_tokens_are_left_out():
    from shiqrun.rollout.other_sources import load_further_rows

    pairs = texts_on_two_sides()
    source = Jsonl(path=write(asked(pairs))[10:], val_path=None, pair_rewards=None)
    held = [e.messages[0]["content"] for e in examples_of(source, "val", settings())]
    assert held
    further = write(asked([f"{text} " for text in pairs]), "further.jsonl")[10:]
    tokenizer = saved(TRIMMING)
    rows = load_further_rows(further, source, settings(), tokenizer, context=None, compared_by=None, together=False)
    assert len(rows) == 2 * (len(pairs) - len({*held}))


# ------------------------------------------------------------------ reward models
def test_a_reward_model_refuses_prompts_that_it_has_read_as_the_same_tokens(capfd):
    saved(TRIMMING)
    pairs = [{"prompt": f"question {n}", "chosen": "fine", "rejected": "bad"} for n in range(8)]
    trained = ("algo=reward_model", *MODEL, write(pairs), "data.val_fraction=0", "run_dir=rm")
    assert main(["train", "data=jsonl", "logger=none", "trainer.max_steps=1", "trainer.batch_size=4", *trained]) == 0
    write([row | {"prompt": f"how {n}"} for n, row in enumerate(pairs)], "train.jsonl")
    write([pairs[3] | {"prompt": "question 3 "}], "val.jsonl")
    capfd.readouterr()
    words = ("data.path=train.jsonl", "data.val_path=val.jsonl", "eval.reward=rm/reward_model", "eval.max_new_tokens=4")
    assert main(["train", *SHORT[:-1], *MODEL, *words, "run_dir=run"]) == 2
    assert "this reward model was trained on 1 of these 1 prompts" in capfd.readouterr().err


def test_the_key_of_a_trajectory_is_that_of_its_rendered_prompt():
    tokenizer = helpers.tokenizer(TRIMMING)
    given = helpers.example("fine", prompt=(helpers.user("ask "), helpers.assistant("b"), helpers.user("more")))
    (row,), _ = helpers.encoded(tokenizer, given)
    assert [*rendered_prompt_keys([given.messages], tokenizer)] == [prompt_key(row)]


# ------------------------------------------------------------------ pairs that contradict themselves
def test_pairs_of_equal_texts_with_different_rewards_are_dropped_and_counted():
    """Equal in tokens: under a template that trims, white space at the end makes no other text."""
    saved(TRIMMING)
    pairs = [{"prompt": f"question {n}", "chosen": "fine", "rejected": "bad"} for n in range(8)]
    pairs += [{"prompt": "odd", "chosen": "fine", "rejected": "fine"}, {"prompt": "o", "chosen": "a", "rejected": "a "}]
    words = (write(pairs), "data.val_fraction=0", "algo=dpo", "run_dir=run")
    assert main(["train", *SHORT, *MODEL, *words]) == 0
    assert summary(Path("run"))["dropped/chosen and rejected are the same, with different rewards"] == 4


def test_pairs_of_equal_texts_with_equal_scores_stay():
    pair = {"prompt": "odd", "chosen": "fine", "rejected": "fine", "score_chosen": 1, "score_rejected": 1}
    source = Jsonl(path=write([pair])[10:], val_path=None, pair_rewards=None)
    assert len(load(source, helpers.tokenizer(), settings(val_fraction=0.0), context=None).train) == 2


@pytest.mark.parametrize(
    "prompt",
    [
        [helpers.user('say "é" \\ \n\t\x00 \u2028 日本 🤗')],
        [{"content": "first", "role": "system"}, helpers.user("")],
        [helpers.user("hi") | {"name": "Bo", "tools": [{"b": 1, "a": "é"}]}],
        [helpers.user("hi"), {"role": "assistant", "content": "", "tool_calls": [{"z": 1, "a": 2}]}],
        [],
    ],
)
def test_a_prompts_name_is_a_hash_of_its_messages_as_json(prompt):
    texts = [
        {k: json.dumps(v, ensure_ascii=False) if k in ("tools", "tool_calls") else v for k, v in m.items()}
        for m in prompt
    ]
    text = json.dumps(texts, sort_keys=True, ensure_ascii=False)
    assert prompt_name(prompt) == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
