import json

import pytest

from shiqrun.environments.bfcl.rendering import DONE, message_of, shorten, signature, system_messages

COPY = {
    "name": "cp",
    "description": "Copies.",
    "parameters": {
        "type": "dict",
        "properties": {"source": {"type": "string"}, "times": {"type": "integer"}, "odd": {}},
        "required": ["source", "odd"],
    },
}
LIST = {"name": "ls", "description": "Lists.", "parameters": {"type": "dict", "properties": {}}}


def test_a_signature_names_types_and_what_may_be_left_out():
    assert signature(COPY) == "cp(source: string, times: integer = ..., odd: any)"
    assert signature(LIST) == "ls()"


def test_functions_are_shown_as_said():
    (message,) = system_messages([COPY, LIST], "signatures")
    assert message["role"] == "system"
    first, *lines = message["content"].split("\n")
    assert "[f(a=1), g()]" in first
    assert lines == [signature(COPY), signature(LIST)]
    assert system_messages([COPY, LIST], "names") == [{"role": "system", "content": "cp, ls"}]
    assert system_messages([COPY, LIST], "none") == []


def test_the_official_prompt_is_the_package_s_with_the_documents_in_it():
    prompts = pytest.importorskip("bfcl_eval.constants.default_prompts", reason="the prompt comes with bfcl-eval")
    (message,) = system_messages([COPY, LIST], "official")
    before, after = prompts.DEFAULT_SYSTEM_PROMPT.split("{functions}")
    assert message["content"].startswith(before)
    assert message["content"].endswith(after.rstrip("\n")) or message["content"].endswith(after)
    assert json.loads(message["content"][len(before) : len(message["content"]) - len(after)]) == [COPY, LIST]


@pytest.mark.parametrize(
    ("characters", "expected"),
    [(None, "abcdef"), (6, "abcdef"), (5, "abcde... (1 more characters)"), (1, "a... (5 more characters)")],
)
def test_a_long_result_is_cut_with_a_mark(characters, expected):
    assert shorten("abcdef", characters) == expected


def test_a_message_holds_its_calls_or_ends_the_turn():
    assert message_of(["f(a=1)", "g()"]) == "[f(a=1), g()]"
    assert message_of([]) == DONE
