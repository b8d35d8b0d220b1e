"""Tool schemas and messages in the forms of OpenAI, from the user's file to the tokens, through the real commands."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.batching.chat_template import Conversation, render
from shiqrun.batching.encode import encode
from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from shiqrun.data.jsonl_rows import row_of
from shiqrun.rollout.store import parquet
from shiqrun.sampling.prompts import choose_prompts, prompt_of
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


def test_training_and_sampled_evaluation_put_the_schemas_into_the_prompt(model):
    words = ("algo=sft", "logger=none", "trainer.max_steps=1", "trainer.batch_size=4", "run_dir=run")
    assert main(["train", *model, *words, "eval.prompts=2", "eval.max_new_tokens=4", "data.val_fraction=0.5"]) == 0
    table = pq.read_table(next(__import__("pathlib").Path("run").rglob("completions.parquet"))).to_pylist()
    assert table
    made = helpers.tokenizer(TEMPLATE)
    prompts, _ = choose_prompts(read(row(), row(1)), made, number=2, room=None)
    assert all("weather of a city" in made.decode(prompt.tokens) for prompt in prompts)


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
    assert parquet._messages_in(parquet._prompts([one.messages, other])) == [list(one.messages), other]


def test_schemas_of_parquet_are_those_of_json(workplace):
    rows = [row(tools=[schema("weather"), {"type": "function", "function": {"name": "now"}}])]
    pq.write_table(pa.Table.from_pylist([{**rows[0], "messages": talk({"city": "Oslo"})}]), "rows.parquet")
    (parquet_row,) = Jsonl(path="rows.parquet", val_path=None, pair_rewards=None).load("train")
    (json_row,) = read(*rows)
    assert parquet_row.tools == json_row.tools


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
        assert '"arguments": {"city": "Oslo"}' in made.decode(render([chat], made)["input_ids"][0])
    joining = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ 'x ' + c.function.arguments }}"
    made.chat_template = joining + "{% endfor %}{% endfor %}"
    assert 'x {"city": "Oslo"}' in made.decode(render([chat], made)["input_ids"][0])


def test_reasoning_that_the_template_has_no_place_for_is_refused(workplace):
    chat = [*talk()[:2], {"role": "assistant", "reasoning_content": "hm hm", "content": "ok"}]
    ((one,), _) = helpers.encoded(helpers.tokenizer(TEMPLATE), *read({"messages": chat}))
    made = helpers.tokenizer(TEMPLATE)
    assert made.decode(one.input_ids[one.action_index]) == "<think>hm hm</think>ok<|im_end|>"
    with pytest.raises(Exception, match=r"rows\.jsonl:1: the chat template leaves out reasoning_content"):
        helpers.encoded(helpers.tokenizer(helpers.CHATML), *read({"messages": chat}))


def test_a_marked_message_is_state_and_has_no_reward(workplace):
    chat = talk()
    chat[2]["train"] = False
    for template in (TEMPLATE, TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")):
        made = helpers.tokenizer(template)
        ((one,), dropped) = helpers.encoded(made, *read({"messages": chat, "rewards": [1.0]}))
        assert made.decode(one.input_ids[one.action_index]) == "It rains.<|im_end|>"
        assert one.rewards.tolist() == [0.0] * (len(one.rewards) - 1) + [1.0]
        assert "<call>" in made.decode(one.input_ids)
        assert not dropped


def test_a_row_without_a_trained_message_is_dropped_and_counted(workplace):
    chat = [{**m, "train": False} if m["role"] == "assistant" else m for m in talk()]
    source = Jsonl(path=written({"messages": chat}, {"messages": talk()}), val_path=None, pair_rewards=None)
    assert len([*source.load("train")]) == 1
    assert source.dropped == {"every assistant message says train: false": 1}
