"""`python -m shiqrun.tracking.workspace` in a process of its own, against a server that keeps what it is sent."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shiqrun.tracking import workspace
from shiqrun.tracking.panels import MAIN, SECTIONS

ANSWERS = {
    "viewer": {"id": "u", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None},
    "upsertView": {"view": {"id": "1", "name": "n"}, "inserted": True},
}


@pytest.fixture
def server():
    """(address, the mutations that it got) of a server that answers W&B's client as far as a workspace needs it."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = json.loads(body) if body[:1] == b"{" else {"query": ""}
            sent.extend([asked["variables"]] if "upsertView" in asked["query"] else [])
            known = {key: value for key, value in ANSWERS.items() if key in asked["query"]}
            answer = json.dumps({"data": known}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", sent
        listening.shutdown()


@pytest.mark.slow
def test_the_workspace_reaches_the_server_with_a_section_for_each_part_of_the_dashboard(server, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="needs the extra workspace")
    address, sent = server
    known = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0123456789" * 4, "WANDB_SILENT": "true"}
    env = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | known | {"HOME": str(tmp_path)}
    words = [sys.executable, "-m", "shiqrun.tracking.workspace", "team/proj"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{address}/team/proj" in done.stdout
    (view,) = sent
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "proj", "shiqrun")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    drawn = {s["name"]: [m for p in s["panels"] for m in p["config"]["metrics"]] for s in sections}
    assert {name: tuple(metrics) for name, metrics in drawn.items() if name in SECTIONS} == SECTIONS
    assert all(p["config"]["xAxis"] == "trainer/global_step" for s in sections for p in s["panels"])


@pytest.mark.parametrize("words", [[], ["project"], ["a/b/c"], ["a/b", "c"]])
def test_other_words_are_answered_with_the_usage(words, capsys):
    assert workspace.main(words) == 2
    assert capsys.readouterr().err == workspace.USAGE + "\n"


def test_a_missing_library_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(workspace, "find_spec", lambda name: None)
    assert workspace.main(["a/b"]) == 2
    assert capsys.readouterr().err == "wandb-workspaces is not installed; pip install 'shiqrun[workspace]'\n"


def test_the_first_screen_is_about_a_dozen_panels():
    assert len(MAIN) < 20
