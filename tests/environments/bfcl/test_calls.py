import ast
import random

import pytest

from shiqrun.environments.bfcl.calls import LONGEST_MESSAGE, MOST_CALLS, Call, Refusal, arguments, calls_in

DOCUMENTED = frozenset({"f", "g", "cd"})


def given(call):
    """(positional, by keyword) of an admitted call, read again as the backends read it."""
    return arguments(ast.parse(call.text, mode="eval").body)


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=1), g('x')]",
        " [ f( a = 1 ) ,g( 'x' ) ] \n",
        "f(a=1), g('x')",
        "(f(a=1), g('x'))",
        "[f(a=1),\n\n  g('x'),]",
    ],
)
def test_a_list_of_calls_is_read_in_its_order(text):
    found = calls_in(text, DOCUMENTED)
    assert [call.name for call in found] == ["f", "g"]
    assert [given(call) for call in found] == [([], {"a": 1}), (["x"], {})]


def test_one_call_needs_no_brackets():
    assert calls_in("cd(folder='..')", DOCUMENTED) == [Call("cd", "cd(folder='..')")]


PROSE = {
    "empty": "",
    "blank": " \n\t",
    "no call": "[]",
    "nothing in brackets": "()",
    "words": "I am done, thank you.",
    "one word": "Done.",
    "a name": "f",
    "a number": "[1, 2]",
    "a call and a number": "[f(a=1), 2]",
    "a call in words": "I call f(a=1) now",
    "a set": "{f(a=1)}",
    "an object": '{"name": "f", "arguments": {"a": 1}}',
    "statements": "f(a=1); g()",
    "an assignment": "x = f(a=1)",
    "an import": "import os",
    "cut off": "[f(a=1), g(",
    "a comprehension": "[f(a=i) for i in range(9)]",
    "a lambda": "lambda: f(a=1)",
    "a choice": "f(a=1) if 1 else g()",
    "awaited": "await f(a=1)",
    "starred": "[*f(a=1)]",
    "a sum of calls": "f(a=1) + g()",
    "an index": "f(a=1)[0]",
    "an attribute": "f(a=1).real",
    "a positional after keywords": "[f(a=1, 2)]",
    "NUL": "[f(a=1)]\x00",
    "a lone surrogate": "[f(a='\ud800')]",
    "a nest that no parser takes": "[" * 5000,
    "a nest that no parser takes, closed": "[" * 5000 + "]" * 5000,
    "signs": "-" * 16_000 + "1",
    "signs before a call": "-" * 16_000 + "f()",
    "a long decimal number": f"[f(a={'9' * 5000})]",
    "a long text": "a word and " * 2000,
}


@pytest.mark.parametrize("case", PROSE)
def test_prose_calls_nothing(case):
    assert calls_in(PROSE[case], DOCUMENTED) is None


REFUSED = {
    "a system call": "__import__('os').system('touch /tmp/x')",
    "a builtin": "eval('1')",
    "another function": "h(a=1)",
    "other case": "F(a=1)",
    "a private function": "_load_scenario(scenario={})",
    "an attribute": "f.__globals__.get('x')",
    "a method": "cd.f(a=1)",
    "what a call gives": "f()(a=1)",
    "what an index gives": "[f][0](a=1)",
    "what a lambda gives": "(lambda: 1)()",
    "a call as argument": "f(a=g())",
    "a call in a list": "f(a=[1, g()])",
    "a lambda as argument": "f(a=lambda: 1)",
    "a comprehension as argument": "f(a=[x for x in [1]])",
    "a generator as argument": "f(x for x in [1])",
    "a formatted string": "f(a=f'{1}')",
    "a formatted string that looks": "f(a=f'{g.__globals__}')",
    "unpacked keywords": "f(**{'a': 1})",
    "unpacked positions": "f(*[1])",
    "a starred element": "f(a=[*[1]])",
    "a name as argument": "f(a=g)",
    "a name in a dictionary": "f(a={'k': g})",
    "unpacked into a dictionary": "f(a={**{'k': 1}})",
    "an unhashable key": "f(a={[]: 1})",
    "an unhashable element": "f(a={[]})",
    "a power": "f(a=10**8)",
    "a product": "f(a=[0]*99999999)",
    "a repeated string": "f(a='x'*99999999)",
    "a sum": "f(a=1+1)",
    "a comparison": "f(a=1<2)",
    "a negation": "f(a=not True)",
    "an index as argument": "f(a=[1][0])",
    "an attribute as argument": "f(a=''.join)",
    "an assignment inside": "f(a=(x:=1))",
    "signs in front of a number": f"f(a={'-' * 400}1)",
    "a long sum": f"f(a={'1+' * 2000}1)",
    "a repeated keyword": "f(a=1, a=1)",
    "a long chain": f"f{'.a' * 1500}()",
    "called again and again": f"f{'()' * 1500}",
    "a long hexadecimal number": f"f(a=0x{'f' * 8000})",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_that_is_more_than_a_name_and_literals_is_refused(case):
    first, second = calls_in(f"[{REFUSED[case]}, g()]", DOCUMENTED)
    assert isinstance(first, Refusal), first
    assert first.answer.startswith("Error during execution: ")
    assert len(first.answer) < 200
    assert second == Call("g", "g()")  # its neighbours run


def test_the_longest_message_and_the_most_calls_are_still_read():
    argument = "x" * (LONGEST_MESSAGE - len("f(a='')"))
    (call,) = calls_in(f"f(a='{argument}')", DOCUMENTED)
    assert given(call) == ([], {"a": argument})
    assert calls_in(f"[{', '.join(['g()'] * MOST_CALLS)}]", DOCUMENTED) == [Call("g", "g()")] * MOST_CALLS


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (f"f(a='{'x' * 10_000_000}')", LONGEST_MESSAGE),
        (f"  [f(a='{'x' * LONGEST_MESSAGE}')]", LONGEST_MESSAGE),
        (f"[{', '.join(['g()'] * (MOST_CALLS + 1))}]", MOST_CALLS),
        (f"[{', '.join(['g()'] * 10_000)}]", LONGEST_MESSAGE),
        (f"[{','.join(['g()'] * 4_000)}]", MOST_CALLS),
    ],
)
def test_of_a_message_that_is_too_long_nothing_runs(text, limit):
    (refusal,) = calls_in(text, DOCUMENTED)
    assert isinstance(refusal, Refusal)
    assert str(limit) in refusal.answer
    assert len(refusal.text) < 100


def literal(rng, depth=0):
    """A random literal of what JSON and Python know."""
    kinds = ["int", "float", "str", "bool", "none", "bytes"] + ["list", "tuple", "dict", "set"] * (depth < 3)
    several = range(rng.randrange(4))
    match rng.choice(kinds):
        case "int":
            return rng.choice([0, -1, 7, 10**30, -(10**4000), rng.randrange(-99, 99)])
        case "float":
            return rng.choice([0.0, -0.5, 1e300, -1e-300, float("inf"), rng.gauss(0, 1)])
        case "str":
            return "".join(rng.choice("abc'\"\\\n\t{}[](),=#é漢🙂\x00 f(") for _ in range(rng.randrange(12)))
        case "bool":
            return rng.random() < 0.5
        case "none":
            return None
        case "bytes":
            return rng.randbytes(rng.randrange(6))
        case "list":
            return [literal(rng, depth + 1) for _ in several]
        case "tuple":
            return tuple(literal(rng, depth + 1) for _ in several)
        case "dict":
            return {literal(rng, 3): literal(rng, depth + 1) for _ in several}
        case _:
            return {literal(rng, 3)}  # of one element: more have no order to compare


def test_what_is_admitted_reads_again_to_the_same_arguments():
    rng = random.Random(0)
    for _ in range(400):
        positional = [literal(rng) for _ in range(rng.randrange(3))]
        keywords = {name: literal(rng) for name in rng.sample("abcd", rng.randrange(4))}
        written = [repr(v) for v in positional] + [f"{k}={v!r}" for k, v in keywords.items()]
        text = f"f({', '.join(written)})".replace("inf", "1e999")  # Python's own text of infinity is a name
        found = calls_in(f"[{text}]", DOCUMENTED)
        if len(text) + 2 > LONGEST_MESSAGE:
            assert isinstance(found[0], Refusal)
            continue
        assert isinstance(found[0], Call), text
        again = given(found[0])
        assert repr(again) == repr((positional, keywords))
