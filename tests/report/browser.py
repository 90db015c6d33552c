"""A real browser without a window, asked over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = (390, 844), (1200, 900)


class Page:
    """One page of a browser.

    Attributes
    ----------
    troubles
        What the console said of errors, and every address that was asked for but the page's own.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._count = socket, 0
        self.troubles: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are heeded."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv(timeout=60))).get("id") != self._count:
            self._heed(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, file: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        """Load a page, and forget the troubles of the one before."""
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=size == PHONE)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.troubles.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while (message := json.loads(self._socket.recv(timeout=60))).get("method") != "Page.loadEventFired":
            self._heed(message)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39}
        about = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _heed(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.troubles.append(json.dumps(about))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.troubles.append(json.dumps(about))
            case "Network.requestWillBeSent" if not about["request"]["url"].startswith("file:"):
                self.troubles.append(about["request"]["url"])


@contextmanager
def browser(home: Path) -> Iterator[Page]:
    """A browser with an empty profile in a folder, ended with the block."""
    program = os.environ.get("MATU_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert program, f"no browser: expected one of {', '.join(NAMES)}, or its path in MATU_CHROMIUM"
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={home}", "about:blank",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "DevTools listening on ws://" in line)
            address = line.split("ws://", 1)[1].split("/", 1)[0]
            with urllib.request.urlopen(f"http://{address}/json/list", timeout=30) as answer:
                target = next(one for one in json.load(answer) if one["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(30)
