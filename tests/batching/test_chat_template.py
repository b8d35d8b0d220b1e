import pytest

from shiqrun.batching import encode as module
from shiqrun.errors import InputError
from tests.support.helpers import CHATML, MARKED_EOS_OUTSIDE, assistant, encoded, example, tokenizer, user

STRIPS_HISTORY = (
    "{% for m in messages %}{% set text = m.content if loop.last else m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m.role + '\n' }}GENERATION{{ text + '<|im_end|>' }}END{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENS_OTHERWISE = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'")
MARKS = "{% if m.role == 'assistant' %}{% generation %}{{ text + '<|im_end|>' }}{% endgeneration %}{% else %}"


@pytest.mark.parametrize(
    "template",
    [
        STRIPS_HISTORY.replace("GENERATION", "").replace("END", ""),
        STRIPS_HISTORY.replace("GENERATION", MARKS).replace("END", "{% endif %}"),
    ],
    ids=["by prefix", "with marks"],
)
def test_a_template_that_rewrites_earlier_turns_is_refused_by_row(template):
    made = tokenizer(template)
    plain = example([assistant("a"), user("b"), assistant("c")], source="file:1")
    thinks = example([assistant("hm</think>a"), user("b"), assistant("c")], source="file:2")
    assert len(encoded(made, plain)[0]) == 1
    with pytest.raises(InputError, match=r"file:2: .* not prefix-stable.*hm"):
        encoded(made, plain, thinks)


@pytest.mark.parametrize("marked", [False, True])
def test_a_template_whose_generation_prompt_opens_another_turn_is_refused(marked):
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
    made = tokenizer(OPENS_OTHERWISE if not marked else MARKED_EOS_OUTSIDE.split("{% if add_gen")[0] + prompt)
    with pytest.raises(InputError, match=r"file:7: .* not prefix-stable"):
        encoded(made, example("fine", source="file:7"))


@pytest.mark.parametrize("prompt", ["", "assistant: "], ids=["before", "behind"])
def test_marks_that_begin_elsewhere_than_the_generation_prompt_ends_are_refused(prompt):
    made = tokenizer(MARKED_EOS_OUTSIDE.replace("assistant:{% endif", f"{{{{ '{prompt}' }}}}{{% endif"))
    said = " \n42" if prompt else "42"  # white space at the seam that does not merge
    with pytest.raises(InputError, match=r"file:7: .* not prefix-stable"):
        encoded(made, example(said, source="file:7"))


@pytest.mark.parametrize("marked", [False, True])
def test_a_row_whose_first_token_merges_with_the_prompts_last_is_dropped_wherever_it_stands(marked, monkeypatch):
    template = CHATML
    if marked:  # the same text; the mark begins behind the newline
        spoken = "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content }}"
        spoken += "{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}"
        template = template.replace("messages %}", f"messages %}}{spoken}", 1).replace(
            "{% endfor", "{% endif %}{% endfor"
        )
    made = tokenizer(template)
    assert len(made.encode("\n\n")) == 1
    monkeypatch.setattr(module, "CHUNK", 2)
    kept, dropped = encoded(made, *(example(c) for c in ("1", "2", "3", "\n\n\n4", "5")))
    assert dropped == {module.MERGED: 1}
    assert [t.example for t in kept] == [0, 1, 2, 4]


def test_a_conversation_that_the_template_refuses_is_named():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
    system = example("fine", prompt=({"role": "system", "content": "be kind"}, "hello"), source="file:3")
    with pytest.raises(InputError, match="file:3: the chat template refuses the conversation: no system turn"):
        encoded(tokenizer(template), example("fine"), system)


def test_marks_that_do_not_match_the_turns_are_refused():
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    made = tokenizer(template + "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}")
    with pytest.raises(InputError, match=r"file:1: .* marks 1 spans of generation .* 2 assistant turns"):
        encoded(made, example([assistant("a"), assistant("b")]))
