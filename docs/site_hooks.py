"""MkDocs calls these functions while it builds the docs site, so that its pages are the files that GitHub shows.

The README, CONTRIBUTING and CHANGELOG become pages, the notebook becomes one too, and the reference of config keys is
added to config.md. Links that lead to other files of the repository become their plain text.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from config_reference import reference

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages of the site."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from other files."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        content = as_page((ROOT / source).read_text(encoding="utf-8"), "")
        files.append(File.generated(config, page, content=content))
    notebook = (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
    files.append(File.generated(config, "notebook.md", content=notebook_page(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page, and add the reference of config keys to its page."""
    name = page.file.src_uri
    if name == "config.md":
        return f"{markdown}\n{reference()}"
    return markdown if name in PAGES.values() else as_page(markdown, "../")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show `|` in the code of tables, where Python's Markdown keeps the backslash that GitHub needs before it."""
    return re.sub(r"<td.*?</td>", lambda cell: cell.group().replace("\\|", "|"), html, flags=re.DOTALL)


def as_page(text: str, to_root: str) -> str:
    """Return Markdown with the links of the site.

    Args:
        text: a file of the repository.
        to_root: how its links lead to the top of the repository, `../` in docs/.
    """

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group()
        if to_root and not target.startswith(to_root):
            return match.group()
        file, mark, heading = target.removeprefix(to_root).partition("#")
        page = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        return f"[{label}]({page}{mark}{heading})" if page else label

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def notebook_page(notebook: str) -> str:
    """Return a notebook as Markdown: its texts and its code, without outputs, which it does not hold."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    parts.insert(1, "[Download this notebook](notebook.ipynb)")
    return "\n\n".join(parts) + "\n"
