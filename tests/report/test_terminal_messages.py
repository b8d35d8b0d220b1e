from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shiqrun.batching.encode import encode
from shiqrun.report.message_segments import segments, tool_line
from shiqrun.report.terminal_messages import brief_text, message_lines
from shiqrun.types import Example
from tests.support import helpers
from tests.support.helpers import assistant, tool, user


def test_no_line_is_wider_than_asked_and_no_text_is_lost():
    words = [f"w{'o' * (i % 9)}{i}" for i in range(80)]
    made = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*words, "User:", "Assistant:", "<e>", "<u>"])}, "<u>")
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>", unk_token="<u>")
    tokenizer.chat_template = (
        "User: {{ messages[0].content }} Assistant: "
        "{% if messages[1:] %}{% generation %}{{ messages[1].content }} <e>{% endgeneration %}{% endif %}"
    )
    completion = [{"role": "assistant", "content": " ".join(words)}]
    example = Example([{"role": "user", "content": words[0]}], [completion], [list(map(float, range(1, 82)))], "p")
    (trajectory,) = encode([example], tokenizer, Counter(), max_length=None)
    shown = message_lines(trajectory, example, tokenizer, width=50, brackets=("", ""))
    head, counts, *lines = (line.plain for line in shown)
    assert head.endswith("prompt p")
    assert counts.startswith(f"{len(trajectory.input_ids)} tokens, 81 actions, return {81 * 82 // 2}")
    assert max(map(len, lines)) <= 50
    lines = [line[11:] for line in lines]
    tokens = [line for line in lines if "w" in line or "<e>" in line]
    assert "".join(tokens) == tokenizer.decode(trajectory.input_ids)
    below = [line for line in lines if line and line not in tokens]
    assert [float(n) for line in below for n in line.split()] == list(range(1, 82))


CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a\ncity", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
IN_SYSTEM = (
    "{{ '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else 'Help.') }}"
    "{% if tools %}{{ '\n\n# Tools\n' }}{% for t in tools %}{{ (t | tojson) + '\n' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% for m in messages %}{% if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IN_USER = (
    "{{ 'Environment: ' + ('ipython' if tools else 'none') + '<|im_end|>' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if tools and loop.first %}{{ 'Given these functions:\n\n' }}"
    "{% for t in tools %}{{ (t | tojson(indent=2)) + '\n\n' }}{% endfor %}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def shown(template, example, *, width=60, fold=True):
    made = helpers.tokenizer(template)
    ((trajectory,), _) = helpers.encoded(made, example)
    lines = message_lines(trajectory, example, made, width=width, brackets=("[", "]"), fold=fold)
    return [line.plain for line in lines][2:], made, trajectory


def dialogue(*, rewards=None):
    talk = [assistant("I ask."), tool("rain"), assistant("It rains."), user("And now?"), assistant("No.")]
    return Example([user("weather?")], [talk], rewards, "p", source="f:1", tools=TOOLS)


@pytest.mark.parametrize("template", [IN_SYSTEM, IN_USER, None], ids=["system", "user", "plain"])
def test_tools_are_folded_wherever_the_template_writes_them_and_shown_if_asked(template):
    lines, made, trajectory = shown(template, dialogue())
    roles = [line[:11].strip() for line in lines if line[:11].strip()]
    assert [r for r in roles if r != "tools"] in (
        ["user", "user", "assistant", "tool", "assistant", "user", "assistant"],
        ["user", "assistant", "tool", "assistant", "user", "assistant"],
    )
    at = lines.index("           weather(city: string, days?: any): of a city")
    assert lines[at + 1] == "           now()"
    assert lines[at - 1].startswith("tools      ")
    assert lines[at - 1].endswith(" tokens; tools=shown prints them")
    assert '"name"' not in "".join(lines)
    whole, *_ = shown(template, dialogue(), fold=False)
    text = "".join(line[11:].removesuffix("↵") for line in whole).replace("[", "").replace("]", "")
    plain = made.decode(trajectory.input_ids).replace("\n", "").replace("[", "").replace("]", "")
    assert text == plain


def test_each_turn_has_its_reward_beneath_and_actions_stand_in_brackets():
    lines, *_ = shown(None, dialogue(rewards=[[0, 0.5, -1]]))
    for words, reward in (("[ I ask.</s>]", "0"), ("[ It rains.</s>]", "0.5"), ("[ No.</s>]", "-1")):
        at = next(i for i, line in enumerate(lines) if words in line)
        assert lines[at].startswith("assistant  ")
        assert lines[at + 1].strip() == reward
        assert lines[at + 1].index(reward) == lines[at].index("</s>")


def test_messages_that_are_not_in_the_text_get_no_roles():
    example = dialogue()
    made = helpers.tokenizer(None)
    assert [s.role for s in segments(example, 0, "another text", made)] == [""]


def test_a_tool_is_one_line_whatever_its_schema():
    assert tool_line({"name": "f"}) == "f()"
    types = {"a": {"type": ["integer", "null"]}, "b": True, "c": {"anyOf": []}}
    assert (
        tool_line({"function": {"name": "f", "parameters": {"properties": types}}})
        == "f(a?: integer|null, b?: any, c?: any)"
    )


def test_a_brief_text_is_one_line_without_control_characters():
    assert brief_text("a\n\tb \x1b[1m", 40) == "a b \\x1b[1m"
    assert brief_text("word " * 40, 12) == "word word w…"
