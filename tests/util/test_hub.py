import socket

import pytest

from shiqrun.errors import InputError
from shiqrun.util.hub import expect_reachable


@pytest.fixture
def online(monkeypatch):
    """Not asked to stay offline; no proxy."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.fixture
def closed():
    """A port on this machine that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


@pytest.fixture
def open_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_unreachable_hub_is_an_input_error_that_says_what_to_pass(online, closed):
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed}")
    with pytest.raises(InputError, match=r"nobody/nothing .* 127\.0\.0\.1 cannot be reached .*; pass data\.path=FILE"):
        expect_reachable("nobody/nothing", "data.path")


def test_a_hub_that_answers_is_reachable(online, open_port):
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{open_port}")
    expect_reachable("nobody/nothing", "model.path")


def test_behind_a_proxy_the_proxy_is_what_must_answer(online, open_port, closed):
    online.setenv("HF_ENDPOINT", "https://hub.invalid")
    online.setenv("https_proxy", f"http://127.0.0.1:{open_port}")
    expect_reachable("nobody/nothing", "model.path")
    online.setenv("https_proxy", f"http://127.0.0.1:{closed}")
    with pytest.raises(InputError, match=r"hub\.invalid cannot be reached"):
        expect_reachable("nobody/nothing", "model.path")


def test_offline_by_choice_says_so(online):
    online.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set; pass model\.path=DIRECTORY"):
        expect_reachable("nobody/nothing", "model.path")
