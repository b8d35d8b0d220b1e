"""`Adopted` gives an object of a user's class the interface and defaults of one of our classes, without inheritance."""

from typing import Any


class Adopted:
    """An `Adopted` object answers with the user's own attributes first, then with the defaults of the class mixed in.

    Args:
        given: the user's object.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        names = [name for name in dir(given) if name[0] != "_" and callable(getattr(given, name))]
        # `isinstance` with a protocol looks for methods here, without calling `__getattribute__` (Python 3.12)
        self.__dict__.update({name: getattr(given, name) for name in names})

    def __getattribute__(self, name: str) -> Any:
        if name[0] != "_" and hasattr(given := object.__getattribute__(self, "_given"), name):
            return getattr(given, name)
        return object.__getattribute__(self, name)
