import pytest

from shiqrun.batching.token_text import pieces
from tests.support.helpers import STORIES, needs_stories, tokenizer


@pytest.mark.parametrize("text", ["hello there", " two  blanks ", "naïve 🙂🙂 日本", "a\nb\n\n", ""])
def test_the_pieces_of_a_text_are_the_text(text):
    made = tokenizer()
    ids = made(text)["input_ids"]
    found = list(pieces(ids, made))
    assert len(found) == len(ids)
    assert "".join(found) == text


def test_a_character_of_several_tokens_is_the_text_of_the_last():
    made = tokenizer()
    ids = made("a🙂b")["input_ids"]
    assert list(pieces(ids, made)) == ["a", "", "", "", "🙂", "b"]


def test_a_character_that_is_cut_off_is_shown_as_unknown():
    made = tokenizer()
    ids = made("a🙂")["input_ids"][:-1]
    assert "".join(pieces(ids, made)) == "a\ufffd"


@needs_stories
def test_a_decoder_that_trims_a_leading_blank_is_read_in_context():
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(STORIES)
    ids = made("Once upon a time there was a dog.", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(ids, made)) == made.decode(ids)
