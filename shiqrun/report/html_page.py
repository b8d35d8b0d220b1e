"""The page: one HTML file that opens from disk, with its styles, scripts, figures and data inside and no network."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from shiqrun import __version__

SCRIPTS = ("page.js", "completions.js", "tokens.js")
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{styles}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="quiet">{subtitle}</p>
</header>
<nav aria-label="sections"><div>{links}</div></nav>
<main>
{sections}
</main>
<footer><main>made by shiqrun {version}</main></footer>
{data}
{scripts}
</body>
</html>
"""
COMPLETIONS = """\
<div class="tools">
<label class="grow">search
<input type="search" id="completions-search" placeholder="words in prompts and answers"></label>
<label>run<select id="completions-run"></select></label>
<label>step<select id="completions-step"></select></label>
<label>order<select id="completions-sort">
<option value="none">as sampled</option>
<option value="reward down">reward, highest first</option>
<option value="reward up">reward, lowest first</option>
<option value="difference down">gain over the reference, highest first</option>
<option value="difference up">gain over the reference, lowest first</option>
<option value="length down">longest first</option>
<option value="length up">shortest first</option>
<option value="kl down">log-ratio, highest first</option>
<option value="reference down">reference's reward, highest first</option>
</select></label>
</div>
<p class="note" aria-live="polite"><span id="completions-count"></span> completions</p>
<div id="completions-list"></div>
<button class="more" id="completions-more" hidden></button>"""
TOKENS = """\
<div class="tools">
<div class="segments" id="tokens-quantity" role="group" aria-label="quantity">
<button value="advantage">advantage</button><button value="shifted_value">shifted value</button
><button value="residual">residual</button>
</div>
<label>run<select id="tokens-run"></select></label>
<label>trajectories<select id="tokens-kind"><option value="">all</option><option value="data">from the data</option
><option value="sample">sampled by the policy</option></select></label>
<label class="row"><input type="checkbox" id="tokens-same"> one scale for all runs</label>
</div>
<div class="legend"><span id="tokens-low"></span><span class="ramp" id="tokens-ramp"></span
><span id="tokens-high"></span>
<span>reward units · grey: not an action · label: reward falls here</span></div>
<p class="note meaning" id="tokens-meaning"></p>
<div id="tokens-list"></div>
<button class="more" id="tokens-more" hidden></button>
<div id="readout" role="status" hidden></div>"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading and its HTML."""

    anchor: str
    heading: str
    html: str


def page(title: str, subtitle: str, sections: Sequence[Section], data: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: the non-empty ones are shown.
        data: element id to what the scripts read there.
    """
    there = [section for section in sections if section.html]
    scripts = [_packaged(name) for name in SCRIPTS]
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    return PAGE.format(
        policy=policy,
        title=escape(title),
        subtitle=escape(subtitle),
        styles=_packaged("page.css"),
        links="".join(f'<a href="#{s.anchor}">{escape(s.heading)}</a>' for s in there),
        sections="\n".join(f'<section id="{s.anchor}"><h2>{escape(s.heading)}</h2>\n{s.html}</section>' for s in there),
        version=__version__,
        data="\n".join(
            f'<script type="application/json" id="{name}">{embedded(v)}</script>' for name, v in data.items()
        ),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it opens or closes one."""
    made = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        made = made.replace(sign, f"\\u{ord(sign):04x}")
    return made.encode("utf-8", "replace").decode()


def facts(entries: Sequence[tuple[str, str, str]]) -> str:
    """A grid of (what, value, remark)."""
    cells = []
    for what, value, remark in entries:
        small = f"<small>{escape(remark)}</small>" if remark else ""
        cells.append(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}{small}</dd></div>")
    return f'<dl class="facts">{"".join(cells)}</dl>'


def note(words: str) -> str:
    """A paragraph in small grey letters."""
    return f'<p class="note">{escape(words)}</p>'


def folded(summary: str, html: str) -> str:
    """Hidden until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _packaged(name: str) -> str:
    return (files("shiqrun.report") / name).read_text(encoding="utf-8")
