import numpy as np
import pytest
from transformers import AutoTokenizer

from shiqrun.batching import encode as module
from shiqrun.batching.encode import PLAIN_TEMPLATE
from shiqrun.errors import InputError
from tests.support.helpers import (
    BARE,
    CHATML,
    MARKED_EOS_OUTSIDE,
    STORIES,
    assistant,
    encoded,
    example,
    needs_stories,
    tokenizer,
    tool,
    user,
)

TEMPLATES = {"plain": PLAIN_TEMPLATE, "marked": MARKED_EOS_OUTSIDE, "chatml": CHATML, "bare": BARE}
MULTI_TURN = [assistant("let me look"), tool("sunny"), assistant("it is fine"), user("sure?"), assistant("yes")]


def only(made, given, **options):
    ((trajectory,), _) = encoded(made, given, **options)
    return trajectory


def actions(made, trajectory):
    """The text of the actions, special tokens included."""
    return made.decode(trajectory.input_ids[trajectory.action_index])


def turns(made, trajectory):
    """The text of each run of consecutive actions."""
    index = trajectory.action_index
    return [made.decode(trajectory.input_ids[run]) for run in np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", " fine, thank you</s>"),  # EOS inside the mark
        ("marked", " fine, thank you</s>"),  # EOS right behind the mark
        ("chatml", "fine, thank you<|im_end|>"),  # the newline behind it is not the policy's
        ("bare", " fine, thank you\n</s>"),  # nothing closes the turn: EOS is appended
    ],
)
def test_actions_are_the_words_and_the_token_that_ends_the_turn(name, said):
    made = tokenizer(TEMPLATES[name])
    assert actions(made, only(made, example("fine, thank you"))) == said


@pytest.mark.parametrize("name", TEMPLATES)
def test_state_of_the_first_action_is_the_prompt_that_sampling_shows(name):
    made, given = tokenizer(TEMPLATES[name]), example("fine", prompt=("hello", assistant("hi"), "how are you?"))
    trajectory = only(made, given)
    prompt = made.apply_chat_template(given.messages, add_generation_prompt=True)["input_ids"]
    first = trajectory.action_index[0]
    assert trajectory.input_ids[:first].tolist() == prompt
    assert trajectory.action_index.tolist() == list(range(first, first + len(trajectory.action_index)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_assistant_turns_of_the_prompt_are_not_actions(name):
    made = tokenizer(TEMPLATES[name])
    short = only(made, example("fine"))
    long = only(made, example("fine", prompt=("hello", assistant("good day"), "how are you?")))
    assert actions(made, long) == actions(made, short)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", [" let me look</s>", " it is fine</s>", " yes</s>"]),
        ("marked", [" let me look</s>", " it is fine</s>", " yes</s>"]),
        ("chatml", ["let me look<|im_end|>", "it is fine<|im_end|>", "yes<|im_end|>"]),
        ("bare", [" let me look\n", " it is fine\n", " yes\n</s>"]),
    ],
)
def test_tool_and_user_messages_between_turns_are_not_actions(name, said):
    made = tokenizer(TEMPLATES[name])
    trajectory = only(made, example(MULTI_TURN))
    assert turns(made, trajectory) == said
    assert "sunny" in made.decode(trajectory.input_ids)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("last", ["thank you 😀", "naïve", "東京", "😀"])
def test_a_turn_ending_in_a_character_of_several_tokens_is_an_action_whole(name, last):
    made = tokenizer(TEMPLATES[name])
    trajectory = only(made, example(last))
    ending = "<|im_end|>" if name == "chatml" else "</s>"
    assert actions(made, trajectory).removesuffix(ending).strip() == last
    assert actions(made, trajectory).endswith(ending)


@pytest.mark.parametrize("name", TEMPLATES)
def test_eos_is_an_action_where_pad_is_the_same_token(name):
    made = tokenizer(TEMPLATES[name], pad="</s>", eos="</s>")
    trajectory = only(made, example("fine"))
    ending = "<|im_end|>" if name == "chatml" else "</s>"
    assert made.convert_ids_to_tokens(int(trajectory.input_ids[trajectory.action_index[-1]])) == ending


@pytest.mark.parametrize("name", TEMPLATES)
def test_there_is_one_bos_or_none(name):
    with_bos, without = tokenizer(TEMPLATES[name]), tokenizer(TEMPLATES[name], bos=None)
    count = (only(with_bos, example("fine")).input_ids == with_bos.bos_token_id).sum()
    assert count == (0 if name == "chatml" else 1)
    bare = only(without, example("fine"))
    assert actions(without, bare) == actions(with_bos, only(with_bos, example("fine")))
    assert without.decode(bare.input_ids).removeprefix("<s>").lower().startswith(("user", "<|im_start|>user"))


def test_without_a_prompt_the_plain_template_still_shows_its_generation_prompt():
    made = tokenizer()
    trajectory = only(made, example("fine", prompt=()))
    assert made.decode(trajectory.input_ids) == "<s>Assistant: fine</s>"
    assert actions(made, trajectory) == " fine</s>"


def test_the_first_token_is_never_an_action():
    made = tokenizer("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", bos=None)
    trajectory = only(made, example("fine, thank you", prompt=(), rewards=[1.0]))
    assert trajectory.action_index[0] == 1
    assert len(trajectory.rewards) == len(trajectory.input_ids) - 1
    assert trajectory.rewards[-1] == 1


@needs_stories
def test_a_pretrained_tokenizer_whose_template_closes_no_turn_learns_to_stop():
    made = AutoTokenizer.from_pretrained(STORIES)
    given = example("fine, thank you", MULTI_TURN, prompt=("hello", assistant("hi"), "how are you?"))
    (one, many), dropped = encoded(made, given)
    assert actions(made, one) == "fine, thank you\n</s>"
    assert turns(made, many) == ["let me look\n", "it is fine\n", "yes\n</s>"]
    assert (one.input_ids == made.bos_token_id).sum() == 1
    assert not dropped


@needs_stories
def test_a_pretrained_sentencepiece_tokenizer_takes_the_plain_template():
    made = AutoTokenizer.from_pretrained(STORIES)
    made.chat_template = PLAIN_TEMPLATE
    (one, many), _ = encoded(made, example("fine 😀", MULTI_TURN, prompt=("hello", assistant("hi"), "how are you?")))
    assert actions(made, one) == "fine 😀</s>"
    assert turns(made, many) == ["let me look</s>", "it is fine</s>", "yes</s>"]


@needs_stories
def test_a_last_unknown_character_does_not_pass_for_the_end_of_a_turn():
    made = AutoTokenizer.from_pretrained(STORIES)
    trajectory = only(made, example("fine <unk>"))
    assert trajectory.input_ids[-1] == made.eos_token_id
    assert trajectory.action_index[-1] == len(trajectory.input_ids) - 1


def test_one_number_falls_on_the_last_action():
    made = tokenizer()
    trajectory = only(made, example(MULTI_TURN, rewards=[2.5]))
    assert trajectory.rewards.tolist() == [0] * (len(trajectory.action_index) - 1) + [2.5]


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_number_a_turn_falls_on_each_turns_last_action(name):
    made = tokenizer(TEMPLATES[name])
    trajectory = only(made, example(MULTI_TURN, rewards=[[1, 2, 3]]))
    index = trajectory.action_index
    last = np.append(np.flatnonzero(np.diff(index) > 1), len(index) - 1)
    assert trajectory.rewards[last].tolist() == [1, 2, 3]
    assert trajectory.rewards.sum() == 6


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_number_a_token_falls_on_each_action(name):
    made = tokenizer(TEMPLATES[name])
    count = len(only(made, example(MULTI_TURN)).action_index)
    values = [float(i + 1) for i in range(count)]
    assert only(made, example(MULTI_TURN, rewards=[values])).rewards.tolist() == values


def test_another_number_of_rewards_is_refused_by_row():
    made = tokenizer()
    count = len(only(made, example(MULTI_TURN)).action_index)
    with pytest.raises(InputError, match=rf"file:9: 2 rewards for 3 assistant turns and {count} action tokens"):
        encoded(made, example(MULTI_TURN, rewards=[[1, 2]], source="file:9"))


def test_without_rewards_there_are_none():
    assert only(tokenizer(), example("fine")).rewards is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_train_on_response_makes_every_token_after_the_prompt_an_action(name):
    made = tokenizer(TEMPLATES[name])
    usual = only(made, example(MULTI_TURN, rewards=[[1, 2, 3]]))
    response = only(made, example(MULTI_TURN, rewards=[[1, 2, 3]]), train_on="response")
    assert response.input_ids.tolist() == usual.input_ids.tolist()
    assert response.action_index.tolist() == list(range(usual.action_index[0], len(usual.input_ids)))
    paid = {int(i): float(r) for i, r in zip(usual.action_index, usual.rewards, strict=True) if r}
    assert {int(i): float(r) for i, r in zip(response.action_index, response.rewards, strict=True) if r} == paid


def test_what_cannot_be_used_is_counted_by_reason():
    made = tokenizer()
    fits = len(only(made, example("fine")).input_ids)
    given = example(
        "fine", "", " \n", [tool("sunny")], "fine, thank you very much indeed", [], rewards=[1, 2, 3, 4, 5, 6]
    )
    kept, dropped = encoded(made, given, max_length=fits)
    assert [(t.example, t.completion, t.rewards.sum()) for t in kept] == [(0, 0, 1)]
    assert dropped == {"empty completion": 2, "no actions": 2, f"longer than max_length ({fits} tokens)": 1}


def test_a_trajectory_of_max_length_is_kept_and_one_token_more_is_not():
    made = tokenizer()
    length = len(only(made, example("fine")).input_ids)
    assert len(encoded(made, example("fine"), max_length=length)[0]) == 1
    assert len(encoded(made, example("fine"), max_length=length - 1)[0]) == 0


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_chunks_change_nothing(name, size, monkeypatch):
    made = tokenizer(TEMPLATES[name])
    given = [example("fine", "", MULTI_TURN, rewards=[1, 2, [1, 2, 3]], source=f"file:{n}") for n in range(4)]
    whole, counted = encoded(made, *given, max_length=40)
    monkeypatch.setattr(module, "CHUNK", size)
    cut, dropped = encoded(made, *given, max_length=40)
    assert dropped == counted
    assert [(t.example, t.completion, t.source) for t in cut] == [(t.example, t.completion, t.source) for t in whole]
    for a, b in zip(cut, whole, strict=True):
        for field in ("input_ids", "action_index", "rewards"):
            assert getattr(a, field).tolist() == getattr(b, field).tolist()


def test_where_the_unknown_token_is_eos_a_text_that_spells_it_is_still_left_out():
    made = tokenizer()
    made.unk_token = made.eos_token
    found, dropped = encoded(made, example("say </s> now", "fine"))
    assert [t.completion for t in found] == [1]
    assert dropped == {"the text holds the special token </s>": 1}
