"""`shiqrun inspect` says which methods a data set can feed, exactly those that `shiqrun train` accepts."""

import json
import re

import pytest
from omegaconf import OmegaConf

from shiqrun.cli import main
from shiqrun.config.compose import compose
from shiqrun.config.method_configs import method_configs, method_names, without_hydra
from tests.support.places import working_in


def rows(*, completions, reward=None, turns=1, levels=2):
    """Twelve prompts, each with some completions."""
    made = []
    for n in range(12):
        answers = [[{"role": "assistant", "content": f"answer {k} of {n}"}] for k in range(completions)]
        for answer in answers if turns == 2 else ():
            answer += [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "more"}]
        row = {"prompt": f"question {n}", "completions": answers}
        if reward is not None:
            levels_of_row = [(k + n) % levels for k in range(completions)]
            row["rewards"] = [[x, 1.0] if turns == 2 else float(x) for x in levels_of_row]
        made.append(row)
    return made


KINDS = {
    "groups": rows(completions=3, reward=1),
    "single": rows(completions=1, reward=1),
    "per_turn": rows(completions=2, reward=1, turns=2),
    "ties": rows(completions=2, reward=1, levels=1),
    "unrewarded": rows(completions=2),
    "pairs": [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(12)],
    "labels": [{"prompt": f"question {n}", "completion": f"yes {n}", "label": n % 2 == 0} for n in range(12)],
    "all_good": [{"prompt": f"question {n}", "completion": f"yes {n}", "label": True} for n in range(12)],
    "one_prompt": [{"prompt": "question", "completion": f"yes {n}", "label": n % 2 == 0} for n in range(12)],
}
SAID = {
    "groups": "groups of trajectories, 3 a prompt, terminal rewards (0 and 1)",
    "single": "single trajectories, 1 a prompt, terminal rewards (0 and 1)",
    "per_turn": "groups of trajectories, 2 a prompt, rewards per turn",
    "ties": "groups of trajectories, 2 a prompt, terminal rewards, all the same",
    "unrewarded": "groups of trajectories, 2 a prompt, no rewards",
    "pairs": "pairs, 2 a pair, terminal rewards (-1 and 1)",
    "labels": "single trajectories, 1 a prompt, terminal rewards (-1 and 1)",
    "all_good": "single trajectories, 1 a prompt, terminal rewards, all the same",
    "one_prompt": "groups of trajectories, 12 a prompt, terminal rewards (-1 and 1)",
}
MODEL = ("model.hidden_size=16", "model.num_layers=1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    for kind, made in KINDS.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    with working_in(folder):
        yield folder


def inspected(kind, capsys):
    """(the output's facts, names of the methods that can learn)."""
    assert main(["inspect", "data=jsonl", f"data.path={kind}.jsonl", *MODEL, "limit=0"]) == 0
    out = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    facts = out.partition("methods for ")[2].partition(" ┌")[0]
    listed = re.sub(r"\(= \w+\)", "", out.partition("can learn ")[2].partition(" cannot ")[0])
    return facts, {name.strip() for name in listed.split(",")} - {"none"}


def accepted(kind, name):
    words = (f"algo={name}", "data=jsonl", f"data.path={kind}.jsonl", *MODEL, "logger=none", "dry_run=true")
    return main(["train", *words, f"run_dir=never/{name}", "eval.every=0", "cache_dir=cache"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_says_what_decides(kind, files, capsys):
    facts, fed = inspected(kind, capsys)
    assert facts == SAID[kind]
    assert "sft" in fed
    assert ("shiq" in fed) == (kind != "unrewarded")
    assert ("copg" in fed) == (kind not in ("unrewarded", "single", "labels", "all_good"))
    assert ("dpo" in fed) == (kind in ("groups", "per_turn", "pairs", "one_prompt"))
    assert ("kto" in fed) == (kind in ("groups", "single", "pairs", "labels"))  # all returns of "per_turn" are above 0


SOME = {
    "single": ("shiq", "dpo", "agro", "spo"),
    "unrewarded": ("sft", "dro"),
    "ties": ("dpo", "copg"),
    "all_good": ("kto", "shiq"),
    "one_prompt": ("kto", "dpo"),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in SOME else [pytest.mark.slow]) for kind in KINDS]
)
def test_inspect_and_train_agree_on_every_method(kind, files, capsys):
    _, fed = inspected(kind, capsys)
    names = SOME.get(kind) or method_names()
    assert {name for name in names if accepted(kind, name)} == fed & set(names)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME)
def test_inspect_and_train_agree_on_every_method_of_the_others_too(kind, files, capsys):
    _, fed = inspected(kind, capsys)
    assert {name for name in method_names() if accepted(kind, name)} == fed


def test_a_reason_says_what_to_do(files, capsys):
    assert main(["inspect", "data=jsonl", "data.path=unrewarded.jsonl", *MODEL, "limit=0"]) == 0
    out = capsys.readouterr().out
    assert "add a column `reward` or `rewards`" in out
    assert "set rollout=local (or ray, vllm)" in out
    assert main(["inspect", "data=jsonl", "data.path=all_good.jsonl", *MODEL, "limit=0"]) == 0
    said = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    assert re.search(r"kto: needs desirable and undesirable trajectories, but none of \d+ is undesirable", said)
    assert "add rows with other rewards" in said


def test_configs_of_all_methods_are_those_that_hydra_composes(tmp_path, monkeypatch):
    words = ["data=treasure", "seed=3"]
    found = method_configs(words)
    assert {"shiq", "dpo", "spo", "sft"} <= set(found)
    for name in ("shiq", "spo", "dpo", "sft", "dro_v"):
        whole = without_hydra(compose("train", [*words, f"algo={name}"]))
        assert OmegaConf.to_container(without_hydra(found[name])) == OmegaConf.to_container(whole)
