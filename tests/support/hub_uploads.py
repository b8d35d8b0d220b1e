"""A server on loopback that takes uploads as the Hugging Face Hub does: repositories, LFS objects, commits."""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_right"
LARGE = (".safetensors", ".gguf")
"""Endings of the files that the Hub wants as LFS objects."""


@dataclass
class Uploads:
    """What a server has taken: repositories with their visibility, and files by repository and path."""

    address: str = ""
    visibility: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    breaks: bool = False


def _handler(uploads: Uploads) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def _answer(self, code: int, value: object = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_POST(self) -> None:
            path, body = self.path.partition("?")[0], self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid user token."})
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._answer(200, {"errors": [], "warnings": []})
            if path.endswith(".git/info/lfs/objects/batch"):
                return self._batch(json.loads(body)["objects"])
            repo, _, what = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
            if what == "preupload":
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                    for f in json.loads(body)["files"]
                ]
                return self._answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            if what == "commit" and uploads.breaks:
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            if what == "commit":
                return self._commit(repo, [json.loads(line) for line in body.splitlines()])
            return self._answer(404, {"error": path})

        def do_PUT(self) -> None:
            oid, body = self.path.rpartition("/")[2], self._body()
            assert hashlib.sha256(body).hexdigest() == oid
            uploads.objects[oid] = body
            self._answer(200)

        def _create(self, asked: dict) -> None:
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "others":
                return self._answer(403, {"error": "You don't have the rights to create a model under others."})
            if repo in uploads.files:
                return self._answer(
                    409, {"error": "You already created this model repo", "url": f"{uploads.address}/{repo}"}
                )
            uploads.files[repo], uploads.visibility[repo] = {}, asked.get("visibility", "public")
            return self._answer(200, {"url": f"{uploads.address}/{repo}"})

        def _batch(self, objects: list[dict]) -> None:
            place = f"{uploads.address}/objects/"
            missing = {o["oid"] for o in objects} - uploads.objects.keys()
            actions = [
                o | ({"actions": {"upload": {"href": place + o["oid"]}}} if o["oid"] in missing else {})
                for o in objects
            ]
            self._answer(200, {"transfer": "basic", "objects": actions})

        def _commit(self, repo: str, lines: list[dict]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    uploads.messages.append(value["summary"])
                elif line["key"] == "lfsFile":
                    uploads.files[repo][value["path"]] = uploads.objects[value["oid"]]
                else:
                    uploads.files[repo][value["path"]] = base64.b64decode(value["content"])
            oid = hashlib.sha1(str(lines).encode()).hexdigest()
            self._answer(200, {"commitUrl": f"{uploads.address}/{repo}/commit/{oid}", "commitOid": oid})

    return Handler


@contextmanager
def hub_for_uploads() -> Iterator[Uploads]:
    """Takes uploads inside the context; gives what has come, and the address for `HF_ENDPOINT`."""
    uploads = Uploads()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(uploads))
    uploads.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield uploads
    finally:
        server.shutdown()
        server.server_close()
