"""A server that samples in place of the model: `shiqrun values` and `eval` with `endpoint.base_url`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from shiqrun.cli import main
from shiqrun.estimates.value_file import read_values
from tests.support.command_line import summary
from tests.support.online_words import PROBLEMS, SMALL
from tests.support.places import working_in
from tests.support.vllm_server import serving

pytestmark = pytest.mark.usefixtures("at_home")
TOGETHER = ("values.samples=40", "values.max_new_tokens=6", "cache_dir=cache")
ASKED = ("eval.max_prompts=6", "eval.samples_per_prompt=8", "eval.max_new_tokens=8", "reward=programs")


@pytest.fixture(scope="module")
def model(home):
    """The words of a small model with a directory."""
    with working_in(home):
        words = ("trainer.max_steps=60", "trainer.batch_size=32", "trainer.learning_rate=3e-3", "eval.every=0")
        assert main(["train", "algo=sft", *PROBLEMS, *SMALL, *words, "run_dir=sft"]) == 0
    return "model=hf", "model.path=sft/policy"


@pytest.fixture
def server(model, home):
    with serving(home / "sft" / "policy", dev=False) as found:
        yield found


def values(*words):
    data = [word for word in PROBLEMS if not word.startswith("logger")]
    return main(["values", *data, "data.limit=24", "reward=programs", *TOGETHER, *words])


def evaluate(*words):
    return main(["eval", *[word for word in PROBLEMS if not word.startswith("logger")], *ASKED, *words])


def completions(server):
    return [content for path, content in server.requests if path == "/v1/completions"]


def told(run_dir):
    return json.loads((run_dir / "eval.json").read_text())


# ------------------------------------------------------------------ values
def test_values_are_of_the_same_distribution_as_those_sampled_here_and_training_takes_them(model, server, home):
    assert values(*model, f"endpoint.base_url={server.url}/v1", "run_dir=there") == 0
    assert values(*model, "run_dir=here") == 0
    asked = [content for content in completions(server) if content["n"] > 1]
    assert {content["n"] for content in asked} == {32, 8}  # 40 of each
    assert len({content["seed"] for content in asked}) == len(asked)
    there, here = (read_values(home / name / "values.jsonl", {}) for name in ("there", "here"))
    assert there.keys() == here.keys()
    each = [np.concatenate([found[name].rewards for name in sorted(found)]) for found in (there, here)]
    error = np.sqrt(sum(rewards.var() / len(rewards) for rewards in each))
    assert error > 0
    assert abs(each[0].mean() - each[1].mean()) < 4 * error
    assert summary(home / "there")["endpoint"] == server.name
    rows = [json.loads(line) for line in (home / "there" / "trajectories.jsonl").open()]
    assert any(len({json.dumps(c) for c in row["completions"]}) > 1 for row in rows if "completions" in row)
    train = ["train", "algo=spo", *PROBLEMS, "data.limit=24", *model, "eval.reward=programs", "eval.every=0"]
    words = ("algo.values=there/values.jsonl", "trainer.max_steps=1", "trainer.batch_size=8", "run_dir=spo")
    assert main([*train, *words]) == 0


@pytest.mark.slow
def test_a_second_run_finds_what_the_endpoint_sampled_and_asks_for_nothing(model, server, home):
    words = (*model, f"endpoint.base_url={server.url}", "cache_dir=second")
    assert values(*words, "run_dir=once") == 0
    before = len(completions(server))
    assert values(*words, "run_dir=again") == 0
    assert summary(home / "again")["prompts_computed"] == 0
    assert len(completions(server)) == before


# ------------------------------------------------------------------ evaluation
def test_an_evaluation_samples_by_the_endpoint_and_measures_by_the_model(model, server, home):
    assert evaluate("run=sft", f"endpoint.base_url={server.url}", "run_dir=by_server") == 0
    assert evaluate("run=sft", "run_dir=by_us") == 0
    there, here = told(home / "by_server"), told(home / "by_us")
    assert there.keys() == here.keys()
    assert there["eval/pass@1"] == pytest.approx(here["eval/pass@1"], abs=0.3)
    assert there["eval/kl"] == pytest.approx(here["eval/kl"], rel=0.2)  # of 48 samples each, about 10 nats
    found = pq.read_table(home / "by_server" / "completions.parquet").to_pylist()
    assert len(found) == 6 * 8
    assert all(content["temperature"] == 1.0 for content in completions(server))
    scripted = {content["n"] for content in completions(server)}
    assert scripted == {1, 8}  # one to learn what the server says


def test_a_server_that_says_text_alone_is_enough_for_rewards(model, home, capsys):
    with serving(home / "sft" / "policy", dev=False, plain=True) as server:
        assert evaluate(*model, f"endpoint.base_url={server.url}", "run_dir=plain") == 0
        assert all(
            content.keys() <= {"stop"} | content.keys() - {"stop_token_ids"} for content in completions(server)[1:]
        )
    assert "says no token ids: its text is tokenised here" in capsys.readouterr().out
    assert evaluate(*model, "run_dir=plain_here") == 0
    assert told(home / "plain")["eval/reward"] == pytest.approx(told(home / "plain_here")["eval/reward"], abs=0.4)


# ------------------------------------------------------------------ bad input
REFUSED = {
    "nobody": (
        ["endpoint.base_url=http://127.0.0.1:9/v1"],
        "no server answers (Connection refused); start one, or leave",
    ),
    "no URL": (["endpoint.base_url=ftp://x"], "endpoint.base_url: 'ftp://x' is no URL such as http://localhost:8000"),
    "no key": (["endpoint.base_url=URL", "endpoint.timeout=fast"], "endpoint.timeout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_ends_with_one_line(model, capsys, name):
    words, expected = REFUSED[name]
    assert evaluate(*model, *words, "run_dir=refused") == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said


def test_another_name_or_a_missing_key_is_named(model, home, capsys, monkeypatch):
    with serving(home / "sft" / "policy", key="secret", name="served") as server:
        url = f"endpoint.base_url={server.url}"
        assert evaluate(*model, url, "run_dir=refused") == 2
        assert "the server wants a key (HTTP 401: Unauthorized); put it in the environment variable OPENAI_API_KEY" in (
            capsys.readouterr().err
        )
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert evaluate(*model, url, "endpoint.model=gpt", "run_dir=refused") == 2
        assert "has served; name one of them" in capsys.readouterr().err
        assert evaluate(*model, url, "endpoint.model=served", "run_dir=with_key") == 0


def test_a_server_of_another_model_is_found_by_its_first_samples(model, home, capsys):
    with working_in(home):
        assert (
            main(["train", "algo=sft", *PROBLEMS, *SMALL, "trainer.max_steps=1", "eval.every=0", "run_dir=other"]) == 0
        )
    with serving(home / "other" / "policy") as server:
        assert evaluate(*model, f"endpoint.base_url={server.url}", "run_dir=wrong") == 1
    assert "does it serve the model of this command?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_that_dies_ends_the_command_and_the_values_so_far_are_kept(model, home, capsys, monkeypatch):
    monkeypatch.setattr("shiqrun.estimates.prompt_values.SAMPLES_AT_ONCE", 200)  # five prompts
    words = (*model, "endpoint.timeout=2", "cache_dir=died")
    with serving(home / "sft" / "policy") as server:
        complete, port = server.complete, int(server.url.rpartition(":")[2])
        server.complete = lambda asked: server.stop() if len(completions(server)) > 24 else complete(asked)
        assert values(*words, f"endpoint.base_url={server.url}", "run_dir=dead") == 1
    said = capsys.readouterr().err
    assert "within endpoint.timeout=2 seconds; look at it, and start this command again" in said
    with serving(home / "sft" / "policy", port=port) as server:
        assert values(*words, f"endpoint.base_url={server.url}", "run_dir=alive") == 0
    assert 0 < summary(home / "alive")["prompts_computed"] < summary(home / "alive")["prompts"]
