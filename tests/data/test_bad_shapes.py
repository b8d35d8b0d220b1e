"""Rows that cannot be read end a command with one line: the file, the row, and what would make it fit."""

import json

import pytest
from tokenizers import Regex, pre_tokenizers

from shiqrun.cli import main
from tests.support import helpers
from tests.support.online_words import ONLINE, PROBLEMS, STEPS, TINY

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ASKED = {"messages": CHAT[:1]}


def called(arguments):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}


def tools(**parameters):
    return {"messages": CHAT, "tools": [{"name": "f", "parameters": parameters}]}


def typed(schema):
    return tools(type="object", properties={"city": schema})


def refused(capsys, *words):
    """The one line of a command that ends with exit code 2."""
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert (said.err.count("\n"), "Traceback" in said.err + said.out) == (1, False)
    return said.err.strip()


def write(*rows):
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return ("data=jsonl", "data.path=rows.jsonl")


NEAR = "the nearest shape is prompt, completion [, reward]"
MAPPED = "data.columns.prompt=question data.columns.completion=response data.columns.reward=quality"


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"question": "q", "response": "a", "quality": 0.5}], ["question, response, quality", NEAR, MAPPED]),
        ([{"prompt": "q"}], ["the row has prompt", f"{NEAR}: it lacks completion, which data.columns.completion="]),
        ([{"steps": CHAT, "id": 1}], ["the nearest shape is messages [, reward]", "data.columns.messages=steps"]),
        ([{"prompt": "q", "good": "a", "bad": "b"}], ["prompt, chosen, rejected", "data.columns.rejected=bad"]),
        ([{"lang": "en"}], ["the row has lang", "known shapes are messages [, reward]; or prompt, completion"]),
        ([{"conversations": [{"from": "human", "value": "q"}]}], ["shiqrun convert FILE --from sharegpt"]),
        ([{"messages": CHAT}, {"question": "q", "response": "a"}], ["rows.jsonl:2", NEAR, "before it are: chat"]),
        (
            [{"prompt": "q", "completion": "a", "reward": 1}, {"messages": CHAT}],
            ["rows.jsonl:2: rewards come from nowhere, but from reward in rows.jsonl:1", "the same reward column"],
        ),
        ([tools(city="string")], ["column 'tools', f: parameters are", "expected a JSON schema"]),
        ([typed({"type": "str"})], ["f: parameters: property 'city': type str 'str'", "JSON schemas have string"]),
        ([typed({"type": "array", "items": {"type": 3}})], ["property 'city': items: type int 3"]),
        ([typed({"anyOf": [{"type": "string"}, "null"]})], ["property 'city': anyOf: found str 'null'"]),
        ([tools(type="object", required="city")], ["required is str 'city'", "a list of names"]),
        ([tools(type="object", properties=["city"])], ["properties are list"]),
        (
            [called("{a:")],
            ["message 1, tool call 0 of f: arguments are no JSON: str '{a:'", "mend them or drop the row"],
        ),
        ([ASKED], ["1 no actions (first: rows.jsonl:1); give rows an assistant message"]),
    ],
)
def test_what_cannot_be_read_is_named_with_its_row_and_cure(workplace, capsys, rows, parts):
    said = refused(capsys, "inspect", *write(*rows))
    assert "rows.jsonl:" in said
    assert all(part in said for part in parts), said


def test_training_names_the_first_row_without_a_models_message_too_also_from_kept_rows(workplace, capsys):
    words = ("train", "algo=sft", *write(ASKED, ASKED), "logger=none", "cache_dir=cache", "run_dir=run")
    for _ in range(2):
        assert "2 no actions (first: rows.jsonl:1)" in refused(capsys, *words)


def test_a_schema_may_have_everything_that_json_schemas_have(workplace):
    city = {"anyOf": [{"type": ["string", "null"]}, {"$ref": "#/$defs/city"}, True], "default": None}
    found = tools(properties={"city": city, "many": {"type": "array", "items": {"enum": [1]}}}, required=["city"])
    write(found, {"messages": CHAT, "tools": [{"name": "f"}, {"name": "g", "parameters": {}}]})
    assert main(["inspect", "data=jsonl", "data.path=rows.jsonl", "data.val_fraction=0", "limit=0"]) == 0


HEADERS = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'ipython' if m.role == 'tool' else m.role %}"
    "{{ '<|im_start|>' + role + '\n\n' }}{% if loop.first and m.role == 'system' %}{{ 'Today: 1 May\n\n' }}{% endif %}"
    "{{ (m.content | trim) + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
"""As Llama 3's: begins with BOS, trims contents, headers end in an empty line, a date, a role `ipython`."""
LINES = Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\S+|\s+")


@pytest.fixture
def llama(workplace):
    """Makes a model on disk with those headers; of its tokenizer line breaks are pieces of their own, or not."""

    def make(*, lines):
        made = helpers.tokenizer(HEADERS)
        if lines:
            pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(LINES, "isolated"), pieces]
            )
        helpers.llama(vocabulary=len(made), max_position_embeddings=128).save_pretrained("model")
        made.save_pretrained("model")
        talk = [{"role": "system", "content": " Help. "}, *CHAT, {"role": "tool", "content": "2"}, CHAT[1], *CHAT]
        return (*write({"messages": talk}), "model=hf", "model.path=model", "data.val_fraction=0")

    return make


def test_a_tokenizer_that_joins_the_end_of_the_generation_prompt_is_named_where_it_drops_all(llama, capsys):
    said = refused(capsys, "inspect", *llama(lines=False))
    assert "1 prompt and completion share a token (first: rows.jsonl:1)" in said
    assert "use the tokenizer that the chat template was made for" in said


def test_headers_that_end_in_an_empty_line_lose_no_row_with_the_tokenizer_that_is_made_for_them(llama, capsys):
    assert main(["inspect", *llama(lines=True)]) == 0
    said = capsys.readouterr().out
    assert said.count("[a<|im_end|>]") == 3
    assert "tool       <|im_start|>ipython↵" in said
    assert "dropped: nothing" in said


def test_rows_beyond_the_words_of_a_tiny_model_are_named(workplace, capsys):
    write({"prompt": "which word is this?", "completion": "none", "reward": 0})
    words = ("algo=copg", "algo.reference=frozen", *PROBLEMS, *TINY, *STEPS, *ONLINE)
    more = ("rollout.path=rows.jsonl", "rollout.sources.further=1", "rollout.samples_per_prompt=2", "run_dir=run")
    said = refused(capsys, "train", *words, *more)
    assert "rows.jsonl:1: the tokenizer has no token for a part of the conversation" in said
    assert "or use another model" in said
