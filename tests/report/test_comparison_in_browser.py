"""The section of a comparison in headless Chromium: it fits every screen and complains of nothing."""

import pytest

from shiqrun.report.run_report import write_report
from tests.report.test_comparison import comparison
from tests.support.browser import Browser, needs_chromium

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    comparison(folder)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.open(write_report([folder], formats=("svg",)))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_comparison_fits_the_screen(opened, width):
    opened.size(width, 900)
    assert opened.run("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('#comparison figure')].filter((f) => f.offsetParent !== null).length"
    assert opened.run(shown) == 1  # the wide frontier or the narrow one
    assert opened.run("document.querySelectorAll('#comparison table tbody tr').length") == 2 + 4
    assert opened.errors == []


def test_a_click_on_a_header_sorts_the_methods(opened):
    opened.size(1280, 900)
    head = "[...document.querySelectorAll('#comparison table:first-of-type th button')]"
    opened.run(f"{head}.find((b) => b.innerText.includes('test reward')).click()")
    names = "[...document.querySelectorAll('#comparison table')][0].querySelectorAll('tbody tr td:first-child')"
    first = opened.run(f"[...{names}].map((c) => c.innerText)")
    opened.run(f"{head}.find((b) => b.innerText.includes('test reward')).click()")
    assert opened.run(f"[...{names}].map((c) => c.innerText)") == first[::-1]
