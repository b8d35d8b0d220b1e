"""docs/math.md, the page of formulas: code cites sections that are there, and every loss cites one."""

import re
from pathlib import Path

import pytest

from shiqrun import losses
from shiqrun.losses.anchor import anchor
from shiqrun.losses.soft_policy import monte_carlo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
CITATION = re.compile(r'docs/math\.md,\s+"([^"]+)"')
SOURCES = [
    p for folder in ("shiqrun", "conf", "tests") for p in (ROOT / folder).rglob("*.*") if p.suffix in (".py", ".yaml")
]


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("loss", [*(getattr(losses, name) for name in losses.__all__), anchor, monte_carlo])
def test_every_loss_cites_its_section(loss):
    assert set(CITATION.findall(loss.__doc__)) <= set(HEADINGS)
    assert CITATION.search(loss.__doc__)


def test_citations_in_code_are_headings_of_the_page():
    cited = {name for path in SOURCES if path != Path(__file__) for name in CITATION.findall(path.read_text("utf-8"))}
    assert {"ShiQ", "Path residual"} <= cited
    assert cited <= set(HEADINGS)


def test_links_within_the_page_lead_to_a_heading():
    links = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert links
    assert links <= {slug(heading) for heading in HEADINGS}


def test_the_table_of_units_names_every_loss_once():
    table = PAGE.split("## What a step divides by")[1].split("## The losses")[0]
    named = re.findall(r"`(\w+)`", "".join(line for line in table.splitlines() if line.startswith("| ")))
    assert sorted(named) == sorted(losses.__all__)
