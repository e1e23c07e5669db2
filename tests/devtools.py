"""A headless Chromium over the DevTools protocol, for tests that look at pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
STARTING_S = 120.0
ANSWER_S = 120.0


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Page:
    """One tab. `errors` collects console errors and uncaught exceptions, `requests` URLs."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._count = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile are noted."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == self._count:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(values["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.errors.append(json.dumps(values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded += 1

    def open(self, url: str) -> None:
        """Load a page and wait for it."""
        before, self.requests = self.loaded, []
        self.call("Page.navigate", url=url)
        while self.loaded == before:
            self._note(json.loads(self._socket.recv(timeout=ANSWER_S)))

    def show(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels, and the preferred colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path, *, top: int = 0, height: int | None = None) -> None:
        """Write a PNG of the whole page, or of a strip of it."""
        width, full = self.run(
            "[document.documentElement.clientWidth, document.documentElement.scrollHeight]"
        )
        clip = {"x": 0, "y": top, "width": width, "height": height or full - top, "scale": 1}
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser_page(program: str, profile: Path) -> Iterator[Page]:
    """A tab of a fresh browser, whose profile lies in the folder `profile`."""
    from websockets.sync.client import connect

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = _page_address(process, profile / "DevToolsActivePort")
        with connect(address, max_size=None, open_timeout=ANSWER_S) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(timeout=ANSWER_S)


def _page_address(process: subprocess.Popen[bytes], port_file: Path) -> str:
    """WebSocket address of the first tab, once the browser listens."""
    import urllib.request

    until = time.monotonic() + STARTING_S
    while time.monotonic() < until:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        lines = port_file.read_text().splitlines() if port_file.is_file() else []
        if lines:
            url = f"http://127.0.0.1:{lines[0]}/json"
            with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                address: str = tabs[0]["webSocketDebuggerUrl"]
                return address
        time.sleep(0.1)
    raise TimeoutError(f"the browser did not listen within {STARTING_S} s")
