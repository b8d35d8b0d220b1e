"""A server on loopback that answers as the Hugging Face Hub does for one data set, so that `datasets` downloads it."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "1" * 40


def _handler(name: str, files: Mapping[str, bytes]) -> type[BaseHTTPRequestHandler]:
    about, whole = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"

    def entry(path: str) -> dict[str, object]:
        return {
            "type": "file",
            "path": path,
            "size": len(files[path]),
            "oid": hashlib.sha1(files[path]).hexdigest(),
        }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _json(self, value: object) -> None:
            self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"{about}/tree/"):
                folder = path.removeprefix(f"{about}/tree/").partition("/")[2]
                self._json([entry(file) for file in files if file.startswith(folder)])
            elif path == about or path.startswith(f"{about}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                self._json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
            elif path.startswith(whole) and (file := path.removeprefix(whole).partition("/")[2]) in files:
                self._answer(200, files[file], ETag=f'"{entry(file)["oid"]}"', X_Repo_Commit=COMMIT)
            else:
                known = path.startswith((about, whole))
                self._answer(404, X_Error_Code="EntryNotFound" if known else "RepoNotFound")

        do_HEAD = do_GET  # noqa: N815 - the name that the base class looks for

    return Handler


@contextmanager
def hub(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serves a data set inside the context; gives the address for `HF_ENDPOINT`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(name, files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
