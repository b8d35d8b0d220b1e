"""Runs with `rollout=vllm` through the real command line, by a server that samples with our decoder, and by vLLM."""

import os
import socket
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from shiqrun.cli import main
from tests.support.command_line import finished, metrics, summary
from tests.support.online_runs import ROOT, RUN, all_gone, begin, below, expect_all_there, resumed, wait_for_steps
from tests.support.places import working_in
from tests.support.vllm_server import serving

STEPS = 6
OURS = f"env PYTHONPATH={ROOT} {sys.executable} -m tests.support.vllm_server --model {{model}} --port {{port}}"
SAMPLED = ("rollout=vllm", f"trainer.max_steps={STEPS}", "eval.reward=programs", "eval.every=0", "rollout.max_gap=1e-4")
VLLM = os.environ.get("SHIQRUN_TEST_VLLM")
"""A Python that has vLLM installed."""
pytestmark = pytest.mark.usefixtures("at_home")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def train(run_dir, *words):
    common = [word for word in RUN if "model=hf" not in words or not word.startswith("model")]
    return main(["train", *common, *SAMPLED, *words, f"run_dir={run_dir}"])


@pytest.fixture(scope="module")
def model(home):
    """The words of a small model that has a directory, which a server can load."""
    with working_in(home):
        data = [word for word in RUN if not word.startswith(("rollout.", "algo"))]
        assert main(["train", "algo=sft", *data, "trainer.max_steps=1", "eval.every=0", "run_dir=start"]) == 0
    return "model=hf", f"model.path={home / 'start' / 'policy'}"


@pytest.fixture
def server(home, model):
    with serving(home / "start" / "policy", lora=True) as found:
        yield found


def test_a_run_trains_on_what_a_server_samples_and_counts_all(home, model, server):
    run_dir = home / "plain"
    assert train(run_dir, *model, f"rollout.base_url={server.url}") == 0
    told, rows = expect_all_there(run_dir, STEPS), metrics(run_dir)
    assert told["weight_transfers"] == 2
    assert told["gap_max"] < 1e-4
    size = 4 * summary(run_dir)["parameters"]
    assert size < rows[0]["rollout/transfer_bytes"] < size + 20_000
    assert rows[0]["rollout/transfer_seconds"] > 0
    assert [row["rollout/gap"] < 1e-5 for row in rows] == [True] * STEPS
    assert rows[0]["train/acting_gap"] == pytest.approx(rows[0]["rollout/gap"], abs=1e-6)
    assert not (run_dir / "rollout_weights").exists()
    now, start = load_file(run_dir / "policy" / "model.safetensors"), load_file(home / "start/policy/model.safetensors")
    assert any((now[name] != start[name]).any() for name in now)
    there = server.base.state_dict()  # as they were at the last transfer, after step 3
    assert any((there[name] != start[name]).any() for name in start)


@pytest.mark.slow
@pytest.mark.slow
def test_an_adapter_alone_travels_in_bfloat16_and_the_gap_shows_it(home, model, server):
    words = ("model.lora_r=4", "algo.reference=adapter", "rollout.weight_dtype=bf16", "rollout.max_gap=0.05")
    assert train(home / "lora", *model, *words, f"rollout.base_url={server.url}") == 0
    told, trained = expect_all_there(home / "lora", STEPS), summary(home / "lora")["parameters/trained"]
    assert 2 * 2 * trained < told["weight_bytes"] < 2 * 2 * trained + 40_000
    assert 0 < told["gap"] < 0.01
    (adapter,) = server.adapters.values()
    assert {value.dtype for name, value in adapter.state_dict().items() if ".lora_" in name} <= {torch.float32}


@pytest.mark.slow
def test_a_run_whose_server_dies_ends_in_one_line_and_goes_on_where_another_is(home, model, capsys):
    run_dir = home / "died"
    with serving(home / "start" / "policy") as server:
        threading.Thread(target=_stop_after, args=(server, run_dir, 2), daemon=True).start()
        port = int(server.url.rpartition(":")[2])
        words = (f"rollout.base_url={server.url}", "rollout.timeout=4", "trainer.checkpoint_every=1")
        assert train(run_dir, *model, *words, "trainer.max_steps=12") == 1
    said = capsys.readouterr().err
    assert "did not come back within rollout.timeout=4 seconds. Nothing that was accepted is lost" in said
    assert "Traceback" not in said
    with serving(home / "start" / "policy", port=port):
        assert main(["train", f"resume={run_dir}"]) == 0
    expect_all_there(run_dir, 12)


def _stop_after(server, run_dir, steps):
    while (done := run_dir / "experience" / "LEASES") and not (
        done.is_file() and done.read_text().count('"done"') >= steps
    ):
        time.sleep(0.01)
    server.stop()


def test_a_run_without_a_server_ends_at_its_start_with_one_line(home, capsys):
    assert train(home / "none", "rollout.base_url=http://127.0.0.1:9", "rollout.start_timeout=0.2") == 2
    said = capsys.readouterr().err
    assert "rollout.base_url=http://127.0.0.1:9: no server answers (Connection refused) within" in said


def test_a_command_that_is_not_there_is_named(home, capsys):
    assert train(home / "none", "rollout.command='vllmm serve {model} --port {port}'") == 2
    assert "there is no program 'vllmm'; give its path, or start the server yourself" in capsys.readouterr().err


# ------------------------------------------------------------------ servers that a run starts
@pytest.mark.slow
def test_a_server_that_the_run_starts_samples_for_it_and_ends_with_it(home):
    port, run_dir = free_port(), home / "started"
    words = (f"rollout.command='{OURS}'", f"rollout.base_url=http://127.0.0.1:{port}")
    assert train(run_dir, *words) == 0
    told = expect_all_there(run_dir, STEPS)
    assert told["weight_transfers"] == 2
    assert told["gap_max"] < 1e-4
    assert f"at {port}" in (run_dir / "rollout_server.log").read_text()
    assert not listens(port)


@pytest.mark.slow
def test_two_ranks_train_on_what_one_server_samples(home):
    port, run_dir = free_port(), home / "ranks"
    words = (*SAMPLED, f"rollout.command='{OURS}'", f"rollout.base_url=http://127.0.0.1:{port}")
    ranks = ("hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu")
    code, out = finished(begin(run_dir, *words, *ranks), 400)
    assert code == 0, out
    told = expect_all_there(run_dir, STEPS)
    assert told["weight_transfers"] == 2
    assert told["gap_max"] < 1e-4
    assert not listens(port)


@pytest.mark.slow
def test_a_killed_trainer_takes_its_server_along_and_a_resumed_run_starts_another(home):
    port, run_dir = free_port(), home / "killed"
    words = (*SAMPLED, f"rollout.command='{OURS}'", f"rollout.base_url=http://127.0.0.1:{port}")
    process = begin(run_dir, *words, "trainer.max_steps=14", "trainer.checkpoint_every=4")
    wait_for_steps(run_dir, 6, process)
    there = below(process.pid)
    process.kill()
    process.communicate(timeout=30)
    assert all_gone(there)
    assert not listens(port)
    resumed(run_dir)
    expect_all_there(run_dir, 14)
    assert not listens(port)


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="SHIQRUN_TEST_VLLM names no Python with vLLM")
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "an adapter"])
def test_vllm_itself_samples_from_the_weights_it_was_sent(home, adapter):
    """Its CPU build, in float32: the gap is of kernels alone. Attention needs heads of 32 units."""
    port, run_dir = free_port(), home / f"vllm-{adapter}"
    serve = f"{VLLM} -m vllm.entrypoints.openai.api_server --model {{model}} --port {{port}} --dtype float32"
    serve += " --enforce-eager --max-model-len 128 --max-num-seqs 16"
    limits = "env VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 VLLM_NO_USAGE_STATS=1"
    more = ["model.lora_r=4", "algo.reference=adapter"] if adapter else ["rollout.temperature=[0.7,1.0]"]
    serve += " --enable-lora --max-lora-rank 8" if adapter else " --logprobs-mode processed_logprobs"
    words = (f"rollout.command='{limits} {serve}'", "model.hidden_size=64", "model.num_heads=2")
    words = (*words, f"rollout.base_url=http://127.0.0.1:{port}", "rollout.start_timeout=480")
    code, out = finished(
        begin(run_dir, *SAMPLED, *words, *more, "model.max_position_embeddings=128", "trainer.learning_rate=1e-2"), 500
    )
    assert code == 0, out
    told = expect_all_there(run_dir, STEPS)
    assert told["weight_transfers"] == 2
    assert told["gap_max"] < 1e-4
    assert not listens(port)
