"""What is rendered and tokenized quickly equals what transformers makes of the same chats, token by token."""

import dataclasses
import json
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

from shiqrun.batching import logged_data, word_tokens
from shiqrun.batching.encode import PLAIN_TEMPLATE, encode
from shiqrun.batching.quick_template import QuickTemplate, quick_template
from shiqrun.batching.template_texts import TemplateTexts, prints_contents
from shiqrun.batching.word_tokens import PATTERNS, WordTokens, can_be_cut
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from shiqrun.types import Example
from tests.support.helpers import BARE, CHATML, MARKED_EOS_OUTSIDE, assistant, example, tokenizer, tool, user

CHATML_MARKED = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] ~ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = BARE.replace("m.content", "(m.content | trim)")
THINKING = CHATML_MARKED.replace("m['content'] ~", "m['content'].split('</think>')[-1] ~")
TEMPLATES = {
    "plain": PLAIN_TEMPLATE,
    "chatml": CHATML,
    "bare": BARE,
    "outside": MARKED_EOS_OUTSIDE,
    "marked": CHATML_MARKED,
    "trimming": TRIMMING,
    "thinking": THINKING,
}
WORDS = [
    "hello",
    "the",
    "weather",
    "it's",
    "é",
    "日本",
    "🤗👍🏽",
    "12 345",
    "x\u0301",
    "don't!",
    "</think>",
    "a\u00a0b",
    "<b>",
]
SPACES = [" ", " ", " ", "  ", "\n", "\n\n", " \n", "\n ", "\t", "\u3000", " \u00a0", ""]


def made_of(name, template=None):
    """The tokenizer of the other tests with the normalizer and the pre-tokenizer of a family of models."""
    made = tokenizer(template)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt2", "digits"))
    backend = made.backend_tokenizer
    if name == "words":
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif name == "digits":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    elif name != "gpt2":
        (pattern,) = (p for p in PATTERNS if FAMILIES[name](p))
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
        backend.normalizer = normalizers.NFC()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


FAMILIES = {
    "gpt2": lambda p: p.startswith("'s"),
    "llama3": lambda p: p.startswith("(?i") and "{1,3}" in p,
    "qwen2": lambda p: p.startswith("(?i") and "{1,3}" not in p,
    "gpt4o": lambda p: p.startswith("["),
    "digits": None,
    "words": None,
}


def text(draw):
    return "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(draw.randrange(7)))


def odd_examples(count=60, seed=0):
    """Pairs, chats of several turns, marked turns, system messages, empty texts, special tokens, white space."""
    draw = random.Random(seed)
    made = []
    for n in range(count):
        prompt = [{"role": "system", "content": text(draw)}] * (n % 3 == 0) + [user(text(draw))]
        prompt += [assistant(text(draw)), user(text(draw))] * (n % 4 == 0)
        turns = [
            assistant(text(draw)),
            draw.choice([user, tool])(text(draw)),
            assistant("the " * (n % 50) + text(draw)),
        ]
        turns[0] |= {"train": False} if n % 5 == 0 else {}
        other = [assistant(draw.choice(["fine", "", " fine <|im_end|>", "\n", text(draw)]))]
        made.append(example(turns if n % 2 else turns[2:], other, prompt=prompt, rewards=[n, -1.0], source=f"f:{n}"))
    return made


def outcome(made, examples, quick):
    """Rows, drops and error of an encoding."""
    dropped, rows = Counter(), []
    try:
        for t in encode(examples, made, dropped, max_length=90, quick=quick):
            rows.append(
                (t.input_ids.tolist(), t.action_index.tolist(), t.rewards.tolist(), t.example, t.completion, t.source)
            )
            assert t.input_ids.dtype == t.action_index.dtype == np.int32
    except InputError as error:
        return rows, dropped, str(error)
    return rows, dropped, None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rows_masks_drops_and_errors_are_those_of_transformers(family, template):
    made = made_of(family, TEMPLATES[template])
    quick = quick_template(made)
    examples = odd_examples()
    for given in (examples, [e for e in examples if outcome(made, [e], None)[2] is None]):
        expected = outcome(made, given, None)
        assert outcome(made, given, quick) == expected
    if family != "words" or template not in ("plain", "outside"):  # which end a turn where "words" has no token
        assert len(expected[0]) > 20
        assert expected[1]
    assert quick._trusted


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_short_texts_are_those_of_the_whole_text(family):
    made = made_of(family)
    signs = ["a", "'s", "1", "!", "é", " ", " ", "\n", "\t", "\u0301", "\r", "</s>", "A"]
    texts = ["".join(t) for n in range(5) for t in product(signs[: 13 if n < 4 else 8], repeat=n)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[], show_progress=False, min_frequency=1)
    made.backend_tokenizer.train_from_iterator(texts, trainer)  # so that runs of white space are tokens
    whole = made(texts, add_special_tokens=False)["input_ids"]
    words = WordTokens(made)
    draw = random.Random(0)
    for shared in ([0] * len(texts), [draw.randrange(len(t) + 1) for t in texts]):
        found = words.ids(texts, shared)[1]
        assert [t for t, a, b in zip(texts, found, whole, strict=True) if a != b] == []


def test_a_word_without_a_token_is_an_error_with_and_without():
    made = made_of("words", BARE)
    made.backend_tokenizer.model = models.WordLevel(
        {word: n for n, word in enumerate(["<pad>", "</s>", "hello", "the"])}
    )
    given = [example("the", prompt=("hello the",)), example("weather", prompt=("hello",))]
    found = outcome(made, given, quick_template(made))
    assert found == outcome(made, given, None)
    assert "no token for a part of the conversation" in found[2]


def test_words_are_forgotten_and_read_again(monkeypatch):
    monkeypatch.setattr(word_tokens, "LARGEST_MEMORY", 40)
    made = made_of("gpt2", PLAIN_TEMPLATE)
    given = odd_examples(200)
    monkeypatch.setattr("shiqrun.batching.encode.CHUNK", 8)
    assert outcome(made, given, quick_template(made)) == outcome(made, given, None)


def _changed(made, change):
    change(made.backend_tokenizer)
    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Split(Regex(r"new york|\s+"), "isolated")),
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda b: setattr(b, "normalizer", normalizers.Strip()),
        lambda b: setattr(b, "post_processor", processors.ByteLevel(trim_offsets=True, add_prefix_space=True)),
        lambda b: setattr(b.model, "dropout", 0.5),
        lambda b: b.add_tokens([AddedToken("new york")]),
        lambda b: b.add_special_tokens([AddedToken("<x>", rstrip=True)]),
    ],
)
def test_tokenizers_that_may_look_across_a_cut_read_whole_texts(change):
    assert can_be_cut(tokenizer())
    assert not can_be_cut(_changed(tokenizer(), change))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_only_print_contents_run_once_for_the_same_roles(name, monkeypatch):
    prints = name not in ("trimming", "thinking")
    assert prints_contents(TEMPLATES[name]) is prints
    texts, runs = TemplateTexts(tokenizer(TEMPLATES[name])), []
    rendered = texts._rendered
    monkeypatch.setattr(texts, "_rendered", lambda chats, *a: (runs.extend(chats), rendered(chats, *a))[1])
    texts.texts(
        [[user(str(n)), assistant(str(-n))] for n in range(20)], head=False, marks="generation" in TEMPLATES[name]
    )
    assert len(runs) == (2 if prints else 20)


@pytest.mark.parametrize(
    "use",
    [
        "{{ m.content | trim }}",
        "{{ m.content | upper }}",
        "{{ (m.content + 'a') | length }}",
        "{% if m.content %}a{% endif %}",
        "{% if 'x' in m.content %}a{% endif %}",
        "{{ 'a' if m.content == 'x' else 'b' }}",
        "{{ m.content[:3] }}",
        "{{ m.content.strip() }}",
        "{{ m['con' + 'tent'] }}",
        "{{ m }}",
        "{{ m | tojson }}",
        "{{ m.values() | list }}",
        "{% for k in m %}{{ k }}{% endfor %}",
        "{% set c = m.content %}{{ c | trim }}",
        "{% set c %}{{ m.content }}{% endset %}{{ c | trim }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{% macro f() %}{{ m.content }}{% endmacro %}{{ f() | trim }}",
        "{{ loop.previtem.content | length if loop.previtem else '' }}",
        "{{ loop.changed(m) }}",
        "{{ ('<b>' | safe) + m.content }}",
        "{% autoescape true %}{{ m.content }}{% endautoescape %}",
        "{{ messages | tojson }}",
        "{{ (messages | last).content | length }}",
        "{{ messages[-1].content | length }}",
        "{% set ns = namespace(a=m) %}{{ ns.a.content | length }}",
        "{% for a, b in messages | groupby('content') %}{{ a }}{% endfor %}",
        "{{ strftime_now('%f') }}",
    ],
)
def test_a_template_that_does_more_than_print_contents_runs_for_each_chat(use):
    template = "{% for m in messages %}" + use + "{% endfor %}"
    assert not prints_contents(template)


@pytest.mark.parametrize(
    "use",
    [
        "{{ m.content }}",
        "{{ m['role'] ~ ': ' ~ m['content'] }}",
        "{{ m.role | upper + m.content if m.role == 'user' else m.content }}",
        "{% if not loop.first and m.role != 'system' %}{{ '\n' }}{% endif %}{{ m.content }}",
        "{% if loop.index0 == messages | length - 1 %}{{ m.content }}{% endif %}",
        "{% set first = m.role == 'user' %}{{ m.content if first else 'no' }}",
    ],
)
def test_filled_shapes_are_the_texts_of_the_template(use):
    template = "{% for m in messages %}" + use + "{% endfor %}{{ messages[0].content if messages else '' }}"
    assert prints_contents(template)
    made = tokenizer(template)
    chats = [[*e.messages, *e.completions[0]] for e in odd_examples()]
    chats = [[{k: m[k] for k in ("role", "content")} for m in chat] for chat in chats]
    found = TemplateTexts(made).texts(chats, head=False, marks=False)
    assert [t for t, _ in found] == made.apply_chat_template(chats, tokenize=False)


def test_what_does_not_agree_with_transformers_is_left_to_it(monkeypatch):
    made = made_of("gpt2", PLAIN_TEMPLATE)
    given = odd_examples()
    expected = outcome(made, given, None)
    ids = WordTokens._ids
    monkeypatch.setattr(WordTokens, "_ids", lambda self, cuts: [[*i, 7] for i in ids(self, cuts)])
    quick = QuickTemplate(made)
    assert outcome(made, given, quick) == expected
    assert not quick._trusted


LONG = {"prompt": "hello", "chosen": "the weather " * 60, "rejected": "fine"}
SCHEMA = {"type": "function", "function": {"name": "look", "parameters": {}}}
FILES = {
    "pairs": lambda n: (
        LONG if n == 7 else {"prompt": f"how {n % 9}? é", "chosen": f" fine {n % 4}", "rejected": "" if n % 5 else "a"}
    ),
    "chats": lambda n: {
        "messages": [{"role": "system", "content": "be  brief"}] * (n % 2)
        + [
            user(f"hi {n}\n"),
            assistant("x") | {"train": n % 3 > 0},
            user("日本"),
            assistant("fine </s>" if n % 7 == 0 else "🤗"),
        ],
        "reward": n,
    },
    "tools": lambda n: (
        {"messages": [user(f"hi {n}"), assistant("fine")], "reward": 1} | ({"tools": [SCHEMA]} if n % 3 == 0 else {})
    ),
    "groups": lambda n: {
        "prompt": f"how {n % 8}?",
        "completions": ["fine", "fine", "bad"],
        "rewards": [1, 1, n],
        "note": "x",
    },
    "broken": lambda n: {
        "prompt": "hello",
        "completion": "fine" if n < 30 else [assistant("a"), assistant("b")],
        "rewards": [1.0],
    },
}


@pytest.mark.parametrize("template", ["plain", "chatml", "marked"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_into_the_same_rows_with_and_without(tmp_path, monkeypatch, caplog, kind, template):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(FILES[kind](n)) + "\n" for n in range(50)), encoding="utf-8")
    caplog.set_level("INFO", "shiqrun")
    usual = {"limit": None, "max_length": 60, "val_fraction": 0.3, "completions": "all", "train_on": "assistant"}
    found = []
    for make in (quick_template, lambda _: None):
        monkeypatch.setattr(logged_data, "quick_template", make)
        source = Jsonl(path=str(file), val_path=None, pair_rewards=[1, -1])
        caplog.clear()
        try:
            data = logged_data.load(
                source, made_of("qwen2", TEMPLATES[template]), logged_data.DataSettings(**usual), context=99
            )
            rows = [dataclasses.astuple(t) for rows in (data.train, data.val) for t in rows.trajectories]
            found.append((data.fingerprint, data.dropped, sorted(data.prompts), repr(rows), caplog.messages))
        except InputError as error:
            found.append((str(error), caplog.messages))
    assert found[0] == found[1]
    assert kind != "broken" or "rows.jsonl:31" in found[0][0]


def test_errors_of_a_template_name_the_row():
    refusing = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('no no') }}{% endif %}{% endfor %}"
    made = made_of("gpt2", refusing + CHATML)
    given = [example("fine", source="f:1"), example("no", source="f:2")]
    with pytest.raises(InputError, match="f:2: the chat template refuses the conversation: no no"):
        list(encode(given, made, Counter(), max_length=None, quick=quick_template(made)))


def test_tools_and_messages_with_further_keys_are_read_by_transformers():
    template = PLAIN_TEMPLATE
    made, schema = made_of("gpt2", template), {"type": "function", "function": {"name": "go", "parameters": {}}}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "go", "arguments": {"a": 1}}}],
    }
    given = [
        Example([user("hi")], [[call, tool("ok"), assistant("done")]], [1.0], "p", tools=[schema], source="f:1"),
        example([call | {"content": "x"}], rewards=[1.0]),
        example([assistant("so") | {"name": "Bo"}], rewards=[1.0]),
    ]
    assert outcome(made, given, quick_template(made)) == outcome(made, given, None)


def test_chats_are_compared_until_enough_are_not_until_a_first_call():
    quick = quick_template(made_of("gpt2", CHATML))
    counts = [quick.to_compare(most, head=False, marks=False) for most in (1, 20, 0, 40, 40)]
    assert counts == [1, 20, 0, 11, 0]
    assert quick.to_compare(5, head=True, marks=False) == 5


def test_named_templates_without_a_default_are_named_with_the_row():
    made = made_of("gpt2", CHATML)
    made.chat_template = {"tool_use": CHATML}
    with pytest.raises(InputError, match="f:1: the chat template"):
        list(encode([example("hi", source="f:1")], made, Counter(), max_length=None, quick=quick_template(made)))


def test_arguments_of_a_call_do_not_depend_on_other_rows():
    """The template takes the arguments of `a` as an object and those of `b` as a text."""
    shown = "{{ c.function.name }}"
    shown += "{{ (c.function.arguments | tojson) if c.function.name == 'a' else ('<' + c.function.arguments + '>') }}"
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}" + shown + "{% endfor %};{% endfor %}"
    )
    made = made_of("gpt2", template)

    def calling(name):
        call = {"type": "function", "function": {"name": name, "arguments": {"n": 1}}}
        return Example(
            [user("go")], [[{"role": "assistant", "content": "", "tool_calls": [call]}]], [1.0], name, source=name
        )

    def tokens(*given):
        return {row.source: row.input_ids.tolist() for row in encode(given, made, Counter(), max_length=None)}

    alone, together = tokens(calling("a")) | tokens(calling("b")), tokens(calling("a"), calling("b"))
    assert together == alone
