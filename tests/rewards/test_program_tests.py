"""The program in a completion: its last Python block, and the prefix that it goes on with or replaces."""

import pytest

from shiqrun.rewards.program_tests import complete_program, extract_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```python\nx = 1\n```\nb\n```py\ny = 2\n```\nc", "y = 2\n"),
        ("```python\nx = 1\n```\nprints\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```text\n5\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```cpp\nint x;\n```", "```cpp\nint x;\n```"),
        ("so\n```python\nx = 1", "x = 1"),
        ("```Python3\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("use ```x = 1``` here", "use ```x = 1``` here"),
        ("```python\nx = '''\n```text\n'''\n```\n", "x = '''\n```text\n'''\n"),
    ],
)
def test_the_last_python_block_is_the_program(text, code):
    assert extract_code(text) == code


def test_a_completion_goes_on_with_the_prefix_or_replaces_it():
    assert complete_program("def f():\n", "f", "    return 1\n") == "def f():\n    return 1\n"
    assert complete_program("def f():\n  'doc'\n", "f", "def f(): return 1") == "\ndef f(): return 1"
    assert (
        complete_program("import a\n\ndef f(\n  x,\n):\n", "f", "def f(x): return 1")
        == "import a\n\n\ndef f(x): return 1"
    )
    both = "def f():\n  'doc'\n\ndef g():\n  return 2\n"
    assert complete_program(both, "f", "def f(): return 1") == f"{both}\ndef f(): return 1"
    assert (
        complete_program("def f():\n", "f", "    g = 1\n    def f2(): pass\n")
        == "def f():\n    g = 1\n    def f2(): pass\n"
    )
