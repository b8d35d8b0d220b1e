"""The pages of the docs are true of the project: metrics, keys of other tools' tables, links between files."""

import json
import re
import shlex
from pathlib import Path

import pytest

import shiqrun
from shiqrun.config.compose import compose
from shiqrun.config.explain import _dotted_keys
from shiqrun.config.other_names import NEEDED
from tests.support.places import working_in

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def glossary():
    """Names in the first column of the tables of docs/metrics.md, as patterns."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {name for line in re.findall(r"(?m)^\| (`.*?`) \|", text) for name in re.findall(r"`([^`]+)`", line)}
    return [re.compile(re.sub(r"NAME|SOURCE|PART|REASON|PATH|\bK$|\bN$|(?<=_)N$", ".+", name)) for name in names]


def unexplained(names):
    patterns = glossary()
    plain = {re.sub(r"_ci95(_low|_high)?$", "", name) for name in names}
    plain |= {name.replace("val/", "train/", 1) for name in plain}  # the losses' own metrics of both splits
    known = {name for name in plain if any(p.fullmatch(name) for p in patterns)}
    return {
        name
        for name in names
        if (bare := re.sub(r"_ci95(_low|_high)?$", "", name)) not in known
        and bare.replace("val/", "train/", 1) not in known
    }


@pytest.mark.parametrize("algo", ["shiq", "dpo", "reward_model"])
def test_every_number_of_a_run_is_explained(home, algo):
    rows = [
        {"prompt": f"go {n}", "completions": [f"left {n % 3}", f"right {n % 2}"], "rewards": [n % 2, 1 - n % 2]}
        for n in range(40)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data_path": home / "rows.jsonl", "model_hidden_size": 16, "trainer_max_steps": 2, "eval_every": 1}
    words = () if algo == "reward_model" else ("eval.max_new_tokens=4", "eval.max_prompts=4")
    run = shiqrun.train(
        f"algo={algo}", "data=jsonl", "model=tiny", "logger=none", *words, **settings, run_dir=home / algo
    )
    assert not unexplained(set(run.metrics.columns) | set(run.summary))


def test_every_number_of_a_run_on_the_mixture_of_the_docs_is_explained(home):
    """The commands of docs/data.md, word for word; its YAML; and the metrics of the second command."""
    section = (
        (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("\n## Mixtures\n")[2].partition("\n## ")[0]
    )
    commands = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", "").strip().splitlines()
    rows = [{"prompt": f"go {n}", "completions": ["left", "right"], "rewards": [n % 2, 1 - n % 2]} for n in range(30)]
    pairs = [{"prompt": f"stay {n}", "chosen": "yes", "rejected": "no"} for n in range(30)]
    for name, given in (("chat", rows), ("pairs", pairs)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (home / "conf" / "data").mkdir(parents=True)
    (home / "conf" / "data" / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])
    small = {"model_hidden_size": 16, "model_num_layers": 1, "trainer_max_steps": 2, "data_val_fraction": 0.2}
    small |= {"eval_every": 1, "eval_max_new_tokens": 3, "eval_max_prompts": 4}
    with working_in(home):
        for number, command in enumerate([*commands, "shiqrun train data=mine algo=dpo"]):
            words = [*shlex.split(command)[2:], "model=tiny", "logger=none"]
            run = shiqrun.train(*words, **small, run_dir=home / f"mixture{number}")
            assert not unexplained(set(run.metrics.columns) | set(run.summary))
            assert {"train/loss/chat", "val/loss/pairs", "val/kl/chat"} <= set(run.metrics.columns)


def test_every_number_of_the_embedded_problem_is_explained(home):
    settings = {"model_hidden_size": 16, "data_maps": 20, "data_val_maps": 3, "trainer_max_steps": 1, "eval_every": 1}
    run = shiqrun.train("logger=none", **settings, run_dir=home / "treasure")
    assert not unexplained(set(run.metrics.columns) | set(run.summary))
    assert unexplained({"val/made_up"}) == {"val/made_up"}


def test_keys_of_the_tables_for_other_tools_are_there():
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    words = [word for cell in cells for span in re.findall(r"`([^`]+)`", cell) for word in span.split()]
    known = {*_dotted_keys("", compose("train", ["eval.reward=programs", *NEEDED.values()])), "rollout", "experiment"}
    known |= {*_dotted_keys("", compose("train", ["data=mixture", "algo=grpo", "rollout=vllm"]))}
    keys = [word.partition("=")[0] for word in words if re.match(r"[a-z_.]+(=|$)", word) and word[0] != "_"]
    assert len(keys) > 30
    assert not [key for key in keys if key not in known and not key.startswith("data.columns.")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        if "://" in target or not file:
            continue
        place = page.parent / file
        assert place.exists(), f"{page.name}: {target}"
        if heading and place.suffix == ".md":
            titles = re.findall(r"(?m)^#+ (.+)$", place.read_text(encoding="utf-8"))
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
