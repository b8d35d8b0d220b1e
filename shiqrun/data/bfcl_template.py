"""`template_calls` asks a chat template whether it shows tools, and how it writes the calls of an assistant message."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shiqrun.environments.bfcl.tool_calls import CallFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "A probe",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}, "number": {"type": "integer"}}},
    },
}
CALLS = [{"name": "probe", "arguments": {"word": 'it\'s "so"', "number": 3}}]
ASKED = [{"role": "user", "content": "question"}]
BEHIND = [{"role": "tool", "content": "result"}, {"role": "assistant", "content": "answer"}]
WORD = "said"


@dataclass(frozen=True)
class TemplateCalls(CallFormat):
    """A `TemplateCalls` writes calls as a chat template does.

    Attributes:
        tokenizer: with the template.
        head: what the template writes before an assistant's message.
        tail: what it writes behind one.
        as_text: whether it gets arguments as JSON texts.
    """

    tokenizer: "PreTrainedTokenizerBase"
    head: str
    tail: str
    as_text: bool

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of an assistant message that makes these calls, each `{"name", "arguments"}`.

        Raises:
            ValueError: the template refuses the calls, or ends their message otherwise than others.
        """
        return _written(self, json.dumps(list(calls)))


@lru_cache(maxsize=65536)
def _written(form: TemplateCalls, calls: str) -> str:
    text = _apply(form.tokenizer, [*ASKED, _message(json.loads(calls), form.as_text)])
    if not text.startswith(form.head) or not text.endswith(form.tail):
        raise ValueError("the chat template writes a message with calls between other marks than other messages")
    return text[len(form.head) : len(text) - len(form.tail)]


def template_calls(tokenizer: "PreTrainedTokenizerBase", specials: Sequence[str]) -> TemplateCalls | str:
    """Return how a chat template writes calls, or why its calls cannot be used.

    They can if the text of a call is read back as the call, and makes the same history as the call itself.

    Args:
        tokenizer: with the model's own template.
        specials: texts of its special tokens, which no message of an episode may hold.
    """
    try:
        if _apply(tokenizer, ASKED) == _apply(tokenizer, ASKED, tools=None):
            return "the chat template leaves tools out"
        return _probed(tokenizer, specials)
    except Exception as error:  # a template is a program that may raise anything
        return f"the chat template refuses a call of a tool ({' '.join(str(error).split())[:80]})"


def _probed(tokenizer: "PreTrainedTokenizerBase", specials: Sequence[str]) -> TemplateCalls | str:
    head = _apply(tokenizer, ASKED, add_generation_prompt=True)
    plain = _apply(tokenizer, [*ASKED, {"role": "assistant", "content": WORD}])
    tail = plain.removeprefix(head + WORD)
    if tail == plain:
        return "the chat template opens an assistant's message otherwise than its generation prompt"
    for as_text in (False, True):
        form = TemplateCalls(tokenizer, head, tail, as_text)
        try:
            text = form.written(CALLS)
        except TypeError:  # it joins arguments to a text
            continue
        call, said = _message(CALLS, as_text), {"role": "assistant", "content": text}
        if form.read(text) != "[probe(word='it\\'s \"so\"', number=3)]":
            return "the chat template writes calls in a form that is not JSON of name and arguments"
        if any(special in text for special in specials):
            return "the chat template writes calls with a special token"
        if _apply(tokenizer, [*ASKED, call, *BEHIND]) != _apply(tokenizer, [*ASKED, said, *BEHIND]):
            return "the chat template writes earlier calls otherwise than the last"
        return form
    return "the chat template refuses a call of a tool"


def _message(calls: Sequence[Mapping[str, Any]], as_text: bool) -> dict[str, Any]:
    """Return an assistant message in OpenAI's form; `as_text` gives the arguments as JSON texts."""
    functions = [{**c, "arguments": json.dumps(c["arguments"]) if as_text else c["arguments"]} for c in calls]
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": f} for f in functions]}


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    chat: Sequence[Any],
    *,
    tools: Sequence[Any] | None = (PROBE,),
    add_generation_prompt: bool = False,
) -> str:
    given = None if tools is None else list(tools)
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return str(tokenizer.apply_chat_template(list(chat), tools=given, **options))
