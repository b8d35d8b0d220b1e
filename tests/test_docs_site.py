"""The docs site: its reference names every config key, its pages are all in the menu, and it builds where MkDocs is."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from shiqrun.cli import COMMANDS
from shiqrun.config.compose import compose

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if "hydra" not in path.parts)
CHOICES = ["algo=spo", "algo=dpo", "data=jsonl", "data=taco", "model=hf", "rollout=ray"]
"""Choices that build on bases, or have nested keys."""
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="MkDocs is not installed: `make docs` installs it",
)


@pytest.fixture(scope="module")
def docs():
    """The modules of docs/ that make pages, by name."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield {name: importlib.import_module(name) for name in ("config_reference", "site_hooks")}
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def reference(docs):
    return docs["config_reference"].reference()


def rows(text):
    """Key, default and meaning of the rows of all tables."""
    return re.findall(r"(?m)^\| `(\S+)` \| (.+?) \| (.*) \|$", text)


def section(text, heading):
    """The part of a text under a heading, up to the next one."""
    return re.split(r"(?m)^##", text.split(f"\n### `{heading}`", 1)[1], maxsplit=1)[0]


def leaves(node, prefix=""):
    """Dotted keys of a mapping, those of Hydra left out."""
    for key, value in node.items():
        if key in ("defaults", "hydra", "_target_", "_partial_"):
            continue
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_the_reference_has_every_key_of_a_file_with_its_value_and_a_comment(docs, path):
    found = {key.name: key for key in docs["config_reference"].read_keys(path)}
    expected = dict(leaves(yaml.safe_load(path.read_text(encoding="utf-8")) or {}))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert yaml.safe_load(found[name].default) == value
        assert found[name].comment, f"{path.name}: {name} has no comment"


@pytest.mark.parametrize("command", sorted(name for name, command in COMMANDS.items() if not command.plain))
def test_every_key_of_a_command_is_in_the_reference(reference, command):
    named = {name for name, _, _ in rows(reference)}
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    asked = dict(leaves(OmegaConf.to_container(compose(command, []), resolve=False)))
    assert len(asked) > 15
    assert {key for key in asked if key not in named} <= {f"{group}.name" for group in groups}  # what was chosen


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_has_the_keys_of_its_bases_with_the_values_that_win(reference, choice):
    group = choice.partition("=")[0]
    listed = {key: default for key, default, _ in rows(section(reference, choice))}
    assert len(listed) > 2
    raw = dict(leaves(OmegaConf.to_container(compose("train", [choice])[group], resolve=False), f"{group}."))
    for key, default in listed.items():
        assert (raw[key] == "???") if default == "must be given" else yaml.safe_load(default.strip("`")) == raw[key]


def test_every_choice_of_every_group_has_a_section(reference):
    chosen = [path for path in FILES if path.parent != CONF and not path.name.startswith("_")]
    assert len(chosen) > 50
    for path in chosen:
        assert len(section(reference, f"{path.parent.name}={path.stem}").strip().splitlines()) > 2


@pytest.mark.parametrize("page", ["quickstart.md", "faq.md"])
def test_keys_on_a_page_are_in_the_reference(reference, page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    code = [*re.findall(r"(?s)```sh\n(.*?)```", text), *re.findall(r"`([^`\n]+)`", text)]
    named = {key for part in code for key in re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)*)=", part)}
    known = {name for name, _, _ in rows(reference)} | {path.name for path in CONF.iterdir() if path.is_dir()}
    assert len(named) > 8
    assert named <= known


def test_every_page_is_in_the_menu_once(docs):
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _IgnoringTags)
    listed = [page for part in config["nav"] for page in _pages(part)]
    made = {*docs["site_hooks"].PAGES.values(), "notebook.md"}
    assert sorted(listed) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} | made)


class _IgnoringTags(yaml.SafeLoader):
    """Reads YAML whose tags name Python functions, without calling them."""


_IgnoringTags.add_multi_constructor("", lambda loader, suffix, node: None)


def _pages(part):
    return [part] if isinstance(part, str) else [page for value in part.values() for page in _of_value(value)]


def _of_value(value):
    return [value] if isinstance(value, str) else [page for part in value for page in _pages(part)]


@pytest.mark.parametrize(
    ("link", "on_the_site"),
    [
        ("[a](docs/math.md#shiq)", "[a](math.md#shiq)"),
        ("![a](docs/text_frontier.png)", "![a](text_frontier.png)"),
        ("[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("[a](shiqrun/cli.py)", "a"),
        ("[a](https://example.org/docs/x.md)", "[a](https://example.org/docs/x.md)"),
        ("[a](#limits)", "[a](#limits)"),
    ],
)
def test_links_of_the_readme_lead_to_pages_of_the_site(docs, link, on_the_site):
    assert docs["site_hooks"].as_page(link, "") == on_the_site


def test_links_that_leave_the_docs_lead_to_pages_or_become_text(docs):
    text = "[a](../README.md#more), [`b`](../shiqrun/cli.py), [c](math.md), [d](../docs/data.md)"
    assert docs["site_hooks"].as_page(text, "../") == "[a](index.md#more), `b`, [c](math.md), [d](data.md)"


def build(config, site):
    """The exit code and the log of the build that `make docs` runs."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@needs_mkdocs
def test_the_site_builds_without_a_warning(tmp_path):
    code, log = build(ROOT / "mkdocs.yml", tmp_path)
    assert code == 0, log
    assert "trainer.micro_batch_tokens" in (tmp_path / "config.html").read_text(encoding="utf-8")
    assert "<code>log pi(a|s) = l(s,a) - v(s)</code>" in (tmp_path / "math.html").read_text(encoding="utf-8")
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ("losses.shiq", "types.ActionScores", "api.run.Run"):
        assert f'id="shiqrun.{name}"' in api


@needs_mkdocs
def test_broken_links_fail_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(
        "# A page\n\n[a](nowhere.md), [b](page.md#no-heading), [c](page.md#a-page)\n"
    )
    others = {key: [] for key in ("hooks", "plugins", "extra_css", "watch")}
    (tmp_path / "mkdocs.yml").write_text(
        yaml.safe_dump({"INHERIT": str(ROOT / "mkdocs.yml"), "nav": ["page.md"], **others})
    )
    code, log = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert code == 1
    assert "nowhere.md" in log
    assert "#no-heading" in log
    assert log.count("WARNING -") == 2


def test_make_docs_runs_the_build_that_is_tested():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m mkdocs build --strict\n" in recipe  # --quiet would silence warnings before they are counted
