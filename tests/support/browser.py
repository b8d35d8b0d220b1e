"""A real browser for tests: headless Chromium over its DevTools pipe, with nothing but the standard library."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
SWITCHED_OFF = ("gpu", "background-networking", "component-update", "sync", "extensions", "dev-shm-usage")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
PATIENCE_SECONDS = 60.0


class Browser:
    """One page in a browser of its own.

    Attributes:
        errors: what its console has complained about, and exceptions that nothing caught.
        requests: addresses that it has asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.errors, self.requests, self._number, self._rest, self._loaded = [], [], 0, b"", False
        here_reads, browser_writes = os.pipe()
        browser_reads, here_writes = os.pipe()
        far = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (browser_reads, browser_writes)]

        def as_3_and_4():
            os.dup2(far[0], 3)
            os.dup2(far[1], 4)

        command = [
            CHROMIUM,
            *FLAGS,
            *(f"--disable-{name}" for name in SWITCHED_OFF),
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=as_3_and_4, close_fds=False, **silent)
        for end in (browser_reads, browser_writes, *far):
            os.close(end)
        self._in, self._out = here_reads, here_writes
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """What a DevTools method returns; events on the way are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            met = self._next()
            if met.get("id") == self._number:
                assert "error" not in met, f"{method}: {met['error']}"
                return met["result"]
            self._note(met)

    def _next(self):
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has gone"
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event):
        name, what = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(what["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning"):
            self.errors.append(json.dumps(what["args"]))
        elif name == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.errors.append(what["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif name == "Page.loadEventFired":
            self._loaded = True

    def size(self, width, height, *, phone=False):
        """The window in CSS pixels; a phone has touch and lays out as one."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def scheme(self, name):
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, path: Path):
        """Loads a file from disk, until it has loaded."""
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._note(self._next())

    def run(self, expression):
        """What an expression of JavaScript gives on the page, as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression):
        """Until the expression is true."""
        began = time.monotonic()
        while not self.run(expression):
            assert time.monotonic() - began < PATIENCE_SECONDS, f"never true: {expression}"
            time.sleep(0.02)

    def picture(self, path: Path, *, whole=False, clip=None):
        """A PNG of the window, of the whole page, or of a rectangle (x, y, width, height) of it."""
        options = {"captureBeyondViewport": whole or clip is not None}
        if clip is not None:
            options["clip"] = dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"]))

    def close(self):
        """Ends the browser."""
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)
        os.close(self._in)
        os.close(self._out)
