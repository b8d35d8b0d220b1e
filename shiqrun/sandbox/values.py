"""Plain Python values as JSON and back: what a function gets and gives, across the border of the sandbox.

Numbers below 2**63, finite or not, strings, booleans and None stand for themselves; everything else is a list whose
first entry names the kind. A value of any other class, also of one that is derived from a plain one, has no form: an
object that says of itself that it equals everything does not come out.
"""

from typing import Any, Final

LARGE = 1 << 63
SEQUENCES: Final[dict[type, str]] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
MADE: Final = {kind: make for make, kind in SEQUENCES.items()}


def encode(value: Any) -> Any:
    """What JSON can hold of a value.

    Raises:
        TypeError: it is not plain.
        RecursionError: it is too deep.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float or (kind is int and -LARGE < value < LARGE):
        return value
    if kind in SEQUENCES:
        return [SEQUENCES[kind], *map(encode, value)]
    if kind is dict:
        return ["dict", *([encode(k), encode(v)] for k, v in value.items())]
    if kind is int:
        return ["int", hex(value)]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is bytes or kind is bytearray:
        return [kind.__name__, value.hex()]
    raise TypeError(f"{kind.__name__} is no plain value")


def decode(form: Any) -> Any:
    """The value of a form.

    Raises:
        ValueError, TypeError, IndexError, RecursionError: it is no form.
    """
    if not isinstance(form, list):
        if isinstance(form, dict):
            raise TypeError("a JSON object is no form of a value")
        return form
    kind, *rest = form
    if kind in MADE:
        return MADE[kind](map(decode, rest))
    if kind == "dict":
        return {decode(k): decode(v) for k, v in rest}
    if kind == "int":
        return int(rest[0], 16)
    if kind == "complex":
        return complex(float(rest[0]), float(rest[1]))
    if kind == "bytearray":
        return bytearray.fromhex(rest[0])
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    raise ValueError(f"{kind!r} is no kind of value")


def same(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether two plain values are equal: lists and tuples alike, numbers up to `tolerance` where one is a float."""
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        pairs = zip(expected, found, strict=False)
        return len(expected) == len(found) and all(same(e, f, tolerance) for e, f in pairs)
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(same(e, found[k], tolerance) for k, e in expected.items())
    if float in (type(expected), type(found)) and isinstance(expected, int | float) and isinstance(found, int | float):
        try:
            neither = expected != expected and found != found  # a number: then they are the same, as nothing else is
            return bool(expected == found or neither or abs(expected - found) < tolerance)
        except OverflowError:  # an int beyond all floats
            return False
    return bool(expected == found)
