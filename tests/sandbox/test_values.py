import json

import pytest

from shiqrun.sandbox.values import decode, encode, equal_values

PLAIN = [
    None,
    True,
    0,
    -(2**63),
    2**63,
    10**5000,
    -1.5,
    1e300,
    float("inf"),
    3 - 4j,
    "",
    "list",
    "\ud800",
    b"\x00\xff",
    bytearray(b"ab"),
    [],
    (),
    set(),
    frozenset({1, (2, "x")}),
    {},
    {1: "one", (1, 2): [3, {"x": None}], "dict": ("tuple",)},
    [["list", 1], ["int", "0x5"], ["dict"]],
]


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_a_plain_value_comes_back_as_it_was(value):
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == value
    assert type(found) is type(value)


class Equal(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [object(), Equal(5), [Equal(5)], {Equal(1): 2}, len, int, iter([])])
def test_nothing_else_has_a_form(value):
    with pytest.raises(TypeError, match="no plain value"):
        encode(value)


@pytest.mark.parametrize(
    "form", [{}, [], ["x"], ["int", "y"], ["dict", 1], ["set", ["list"]], [[]], ["bytes", "0"], ["complex", 1]]
)
def test_what_is_no_form_is_an_error(form):
    with pytest.raises((ValueError, TypeError, IndexError)):
        decode(form)


@pytest.mark.parametrize(
    ("expected", "found", "equal"),
    [
        (5, 5, True),
        (5, 6, False),
        (10**30, 10**30 + 1, False),
        (0.5, 0.500001, True),
        (0.5, 0.6, False),
        (2, 2.0, True),
        (1.0, 10**400, False),
        ([1, [2.0]], (1, (2.0000001,)), True),
        ([1, 2], [1], False),
        ([1], [1, 2], False),
        ({"a": 1.0}, {"a": 1.000001}, True),
        ({"a": 1}, {"b": 1}, False),
        ("a", "A", False),
        (0.5, "0.5", False),
        ("5", 5, False),
        ([], {}, False),
        (None, None, True),
        (float("nan"), 1.0, False),
        (float("nan"), float("nan"), True),
        (1.0, float("nan"), False),
        (float("inf"), 1e308, False),
        (0.0, -0.0, True),
    ],
)
def test_values_are_compared_with_a_tolerance_for_floats_only(expected, found, equal):
    assert equal_values(expected, found, 1e-5) is equal
