"""Runs that play real environments while they learn: Ray's actors with a process each, BFCL's backends, text games."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.environments.bfcl.dialogue import Rules
from shiqrun.environments.bfcl.environment import BfclEnvironment
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.rollout.episode_worker import EpisodeWorker
from shiqrun.rollout.episodes import Tasks
from tests.rollout.sampled import settings
from tests.support.command_line import command, finished, metrics, summary
from tests.support.online_runs import BUSY, expect_all_there
from tests.support.online_words import experience

pytestmark = pytest.mark.usefixtures("at_home")
STEPS = ("trainer.batch_size=16", "trainer.log_every=1", "trainer.warmup_steps=0", "eval.every=0", "logger=none")
SAMPLING = ("algo=shiq", "algo.reference=frozen", "rollout.max_new_tokens=6", "rollout.samples_per_prompt=2")


# ------------------------------------------------------------------ Ray
@pytest.mark.slow
def test_actors_of_ray_play_an_environment_of_their_own(home):
    pytest.importorskip("ray", reason="Ray is not installed")
    rows = [
        {"prompt": f"say {n}", "completion": [{"role": "assistant", "content": f"{n}"}], "rewards": [1.0]}
        for n in range(20)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data=jsonl", f"data.path={home / 'rows.jsonl'}", "data._target_=tests.environments.echoing.Adding")
    size = ("model=tiny", "model.hidden_size=32", "model.num_layers=2")
    ray = ("rollout=ray", "rollout.waiting=16", "rollout.batch_size=8", "rollout.actor_cpus=0.5")
    words = (*data, *size, *STEPS, *SAMPLING, *ray, "trainer.max_steps=10", f"run_dir={home / 'ray'}")
    run = command("train", *words, **BUSY)
    code, out = finished(run, 400)
    assert code == 0, out
    told = expect_all_there(home / "ray", 10)
    assert told["episodes/failed"] == 0
    pairs = set()
    for row in experience(home / "ray").values():
        said = [m["content"] for m in row["completion"]]
        assert row["rewards"] == [float(len(said[0])), float(len(said[2]))]
        pairs.add(re.fullmatch(r"process (\d+) of (\d+)", said[1]).groups())
    processes, actors = (set(numbers) for numbers in zip(*pairs, strict=True))
    assert len(processes) == len(actors) == len(pairs) <= 2, "one for each actor that had time to play"
    assert str(run.pid) not in actors, "the trainer plays nothing"
    assert not any(Path(f"/proc/{process}").exists() for process, _ in pairs), "they end with their actors"


# ------------------------------------------------------------------ BFCL
SMALL = ("data.arguments=reference", "data.functions=none", "data.together=turn", "data.result_chars=10")
BFCL = ("data=bfcl", "data.limit=3", *SMALL, "data.max_steps=3", "data.per_sample=2", "trainer.micro_batch_tokens=8192")


class Killed(Harness):
    """Backends whose process is killed before it judges a turn, so often."""

    kills = 0

    def request(self, what):
        if what["do"] == "end_turn" and self.kills and self._process:
            self.kills -= 1
            os.kill(self._process.pid, signal.SIGKILL)
        return super().request(what)


@pytest.mark.parametrize(("kills", "failed"), [(1, 0), (2, 2)])
def test_backends_that_are_killed_play_on_or_are_counted_and_never_end_the_run(kills, failed):
    """Killed once, the episodes are restored; twice over one turn, its group is left out for another one."""
    pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")
    from tests.support.bfcl_episodes import TOKENIZER, short, tasks

    world = BfclEnvironment(short(4), Rules("independent", 3, "none", 10, "reference"))
    world.harness = Killed()
    world.harness.kills = kills
    from tests.rollout.test_episodes import policy

    made = settings(samples_per_prompt=2, max_new_tokens=4)
    worker = EpisodeWorker(policy(context=4096), TOKENIZER, Tasks(tasks(short(4)), world, 4096), made, seed=1)
    found = worker.sample(4)
    worker.close()
    assert [t.uid for t in found] == [f"w0-0-{n}" for n in range(4)]
    assert (world.harness.kills, worker.failed) == (0, failed // 2)
    assert {len(t.turns.rewards) for t in found} == {3}, "three turns without a call"


@pytest.mark.slow
def test_the_checker_pays_the_same_for_the_episodes_of_a_run_when_they_are_replayed(home):
    pytest.importorskip("bfcl_eval", reason="data=bfcl needs bfcl-eval, which the README says how to install")
    from shiqrun.data.bfcl_replay import replay
    from tests.support.bfcl_episodes import dialogues

    size = ("model=tiny", "model.hidden_size=64", "model.num_layers=2", "model.max_position_embeddings=1536")
    taught = ("algo=sft", "data.corrupt=0.3", "trainer.max_steps=150", "trainer.learning_rate=1e-2", "run_dir=sft")
    assert main(["train", *BFCL, *size, *STEPS, *taught]) == 0
    words = (*SAMPLING, "model=hf", "model.path=sft/policy", "rollout=local", "rollout.max_new_tokens=48")
    assert main(["train", *BFCL, *STEPS, *words, "trainer.max_steps=2", "run_dir=bfcl"]) == 0
    rules, known = Rules("independent", 3, "none", 10, "reference"), {d.id: d for d in dialogues()}
    rows = [*experience(home / "bfcl").values()]
    with Harness() as harness:
        for row in rows:
            dialogue = [{k: v for k, v in m.items() if v is not None} for m in [*row["prompt"], *row["completion"]]]
            again = replay(known[row["prompt_id"]], dialogue, row["uid"], harness, rules)
            assert again.message_rewards() == row["rewards"]
    assert any(sum(row["rewards"]) > 0 for row in rows)
    assert any(m["role"] == "tool" for row in rows for m in row["completion"])
    first = metrics(home / "bfcl")[0]
    assert first["train/acting_gap"] < 1e-4
    assert summary(home / "bfcl")["rollout/episodes/failed"] == 0


# ------------------------------------------------------------------ text games
@pytest.mark.slow
@pytest.mark.parametrize("data", ["textworld_express", "scienceworld"])
def test_text_games_are_played_and_paid_by_the_game(home, data):
    pytest.importorskip(data, reason="needs the extra `games`: pip install 'shiqrun[games]'")
    from shiqrun.data import scienceworld, textworld_express
    from shiqrun.environments.text_games.environment import GameEpisode, GameRules
    from shiqrun.environments.text_games.harness import GameName, GameServer

    games = {
        "textworld_express": ("data.games=[simonsays]", "data.train_seeds=2"),
        "scienceworld": ("data.tasks=[lifespan-longest-lived]", "data.train_variations=2"),
    }[data]
    maker = {"textworld_express": textworld_express, "scienceworld": scienceworld}[data].MAKER
    size = ("model=tiny", "model.hidden_size=48", "model.num_layers=2", "model.max_position_embeddings=16384")
    given = (
        f"data={data}",
        *games,
        "data.max_steps=3",
        "data.half=0",
        "data.random=0",
        "trainer.micro_batch_tokens=8192",
    )
    steps = {"textworld_express": 80, "scienceworld": 5}[data]  # the worlds of the second are large
    taught = ("algo=sft", f"trainer.max_steps={steps}", "trainer.learning_rate=1e-2", f"run_dir=taught_{data}")
    assert main(["train", *given, *size, *STEPS, *taught]) == 0
    play = ("model=hf", f"model.path=taught_{data}/policy", "rollout=local", "rollout.max_new_tokens=16")
    assert main(["train", *given, *STEPS, *SAMPLING, *play, "trainer.max_steps=2", f"run_dir={home / data}"]) == 0
    rows = [*experience(home / data).values()]
    rules = GameRules("step", 3, show_valid_actions=data == "textworld_express", step_seconds=30.0)
    with GameServer(maker, 30.0) as server:
        for row in rows:
            episode = GameEpisode(GameName(**json.loads(row["answer_json"])), server, rules)
            assert row["prompt"] == episode.opening
            said = [m["content"] for m in row["completion"] if m["role"] == "assistant"]
            assert [episode.step(text).reward for text in said] == pytest.approx(row["rewards"])
    assert metrics(home / data)[0]["train/acting_gap"] < 1e-4
    assert data == "scienceworld" or any(sum(row["rewards"]) for row in rows)
    assert summary(home / data)["rollout/episodes/failed"] == 0
