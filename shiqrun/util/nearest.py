"""These functions find among known names the one that a person has probably meant."""

from collections.abc import Iterable


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return "; did you mean X?" with the option nearest to `word`, or an empty string where none is near."""
    near = nearest(word, options)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that is nearest to a word, of equally near ones that with the same letters; None if none is."""
    from difflib import SequenceMatcher, get_close_matches  # imported here: `shiqrun --help` starts without it

    near = get_close_matches(word, list(options), n=5)
    ranks = {name: (SequenceMatcher(a=name, b=word).ratio(), sorted(name) == sorted(word)) for name in near}
    return max(near, key=ranks.__getitem__, default=None)
