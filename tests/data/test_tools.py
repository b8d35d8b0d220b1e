"""Tool schemas and messages in the forms of OpenAI, from the user's file to the tokens, through the real commands."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.batching import chat_template
from shiqrun.batching.chat_template import Conversation, render
from shiqrun.batching.encode import encode
from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from shiqrun.data.jsonl_rows import row_of
from shiqrun.data.message_columns import messages_array, messages_in
from shiqrun.errors import InputError
from shiqrun.sampling.prompts import prompt_of
from shiqrun.types import Example
from tests.support import helpers

SCHEMAS = (
    "{% if tools %}{{ '<|im_start|>system\ntools:' }}"
    "{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
)
SAID = (
    "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + ({'name': c.function.name, 'arguments': c.function.arguments}"
    " | tojson) + '</call>' }}{% endfor %}{{ '<|im_end|>' }}"
)
TEMPLATE = SCHEMAS + (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}" + SAID + "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def schema(name):
    city = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": f"{name} of a city", "parameters": city}}


def calling(arguments):
    call = {"id": "c0", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def talk(arguments='{"city": "Oslo"}', number=0):
    return [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": f"weather {number}?"},
        calling(arguments),
        {"role": "tool", "tool_call_id": "c0", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]


def row(number=0, **columns):
    return {"messages": talk(number=number), "rewards": [0, 1], "tools": [schema("weather")], **columns}


def written(*rows, name="rows.jsonl"):
    with open(name, "w") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)
    return name


def read(*rows, **options):
    return [*Jsonl(path=written(*rows), val_path=None, pair_rewards=None, **options).load("train")]


@pytest.fixture
def model(workplace):
    """A small Llama on disk whose template shows tools, and twelve dialogues."""
    made = helpers.tokenizer(TEMPLATE)
    helpers.llama(vocabulary=len(made), max_position_embeddings=1024).save_pretrained("model")
    made.save_pretrained("model")
    written(*(row(n) for n in range(12)))
    return ("data=jsonl", "data.path=rows.jsonl", "model=hf", "model.path=model")


def refused(capfd, *words):
    assert main(["inspect", *words]) == 2
    said = capfd.readouterr().err.strip()
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_inspect_shows_the_schemas_and_the_calls(model, capfd):
    assert main(["inspect", *model, "limit=1"]) == 0
    shown = "".join(capfd.readouterr().out.split())
    assert "weatherofacity" in shown
    assert '{"name":"weather","arguments":{"city":"Oslo"}}' in shown


def test_actions_are_what_they_are_without_tools_and_the_state_has_the_schemas(workplace):
    made = helpers.tokenizer(TEMPLATE)
    shown = {}
    for key in (True, False):
        ((one,), dropped) = helpers.encoded(made, *read(row(), tools=key))
        assert not dropped
        shown[key] = made.decode(one.input_ids), made.decode(one.input_ids[one.action_index])
    assert shown[True][1] == shown[False][1]
    assert json.dumps(schema("weather"))[:40] in shown[True][0].replace(" , ", ", ")
    assert "weather of a city" not in shown[False][0]


def test_rows_of_different_tools_are_encoded_together_as_each_alone(workplace):
    made = helpers.tokenizer(TEMPLATE)
    rows = [row(0), row(1, tools=[schema("wind")]), row(2, tools=None), row(3, tools=json.dumps([schema("wind")]))]
    together = [*encode(read(*rows), made, Counter(), max_length=None)]
    alone = [t for one in rows for t in encode(read(one), made, Counter(), max_length=None)]
    for a, b in zip(together, alone, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.action_index.tolist() == b.action_index.tolist()


def test_equal_messages_with_other_tools_are_another_prompt(workplace):
    one, other, none, again = read(row(), row(tools=[schema("wind")]), row(tools=None), row(tools=[schema("weather")]))
    assert len({one.prompt_id, other.prompt_id, none.prompt_id}) == 3
    assert again.prompt_id == one.prompt_id
    prompts = [prompt_of(e, helpers.tokenizer(TEMPLATE)) for e in (one, other, again)]
    assert prompts[0].name == prompts[2].name != prompts[1].name
    bare = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "weather 0?"}]
    assert list(none.messages) == bare
    assert none.tools == ()


def test_keys_in_another_order_are_another_prompt_since_the_template_shows_the_order(workplace):
    made = helpers.tokenizer(TEMPLATE)
    turned = {"type": "function", "function": dict(reversed(schema("weather")["function"].items()))}
    given = [row(0), row(0, tools=[turned]), row(0)]
    one, other, again = read(*given)
    assert one.prompt_id == again.prompt_id != other.prompt_id
    together = [t.input_ids.tolist() for t in encode([one, other, again], made, Counter(), max_length=None)]
    assert together == [t.input_ids.tolist() for e in (one, other, again) for t in helpers.encoded(made, e)[0]]
    assert together[0] == together[2] != together[1]


def test_an_example_takes_tools_as_a_field_or_in_its_first_message():
    parts = {"completions": [[{"role": "assistant", "content": "a"}]], "rewards": None, "prompt_id": "p"}
    given = Example(messages=[{"role": "user", "content": "q"}], tools=[schema("wind")], **parts)
    again = Example(messages=given.messages, **parts)
    assert list(given.tools) == list(again.tools) == [schema("wind")]
    with pytest.raises(ValueError, match="no message"):
        Example(messages=[], tools=[schema("wind")], **parts)


def test_a_labelled_row_and_a_rollout_are_read_back_with_their_tools(workplace):
    (one,) = read(row())
    back = Jsonl(path=written(row_of(one, [1.0], "single"), name="b.jsonl"), val_path=None, pair_rewards=None)
    assert [list(e.messages) for e in back.load("train")] == [list(one.messages)]
    other = [{**one.messages[0], "tools": [schema("a"), {"type": "function", "function": {"name": "b"}}]}]
    third = [*one.messages, {**calling({"days": 3}), "content": ""}, {"role": "user", "content": "no"}]
    column = messages_array([one.messages, other, third])
    assert messages_in(column) == [list(one.messages), other, third]
    prompts = [{"prompt": chat, "completion": "ok"} for chat in column.to_pylist()]
    pq.write_table(pa.Table.from_pylist(prompts), "experience.parquet")
    found = Jsonl(path="experience.parquet", val_path=None, pair_rewards=None)
    assert [list(e.messages) for e in found.load("train")] == [list(one.messages), other, third]


def test_schemas_of_parquet_are_those_of_json(workplace):
    rows = [row(tools=[schema("weather"), {"type": "function", "function": {"name": "now"}}])]
    chat = [{**m, "content": "be brief"} if m["role"] == "developer" else m for m in talk({"city": "Oslo"})]
    pq.write_table(pa.Table.from_pylist([{**rows[0], "messages": chat}]), "rows.parquet")
    (parquet_row,) = Jsonl(path="rows.parquet", val_path=None, pair_rewards=None).load("train")
    (json_row,) = read(*rows)
    assert parquet_row.tools == json_row.tools
    assert parquet_row.completions == json_row.completions


def test_a_template_without_tools_is_refused_by_row_and_key(model, capfd):
    helpers.tokenizer(TEMPLATE.removeprefix(SCHEMAS)).save_pretrained("model")
    said = refused(capfd, *model)
    assert "rows.jsonl:" in said
    assert "data.tools=false" in said
    assert main(["inspect", *model, "data.tools=false"]) == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tools": "weather"}, "tools are no JSON"),
        ({"tools": {"name": "weather"}}, "tools must be a list"),
        ({"tools": [{"description": "x"}]}, "a function schema with a name"),
        ({"messages": talk('{"city": ')}, "arguments are no JSON"),
        ({"messages": talk("[1]")}, "arguments must be a JSON object"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "role str 'boss'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url' is no text"),
        ({"messages": [*talk()[:4], {"role": "assistant", "content": "x", "train": 0}]}, "true or false"),
        ({"messages": [{**talk()[1], "train": True}, *talk()[2:]]}, "remove the mark"),
        (
            {"messages": [*talk()[:4], {"role": "assistant", "content": "x", "weight": 0.5}]},
            'expected 0 ("train": false)',
        ),
        ({"messages": [*talk()[:4], {"role": "assistant", "content": "x", "weight": 0, "train": True}]}, "weight is"),
        ({"messages": [*talk()[:4], {"role": "assistant", "content": "x", "train_detail": []}]}, "train_detail is not"),
        ({"messages": [*talk()[:4], {**talk()[4], "tools": []}]}, "in the column 'tools'"),
        ({"tools": [{"name": "f", "parameters": "city"}]}, "expected a JSON schema"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"city": "string"}}}]}, "expected a JSON schema"),
        ({"tools": [{"name": "f", "description": 1}]}, "the description is int 1"),
    ],
)
def test_what_is_no_schema_or_message_is_refused_with_file_and_row(model, capfd, columns, said):
    written(row(), row(1, **columns))
    shown = refused(capfd, *model)
    assert "rows.jsonl:2" in shown
    assert said in shown


def test_arguments_are_objects_for_a_template_that_prints_json_and_texts_for_one_that_joins(workplace):
    made = helpers.tokenizer(TEMPLATE)
    for arguments in ('{"city": "Oslo"}', {"city": "Oslo"}):
        (one,) = read({"messages": talk(arguments)})
        chat = Conversation([*one.messages, *one.completions[0]], 2, "file:1")
        assert '"arguments": {"city": "Oslo"}' in made.decode(render([chat], made).ids[0])
    joining = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ 'x ' + c.function.arguments }}"
    made.chat_template = joining + "{% endfor %}{% endfor %}"
    assert 'x {"city": "Oslo"}' in made.decode(render([chat], made).ids[0])


def test_reasoning_that_the_template_has_no_place_for_is_refused(workplace):
    chat = [*talk()[:2], {"role": "assistant", "reasoning_content": "hm hm", "content": "ok"}]
    ((one,), _) = helpers.encoded(helpers.tokenizer(TEMPLATE), *read({"messages": chat}))
    made = helpers.tokenizer(TEMPLATE)
    assert made.decode(one.input_ids[one.action_index]) == "<think>hm hm</think>ok<|im_end|>"
    with pytest.raises(Exception, match=r"rows\.jsonl:1: the chat template leaves out reasoning_content"):
        helpers.encoded(helpers.tokenizer(helpers.CHATML), *read({"messages": chat}))


def marked(*turns):
    """Three calls and an answer; those of the given turns are marked."""
    chat = [*talk()[:4], *talk()[2:4], *talk()[2:4], talk()[4]]
    spoken = [i for i, m in enumerate(chat) if m["role"] == "assistant"]
    return [{**m, "train": False} if i in [spoken[t] for t in turns] else m for i, m in enumerate(chat)]


def test_openais_weight_of_a_message_is_a_mark(workplace):
    chat = [*talk()[:4], *talk()[2:4], talk()[4]]
    weighed = [{**m, "weight": int(i > 2)} if m["role"] == "assistant" else m for i, m in enumerate(chat)]
    marked = [{**m, "train": False} if i == 2 else m for i, m in enumerate(chat)]
    (one,), (other,) = read({"messages": weighed, "reward": 1}), read({"messages": marked, "reward": 1})
    assert (one.messages, one.completions) == (other.messages, other.completions)
    assert [m.get("train") for m in one.completions[0] if m["role"] == "assistant"].count(False) == 1


def placed(made, chat, rewards):
    """(tokens of each turn that has actions, rewards at their ends, all actions' rewards elsewhere)."""
    ((one,), dropped) = helpers.encoded(made, *read({"messages": chat, "rewards": rewards}))
    assert not dropped
    at = [i for i, token in enumerate(one.input_ids[one.action_index]) if made.decode([token]) == "<|im_end|>"]
    rest = [r for i, r in enumerate(one.rewards) if i not in at]
    return made.decode(one.input_ids[one.action_index]), one.rewards[at].tolist(), rest


@pytest.mark.parametrize("marks", [True, False])
def test_a_marked_message_is_state_and_its_reward_is_paid_for_the_action_before(workplace, marks):
    made = helpers.tokenizer(
        TEMPLATE if marks else TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    call = made.decode(made.encode('<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>'))
    cases = {
        (): (call * 3 + "It rains.<|im_end|>", [1, 2, 4, 8]),
        (0,): (call * 2 + "It rains.<|im_end|>", [2, 4, 8]),
        (1,): (call * 2 + "It rains.<|im_end|>", [3, 4, 8]),
        (1, 2): (call + "It rains.<|im_end|>", [7, 8]),
        (0, 3): (call * 2, [2, 12]),
    }
    for turns, (said, rewards) in cases.items():
        assert placed(made, marked(*turns), [1, 2, 4, 8])[:2] == (said, rewards)
        assert not any(placed(made, marked(*turns), [1, 2, 4, 8])[2])
    ((one,), _) = helpers.encoded(made, *read({"messages": marked(3), "reward": 5.0}))
    assert one.rewards.tolist() == [0.0] * (len(one.rewards) - 1) + [5.0]


def test_the_rest_of_a_marked_dialogue_has_the_tokens_of_the_whole(workplace):
    made = helpers.tokenizer(TEMPLATE)
    ((whole,), _), ((part,), _) = (helpers.encoded(made, *read({"messages": marked(*m)})) for m in ((), (1,)))
    assert part.input_ids.tolist() == whole.input_ids.tolist()
    assert set(part.action_index) < set(whole.action_index)


def test_marks_are_refused_where_everything_is_trained_on(model, capfd):
    written({"messages": marked(1)})
    assert "use data.train_on=assistant" in refused(capfd, *model, "data.train_on=response")


def test_a_mark_is_no_part_of_the_prompt(workplace):
    one, other = ({"messages": [{**talk()[1], **mark}, *talk()[2:]]} for mark in ({"train": False}, {}))
    assert len({example.prompt_id for example in read(one, other)}) == 1


def test_a_sampled_completion_that_is_marked_is_dropped(workplace):
    tokens = {"input_ids": [1, 2, 3], "start": 1, "ended": True}
    row = {"prompt": "q", "completion": [{"role": "assistant", "content": "a", "train": False}], **tokens}
    source = Jsonl(path=written(row, {**row, "completion": "a"}), val_path=None, pair_rewards=None)
    assert len([*source.load("train")]) == 1
    assert source.dropped == {"every assistant message says train: false": 1}


def test_a_row_that_is_written_again_keeps_the_tools_that_were_not_read(workplace):
    (bare,) = read(row(), tools=False)
    (again,) = read(row_of(bare, [1.0], "single"))
    assert list(again.tools) == [schema("weather")]


def test_tools_are_shown_in_the_template_of_models_without_one(workplace):
    ((one,), _) = helpers.encoded(helpers.tokenizer(None), *read(row()))
    shown = helpers.tokenizer(None).decode(one.input_ids)
    assert shown.startswith('<s>Tools: [{"type": "function", "function": {"name": "weather"')


def test_each_list_of_tools_and_roles_is_checked_and_few_are_remembered(workplace, monkeypatch):
    monkeypatch.setattr(chat_template, "LARGEST_MEMORY", 2)
    with_system = SCHEMAS.replace("if tools", "if tools and messages[0].role == 'system'")
    made = helpers.tokenizer(with_system + TEMPLATE.removeprefix(SCHEMAS))
    rows = [row(0, tools=[schema(f"f{n}")]) for n in range(5)]
    assert len([*encode(read(*rows), made, Counter(), max_length=None)]) == 5
    assert len(chat_template._SHOWING) <= 2
    with pytest.raises(InputError, match=r"rows\.jsonl:6: the chat template leaves out the tools"):
        [*encode(read(*rows, {**rows[4], "messages": talk()[1:]}), made, Counter(), max_length=None)]


def test_one_prompt_id_of_two_lists_of_tools_is_refused(model, capfd):
    written(row(prompt_id="a"), row(prompt_id="a", tools=[schema("wind")]))
    assert "prompt_id 'a' stands for another prompt" in refused(capfd, *model)


def test_a_row_without_a_trained_message_is_dropped_and_counted(workplace):
    chat = [{**m, "train": False} if m["role"] == "assistant" else m for m in talk()]
    source = Jsonl(path=written({"messages": chat}, {"messages": talk()}), val_path=None, pair_rewards=None)
    assert len([*source.load("train")]) == 1
    assert source.dropped == {"every assistant message says train: false": 1}
