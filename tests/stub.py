"""A stub Tinker backend in a process of its own, for tests."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import tinker

from helpers.paths import ROOT


class Server:
    """A stub process of its own."""

    def __init__(self, model: Path, state: Path, *arguments: str, precision: str = "float32"):
        self.model, self.state = str(model), state
        state.mkdir(parents=True, exist_ok=True)
        (state / "server.json").unlink(missing_ok=True)
        self.log = state / "log.txt"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "helpers.stub_tinker",
                "--port",
                "0",
                "--state-dir",
                str(state),
                "--base-model",
                self.model,
                "--precision",
                precision,
                *arguments,
            ],
            cwd=ROOT,
            stdout=open(self.log, "w"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 90
        while not (state / "server.json").exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        self.url = json.loads((state / "server.json").read_text())["url"]

    def connect(self, key: str = "tml-test") -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url, api_key=key)

    def rest(self, key: str = "tml-test") -> tinker.RestClient:
        return tinker.RestClient(base_url=self.url, api_key=key)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.url + path, body, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        (self.state / "server.json").unlink(missing_ok=True)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
