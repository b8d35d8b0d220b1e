"""The page in headless Chromium: it draws, sorts, searches, colours tokens, fits a phone and complains of nothing."""

import json

import pytest

from shiqrun.report.run_report import write_report
from tests.report import fake_runs
from tests.support.browser import Browser, needs_chromium

pytestmark = needs_chromium
MINUS = "\u2212"
PHONE, DESK = (390, 800), (1280, 900)
CARDS = "document.querySelectorAll('#completions-list .card')"
TOKENS = "document.querySelectorAll('#tokens-list .card')"
CONTRAST = """
(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const page = channels(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('#tokens-list .t')].map((token) => {
    const [r, g, b, a] = [...channels(getComputedStyle(token).backgroundColor), 1];
    const under = light([r, g, b].map((c, i) => a * c + (1 - a) * page[i]));
    const ink = light(channels(getComputedStyle(token).color));
    return (Math.max(under, ink) + .05) / (Math.min(under, ink) + .05);
  });
})()
"""
BOXES_OF_TOKENS = """
[...document.querySelectorAll('#tokens-list .t')]
  .map((token) => token.getBoundingClientRect()).map((box) => [box.top, box.bottom])
"""
CELLS = """
[...document.querySelectorAll('.scroll td:first-child')].map((cell) => {
  const look = getComputedStyle(cell), box = cell.getBoundingClientRect();
  return [box.width, (box.height - parseFloat(look.paddingTop) - parseFloat(look.paddingBottom) - 1)
    / parseFloat(look.lineHeight)];
})
"""
"""Width in pixels and height in lines of the first cell of every row."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of a sweep with 2,016 completions on the page: nine runs at the best betas, 224 each."""
    return write_report([fake_runs.sweep(tmp_path_factory.mktemp("sweep"), count=224)], formats=("svg",))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def desk(browser, page):
    """The page, newly loaded, in a window of a desk's size."""
    browser.errors.clear()
    browser.requests.clear()
    browser.scheme("light")
    browser.size(*DESK)
    browser.open(page)
    yield browser
    assert browser.errors == []


def choose(browser, name, value):
    """Sets a control of the page as a hand would."""
    browser.run(
        f"(() => {{ const c = document.getElementById('{name}'); c.value = {json.dumps(value)};"
        " c.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def texts(browser, query):
    return browser.run(f"[...document.querySelectorAll({json.dumps(query)})].map((e) => e.innerText)")


def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing_else(desk, page):
    assert desk.requests == [page.resolve().as_uri()]
    assert desk.run("window.hacked") is None
    assert texts(desk, "h2")[0] == "Summary"
    sizes = desk.run(
        "[...document.querySelectorAll('svg.tip, figure svg')].map((s) => s.getBoundingClientRect().width)"
    )
    assert sum(width > 200 for width in sizes) >= 5


def test_a_click_on_a_header_sorts_the_table(desk):
    header = "document.querySelectorAll('#methods table')[1].tHead.rows[0].cells[3].querySelector('button')"
    column = "#methods h3 ~ h3 ~ .scroll td:nth-child(4)"
    rewards = sorted((value for method in fake_runs.METHODS for value in fake_runs.REWARD[method]), reverse=True)
    assert desk.run(f"{header}.innerText") == "reward"
    desk.run(f"{header}.click()")
    assert [float(text.split()[0]) for text in texts(desk, column)] == rewards
    desk.run(f"{header}.click()")
    assert [float(text.split()[0]) for text in texts(desk, column)] == rewards[::-1]


def test_numbers_sort_as_numbers_and_nothing_goes_last(desk):
    """KL 24 before 9, and of the runs those without a KL after all others, both ways."""
    header = (
        "[...document.querySelectorAll('#runs th')].find((h) => h.innerText.startsWith('KL')).querySelector('button')"
    )
    place = desk.run("[...document.querySelectorAll('#runs th')].findIndex((h) => h.innerText.startsWith('KL')) + 1")
    for sign in (-1, 1):
        desk.run(f"{header}.click()")
        shown = texts(desk, f"#runs table.sortable td:nth-child({place})")
        assert shown[-2:] == ["\u2013"] * 2
        found = [float(text) for text in shown[:-2]]
        assert found == sorted(found, key=lambda kl: sign * kl)
        assert max(found) == pytest.approx(26.4)


def test_text_sorts_with_its_numbers_in_order(desk):
    header = "document.querySelector('#runs th button')"
    desk.run(f"{header}.click()")
    first = [text.partition("_")[0] for text in texts(desk, "#runs table.sortable td:first-child")]
    assert first == [str(number) for number in range(38)]


def test_search_filters_completions_and_marks_the_words(desk):
    assert texts(desk, "#completions-count") == ["2,016 of 2,016"]
    choose(desk, "completions-search", "COPG 0.1 2 SAYS 7")
    count = 11  # 7 and 70 to 79; there are 224
    assert texts(desk, "#completions-count") == [f"{count} of 2,016"]
    assert desk.run(f"{CARDS}.length") == count
    assert set(texts(desk, "#completions-list mark")) == {"copg 0.1 2 says 7"}
    choose(desk, "completions-search", "nobody says this")
    assert desk.run(f"{CARDS}.length") == 0


def test_completions_are_made_as_they_are_reached(desk):
    assert desk.run(f"{CARDS}.length") < 100
    before = desk.run(f"{CARDS}.length")
    desk.run("document.getElementById('completions-more').scrollIntoView()")
    desk.wait(f"{CARDS}.length > {before}")


def test_completions_are_ordered_and_filtered(desk):
    choose(desk, "completions-sort", "reward down")
    best = fake_runs.REWARD["shiq"][0] + 223 / 10 + 3 / 100
    (first, *_) = texts(desk, "#completions-list .who")
    assert f"reward {best:.3g} (+{best - 0.5:.3g})" in " ".join(first.split())
    choose(desk, "completions-run", "8")
    assert texts(desk, "#completions-count") == ["224 of 2,016"]
    assert "dpo β=0.03 seed 3" in texts(desk, "#completions-list .top")[0]
    choose(desk, "completions-sort", "length up")
    assert "5 tokens" in texts(desk, "#completions-list .top")[0]


def test_policy_and_reference_stand_side_by_side(desk):
    pair = texts(desk, "#completions-list .pair")[0]
    assert pair.index("shiq 0.03 1 says 0") < pair.index("the reference says 0")
    left, right = desk.run(
        "[...document.querySelector('#completions-list .pair').children].map((c) => c.getBoundingClientRect().top)"
    )
    assert left == right


def test_tokens_are_coloured_by_what_was_learned_there(desk):
    colour = "getComputedStyle(document.querySelectorAll('#tokens-list .t')[{}]).backgroundColor"
    strong, weak = [desk.run(colour.format(place)) for place in (4, 0)]  # advantage 1 and 0.5
    assert strong == "rgba(0, 114, 178, 0.75)"
    assert weak.startswith("rgba(0, 114, 178, 0.43")
    assert desk.run(colour.format(5)) == "rgba(213, 94, 0, 0.75)"  # advantage -1
    assert desk.run(colour.format(2)).endswith(", 0)")  # advantage 0
    assert texts(desk, "#tokens-low") == [f"≤ {MINUS}1"]
    desk.run("document.querySelector('#tokens-quantity [value=residual]').click()")
    assert desk.run(colour.format(4)) != strong
    assert texts(desk, "#tokens-quantity [aria-pressed=true]") == ["residual"]


def test_what_is_no_action_is_grey_and_spaces_are_kept(desk):
    assert texts(desk, "#tokens-list .state")[0] == "How"
    text = desk.run("document.querySelector('#tokens-list .tokens').textContent")
    assert text.replace("↵", "") == "How do you?\nYou mix the\n flour.</s>"
    assert desk.run("[...document.querySelectorAll('#tokens-list .earned')].map((e) => e.dataset.r)") == ["+0.5", "+1"]


def test_a_trajectory_tells_what_its_return_is_made_of(desk):
    """The advantages .5 -.25 0 .1 1 -1 .05; shifted value and residual of the first action."""
    said = " ".join(texts(desk, "#tokens-list .top")[0].split())
    assert "return 1.5 β = 0.1 1.5 expected at the start, 0.4 from advantages, 0.1 left over" in said


def test_a_token_tells_its_numbers_beside_its_text(desk):
    """The probabilities .05 and .625, whose logarithms the run has kept; nothing covers the text or moves."""
    desk.run("document.getElementById('tokens').scrollIntoView({behavior: 'instant'})")
    desk.run("new Promise((told) => requestAnimationFrame(() => requestAnimationFrame(told)))")  # until it is drawn
    before = desk.run(BOXES_OF_TOKENS)
    x, y = desk.run(
        "(() => { const r = document.querySelectorAll('#tokens-list .t')[1].getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    desk.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    desk.wait("document.querySelectorAll('#tokens-list .on').length === 1")
    said = " ".join(texts(desk, ".readout")[0].split())
    assert said == f'" mix" action 2 advantage {MINUS}0.25 shifted value +1 residual +0.1 π 0.05 π_ref 0.625'
    assert desk.run(BOXES_OF_TOKENS) == before
    low = desk.run("document.querySelector('.readout').getBoundingClientRect().top")
    assert low >= max(bottom for _, bottom in before[:7])


def test_the_numbers_of_a_long_trajectory_stay_in_the_window(desk):
    desk.size(DESK[0], 240)
    desk.run("document.querySelector('#tokens-list .card').scrollIntoView({block: 'start', behavior: 'instant'})")
    top, bottom = desk.run(
        "(({top, bottom}) => [top, bottom])(document.querySelector('.readout').getBoundingClientRect())"
    )
    assert 0 < top < bottom <= 241


def test_the_answers_of_a_pair_are_marked(desk):
    assert texts(desk, "#tokens-list .card:first-child .side") == ["chosen"]
    assert texts(desk, "#tokens-list .card:nth-child(2) .side") == []


def test_bars_have_axes(desk):
    """The largest advantage is 1, of seven actions."""
    assert texts(desk, "#tokens-list .card:first-child .axis span") == ["+1", "0", f"{MINUS}1"]
    assert texts(desk, "#tokens-list .card:first-child .along span") == ["action 1", "7"]
    assert texts(desk, "#tokens-list .card:first-child .bars p") == ["advantage, reward units"]
    top, low = desk.run(
        "[...document.querySelectorAll('#tokens-list .card:first-child .axis span')]"
        ".map((s) => s.getBoundingClientRect()).map((r) => (r.top + r.bottom) / 2).filter((_, i) => i !== 1)"
    )
    longest = desk.run(
        "(({top, bottom}) => [top, bottom])([...document.querySelectorAll('.card:first-child .strip rect')]"
        ".find((r) => r.style.fill.includes('--up') && r.height.baseVal.value > 30).getBoundingClientRect())"
    )
    assert longest[0] == pytest.approx(top, abs=3)
    assert longest[1] == pytest.approx((top + low) / 2, abs=3)


def test_one_prompt_has_the_answers_of_all_methods_side_by_side(desk):
    heads = texts(desk, "#compare-grid .card .top b")
    assert heads == ["reference", "shiq β=0.03", "copg β=0.1", "dpo β=0.03"]
    answers = texts(desk, "#compare-grid .card .body-text")
    assert answers == ["the reference says 0", "shiq 0.03 1 says 0", "copg 0.1 1 says 0", "dpo 0.03 1 says 0"]
    numbers = [" ".join(text.split()) for text in texts(desk, "#compare-grid .card .numbers")]
    assert numbers[1] == "reward 1.21 (+0.71) · log-ratio 1.5 nats · 5 tokens · 1 of 56 answers"
    assert texts(desk, "#compare-grid .card small")[1] == "mean reward 1.20 ± 0.25, KL 20.0 ± 5.0 nats"
    tops = desk.run("[...document.querySelectorAll('#compare-grid .card')].map((c) => c.getBoundingClientRect().top)")
    assert len(set(tops)) == 1


def test_another_prompt_and_another_seed_are_chosen(desk):
    desk.run("document.getElementById('compare-on').click()")
    assert texts(desk, "#compare-asked") == ["Tell me about the sea.\n\nIn two lines."]
    choose(desk, "compare-seed", "3")
    choose(desk, "compare-order", "spread")
    assert texts(desk, "#compare-grid .card .body-text")[1].startswith("shiq 0.03 3 says")
    assert texts(desk, "#compare-place") == ["prompt 1 of 4"]


def test_tokens_can_be_read_in_the_dark(desk):
    for scheme in ("light", "dark"):
        desk.scheme(scheme)
        assert min(desk.run(CONTRAST)) > 4.5


def test_figures_can_be_read_in_the_dark(desk):
    """Names and lines of methods have other colours in the dark than on white; the contrasts are tested with them."""
    colours = {}
    for scheme in ("light", "dark"):
        desk.scheme(scheme)
        colours[scheme] = desk.run(
            "[...document.querySelectorAll('figure svg text, figure svg path')].map((e) => getComputedStyle(e))"
            ".flatMap((look) => [look.fill, look.stroke])"
        )
    assert not {"rgb(0, 114, 178)", "rgb(36, 41, 47)", "rgb(0, 0, 0)"} & {
        colour
        for colour, light in zip(colours["dark"], colours["light"], strict=True)
        if light in ("rgb(0, 114, 178)", "rgb(36, 41, 47)")
    }
    assert "rgb(63, 155, 220)" in colours["dark"]
    assert "rgb(0, 0, 0)" not in colours["dark"]


@pytest.mark.parametrize("width", [1280, 1920])
def test_no_table_is_cut_while_there_is_room_beside_it(desk, width):
    desk.size(width, 1000)
    room, used = desk.run("[innerWidth, document.querySelector('main').getBoundingClientRect().width]")
    assert used > 0.96 * room
    wide, seen = desk.run(
        "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.querySelector('.scroll'))"
    )
    assert wide <= seen


def test_names_in_tables_stand_in_one_line_on_a_desk(desk):
    assert max(lines for _, lines in desk.run(CELLS)) < 1.5


def test_a_phone_has_all_of_it_at_its_width(desk, page):
    desk.size(*PHONE, phone=True)
    desk.open(page)
    desk.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert desk.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    cells = desk.run(CELLS)
    assert len(cells) > 50
    assert min(width for width, _ in cells) >= 90
    assert max(lines for _, lines in cells) < 3.5
    small = desk.run(
        "[...document.querySelectorAll('p, li, td, dd, .body-text, .t, select, input[type=search]')]"
        ".filter((e) => e.getClientRects().length).map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(small) >= 13
    labels = desk.run(
        "[...document.querySelectorAll('figure svg text')].map((t) => t.getBoundingClientRect().height).filter(Boolean)"
    )
    assert labels
    assert min(labels) >= 10
    one, other = desk.run(
        "[...document.querySelector('#completions-list .pair').children].map((c) => c.getBoundingClientRect().top)"
    )
    assert other > one


def test_beta_stays_beside_its_method_while_a_phone_scrolls_the_numbers(desk, page):
    desk.size(*PHONE, phone=True)
    desk.open(page)
    found = []
    for left in (0, 300):
        desk.run(f"document.querySelector('#methods .scroll').scrollLeft = {left}")
        boxes = desk.run(
            "[...document.querySelectorAll('#methods .scroll tbody tr:first-child td')].slice(0, 2)"
            ".map((c) => [c.innerText, ...(({left, right}) => [left, right])(c.getBoundingClientRect())])"
        )
        found.append(boxes)
    assert found[0] == found[1]
    (method, beta) = found[1]
    assert (method[0], beta[0]) == ("shiq", "0.03")
    assert method[2] == pytest.approx(beta[1], abs=1)
    assert beta[2] < 0.6 * PHONE[0]
