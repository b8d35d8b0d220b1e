"""Prompt values against a reference that can be enumerated, and what a file of them is good for."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from shiqrun.errors import InputError
from shiqrun.estimates.prompt_values import (
    ValueSettings,
    prompt_key,
    rewards_by_prompt_id,
    sample_missing_rewards,
    soft_values,
)
from shiqrun.estimates.value_file import ValueFile, read_values
from shiqrun.losses.soft_value import soft_value
from shiqrun.models.policy import Policy
from shiqrun.models.tiny import Tiny
from shiqrun.rewards.exact_match import ExactMatch
from shiqrun.sampling.prompts import prompt_of
from shiqrun.types import Example

BETA = 0.4
ASKED = ValueSettings(samples=3000, max_new_tokens=2, batch_size=1000, seed=0)


class Words:
    splits, dropped = ("train",), Counter()
    vocabulary = ("<pad>", "<bos>", "<eos>", "a", "b", "c", "d")
    chat_template = (
        "<bos>{% for message in messages %}{{ ' ' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
    )


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
MODEL = Tiny(**SIZES, initializer_range=0.4, vocab_size=300)
TOKENIZER = MODEL.tokenizer(Words(), [])
POLICY = Policy(MODEL.build(TOKENIZER, 3)).eval()
EXAMPLES = [
    Example([{"role": "user", "content": f"{x} {y}"}], [[{"role": "assistant", "content": z}]], [1.0], f"{x}{y}", z)
    for x, y, z in [("a", "b", "c"), ("c", "c", "a b"), ("d", "a", "d")]
]
PROMPTS = [prompt_of(e, TOKENIZER) for e in EXAMPLES]
REWARD = ExactMatch(ignore_case=False)


def chances(prompt):
    """The probability of every completion of at most two tokens, by multiplication; a stop token ends it."""
    stop, found = TOKENIZER.eos_token_id, {}

    def following(ids):
        with torch.no_grad():
            logits = POLICY.causal_lm(input_ids=torch.tensor([ids])).logits[0, -1]
        return logits.double().softmax(-1).tolist()

    for first, p in enumerate(following(prompt)):
        if first == stop:
            found[(first,)] = p
            continue
        for second, q in enumerate(following([*prompt, first])):
            found[(first, second)] = p * q
    return found


def exact(prompt):
    """(success rate, Q0) of the reference."""
    right = 0.0
    for tokens, p in chances(prompt.tokens.tolist()).items():
        text = TOKENIZER.decode(tokens, skip_special_tokens=True).strip()
        right += p * (text == prompt.answer)
    return right, BETA * math.log(right * math.exp(1 / BETA) + 1 - right)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = ValueFile(tmp_path_factory.mktemp("values") / "values.jsonl", ASKED.made_with("me", REWARD))
    assert sample_missing_rewards(POLICY, PROMPTS, TOKENIZER, REWARD, ASKED, made) == 3
    return made


def test_values_are_the_references_own_within_their_standard_error(file):
    rates = []
    for prompt in PROMPTS:
        rate, q0 = exact(prompt)
        found = soft_value(file.rewards[prompt_key(prompt)], BETA)
        assert abs(found.value - q0) < 4 * found.error
        assert found.error < 0.05
        rates.append(rate)
    assert max(rates) > 0.02


def test_a_file_goes_on_where_it_was_torn(file, tmp_path):
    lines = file.path.read_bytes().splitlines(keepends=True)
    torn = tmp_path / "values.jsonl"
    torn.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    again = ValueFile(torn, file.made_with)
    assert [*again.rewards] == [prompt_key(p) for p in PROMPTS[:2]]
    assert sample_missing_rewards(POLICY, PROMPTS, TOKENIZER, REWARD, ASKED, again) == 1
    assert torn.read_bytes() == file.path.read_bytes()
    assert sample_missing_rewards(POLICY, PROMPTS, TOKENIZER, REWARD, ASKED, again) == 0


def test_rows_are_found_in_any_order_before_and_after_the_file_is_opened_again(file):
    for opened in (file, ValueFile(file.path, file.made_with)):
        backwards = [row["prompt"] for row in opened.rows(map(prompt_key, PROMPTS[::-1]))]
        assert backwards == [p.messages for p in PROMPTS[::-1]]


@pytest.mark.parametrize(
    "change", [{"answer": "d"}, {"tokens": np.array([1, 2])}, {"name": "0" * 16}, {"prompt_id": "other"}], ids=str
)
def test_a_prompt_is_known_by_what_it_asks_and_not_by_its_id(file, change):
    other = replace(PROMPTS[0], **change)
    assert (prompt_key(other) == prompt_key(PROMPTS[0])) == ("prompt_id" in change)
    if "prompt_id" in change:
        assert [*rewards_by_prompt_id(file, [other])] == ["other"]


def test_the_completions_are_kept_with_their_rewards(file):
    for row, prompt in zip(file.rows(map(prompt_key, PROMPTS)), PROMPTS, strict=True):
        assert (row["prompt"], row["answer"]) == (prompt.messages, prompt.answer)
        assert row["cut_off"] > 0, "two tokens are often too few"
        said = [c[0]["content"] for c in row["completions"]]
        assert [float(text == prompt.answer) for text in said] == row["rewards"]


@pytest.mark.parametrize("key", ["reference", "reward", "samples", "max_new_tokens", "seed"])
def test_values_of_something_else_are_refused(file, key):
    other = file.made_with | {key: "other"}
    with pytest.raises(InputError, match=f"{key} .* there, other here"):
        ValueFile(file.path, other)


def test_another_beta_reads_the_same_file(file):
    for beta in (0.1, 2.0):
        values = soft_values(rewards_by_prompt_id(file, PROMPTS), beta)
        for prompt in PROMPTS:
            assert values[prompt.prompt_id] == soft_value(file.rewards[prompt_key(prompt)], beta).value


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", json.dumps({"prompt": "x"}) + "\n"])
def test_what_is_no_file_of_values_is_refused(tmp_path, text):
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="no file of prompt values"):
        read_values(path, {})


def test_the_enumeration_is_whole():
    assert sum(chances(PROMPTS[0].tokens.tolist()).values()) == pytest.approx(1)
