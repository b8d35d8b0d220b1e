"""Plain Python values are encoded as JSON, to pass arguments into the sandbox and return values out of it.

Numbers below 2**63, finite or not, strings, booleans and None encode as themselves; everything else as a list whose
first entry names the kind. A value of any other class, subclasses of plain ones included, cannot be encoded, so that an
object that claims to equal everything does not leave the sandbox.
"""

from typing import Any, Final

LARGE = 1 << 63
SEQUENCES: Final[dict[type, str]] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
MADE: Final = {kind: make for make, kind in SEQUENCES.items()}


def encode(value: Any) -> Any:
    """Encode a plain value as JSON data.

    Raises:
        TypeError: the value is not plain.
        RecursionError: the value is nested too deeply.
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
    """Decode the value that `encode` encoded.

    Raises:
        ValueError, TypeError, IndexError, RecursionError: `form` is no encoded value.
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


def equal_values(expected: Any, found: Any, tolerance: float) -> bool:
    """Return whether plain values are equal: a list equals a tuple, floats agree with numbers up to `tolerance`."""
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        pairs = zip(expected, found, strict=False)
        return len(expected) == len(found) and all(equal_values(e, f, tolerance) for e, f in pairs)
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            equal_values(e, found[k], tolerance) for k, e in expected.items()
        )
    if float in (type(expected), type(found)) and isinstance(expected, int | float) and isinstance(found, int | float):
        try:
            neither = expected != expected and found != found  # two NaNs count as equal
            return bool(expected == found or neither or abs(expected - found) < tolerance)
        except OverflowError:  # an int larger than every float
            return False
    return bool(expected == found)
