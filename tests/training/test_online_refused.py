"""Runs that sample while they learn, before they begin: what is refused, what a dry run says, what the page says."""

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from shiqrun.cli import main
from tests.support.online_words import ONLINE, PROBLEMS, SMALL, TINY, VALUES, live, train
from tests.support.places import working_in
from tests.support.vllm_server import serving
from tests.test_contract import commands_of

PAGE = Path(__file__).parents[2] / "docs" / "online.md"


REFUSED = {
    "a cache": ("spo", [], "no cache has the tokens that are sampled; set algo.reference=frozen"),
    "no reward": ("shiq", ["eval.reward=null"], "rollout: what is sampled needs a reward; set eval.reward=NAME"),
    "epochs": ("shiq", ["trainer.max_steps=null"], "rollout: sampling has no epochs; set trainer.max_steps"),
    "ranks": (
        "dro_v",
        ["hardware.devices=2", "rollout.losses.logged=dro"],
        "which several processes exchange in each step; set hardware.devices=1, or hardware=fsdp",
    ),
    "no pairs": ("copg", [], "algo=copg compares completions of a prompt: set rollout.samples_per_prompt=2 or more"),
    "ppo with data": (
        "ppo",
        [],
        "learns from samples alone: set rollout.offline=0, or rollout.sources.logged=0 and rollout.sources.replay=1",
    ),
    "no samples": ("ppo", ["rollout=none"], "set rollout=local (or ray, vllm) and eval.reward=NAME"),
    "a loss": (
        "shiq",
        ["rollout.losses.online=copgg"],
        "rollout.losses.online=copgg: no such loss; did you mean copg?",
    ),
    "no loss": ("shiq", ["rollout.losses.online=x"], "rollout.losses.online=x: no such loss; there are copg, direct"),
    "its needs": (
        "shiq",
        ["rollout.losses.online=spo"],
        "rollout.losses.online=spo needs prompt_value, which algo=shiq",
    ),
    "idle": ("shiq", ["rollout.losses.replay=shiq_ms"], "rollout.losses.replay: no trajectory comes from there"),
    "no targets": (
        "spo",
        ["rollout.sources.annotated=1"],
        "annotated needs value targets of actions; set algo.targets",
    ),
    "no estimates": ("spo", ["rollout.losses.logged=monte_carlo"], "monte_carlo needs value targets; set algo.targets"),
    "no file": ("shiq", ["rollout.sources.further=1"], "rollout.path is the file of rollout.sources.further"),
    "no source": ("shiq", ["rollout.path=x.jsonl"], "rollout.path is the file of rollout.sources.further"),
    "sft": ("sft", ["algo.reference=none"], "algo=sft learns nothing from the policy's own samples; set rollout=none"),
    "old weights": ("shiq", ["rollout.max_staleness=3"], "rollout.max_staleness=3: weights are up to 4 steps old"),
    "one of a group": (
        "shiq",
        ["algo.reward_offset=group_mean"],
        "with rollout.samples_per_prompt=1 all rewards would be 0",
    ),
    "all logged": ("shiq", ["rollout.offline=1"], "rollout.offline=1 leaves none of trainer.batch_size=16"),
    "targets of what is sampled": (
        "spo",
        ["rollout.losses.online=monte_carlo", "algo.targets=x"],
        "rollout.losses.online=monte_carlo: none of these trajectories has a target; only annotated and logged ones do",
    ),
    "targets of what was sampled": (
        "spo",
        ["rollout.losses.replay=monte_carlo", "rollout.sources.replay=1", "algo.targets=x"],
        "rollout.losses.replay=monte_carlo: none of these trajectories has a target",
    ),
    "targets of another file": (
        "spo",
        ["rollout.losses.further=monte_carlo", "rollout.sources.further=1", "rollout.path=x", "algo.targets=x"],
        "rollout.losses.further=monte_carlo: none of these trajectories has a target",
    ),
    "a source without a share": (
        "shiq",
        ["rollout.offline=0", "rollout.sources.replay=2"],
        "rollout.sources.replay=2, but rollout.offline=0 leaves it no share; set rollout.offline, or leave the source",
    ),
    "annotated without a share": (
        "spo",
        ["rollout.offline=0", "rollout.sources.annotated=1", "algo.targets=x"],
        "rollout.sources.annotated=1, but rollout.offline=0 leaves it no share",
    ),
    "too few to replay": (
        "shiq",
        ["rollout.sources.logged=0", "rollout.sources.replay=1", "rollout.replay_size=7"],
        "rollout.replay_size=7: a step replays 8; keep at least as many",
    ),
    "too new to replay": (
        "shiq",
        ["rollout.sources.replay=1", "rollout.max_staleness=0", "rollout.model_update_interval=1"],
        "rollout.max_staleness=0 lets nothing be replayed; allow some, or set rollout.sources.replay=0",
    ),
    "a key": ("shiq", ["+rollout.temprature=1"], "rollout.temprature: unknown key; did you mean rollout.temperature?"),
    "another key": (
        "shiq",
        ["rollout.temprature=1"],
        "rollout.temprature: unknown key; did you mean rollout.temperature?",
    ),
    "a source": (
        "shiq",
        ["rollout.sources.loged=1"],
        "rollout.sources.loged: unknown key; did you mean rollout.sources.logged?",
    ),
    "a prompt": ("shiq", ["rollout.max_new_tokens=600"], "leaves no room for rollout.max_new_tokens=600"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_loaded_and_leaves_nothing(at_home, name, capfd):
    algo, words, told = REFUSED[name]
    dry = [] if name == "a prompt" else ["dry_run=true"]
    given = words if "rollout=none" in words else [*ONLINE, *words]
    frozen = [] if name in ("a cache", "sft") else ["algo.reference=frozen"]
    assert train(algo, *frozen, *given, *dry, "run_dir=refused", model=TINY) == 2
    out = capfd.readouterr()
    assert told in " ".join((out.out + out.err).split())
    assert not (at_home / "refused" / "experience").exists()
    assert dry == [] or not (at_home / "refused").exists()


def test_data_that_are_solved_exactly_are_not_sampled(at_home, capfd):
    words = ("data=treasure", "data.maps=20", "data.val_maps=2", "logger=none")
    given = ("algo=shiq", "algo.reference=frozen", *words, *ONLINE, "eval.every=0", "dry_run=true", "run_dir=refused")
    assert main(["train", *given]) == 2
    assert "rollout: data=treasure is solved exactly and never sampled" in " ".join(capfd.readouterr().err.split())
    assert not (at_home / "refused").exists()


def test_fewer_waiting_than_a_step_takes_are_refused(at_home, capfd):
    pytest.importorskip("ray", reason="rollout=ray needs Ray: pip install 'shiqrun[ray]'")
    words = ("rollout=ray", "rollout.waiting=7", "dry_run=true", "run_dir=refused")
    assert live("shiq", *words, model=TINY) == 2
    assert "rollout.waiting=7: a step takes 8; let as many wait" in " ".join(capfd.readouterr().err.split())


def test_without_ray_it_is_said_what_to_install(at_home, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    assert live("shiq", "rollout=ray", "dry_run=true", "run_dir=refused", model=TINY) == 2
    assert "Ray is missing; pip install 'shiqrun[ray]', or set rollout=local" in " ".join(
        capfd.readouterr().err.split()
    )


def test_a_dry_run_says_what_would_be_sampled_and_leaves_no_file(at_home, capfd):
    more = (
        "rollout.samples_per_prompt=2",
        "rollout.sources.logged=1",
        "rollout.sources.replay=1",
        "dry_run=true",
        "run_dir=dry",
    )
    assert live("copg", *more, model=TINY) == 0
    out = " ".join(capfd.readouterr().out.split())
    for told in (
        "8 online, 4 replay, 4 logged trajectories",
        "local:",
        "2 of each at a time",
        "temperature 0.1 to 0.8",
    ):
        assert told in out
    assert "top-p 0.95, at most 10 tokens; new weights every 5 steps" in out
    assert not (at_home / "dry").exists()
    assert train("shiq", "dry_run=true", "run_dir=dry", model=TINY) == 0
    assert "rollouts" not in capfd.readouterr().out


# ------------------------------------------------------------------ what docs/online.md says
@pytest.fixture(scope="module")
def named(home):
    """The model and the run that the page names."""
    with working_in(home):
        assert main(["train", "algo=sft", *PROBLEMS, *SMALL, "trainer.max_steps=1", "eval.every=0", "run_dir=sft"]) == 0
        (home / "my_model").symlink_to("sft/policy")
        assert live("shiq", "trainer.max_steps=2", "run_dir=RUN_DIR", model=TINY) == 0


@pytest.mark.parametrize("line", commands_of(PAGE))
def test_every_command_of_the_page_passes_a_dry_run(named, at_home, line, capfd):
    """Dots stand for what the first command says of problems, model and steps; problems are fewer here."""
    given = shlex.split(commands_of(PAGE)[0], comments=True)[1:]
    words = shlex.split(line, comments=True)[1:]
    if "..." in words:
        words.remove("...")
        rest = given[given.index("rollout=local") + 1 :]
        words += [word for word in rest if word.split("=")[0] not in {said.split("=")[0] for said in words}]
    if "rollout=ray" in words:
        pytest.importorskip("ray", reason="rollout=ray needs Ray: pip install 'shiqrun[ray]'")
    smaller = PROBLEMS[1:-2] if "data=programs" in words else ()
    url = next((word for word in words if word.startswith("rollout.base_url=")), None)
    with serving("my_model") if url else nullcontext() as server:
        words = [f"rollout.base_url={server.url}" if word == url else word for word in words]
        code = main([*words, *smaller, *VALUES, "logger=none", "dry_run=true", "run_dir=dry"])
    assert code == 0, capfd.readouterr().err
    assert ("rollouts" in capfd.readouterr().out) == any(word.startswith("rollout=") for word in words)


def test_the_page_has_commands():
    assert len(commands_of(PAGE)) > 3
