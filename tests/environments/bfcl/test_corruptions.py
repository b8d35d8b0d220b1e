import ast
from collections import Counter, defaultdict

import numpy as np
import pytest

from shiqrun.environments.bfcl.calls import Call, calls_in
from shiqrun.environments.bfcl.corruptions import KINDS, corrupt_turn, turn_messages
from shiqrun.environments.bfcl.rendering import DONE

CALLS = ["f(a=1, b='x')", "g(2)", "h()"]
OTHERS = ["k(c='y')", "m(d=True)"]
DOCUMENTED = frozenset("fghkm")


def read(messages):
    """The calls of the messages, in order; None at the place of one that is no call."""
    found = [calls_in(text, DOCUMENTED) for text in messages]
    assert all(isinstance(c, Call) for step in found if step for c in step)
    return [c for step in found for c in ([call.text for call in step] if step else [None])]


def made(together, calls=CALLS, others=OTHERS, seeds=300):
    """Messages of every kind that was drawn."""
    kinds = defaultdict(list)
    for seed in range(seeds):
        messages, kind = corrupt_turn(calls, others, together, np.random.default_rng(seed))
        kinds[kind].append(messages)
    return kinds


def constants(call):
    """Of a call, (name, the number of its arguments, their types, their values)."""
    node = ast.parse(call, mode="eval").body
    values = [v.value for v in [*node.args, *(k.value for k in node.keywords)]]
    return node.func.id, [type(v) for v in values], values


def test_what_is_said_ends_the_turn():
    assert turn_messages(CALLS, "one") == [*(f"[{call}]" for call in CALLS), DONE]
    assert turn_messages(CALLS, "turn") == [f"[{', '.join(CALLS)}]", DONE]
    assert turn_messages([], "one") == turn_messages([], "turn") == [DONE]


@pytest.mark.parametrize("together", ["one", "turn"])
def test_every_kind_is_drawn_and_does_what_its_name_says(together):
    kinds = made(together)
    assert set(kinds) == set(KINDS)
    assert min(map(len, kinds.values())) > 25  # of 300 drawn from six
    for messages in kinds.pop("malformed"):
        assert DONE not in messages
        *before, last = messages
        assert [*read(before), None] == read(messages)  # the last message alone is no call
        assert turn_messages(CALLS, together)[len(before)].startswith(last)
    for kind, dialogues in kinds.items():
        for messages in dialogues:
            *calls, end = read(messages)
            assert end is None
            assert messages[-1] == DONE
            assert calls != CALLS, kind
            assert CHECKS[kind](calls), (kind, calls)


def is_wrong_argument(calls):
    """One argument of one call has another value of the same type."""
    different = [(new, old) for new, old in zip(calls, CALLS, strict=True) if new != old]
    ((new, old),) = [(constants(new), constants(old)) for new, old in different]
    return new[:2] == old[:2] and sum(a != b for a, b in zip(new[2], old[2], strict=True)) == 1


def is_reordered(calls):
    """Two neighbours have changed places."""
    first = next(n for n in range(3) if calls[n] != CALLS[n])
    swapped = [*CALLS]
    swapped[first : first + 2] = CALLS[first : first + 2][::-1]
    return calls == swapped


CHECKS = {
    "wrong_argument": is_wrong_argument,
    "dropped": lambda calls: calls in [CALLS[:n] + CALLS[n + 1 :] for n in range(3)],
    "repeated": lambda calls: calls in [CALLS[: n + 1] + CALLS[n:] for n in range(3)],
    "reordered": is_reordered,
    "extra": lambda calls: calls in [[*CALLS[:n], other, *CALLS[n:]] for n in range(4) for other in OTHERS],
}


def test_a_wrong_argument_is_taken_from_the_dialogue_or_altered():
    values = {read(messages)[0] for messages in made("one", ["f(a=1, b='x')"], ["k(c='y', d=1)"])["wrong_argument"]}
    assert values == {"f(a=2, b='x')", "f(a=1, b='y')"}
    alone = {read(messages)[0] for messages in made("one", ["f(a=True)"], ["g(2)"])["wrong_argument"]}
    assert alone == {"f(a=False)"}
    assert {read(m)[0] for m in made("one", ["f(a='x')"], [])["wrong_argument"]} == {"f(a='x_2')"}


def test_the_same_seed_makes_the_same_mistake():
    rng = [np.random.default_rng(3) for _ in range(2)]
    first, second = ([corrupt_turn(CALLS, OTHERS, "one", r) for _ in range(20)] for r in rng)
    assert first == second
    assert len({tuple(messages) for messages, _ in first}) > 5


def test_only_what_is_possible_is_drawn():
    assert corrupt_turn([], OTHERS, "one", np.random.default_rng(0)) == ([DONE], None)
    assert set(made("one", ["h()"], [])) == {"dropped", "repeated", "malformed"}
    assert set(made("turn", ["h()", "g(2)"], [])) == set(KINDS) - {"extra"}
    assert Counter(map(str, made("one", ["h()"], [])["dropped"])).keys() == {str([DONE])}


def test_only_calls_that_differ_are_reordered():
    assert "reordered" not in made("one", ["h()", "h()"], [])
    orders = {tuple(read(m)[:-1]) for m in made("one", ["h()", "h()", "g(2)"], [])["reordered"]}
    assert orders == {("h()", "g(2)", "h()")}
