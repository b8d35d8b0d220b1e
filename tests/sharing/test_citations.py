"""Every method has its paper, the one that docs/methods.md names, and every entry is whole."""

import re
from pathlib import Path

import pytest

from shiqrun import losses
from shiqrun.config.compose import compose
from shiqrun.sharing.citations import METHODS, NAMES, PAPERS, papers, software

ROOT = Path(__file__).parents[2]
ALGOS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("[!_]*.yaml"))


def config(*words):
    """A run's settings as dotted keys, as far as citations read them."""
    found = compose("train", list(words))
    keys = ("algo.name", "algo._target_", "algo.baseline", "model.lora_r", "model.quantize")
    return {key: found[key.partition(".")[0]].get(key.partition(".")[2]) for key in keys}


def test_every_loss_is_known():
    assert set(METHODS) == set(losses.__all__)
    assert set(METHODS) - {"soft_q"} | set(NAMES) == set(ALGOS)
    assert {key for keys in [*METHODS.values(), *NAMES.values()] for key in keys} <= PAPERS.keys()


@pytest.mark.parametrize("algo", ALGOS)
def test_the_papers_are_those_of_the_page_of_methods(algo):
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| [`{algo}`]"))
    source = (ROOT / "conf" / "algo" / f"{algo}.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"\d{4}\.\d{5}", row + source)) - {"2110.00641"}  # old samples in PPO, an option
    found = set(re.findall(r"eprint = \{(.*)\}", "\n".join(papers(config(f"algo={algo}")))))
    if algo in ("copg", "dro", "dro_v"):  # there the page gives equations of the ShiQ paper, which compares with them
        named -= {"2505.11081"}
    assert found == named


@pytest.mark.parametrize("key", PAPERS)
def test_an_entry_is_whole(key):
    entry = PAPERS[key]
    assert re.match(r"@\w+\{" + key + ",\n", entry)
    assert entry.count("{") == entry.count("}")
    fields = re.findall(r"(?m)^  (\w+) = ", entry)
    assert {"title", "author", "year"} <= set(fields)
    year, preprint = re.search(r"year = \{(\d+)\}", entry)[1], re.search(r"eprint = \{(\d\d)", entry)
    assert key.rstrip("abcdefghijklmnopqrstuvwxyz").endswith(year)
    assert preprint is None or 0 <= int(year) - 2000 - int(preprint[1]) <= 1


def test_what_a_run_adds_to_a_method_is_cited_too():
    both = papers(config("algo=dro", "algo.baseline=group_mean", "model.lora_r=8"))
    assert [re.match(r"@\w+\{(\w+)", entry)[1] for entry in both] == ["richemond2024dro", "tang2025agro", "hu2022lora"]
    assert papers({"algo._target_": "mine.losses.absolute"}) is None
    assert "git commit abc" in software("1.0", "abc")
    assert "commit" not in software("1.0", None)
