"""The HTML page of a report is one file that opens from disk: styles, scripts, figures and data stand inside it.

The HTML is in the Jinja templates of `templates/`, which are filled with plain data; Jinja escapes every value that is
not `Markup`. The page's content security policy forbids network access and any script but the packaged ones.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from shiqrun import __version__

SCRIPTS = ("page.js", "compare.js", "completions.js", "tokens.js")


@dataclass(frozen=True)
class Section:
    """A section of the report's page has a heading and a template that shows its values.

    Attributes:
        anchor: id of the HTML element, and `templates/<anchor>.html.j2` is the template.
        heading: plain text.
        values: the template's variables.
    """

    anchor: str
    heading: str
    values: Mapping[str, Any] = field(default_factory=dict)


def render_page(title: str, subtitle: str, sections: Sequence[Section], script_data: Mapping[str, Any]) -> str:
    """Return the HTML of the whole page of a report.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: in their order on the page.
        script_data: element id to the JSON value that the page's scripts read there.
    """
    scripts = [_read_packaged(name) for name in SCRIPTS]
    templates = _environment()
    rendered = [(s, Markup(templates.get_template(f"{s.anchor}.html.j2").render(s.values))) for s in sections]
    return templates.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=rendered,
        script_hashes=[base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts],
        scripts=map(Markup, scripts),
        styles=Markup(_read_packaged("page.css")),
        script_data={name: Markup(json_for_script(value)) for name, value in script_data.items()},
        version=__version__,
    )


def json_for_script(value: Any) -> str:
    """Return JSON that may stand inside a script element, because nothing in it opens or closes an element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace").decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("shiqrun.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> Markup:
    """Return a name that a browser may break behind `_ = , /` and before an extension or attribute."""
    return Markup(re.sub(r"([_=,/]|\.(?=[a-z]))", r"\1<wbr>", str(escape(name))))


def _read_packaged(name: str) -> str:
    return (files("shiqrun.report") / name).read_text(encoding="utf-8")
