import itertools
from collections import defaultdict

import numpy as np
import pytest
import yaml

from shiqrun.batching.encode import encode
from shiqrun.batching.logged_data import DataSettings, load
from shiqrun.data.program_functions import enumerate_functions
from shiqrun.data.program_language import (
    LONGEST_PROGRAM,
    PRIMITIVES,
    canonical,
    fixed_lists,
    parse,
    probes,
    run,
    spell,
    steps_of,
)
from shiqrun.data.programs import SIDES, Programs
from shiqrun.errors import InputError
from shiqrun.models.tiny import Tiny
from tests.test_contract import CONF

SETTINGS = DataSettings(limit=None, max_length=None, val_fraction=0.1, completions="all", train_on="assistant")
SIZES = {"problems": 300, "val_problems": 120}
FEWER = ["reverse", "sort", "unique", "sums", "odds", "add", "above", "drop"]  # for three steps: all take a while


def programs(**options):
    """The source of conf/data/programs.yaml, with fewer problems."""
    given = yaml.safe_load((CONF / "data" / "programs.yaml").read_text(encoding="utf-8"))
    others = {"_target_", "name", "limit", "max_length", "completions", "train_on", "distinct"}
    return Programs(**({key: value for key, value in given.items() if key not in others} | SIZES | options))


def said(example):
    return [completion[0]["content"] for completion in example.completions]


def every_list(base):
    return list(itertools.chain.from_iterable(itertools.product(range(base), repeat=n) for n in range(3, 7)))


def by_hand(text, xs, base):
    """The meaning of a program, written out once more, step by step."""
    xs = list(xs)
    for step in text.split(" | "):
        word, *digit = step.split()
        k = int(digit[0]) if digit else None
        if word == "reverse":
            xs.reverse()
        elif word == "sort":
            xs.sort()
        elif word == "rotate":
            xs.append(xs.pop(0)) if xs else None
        elif word == "unique":
            xs = [x for i, x in enumerate(xs) if x not in xs[:i]]
        elif word == "sums":
            xs = [sum(xs[: i + 1]) % base for i in range(len(xs))]
        elif word in ("evens", "odds"):
            xs = [x for x in xs if x % 2 == (word == "odds")]
        elif word in ("add", "times"):
            xs = [(x + k if word == "add" else x * k) % base for x in xs]
        elif word == "cap":
            xs = [k if x > k else x for x in xs]
        elif word in ("above", "below"):
            xs = [x for x in xs if x != k and (x > k) == (word == "above")]
        else:
            xs = [x for i, x in enumerate(xs) if (i < k) == (word == "take")]
    return xs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reverse", [9, 3, 0, 3, 8]),
        ("sort", [0, 3, 3, 8, 9]),
        ("rotate", [3, 0, 3, 9, 8]),
        ("unique", [8, 3, 0, 9]),
        ("sums", [8, 1, 1, 4, 3]),
        ("evens", [8, 0]),
        ("odds", [3, 3, 9]),
        ("add 3", [1, 6, 3, 6, 2]),
        ("times 2", [6, 6, 0, 6, 8]),
        ("cap 3", [3, 3, 0, 3, 3]),
        ("above 3", [8, 9]),
        ("below 3", [0]),
        ("take 2", [8, 3]),
        ("drop 3", [3, 9]),
        ("drop 9", []),
        ("reverse | add 1 | take 2", [0, 4]),
        ("take 2 | add 1 | reverse", [4, 9]),
    ],
)
def test_a_program_does_its_steps_in_turn(text, expected):
    assert list(run(parse(text), (8, 3, 0, 3, 9), 10)) == expected


def test_all_steps_take_lists_of_any_length():
    for step in (step for name in PRIMITIVES for step in steps_of(name, 7)):
        for xs in [(), (3,), (1, 1, 2, 6, 5, 0)]:
            assert list(run((step,), xs, 7)) == by_hand(spell((step,)), xs, 7)


def test_digits_of_steps_are_those_that_change_something_and_leave_something():
    assert [k for _, k in steps_of("add", 5)] == [1, 2, 3, 4]
    assert [k for _, k in steps_of("times", 5)] == [2, 3, 4]
    assert [k for _, k in steps_of("cap", 5)] == [1, 2, 3]
    assert [k for _, k in steps_of("above", 5)] == [0, 1]
    assert [k for _, k in steps_of("below", 5)] == [3, 4]
    assert [k for _, k in steps_of("take", 10)] == [k for _, k in steps_of("drop", 10)] == [1, 2, 3, 4]
    assert [k for _, k in steps_of("drop", 4)] == [1, 2, 3]
    assert steps_of("sums", 5) == [("sums", None)]


@pytest.mark.parametrize("text", ["sort|add 1", " sort  |\n add 1 ", "sort | add 1"])
def test_white_space_does_not_matter(text):
    assert spell(parse(text)) == "sort | add 1"


@pytest.mark.parametrize(
    "text",
    [
        *("", "|", "sort |", "| sort", "sort sort", "sort 1", "Sort", "add", "add x", "add 12", "add -1", "add 1 2"),
        *("add ٣", "1 2 3", "-> 1", "eval ( 1 )", "sort ; sort", "__import__"),
        " | ".join(["sort"] * (LONGEST_PROGRAM + 1)),
    ],
)
def test_other_texts_are_no_programs(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sort", "sort"),
        ("sort | reverse | reverse", "sort"),
        ("reverse | sort", "sort"),
        ("sort | sort | sort", "sort"),
        ("sort | sort | take 2", "sort | take 2"),
        ("add 3 | add 7 | rotate", "rotate"),
        ("reverse | reverse", ""),
        ("drop 9", "drop 9"),
        ("add 1 | reverse", "add 1 | reverse"),
        ("reverse | add 1", "reverse | add 1"),
        ("add 1 | add 1", "add 1 | add 1"),
        ("reverse | add 1 | reverse", "add 1"),
    ],
)
def test_the_canonical_form_leaves_out_idle_steps_and_nothing_else(text, expected):
    assert spell(canonical(parse(text), 10)) == expected


@pytest.mark.slow
def test_programs_of_one_function_agree_on_every_list_there_is():
    """In base 4 there are 5440 lists; the probes are 256 of them."""
    known, lists = enumerate_functions(4, PRIMITIVES, 2), every_list(4)
    expected = {n: [run(program[0], xs, 4) for xs in lists] for n, program in enumerate(known.programs)}
    assert len(set(probes(4))) == 256
    for program, number in known.number.items():
        assert [run(program, xs, 4) for xs in lists] == expected[number]
    assert len({tuple(outputs) for outputs in expected.values()}) == len(known.programs)


def test_the_programs_of_a_function_are_all_that_compute_it_without_idle_steps():
    known = enumerate_functions(5, ("reverse", "add", "take"), 3)
    steps = [step for name in ("reverse", "add", "take") for step in steps_of(name, 5)]
    found = defaultdict(set)
    for length in (1, 2, 3):
        for program in itertools.product(steps, repeat=length):
            if canonical(program, 5) == program:
                found[tuple(run(program, xs, 5) for xs in probes(5))].add(program)
    ours = {tuple(known.output(n, i) for i in range(len(probes(5)))): set(p) for n, p in enumerate(known.programs) if n}
    assert ours == found
    least = {n: min(map(len, p)) for n, p in enumerate(known.programs)}
    assert known.least.tolist() == list(least.values())


@pytest.mark.parametrize("steps", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_no_held_out_function_is_logged_in_training_under_any_spelling(steps):
    """Told apart on random lists, not on the probes by which functions were split."""
    words = {"steps": steps, "primitives": FEWER if steps == 3 else list(PRIMITIVES)}
    source = programs(**words, problems=300, val_problems=100)
    rng = np.random.default_rng(3)
    lists = [tuple(rng.integers(0, 10, rng.integers(3, 7)).tolist()) for _ in range(100)]
    lists += [tuple(rng.permutation(10)[:6].tolist()) for _ in range(100)]
    lists += [tuple(rng.choice([0, 2, 4, 6, 8, 1, 3][i % 2 :: 1 + i % 2], 6).tolist()) for i in range(100)]
    lists += [tuple((rng.permutation(5) * 2 + i % 2).tolist()) for i in range(40)]
    lists += [tuple((rng.integers(0, 5, 6) * 2 + i % 2).tolist()) for i in range(40)]
    meaning = {}

    def outputs(text):
        if text not in meaning:
            meaning[text] = tuple(run(parse(text), xs, 10) for xs in lists)
        return meaning[text]

    training = list(source.load("train"))
    trained = {outputs(text) for example in training for text in said(example)}
    for side in ("val", "test"):
        asked = list(programs(**words, split=side, val_problems=100).load("val"))
        right = {outputs(t) for e in asked for t, r in zip(said(e), e.rewards, strict=True) if r == 0}
        assert len(right) > 10
        assert not right & trained
        assert {e.prompt_id for e in asked}.isdisjoint(e.prompt_id for e in training)


def test_the_share_of_held_out_functions_is_the_setting():
    side = programs(steps=3, primitives=FEWER, val_fraction=0.2).side
    share, error = np.bincount(side[side >= 0]) / (side >= 0).sum(), 4 * np.sqrt(0.2 * 0.8 / (side >= 0).sum())
    assert share[0] == pytest.approx(0.6, abs=error)
    assert share[1] == pytest.approx(0.2, abs=error)
    assert share[2] == pytest.approx(0.2, abs=error)


def test_val_and_test_share_no_function_and_train_has_every_single_step():
    source = programs()
    functions_of = {side: {p.function for p in source.problems(side)} for side in SIDES}
    assert not functions_of["val"] & functions_of["test"]
    single = np.flatnonzero(source.functions.least == 1)
    assert (source.side[single] == 0).all()
    assert source.side[0] == -1


def test_the_answer_is_what_the_shown_examples_began():
    for example in itertools.islice(programs().load("val"), 60):
        shown = [part.split("->") for part in example.messages[0]["content"].split(";") if part.strip()]
        right = [t for t, r in zip(said(example), example.rewards, strict=True) if r == 0]
        assert len(shown) == 3
        assert len(right) == 2
        for text in right:
            for given, made in shown:
                assert by_hand(text, map(int, given.split()), 10) == [int(x) for x in made.split()]
            for test in example.answer["tests"]:
                assert by_hand(text, test["input"], 10) == test["output"]


def test_hidden_examples_are_not_shown():
    """Base 4 has 64 lists of three digits, so that it would happen by chance."""
    for problem in programs(base=4, longest=3, shown=8, fixed=0, hidden=32).problems("val"):
        shown, hidden = ({xs for xs, _ in part} for part in (problem.shown, problem.hidden))
        assert len(shown) == 8
        assert len(hidden) >= 32
        assert not shown & hidden


@pytest.mark.parametrize("hidden", [1, 8])
def test_of_all_programs_only_those_of_the_function_pass_the_hidden_examples(hidden):
    source = programs(hidden=hidden)
    everything = list(source.functions.number)
    for example, problem in zip(source.load("val"), itertools.islice(source.problems("val"), 25), strict=False):
        tests = [(tuple(t["input"]), tuple(t["output"])) for t in example.answer["tests"]]
        passing = {p for p in everything if all(run(p, xs, 10) == ys for xs, ys in tests)}
        assert passing == {p for p, n in source.functions.number.items() if n == problem.function}
        assert example.columns["solutions"] == len({canonical(p, 10) for p in passing})
        assert example.columns["steps"] == min(map(len, passing))


@pytest.mark.parametrize("base", [4, 5, 6, 7, 8, 9, 10])
def test_fixed_lists_are_no_hidden_ones_and_two_of_them_tell_the_steps_apart(base):
    assert len(set(fixed_lists(base, 256))) == 256
    assert not set(fixed_lists(base, 256)) & set(probes(base))
    lists = fixed_lists(base, 2)
    steps = [step for name in PRIMITIVES for step in steps_of(name, base)]
    assert len({tuple(run((step,), xs, base) for xs in lists) for step in steps}) == len(steps)


@pytest.mark.parametrize("fixed", [0, 1, 2])
def test_the_fixed_lists_open_every_prompt_and_the_others_differ(fixed):
    source = programs(fixed=fixed, shown=3, longest=5)
    lists = [[xs for xs, _ in problem.shown] for side in SIDES for problem in source.problems(side)]
    assert {tuple(shown[:fixed]) for shown in lists} == {fixed_lists(10, fixed)}
    assert len({shown[fixed] for shown in lists}) > len(lists) / 2
    assert max(len(xs) for shown in lists for xs in shown[fixed:]) == 5


@pytest.mark.parametrize(("steps", "expected"), [(2, [1 / 5, 4 / 5]), (3, [1 / 14, 4 / 14, 9 / 14])])
def test_a_number_of_steps_is_asked_for_as_often_as_its_square_says(steps, expected):
    made = [e.columns["steps"] for e in programs(steps=steps, primitives=FEWER, problems=1500).load("train")]
    assert np.bincount(made)[1:] / 1500 == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 1500))


def test_what_fits_the_shown_examples_alone_is_often_wrong_on_the_hidden_ones():
    source = programs(shown=1, fixed=0)
    fooled = 0
    for problem in itertools.islice(source.problems("val"), 30):
        fitting = [p for p in source.functions.number if all(run(p, xs, 10) == ys for xs, ys in problem.shown)]
        right = [p for p in fitting if all(run(p, xs, 10) == ys for xs, ys in problem.hidden)]
        fooled += len(right) < len(fitting)
    assert fooled > 5


def test_no_single_step_explains_what_two_steps_are_asked_for():
    source = programs(problems=200)
    single = [(step,) for name in PRIMITIVES for step in steps_of(name, 10)]
    for problem in source.problems("val"):
        assert not any(all(run(p, xs, 10) == ys for xs, ys in problem.shown) for p in ((), *single))


def test_many_problems_have_several_solutions():
    solutions = [e.columns["solutions"] for e in programs().load("val")]
    assert np.mean(np.array(solutions) > 1) > 0.3
    assert min(solutions) >= 1


def test_the_logged_programs_are_right_as_often_as_asked_and_rewarded_so():
    for share, number in ((0.5, 2), (0.25, 1), (1.0, 4), (0.0, 0)):
        for example in itertools.islice(programs(right=share, rewards=[1, 0.25]).load("train"), 40):
            tests = example.answer["tests"]
            passes = [all(by_hand(t, x["input"], 10) == x["output"] for x in tests) for t in said(example)]
            assert sum(passes) == number
            assert list(example.rewards) == [1.0 if ok else 0.25 for ok in passes]


def test_right_programs_of_a_problem_differ_where_it_has_several():
    for example in programs(right=1.0).load("val"):
        assert len(set(said(example))) == min(4, example.columns["solutions"])


def test_wrong_programs_include_near_misses():
    """Some differ from a solution in one step."""
    near = 0
    for example in programs().load("val"):
        right = [parse(t) for t, r in zip(said(example), example.rewards, strict=True) if r == 0]
        wrong = [parse(t) for t, r in zip(said(example), example.rewards, strict=True) if r < 0]
        near += any(len(p) == len(q) and sum(map(tuple.__ne__, p, q)) == 1 for p in right for q in wrong)
    assert 0.3 * 120 < near < 120


def test_everything_is_a_function_of_the_seed():
    assert list(programs().load("train")) == list(programs().load("train"))
    assert {e.prompt_id for e in programs().load("val")}.isdisjoint(
        e.prompt_id for e in programs(data_seed=1).load("val")
    )


def test_held_out_problems_do_not_depend_on_the_number_of_training_problems():
    assert list(programs(problems=10).load("val")) == list(programs().load("val"))
    assert [*itertools.islice(programs(problems=900).load("train"), 300)] == list(programs().load("train"))


def test_functions_keep_their_side_when_longer_ones_are_asked_for():
    two, three = (programs(steps=steps, primitives=FEWER) for steps in (2, 3))
    for program, number in two.functions.number.items():
        assert two.side[number] == three.side[three.functions.number[program]]


def test_a_tiny_model_has_a_word_for_everything_and_learns_to_stop():
    source = programs(problems=50)
    assert source.vocabulary is not None
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
    tiny = Tiny(**sizes, max_position_embeddings=128, initializer_range=0.1)
    tokenizer = tiny.tokenizer(source, [])
    assert len(tokenizer) == len(source.vocabulary)
    data = load(source, tokenizer, SETTINGS, context=128)
    assert not data.dropped
    assert len(data.train) == 200
    examples = list(source.load("train"))
    for row in encode(examples, tokenizer, data.dropped, max_length=None):
        text = tokenizer.decode(row.input_ids[row.action_index])
        assert text == said(examples[row.example])[row.completion] + " <eos>"
        assert row.rewards[-1] == examples[row.example].rewards[row.completion]


def test_the_primitives_are_those_that_are_asked_for():
    source = programs(primitives=["reverse", "add", "take"], base=5, steps=3, val_fraction=0.3)
    words = {w for s in ("train", "val") for e in source.load(s) for text in said(e) for w in text.split()}
    assert words == {"reverse", "add", "take", "|", "1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primitives": ["sort", "sort"]}, "named twice"),
        ({"primitives": ["reverse"]}, "too few functions: 1 of train"),
        ({"fixed": 3, "shown": 3}, "data.fixed=3: at least one of the data.shown=3"),
        ({"rewards": [-1, 0]}, "right above wrong"),
        ({"rewards": [0, 0]}, "right above wrong"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        programs(**options)
