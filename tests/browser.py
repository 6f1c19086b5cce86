"""A headless Chromium that a test steers, by Chrome's own protocol."""

import base64
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser_attack import find_browser
from websockets.sync.client import ClientConnection, connect


class Tab:
    """One page of a browser. What the browser's own first page asked for before isn't looked at.

    Attributes:
        problems: answers of a status of 400 or more, requests that failed, and exceptions that no script of
            the page caught.
    """

    def __init__(self, socket: ClientConnection):
        self._socket, self._number = socket, 0
        self.problems: list[str] = []
        self._requests: dict[str, str] = {}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if its window were in front

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=600))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        match event:
            case {
                "method": "Network.responseReceived",
                "params": {"response": {"status": status, "url": url}},
            }:
                if status >= 400:
                    self.problems.append(f"{status} {url}")
            case {
                "method": "Network.requestWillBeSent",
                "params": {"requestId": request, "request": {"url": url}},
            }:
                self._requests[request] = url
            case {
                "method": "Network.loadingFailed",
                "params": {"requestId": request, "errorText": text},
            } if "ABORTED" not in text and request in self._requests:
                self.problems.append(f"not loaded: {text}: {self._requests[request]}")
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.problems.append(details.get("exception", {}).get("description", details["text"]))

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it gives."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The value of the expression once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.value(script)):
            assert time.monotonic() < deadline, f"never true: {script}\n{self.problems}"
            time.sleep(0.2)
        return value

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser_tab(profile: Path, *more: str, width: int = 1440, height: int = 1000) -> Iterator[Tab]:
    """A tab of a new browser, closed with the context. `more` are the browser's own options."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [find_browser(), *options, f"--user-data-dir={profile}", f"--window-size={width},{height}", *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_address_of_page(profile / "DevToolsActivePort"), max_size=2**27) as socket:
            yield Tab(socket)
    finally:
        process.kill()
        process.wait()


def _address_of_page(written: Path) -> str:
    deadline = time.monotonic() + 60
    while not (written.exists() and written.read_text().count("\n")):
        assert time.monotonic() < deadline, "the browser did not start"
        time.sleep(0.05)
    port = written.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as pages:
        return next(page["webSocketDebuggerUrl"] for page in json.load(pages) if page["type"] == "page")
