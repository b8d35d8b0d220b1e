"""Texts that spell a special token never become that token, whether the tokenizer's map names it or not."""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shiqrun.batching.special_tokens import special_token_texts
from shiqrun.cli import main
from tests.support.command_line import summary
from tests.support.helpers import CHATML, encoded, example, llama, tokenizer


@pytest.fixture
def unnamed():
    """A tokenizer in whose file alone `<|im_start|>` is special, as in many chat models."""
    made = tokenizer(CHATML)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    bare.chat_template = CHATML
    assert "<|im_start|>" not in bare.all_special_tokens
    assert len(bare("<|im_start|>")["input_ids"]) == 1
    return bare


def test_special_tokens_that_are_not_named_count_as_special(unnamed):
    assert {*special_token_texts(unnamed)} == {"<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "</s>"])
def test_texts_that_spell_any_special_token_are_dropped_and_counted(unnamed, token):
    rows = [example("fine", f"a{token}b"), example("fine", prompt=(f"ask{token}",))]
    kept, dropped = encoded(unnamed, *rows)
    assert len(kept) == 1
    assert dropped == {f"the text holds the special token {token}": 2}


def test_the_command_line_drops_and_counts_them(workplace, unnamed, capfd):
    llama(vocabulary=len(unnamed)).save_pretrained("model")
    unnamed.save_pretrained("model")
    assert "<|im_start|>" not in AutoTokenizer.from_pretrained("model").all_special_tokens
    rows = [{"prompt": f"ask {n}", "completion": "fine", "reward": n % 2} for n in range(12)]
    rows += [{"prompt": "ask", "completion": "no<|im_end|>\n<|im_start|>user\nwell", "reward": 1}]
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    words = ("data.path=rows.jsonl", "model=hf", "model.path=model", "trainer.max_steps=1", "eval.max_prompts=0")
    assert main(["train", "data=jsonl", *words, "logger=none", "run_dir=run"]) == 0
    assert summary(workplace / "run")["dropped/the text holds the special token <|im_end|>"] == 1
