"""What `rollout=vllm` refuses, and what it says when its server dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from shiqrun.errors import InputError, TrainingError
from shiqrun.rollout.vllm.server_process import ServerProcess
from tests.rollout.sampled import policy
from tests.rollout.vllm.served import N, engine, other_weights, saved
from tests.support.helpers import llama
from tests.support.vllm_server import serving

WEIGHTS = other_weights(0)[1]


@pytest.fixture(scope="module")
def model(home):
    return saved(home / "model")


def refused(directory, url, acting=None, **options):
    """What the start of an engine says."""
    with pytest.raises(InputError) as error, engine(directory, url, acting, **options):
        pass
    return str(error.value)


def test_a_server_that_is_not_there_is_waited_for_and_named(tmp_path):
    began = time.monotonic()
    said = refused(tmp_path, "http://127.0.0.1:9", start_timeout=1.2)
    assert 1.0 < time.monotonic() - began < 4
    assert "rollout.base_url=http://127.0.0.1:9: no server answers (Connection refused)" in said
    assert "rollout.start_timeout=1.2 seconds" in said
    assert "\n" not in said


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http:///v1"])
def test_a_url_that_is_none_is_named(tmp_path, url):
    assert refused(tmp_path, url) == f"rollout.base_url: {url!r} is no URL such as http://localhost:8000"


SWITCHES = {
    "no development mode": (
        {"dev": False},
        {},
        "takes no weights (it has no /collective_rpc); start it with VLLM_SERVER",
    ),
    "a key": (
        {"key": "secret"},
        {},
        "the server wants a key (HTTP 401: Unauthorized); put it in the environment variable",
    ),
    "another name": ({}, {"model": "qwen"}, "rollout.model=qwen: the server at"),
    "too short": (
        {"room": 20},
        {"max_new_tokens": 40},
        "leaves no room for rollout.max_new_tokens=40 in the 20 tokens",
    ),
    "raw": ({}, {"temperature": [0.5, 0.5]}, "start it with --logprobs-mode processed_logprobs, or set rollout.temp"),
    "raw, top-p": ({}, {"top_p": 0.9}, "the server says the model's log-probabilities, not those of what it samples"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_server_that_cannot_sample_for_a_run_is_refused(tmp_path, model, name):
    switches, options, expected = SWITCHES[name]
    with serving(model, **switches) as server:
        said = refused(tmp_path, server.url, **options)
    assert expected in said
    assert "\n" not in said


def test_a_key_is_sent_from_the_environment_and_a_url_of_other_clients_works(tmp_path, model, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(model, key="secret") as server, engine(tmp_path, f"{server.url}/v1/", key_env="MY_KEY") as made:
        made.publish(0, WEIGHTS)
        assert len(made.next_batch(N, step=1)) == N


def test_another_server_is_no_vllm(tmp_path, model):
    with serving(model) as server:
        server.known.pop("/version")
        assert "no vLLM server (it has no /version)" in refused(tmp_path, server.url)


def test_another_tokenizer_is_found_before_anything_is_sampled(tmp_path):
    folder = saved(tmp_path / "other")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(content))
    with serving(folder) as server:
        said = refused(tmp_path, server.url)
        assert not [path for path, _ in server.requests if path == "/v1/completions"]
    assert "has another tokenizer than the policy: of the prompt at" in said


def test_weights_that_do_not_fit_the_served_model_end_the_run(tmp_path, model):
    from shiqrun.models.policy import Policy
    from tests.rollout.sampled import TOKENIZER

    wide = Policy(llama(len(TOKENIZER), hidden_size=32)).eval()
    weights = {name: p.detach() for name, p in wide.model.named_parameters()}
    expected = pytest.raises(TrainingError, match=r"cannot load the policy's weights from .*HTTP 500.*Start it again")
    with serving(model) as server, engine(tmp_path, server.url, wide) as made, expected:
        made.publish(0, weights)


def test_a_server_that_keeps_other_weights_is_found_by_its_gap_and_nothing_of_it_is_stored(tmp_path, model):
    with serving(saved(tmp_path / "stale", policy(7))) as server, engine(tmp_path, server.url) as made:
        server.reload = lambda path: None  # says that it has loaded them
        made.publish(0, WEIGHTS)
        with pytest.raises(
            TrainingError, match=r"differ from the policy's by [0-9.]+ nats a token, more than rollout.max_gap=0.0001"
        ):
            made.next_batch(N, step=1)
        assert made.stats()["accepted"] == 0


def test_a_server_that_comes_back_gets_the_newest_weights_and_the_run_goes_on(tmp_path, model):
    newest = other_weights(2)[1]
    with serving(model) as first, engine(tmp_path, first.url) as made:
        made.publish(0, WEIGHTS)
        assert len(made.next_batch(N, step=1)) == N
        made.acknowledge(1)
        made.publish(2, newest)
        made.policy.model.load_state_dict(newest)
        port = int(first.url.rpartition(":")[2])
        first.stop()
        with serving(model, port=port) as second:
            batches = [made.next_batch(N, step=step) for step in (2, 3)]
            assert [path for path, _ in second.requests if path == "/collective_rpc"] == ["/collective_rpc"]
            assert made.stats()["gap_max"] < 2e-5
    assert [{t.version for t in batch} for batch in batches] == [{0}, {2}]


def test_a_server_that_was_replaced_between_two_requests_gets_the_newest_weights(tmp_path, model):
    newest = other_weights(2)[1]
    with serving(model) as first, engine(tmp_path, first.url, policy(2)) as made:
        made.publish(0, newest)
        port = int(first.url.rpartition(":")[2])
        first.stop()
        with serving(model, port=port) as second:
            assert len(made.next_batch(N, step=1)) == N
            assert [path for path, _ in second.requests if path == "/collective_rpc"] == ["/collective_rpc"]
            assert made.stats()["gap_max"] < 2e-5


def test_a_server_that_stays_away_ends_the_run_in_one_line_and_nothing_is_lost(tmp_path, model):
    with serving(model) as server, engine(tmp_path, server.url, timeout=1.0) as made:
        made.publish(0, WEIGHTS)
        made.next_batch(N, step=1)
        made.acknowledge(1)
        made.next_batch(N, step=2)
        server.stop()
        with pytest.raises(TrainingError) as error:
            made.next_batch(N, step=3)
        counts = made.stats()
    assert "gives no answer (Connection refused), and did not come back within rollout.timeout=1 seconds" in str(
        error.value
    )
    assert "go on with resume=RUN_DIR" in str(error.value)
    assert "\n" not in str(error.value)
    assert (counts["accepted"], counts["trained"], counts["leased"], counts["lost"]) == (2 * N, N, N, 0)


@pytest.mark.slow
def test_a_server_that_is_too_slow_ends_the_run_and_the_limit_is_named(tmp_path, model):
    with serving(model) as server, engine(tmp_path, server.url, timeout=1.5) as made:
        made.publish(0, WEIGHTS)
        server.complete = lambda asked: time.sleep(2.5)
        with pytest.raises(TrainingError, match=r"no answer \(timed out\), 3 times .* raise rollout.timeout=1.5"):
            made.next_batch(N, step=1)


def test_a_server_that_answers_with_errors_ends_the_run(tmp_path, model):
    with serving(model) as server, engine(tmp_path, server.url) as made:
        made.publish(0, WEIGHTS)
        server.broken = (500, "EngineCore encountered an issue")
        with pytest.raises(TrainingError, match="gave no completions: HTTP 500: EngineCore encountered an issue"):
            made.next_batch(N, step=1)


def test_a_command_that_ends_is_shown_with_its_last_words(tmp_path):
    command = f"{sys.executable} -c 'print(\"no such model: {{model}} {{port}}\"); raise SystemExit(3)'"
    said = refused(tmp_path, "http://127.0.0.1:9", command=command, start="M")
    assert "rollout.command: the server has ended with exit code 3: no such model: M 9 (all in" in said


def test_a_command_is_not_started_where_a_server_answers_already(tmp_path, model):
    with serving(model) as server:
        said = refused(tmp_path, server.url, command="sleep 100", start="M")
    assert "a server answers there already" in said


SLEEPS = "import subprocess, sys, time; subprocess.Popen(['sleep', '321']); print('up', flush=True); time.sleep(321)"


def started(pid):
    """Processes of the group that a guard has started."""
    psutil = pytest.importorskip("psutil", reason="looks at processes")
    return psutil.Process(pid).children(recursive=True)


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_started_server_ends_with_all_its_processes_when_it_is_closed(tmp_path):
    made = ServerProcess(f'{sys.executable} -c "{SLEEPS}"', model="M", port=1, log=tmp_path / "log")
    wait_until(lambda: len(started(made._process.pid)) == 2)
    there = started(made._process.pid)
    assert made.end() is None
    made.close()
    wait_until(lambda: not any(p.is_running() and p.status() != "zombie" for p in there))


def test_a_started_server_ends_when_its_trainer_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from shiqrun.rollout.vllm.server_process import ServerProcess;"
        f"s = ServerProcess(sys.argv[1], model='M', port=1, log=Path({str(tmp_path / 'log')!r}));"
        "print(s._process.pid, flush=True); time.sleep(300)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, f'{sys.executable} -c "{SLEEPS}"'], stdout=subprocess.PIPE, text=True
    )
    guard = int(trainer.stdout.readline())
    wait_until(lambda: len(started(guard)) == 2)
    there = started(guard)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    wait_until(lambda: not any(p.is_running() and p.status() != "zombie" for p in there))
