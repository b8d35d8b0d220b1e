import re

import pytest
from rich.console import Console

from shiqrun.evaluation.credit import Credit
from shiqrun.report.terminal_credit import (
    colour_scale,
    credit_lines,
    largest_table,
    legend_lines,
    signed_number,
    value_style,
)


def made(tokens, advantage, rewards=None, **fields):
    """A Credit whose shifted values are twice its advantages and whose residuals are thrice."""

    def times(k):
        return [None if x is None else k * x for x in advantage]

    about = {"kind": "data", "source": "f:1", "prompt_id": "p", "earned": 2.0, "beta": 0.5}
    numbers = {"advantage": advantage, "shifted_value": times(2), "residual": times(3)}
    numbers |= {"logp": times(4), "reference_logp": times(5)}
    reward = rewards or [None if x is None else 0.0 for x in advantage]
    action = [x is not None for x in advantage]
    return Credit(**(about | {"tokens": tokens, "action": action, "reward": reward} | numbers | fields))


WORDS = made(["ask", ": ", "up", " and", " down", "\n"], [None, None, 0.5, -0.25, None, 0.125], [None] * 5 + [1.0])


def plain(credit, quantity="advantage", scale=0.5, width=60):
    return [line.plain for line in credit_lines(credit, quantity, scale, width=width, colours="")]


def printed(renderable, width=120, **options):
    console = Console(width=width, no_color=True, **options)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_without_colours_every_number_stands_under_its_token():
    head, counts, sums, text, numbers, rewards, last = plain(WORDS)
    assert (head, counts, last) == ("f:1, prompt p", "6 tokens, 3 actions", "]")
    assert (
        sums == "return 2 = +0.375 advantages  +1 shifted value at the start  +1.5 residual there  -0.875 reward offset"
    )
    assert text == "ask: [up    and]  down[↵    "
    assert numbers == "     +0.50 -0.25      +0.12"
    assert rewards == " " * text.index("[↵") + "r=1"


def test_the_quantity_that_is_asked_for_is_shown():
    assert plain(WORDS, "residual", 1.5)[4].split() == ["+1.5", "-0.8", "+0.4"]
    assert plain(WORDS, "shifted_value", 100.0)[4].split() == ["+1", "+0", "+0"]


def test_in_colour_a_token_has_its_values_style_and_no_text_is_added():
    lines = list(credit_lines(WORDS, "advantage", 0.5, width=60, colours="truecolor"))[3:]
    assert [line.plain for line in lines] == ["ask: up and down↵", "                1"]
    styles = {lines[0].plain[s.start : s.end]: s.style for s in lines[0].spans}
    assert styles["up"] == value_style(0.5, 0.5)
    assert styles[" and"] == value_style(-0.25, 0.5)
    assert styles["ask"] == styles[" down"] == "dim"


def test_no_line_of_numbers_is_wider_than_asked():
    tokens = [f"w{'o' * (i % 17)}" for i in range(60)]
    credit = made(tokens, [0.01 * i for i in range(60)])
    *lines, reward = plain(credit, width=40)[3:]
    assert reward.strip() == "r=0"
    assert max(map(len, lines)) <= 40
    assert "".join(lines[::2]).replace(" ", "").strip("[]") == "".join(tokens).replace(" ", "")
    numbers = [float(n) for line in lines[1::2] for n in line.split()]
    assert numbers == pytest.approx([0.01 * i for i in range(60)])


@pytest.mark.parametrize(
    ("value", "background", "letters"),
    [
        (0, (247, 247, 247), (0, 0, 0)),
        (2, (33, 102, 172), (255, 255, 255)),
        (-2, (178, 24, 43), (255, 255, 255)),
        (9, (33, 102, 172), (255, 255, 255)),
        (1, (103, 169, 207), (0, 0, 0)),
        (-1, (239, 138, 98), (0, 0, 0)),
        (0.5, (175, 208, 227), (0, 0, 0)),
    ],
)
def test_red_is_below_zero_blue_above_and_white_zero(value, background, letters):
    style = value_style(value, 2.0)
    assert style.bgcolor.get_truecolor() == background
    assert style.color.get_truecolor() == letters


def test_256_colours_go_from_red_over_white_to_blue_without_a_step_back():
    shades = [value_style(x / 10, 1.0, "256").bgcolor for x in range(-12, 13)]
    assert all(shade.number is not None for shade in shades)
    warmth = [red - blue for red, _, blue in (shade.get_truecolor() for shade in shades)]
    assert warmth == sorted(warmth, reverse=True)
    assert (warmth[0] > 100, warmth[12], warmth[-1] < -100) == (True, 0, True)


def test_a_scale_of_zero_is_the_colour_of_zero():
    assert value_style(0.0, 0.0) == value_style(0.0, 1.0)


def test_one_outlier_does_not_set_the_scale():
    assert colour_scale([made(["a"] * 100, [0.1] * 49 + [-0.2] * 50 + [50.0])], "advantage") == 0.2
    assert colour_scale([made(["a"] * 4, [None, 0.0, 0.0, -3.0])], "advantage") == 3.0
    assert colour_scale([made(["a"] * 100, [0.0] * 99 + [3.0])], "advantage") == 3.0
    assert colour_scale([made(["a"], [0.0])], "advantage") == 0.0
    assert colour_scale([], "advantage") == 0.0


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (1.234, 3, "+1.2"),
        (-0.0123, 0.05, "-0.012"),
        (-0.0004, 0.05, "+0.000"),
        (0.0, 0.0, "+0.00"),
        (123.4, 200, "+123"),
        (None, 1, ""),
    ],
)
def test_numbers_have_two_figures_of_the_scale(value, scale, text):
    assert signed_number(value, scale) == text


def test_the_table_has_the_largest_actions_in_their_order_with_all_numbers():
    values = [None, 0.1, -0.9, 0.2, 0.8, -0.3, 0.01, 0.7]
    credit = made(["p", "a", "b", "c", "d", "e", "f", "g"], values, [None] + [0.0] * 6 + [-1.5])
    rows = [line.split() for line in printed(largest_table(credit, "advantage", 0.9, colours="")).splitlines()]
    assert rows[0] == ["action", "token", "advantage", "shifted", "value", "residual", "reward"]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("2", "pa[b]cdefg"),
        ("3", "pab[c]defg"),
        ("4", "pabc[d]efg"),
        ("5", "pabcd[e]fg"),
        ("7", "pabcdef[g]"),
    ]
    assert rows[1][2:] == ["-0.900", "-1.80", "-2.70", "0"]
    assert rows[5][-1] == "-1.5"


def test_a_token_that_would_steer_the_terminal_is_escaped():
    credit = made(["\x1b[31m", "a\x1b[2Jb", "\x1b[0m"], [None, 1.0, None])
    text = "\n".join(plain(credit)) + printed(largest_table(credit, "advantage", 1.0, colours=""))
    assert "\x1b" not in text
    assert text.count("a\\x1b[2Jb") == 2


def test_without_rewards_there_is_no_return_to_explain():
    credit = made(["a", "b"], [None, 0.5], [None, None], earned=None, residual=[None, None])
    assert plain(credit)[2] == "no return; +0.5 advantages  +1 shifted value at the start"
    assert plain(credit)[3:] == ["a[b]   ", " +0.50"]
    assert plain(credit, "residual")[3:] == ["a[b]"]
    (line,) = list(credit_lines(credit, "residual", 0.0, width=60, colours="truecolor"))[3:]
    assert line.plain == "ab"


def test_the_legend_says_what_the_colours_or_numbers_are():
    bar, meaning, beneath = legend_lines("residual", 0.25, unit="reward units, beta 0.5", colours="truecolor")
    assert re.fullmatch(r"residual  -0\.25 {35}\+0\.25  reward units, beta 0\.5", bar.plain)
    ends = [s.style.bgcolor.triplet for s in (bar.spans[0], bar.spans[-1])]
    assert ends == [(178, 24, 43), (33, 102, 172)]
    assert meaning.plain.startswith("residual = return to go")
    assert "number below" in beneath.plain
    without = [line.plain for line in legend_lines("advantage", 0.25, unit="nats", colours="")]
    assert without[0].startswith("advantage = beta (log pi - log pi_ref)")
    assert "under each action stand its advantage, in nats" in without[1]
