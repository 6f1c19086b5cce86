"""A stub Tinker backend in a process of its own, and what tests ask of it through the SDK."""

import atexit
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest
import tinker
from tinker import types

from helpers.paths import ROOT
from helpers.train.keys import check_address, set_hosted_aside

START_SECONDS = 90
KEYS = (
    "tml-test",
    "tml-first",
    "tml-other",
    "tml-plain",
    "tml-patched",
    "tml-many",
    "tml-fuzz",
    "tml-a",
    "tml-b",
)
GREEDY = {"max_tokens": 12, "temperature": 0.0}

# One process imports the libraries, and forks a server for each line it reads: a start then takes a fraction
# of a second, and the first use of a model no import of transformers.
FORKING = """
import json, os, resource, signal, sys
import helpers.stub_tinker.serving
from transformers import AutoTokenizer
from helpers.stub_tinker import __main__ as stub
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    log, files, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.argv = ["stub_tinker", *arguments]
        try:
            if files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            status = stub.main()
            print("exit status", status, flush=True)
            os._exit(status)
        finally:
            os._exit(1)
    print(pid, flush=True)
"""


class Remote:
    """A server that speaks Tinker's protocol, whoever started it."""

    def __init__(self, url: str, model: str, keys: tuple[str, ...]):
        self.url, self.model, self.keys = url, model, keys
        self.key = keys[0]  # that requests bring unless they say otherwise

    def connect(self, key: str = "") -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url, api_key=key or self.key)

    def rest(self, key: str = "") -> tinker.RestClient:
        return tinker.RestClient(base_url=self.url, api_key=key or self.key)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "X-API-Key": self.key, **headers}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict]:
        """One request whose path and headers are sent as they are: status, body and headers of the answer."""
        length = {} if body is None else {"Content-Length": str(len(body))}
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            own = {"X-API-Key": self.key, "Content-Type": "application/json"}
            for name, value in {**own, **length, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.headers)


def remote(url: str, model: str | None) -> Remote:
    """The server at `url`. Its key is in TINKER_SERVER_API_KEY. Another user's, for what one must not see of
    the other, may be in TINKER_SECOND_API_KEY.
    """
    check_address(url)
    set_hosted_aside()  # hosted Tinker's key goes nowhere else
    keys = [os.environ.get(name, "") for name in ("TINKER_SERVER_API_KEY", "TINKER_SECOND_API_KEY")]
    if not keys[0]:
        raise pytest.UsageError("put the server's key in TINKER_SERVER_API_KEY")
    server = Remote(url.rstrip("/"), model or "", tuple(filter(None, keys)))
    offered = [m.model_name for m in server.rest().get_server_capabilities().result().supported_models]
    if not model and len(offered) != 1:
        raise pytest.UsageError(f"name one of its models with --tinker-model: {', '.join(offered)}")
    server.model = model or offered[0]
    return server


class Server(Remote):
    """A stub, forked from a process that has imported all it needs. Each of `KEYS` is a client of its own."""

    files = 0  # that it may have open; 0: as many as this process

    def __init__(self, model: Path, state: Path, *arguments: str, precision: str = "float32"):
        super().__init__("", str(model), KEYS)
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        (state / "server.json").unlink(missing_ok=True)
        self.log = state / "log.txt"
        words = ["--port", "0", "--state-dir", str(state), "--base-model", self.model]
        keys = [f"--api-key={key}" for key in KEYS]
        self.start([*words, *keys, "--precision", precision, *arguments])
        deadline = time.monotonic() + START_SECONDS
        while not (state / "server.json").exists():
            assert self.is_running() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.url = json.loads((state / "server.json").read_text())["url"]

    def start(self, words: list[str]) -> None:
        fork = forking()
        fork.stdin.write(json.dumps([str(self.log), self.files, *words]) + "\n")
        fork.stdin.flush()
        self.process = psutil.Process(int(fork.stdout.readline()))

    def is_running(self) -> bool:
        return self.process.is_running()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)
        (self.state / "server.json").unlink(missing_ok=True)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


class OwnServer(Server):
    """A stub started by its command, whose exit status can be asked."""

    def start(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "helpers.stub_tinker", *words]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def is_running(self) -> bool:
        return self.process.poll() is None


@cache
def forking() -> subprocess.Popen:
    """The process that forks servers, for all tests of this run."""
    command = [sys.executable, "-c", FORKING]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    atexit.register(process.kill)
    return process


def command(*arguments: str) -> subprocess.CompletedProcess:
    """Run the stub's command until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.stub_tinker", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "STUB_TINKER_API_KEY"},
    )


def datums(count: int = 6, length: int = 20) -> list[types.Datum]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        tokens = rng.integers(0, 1000, length + 1).tolist()
        weights = [0.0] * (length // 2) + [1.0] * (length - length // 2)
        made.append(datum(tokens[:-1], target_tokens=tokens[1:], weights=weights))
    return made


def datum(tokens: list[int], **inputs: list) -> types.Datum:
    """A datum with these inputs of its loss; token ids are int64, all else float32."""
    tensors = {
        name: tinker.TensorData(
            data=values, dtype="int64" if name == "target_tokens" else "float32", shape=[len(values)]
        )
        for name, values in inputs.items()
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=tensors)


def train(client, steps: int, data=None) -> list[float]:
    losses = []
    for _ in range(steps):
        forward = client.forward_backward(data or datums(), "cross_entropy")
        update = client.optim_step(types.AdamParams(learning_rate=1e-2))
        losses.append(forward.result().metrics["loss:sum"])
        update.result()
    return losses


def prompt(*tokens: int) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens) or [10, 20, 30, 40])


def greedy(sampler, *tokens: int) -> list[int]:
    params = types.SamplingParams(**GREEDY, stop=[])
    return sampler.sample(prompt(*tokens), 1, params).result().sequences[0].tokens
