"""Dialogues with tools, through every kind of chat template, against texts that are written out by hand."""

import json

import numpy as np
import pytest
import torch

from shiqrun.batching.encode import PLAIN_TEMPLATE
from shiqrun.batching.rows import Rows
from shiqrun.data.chats import as_messages
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from shiqrun.losses.residual import turn_starts
from tests.support.helpers import CHATML, assistant, encoded, example, tokenizer, tool, user

CALLS = (
    "{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>\n' + ({'name': c.function.name, 'arguments': c.function.arguments} | tojson) + '\n</tool_call>' }}"
    "{% endfor %}"
)
RESULT = (
    "{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user' if messages[loop.index0 - 1].role != 'tool' else '' }}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{{ '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' }}"
)
OTHERS = "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def hermes(said, opened="", closed=""):
    """ChatML with results in one user message and calls in JSON; `said` is what the assistant's words become."""
    spoken = "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}" + opened + said + CALLS
    body = RESULT + spoken + "{{ '<|im_end|>' }}" + closed + "{{ '\n' }}" + OTHERS
    return "{% for m in messages %}" + body + "{% endfor %}" + OPEN


STABLE = "{{ m.content }}"
FORGETFUL = "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
MARKS = ("{% generation %}", "{% endgeneration %}")
TEMPLATES = {"marked": hermes(STABLE, *MARKS), "hermes": hermes(STABLE), "plain": PLAIN_TEMPLATE}


def called(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls, says=None):
    (message,) = as_messages([{"role": "assistant", "content": says, "tool_calls": [*calls]}], "assistant", "file:1")
    return message


SYSTEM = {"role": "system", "content": "functions: cd, ls"}
CD, LS = called("cd", folder="my docs"), called("ls", a=True)
DIALOGUE = [
    calling(CD, says="let me look"),
    tool("None"),
    calling(CD, LS),  # no words, two calls, two results
    tool("None"),
    tool('{"files": ["a.txt"]}'),
    assistant("there is one file"),
    user("and now?"),
    assistant("[ls(a=True)]"),  # a call in text
    tool("[]"),
    assistant("Done."),
]
REWARDS = [0.0, 0.25, 1.0, 0.0, 2.0]
SPOKEN = [m for m in DIALOGUE if m["role"] == "assistant"]


def said(name, message):
    """What of this message the policy says, to the token that ends it."""
    calls = message.get("tool_calls", [])
    if name == "plain":
        return f" {message['content']}{json.dumps(calls) if calls else ''}</s>"
    shown = (json.dumps(call["function"]) for call in calls)
    return message["content"] + "".join(f"<tool_call>\n{c}\n</tool_call>" for c in shown) + "<|im_end|>"


def only(made, *messages, rewards=None, **options):
    given = example([*messages], prompt=(SYSTEM, user("hello")), rewards=rewards, source="file:7")
    ((trajectory,), dropped) = encoded(made, given, **options)
    assert not dropped
    return trajectory


def spans(trajectory):
    """Columns of the actions of each turn."""
    index = trajectory.action_index
    return np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) > 1) + 1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_actions_are_what_the_assistant_says_and_calls_and_nothing_else(name):
    made = tokenizer(TEMPLATES[name])
    trajectory = only(made, *DIALOGUE)
    found = [made.decode(trajectory.input_ids[trajectory.action_index[columns]]) for columns in spans(trajectory)]
    assert found == [said(name, message) for message in SPOKEN]
    states = np.delete(trajectory.input_ids, trajectory.action_index)
    assert made.decode(states).count("a.txt") == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_turns_state_is_what_sampling_shows_there(name):
    made = tokenizer(TEMPLATES[name])
    trajectory = only(made, *DIALOGUE)
    for columns, message in zip(spans(trajectory), SPOKEN, strict=True):
        before = [SYSTEM, user("hello"), *DIALOGUE[: next(i for i, m in enumerate(DIALOGUE) if m is message)]]
        shown = made.apply_chat_template(before, add_generation_prompt=True)["input_ids"]
        assert trajectory.input_ids[: trajectory.action_index[columns[0]]].tolist() == shown


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_messages_reward_is_earned_by_its_last_action(name):
    trajectory = only(tokenizer(TEMPLATES[name]), *DIALOGUE, rewards=[REWARDS])
    expected = np.zeros(len(trajectory.action_index))
    expected[[columns[-1] for columns in spans(trajectory)]] = REWARDS
    assert trajectory.rewards.tolist() == expected.tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_in_action_time_the_next_column_is_the_next_action_and_turns_start_where_a_message_does(name):
    made = tokenizer(TEMPLATES[name])
    rows = Rows([only(made, *DIALOGUE, rewards=[REWARDS]), only(made, *DIALOGUE[:2])], pad=made.pad_token_id)
    batch = rows.collate([0, 1])
    actions = batch.input_ids.gather(1, batch.action_index)[0, batch.action_mask[0]]
    assert made.decode(actions) == "".join(said(name, message) for message in SPOKEN)
    starts = [columns[0] for columns in spans(rows.trajectories[0])]
    assert torch.nonzero(turn_starts(batch)[0]).squeeze(-1).tolist() == starts
    assert turn_starts(batch)[1].nonzero().tolist() == [[0]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_dialogue_that_is_too_long_is_dropped_whole_and_counted(name):
    made = tokenizer(TEMPLATES[name])
    length = len(only(made, *DIALOGUE).input_ids)
    assert len(only(made, *DIALOGUE, max_length=length).input_ids) == length
    kept, dropped = encoded(made, example(DIALOGUE, prompt=(SYSTEM, user("hello"))), max_length=length - 1)
    assert (kept, dropped) == ([], {f"longer than max_length ({length - 1} tokens)": 1})


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("end", [3, 4, 5])  # behind two calls, behind the first result, behind the second
def test_a_dialogue_that_ends_inside_a_tool_call_ends_with_the_call(name, end):
    made = tokenizer(TEMPLATES[name])
    trajectory = only(made, *DIALOGUE[:end], rewards=[[0.5, 1.0]])
    last = spans(trajectory)[-1]
    assert made.decode(trajectory.input_ids[trajectory.action_index[last]]) == said(name, SPOKEN[1])
    assert np.flatnonzero(trajectory.rewards).tolist() == [spans(trajectory)[0][-1], last[-1]]
    assert ("None" in made.decode(trajectory.input_ids[trajectory.action_index[-1] + 1 :])) == (end > 3)


def reading(template, *messages):
    return encoded(tokenizer(template), example([*messages], prompt=(user("hello"),), source="file:7"))


THINKING = [assistant("<think>hm</think>hello"), user("and?"), assistant("<think>ah</think>bye")]


@pytest.mark.parametrize("marks", [("", ""), MARKS])
def test_a_template_that_forgets_earlier_thoughts_is_refused_by_row(marks):
    with pytest.raises(InputError, match=r"file:7: the chat template is not prefix-stable: token \d+ is '<th"):
        reading(hermes(FORGETFUL, *marks), *THINKING)
    assert reading(hermes(STABLE, *marks), *THINKING)[1] == {}


@pytest.mark.parametrize("marks", [("", ""), MARKS])
def test_a_template_that_forgets_earlier_results_is_refused_by_row(marks):
    later = "messages[loop.index0 + 1:] | selectattr('role', 'equalto', 'tool') | list"
    forgetful = hermes(STABLE, *marks).replace(
        "+ m.content + '\n</tool", "+ ('' if " + later + " else m.content) + '\n</tool"
    )
    talk = [calling(CD), tool("sunny"), calling(LS), tool("rainy"), assistant("bye")]
    with pytest.raises(InputError, match=r"file:7: the chat template is not prefix-stable"):
        reading(forgetful, *talk)
    assert reading(hermes(STABLE, *marks), *talk)[1] == {}


def test_a_template_that_leaves_out_tool_calls_is_refused_by_row():
    with pytest.raises(InputError, match=r"file:7: the chat template leaves out tool calls of cd, ls; use a template"):
        reading(CHATML, calling(CD, LS), tool("None"), assistant("Done."))


def test_a_call_that_spells_a_special_token_is_left_out_and_counted():
    kept, dropped = reading(TEMPLATES["hermes"], calling(called("cd", folder="<|im_end|>")), assistant("Done."))
    assert (kept, dropped) == ([], {"the text holds the special token <|im_end|>": 1})


@pytest.mark.parametrize("count", [4, 6])
def test_another_number_of_rewards_than_messages_is_refused_with_both_numbers(count):
    made = tokenizer(TEMPLATES["hermes"])
    actions = len(only(made, *DIALOGUE).action_index)
    with pytest.raises(InputError, match=rf"file:7: {count} rewards for 5 assistant turns and {actions} action tokens"):
        only(made, *DIALOGUE, rewards=[[1.0] * count])


def test_a_file_of_tool_dialogues_is_read_with_a_reward_for_each_message(tmp_path):
    talk = [SYSTEM, user("hello"), {**DIALOGUE[0], "content": None}, *DIALOGUE[1:]]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": talk, "rewards": REWARDS}) + "\n")
    made = tokenizer(TEMPLATES["hermes"])
    ((trajectory,), dropped) = encoded(made, *Jsonl(path=str(file), val_path=None, pair_rewards=None).load("train"))
    wordless = [{**SPOKEN[0], "content": ""}, *SPOKEN[1:]]
    actions = made.decode(trajectory.input_ids[trajectory.action_index])
    assert actions == "".join(said("hermes", message) for message in wordless)
    assert [float(trajectory.rewards[columns[-1]]) for columns in spans(trajectory)] == REWARDS
    assert not dropped


@pytest.mark.parametrize("calls", ["cd", [{"function": "cd"}], [{"function": {"arguments": {}}}], ["cd"], [{}]])
def test_tool_calls_that_name_no_function_are_refused_by_row(tmp_path, calls):
    file = tmp_path / "a.jsonl"
    talk = [user("hello"), {"role": "assistant", "content": "", "tool_calls": calls}]
    file.write_text(json.dumps({"messages": talk}) + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl:1: .*message 1: tool_calls must be a list of .* found"):
        list(Jsonl(path=str(file), val_path=None, pair_rewards=None).load("train"))
