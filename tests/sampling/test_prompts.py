"""Which prompts are answered and where an answer ends."""

import logging
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from shiqrun.batching.encode import with_template
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.sampling.prompts import choose_prompts, expect_prompts, padding_id, stop_tokens
from tests.support.helpers import (
    BARE,
    CHATML,
    STORIES,
    assistant,
    encoded,
    example,
    llama,
    needs_stories,
    tokenizer,
    user,
)


def asked(count, words="how are you"):
    return [example("fine", prompt=(f"{words} {n}",), prompt_id=f"p{n}") for n in range(count)]


def chosen(examples, number=5, room=None, **options):
    prompts, left_out = choose_prompts(examples, tokenizer(), number=number, room=room, **options)
    return [p.messages[-1]["content"] for p in prompts], left_out


def test_the_same_prompts_are_chosen_whatever_the_order_of_the_file():
    first, _ = chosen(asked(40))
    assert len(set(first)) == 5
    assert chosen(reversed(asked(40)))[0] == first


def test_prompts_are_chosen_by_their_words_whatever_their_ids():
    renamed = [example("fine", prompt=e.messages, prompt_id=f"q{40 - n}") for n, e in enumerate(asked(40))]
    assert chosen(renamed)[0] == chosen(asked(40))[0]


def test_more_prompts_are_the_former_and_others():
    assert chosen(asked(40), number=12)[0][:5] == chosen(asked(40), number=5)[0]


def test_prompts_are_not_the_first_of_the_file():
    assert chosen(asked(40))[0] != [e.messages[0]["content"] for e in asked(40)][:5]


def test_prompts_that_further_examples_bring_replace_only_themselves():
    few, many = chosen(asked(30), number=5)[0], chosen(asked(40), number=5)[0]
    assert [p for p in many if int(p.split()[-1]) < 30] == few[: sum(int(p.split()[-1]) < 30 for p in many)]


def test_a_prompt_asked_twice_is_answered_once():
    twice = [*asked(3), *(example("bad", prompt=(f"how are you {n}",), prompt_id=f"other{n}") for n in range(3))]
    prompts, _ = choose_prompts(twice, tokenizer(), number=10, room=None)
    assert len(prompts) == len({p.name for p in prompts}) == 3
    assert {p.prompt_id for p in prompts} == {"p0", "p1", "p2"}


def test_training_prompts_are_left_out_by_their_messages_and_counted():
    examples = asked(6)
    seen = frozenset(prompt_name(e.messages) for e in examples[:4])
    texts, left_out = chosen(examples, seen=seen)
    assert sorted(texts) == ["how are you 4", "how are you 5"]
    assert left_out == {"also a training prompt": 4}


def test_prompts_without_room_for_an_answer_are_left_out_and_counted_and_others_take_their_place():
    long = [example("fine", prompt=("how are you " * 9 + str(n),), prompt_id=f"l{n}") for n in range(20)]
    (short, *_), _ = choose_prompts(asked(1), tokenizer(), number=1, room=None)
    texts, left_out = chosen([*long, *asked(8)], number=8, room=len(short.tokens) + 2)
    assert sorted(texts) == [f"how are you {n}" for n in range(8)]
    assert left_out == {f"longer than {len(short.tokens) + 2} tokens": left_out.total()}
    assert 0 < left_out.total() <= 20


def test_a_prompt_with_exactly_as_many_tokens_as_there_is_room_is_answered():
    (only,), _ = choose_prompts(asked(1), tokenizer(), number=1, room=None)
    assert chosen(asked(1), room=len(only.tokens))[0]
    assert not chosen(asked(1), room=len(only.tokens) - 1)[0]


def test_a_prompt_that_spells_a_special_token_is_left_out_as_in_training():
    texts, left_out = chosen([example("fine", prompt=("say </s> now",), prompt_id="odd"), *asked(2)])
    assert sorted(texts) == ["how are you 0", "how are you 1"]
    assert left_out == {"the text holds the special token </s>": 1}
    assert encoded(tokenizer(), example("fine", prompt=("say </s> now",)))[1] == left_out


@pytest.mark.parametrize("template", [None, CHATML, BARE])
def test_a_prompts_tokens_are_the_state_of_the_first_action_in_training(template):
    made = tokenizer(template)
    talk = example("fine", prompt=(user("hello"), assistant("hi"), user("how are you?")))
    (prompt,), _ = choose_prompts([talk], made, number=1, room=None)
    ((trajectory,), _) = encoded(made, talk)
    assert prompt.tokens.tolist() == trajectory.input_ids[: trajectory.action_index[0]].tolist()
    assert prompt.text == "user: hello\n\nassistant: hi\n\nuser: how are you?"


def test_an_answer_for_a_verifier_comes_along():
    row = example("fine", prompt_id="p", source="file:7")
    (prompt,), _ = choose_prompts([row], tokenizer(), number=1, room=None)
    assert (prompt.answer, prompt.source, prompt.prompt_id) == (None, "file:7", "p")


def test_no_prompt_at_all_is_an_error_that_counts_the_reasons():
    with pytest.raises(InputError, match=r"3 longer than 2 tokens, 1 also a training prompt.*eval.max_new_tokens=99"):
        expect_prompts([], Counter({"also a training prompt": 1, "longer than 2 tokens": 3}), 99)
    with pytest.raises(InputError, match="the split is empty"):
        expect_prompts([], Counter(), 99)


def test_prompts_left_out_are_said(caplog):
    prompts, left_out = choose_prompts(asked(4), tokenizer(), number=9, room=None, seen={prompt_name([user("x")])})
    with caplog.at_level(logging.INFO, "shiqrun"):
        expect_prompts(prompts, left_out, 9)
        assert not caplog.messages
        expect_prompts(prompts, Counter({"too long": 2}), 9)
    assert caplog.messages == ["4 prompts are completed; left out: 2 too long"]


def model_with(ends, made):
    causal_lm = llama(vocabulary=len(made))
    causal_lm.generation_config = GenerationConfig(eos_token_id=ends)
    return causal_lm


@pytest.mark.parametrize(
    ("template", "own", "expected"),
    [
        (None, None, ["</s>"]),
        (BARE, None, ["</s>"]),
        (CHATML, None, ["</s>", "<|im_end|>"]),
        (None, 7, ["</s>", 7]),
        (CHATML, [7, 9], ["</s>", "<|im_end|>", 7, 9]),
    ],
)
def test_an_answer_ends_with_eos_with_what_closes_a_turn_and_with_what_the_model_says(template, own, expected):
    made = tokenizer(template)
    ids = sorted(i if isinstance(i, int) else made.convert_tokens_to_ids(i) for i in expected)
    assert stop_tokens(made, model_with(own, made)) == ids


@pytest.mark.parametrize("template", [None, CHATML, BARE])
def test_what_training_teaches_as_the_last_action_ends_an_answer(template):
    made = tokenizer(template)
    ((trajectory,), _) = encoded(made, example("fine, thank you"))
    assert trajectory.input_ids[trajectory.action_index[-1]] in stop_tokens(made, model_with(None, made))


def test_a_model_without_generation_settings_has_none_to_give():
    made = tokenizer()
    causal_lm = llama(vocabulary=len(made))
    causal_lm.generation_config = None
    assert stop_tokens(made, causal_lm) == [made.eos_token_id]


def test_an_unknown_word_or_a_last_word_ends_no_answer():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "user:": 1, "assistant:": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    made.chat_template = BARE
    assert stop_tokens(made, model_with(None, made)) == []


def test_padding_is_the_pad_token_else_eos_else_the_first_token():
    assert padding_id(tokenizer()) == tokenizer().pad_token_id
    assert padding_id(tokenizer(pad=None)) == tokenizer(pad=None).eos_token_id
    assert padding_id(tokenizer(pad=None, eos=None)) == 0


@needs_stories
def test_the_pretrained_model_ends_where_its_own_settings_say():
    made = with_template(AutoTokenizer.from_pretrained(STORIES))
    assert stop_tokens(made, AutoModelForCausalLM.from_pretrained(STORIES)) == [1, 2]  # its stories end with BOS
