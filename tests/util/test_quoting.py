"""What is quoted is read by Hydra's own parser and by a real shell."""

import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from shiqrun.util.quoting import as_override, quote_for_shell, unquote

TEXTS = ["plain", "a b", "a=b,c", "it's (a) dir", 'say "a"', "end\\", "a\\'b", "$HOME [x] {y}", "`ls`!", "'q'", ""]


def read(override):
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("text", TEXTS)
def test_hydra_reads_the_text_that_was_quoted(text):
    assert read(f"key={as_override(text)}") == text
    assert [str(value) for value in read(f"key={as_override([text, 'x'])}")] == [text, "x"]


@pytest.mark.parametrize("text", TEXTS)
def test_quotes_are_taken_off_again(text):
    assert unquote(as_override(text)) == text


@pytest.mark.parametrize("text", ["/a/it's", "/a b=c", "'", "", "\"a'"])
def test_what_stands_in_no_quotes_stays(text):
    assert unquote(text) == text


def test_double_quotes_are_quotes_too():
    assert unquote('"/a b/\\"c\\""') == '/a b/"c"'


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_a_path_can_be_pasted_into_a_shell(text):
    line = f"printf %s key={quote_for_shell(Path('/top', text))}"
    (word,) = [subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout]
    assert unquote(word.removeprefix("key=")) == f"/top/{text}"
    assert read(word) == f"/top/{text}"
