"""`JsonServer` asks an HTTP server that speaks JSON, with the standard library and a connection for each thread."""

import json
import os
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.5
"""Seconds between two tries to reach a server that does not answer."""
SHOWN = 300
"""Characters of a server's own words that a message repeats."""
CONNECT_SECONDS = 10.0
"""Seconds that a server may take to accept a connection."""


class Unreachable(ConnectionError):
    """Unreachable says that a server gave no answer: it is not there, has died, or took too long."""


class Refusal(Exception):
    """A Refusal is an answer of a server that is no success.

    Attributes:
        status: HTTP status code.
        words: what the server said, shortened.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"HTTP {status}: {words}")
        self.status, self.words = status, words


class JsonServer:
    """A JSON server is a client's view of a server at a URL; threads may use it at the same time.

    Args:
        base_url: `http://HOST:PORT` or `https://...`, with or without a path such as `/v1` at its end.
        key_env: name of the environment variable that holds the server's key; no key is sent where it is not set.
        seconds: that an answer may take.

    Raises:
        ValueError: the URL has no host, or another scheme.
    """

    def __init__(self, base_url: str, *, key_env: str | None = None, seconds: float) -> None:
        parts = urlsplit(base_url if "//" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is no URL such as http://localhost:8000")
        path = parts.path.rstrip("/")
        for end in ("/completions", "/chat", "/v1"):  # users write the URL as their other clients want it
            path = path.removesuffix(end)
        self.url, self._path, self._parts = f"{parts.scheme}://{parts.netloc}{path}", path, parts
        self.host, self.port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self.seconds = seconds
        key = os.environ.get(key_env) if key_env else None
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._own = threading.local()

    def get(self, path: str) -> Any:
        """Return the answer to a GET; see `post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, content: Any = None) -> Any:
        """Return the answer to a POST of JSON: an object where it is JSON, else text.

        Raises:
            Unreachable: there is no answer.
            Refusal: the answer is no success.
        """
        return self._ask("POST", path, json.dumps({} if content is None else content).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        again = getattr(self._own, "connection", None) is not None
        try:
            try:
                status, text = self._exchange(method, path, body)
            except (ConnectionError, HTTPException):
                if not again:
                    raise
                status, text = self._exchange(method, path, body)  # the server closes connections that were idle
        except (OSError, HTTPException) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(said) from error
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        if not 200 <= status < 300:
            raise Refusal(status, _words_of(found))
        return found

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str]:
        """Send a request over this thread's connection and return the status and text of its answer."""
        connection = getattr(self._own, "connection", None)
        try:
            if connection is None:
                kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
                connection = self._own.connection = kind(self.host, self.port, timeout=CONNECT_SECONDS)
                connection.connect()
                connection.sock.settimeout(self.seconds)
            connection.request(method, self._path + path, body=body, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, HTTPException):
            if connection is not None:
                connection.close()
            self._own.connection = None
            raise

    def wait(self, path: str, seconds: float) -> None:
        """Wait until a GET of a path has an answer.

        Raises:
            Unreachable: it has none after so many seconds; the message is of the last try.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self.get(path)
            except Unreachable:
                if time.monotonic() >= end:
                    raise
            except Refusal as refusal:
                if refusal.status != 503 or time.monotonic() >= end:  # 503: it is there, and loads its model
                    return
            else:
                return
            time.sleep(min(PAUSE_SECONDS, max(0.0, end - time.monotonic())))


def _words_of(answer: Any) -> str:
    """Return what a server said of an error, in one line."""
    if isinstance(answer, dict):
        answer = answer.get("error", answer.get("detail", answer))
        answer = answer.get("message", answer) if isinstance(answer, dict) else answer
    words = " ".join(str(answer).split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."
