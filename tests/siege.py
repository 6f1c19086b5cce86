"""A siege of a stub: hostile requests, sent byte by byte, and a judge of the answers."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from itertools import count

import psutil
import pytest
from stub import Server
from tinker import types

ANSWER_SECONDS = 30
THREADS = 4
API = "/api/v1"
JSON_TYPE, PROTO_TYPE = "application/json", "application/x-protobuf"
MIB = 1 << 20

sequence = count(1)  # fresh sequence numbers, so that no request is a repetition of another


def dumps(body) -> bytes:
    """JSON of a body; a string `@@text@@` stands for `text` without quotes, so that anything can be sent."""
    if hasattr(body, "model_dump"):
        body = body.model_dump(mode="json", exclude_none=True)
    return re.sub(r'"@@(.*?)@@"', r"\1", json.dumps(body)).encode()


@dataclass
class Case:
    """One request, byte by byte."""

    method: str
    path: str | bytes
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    long_body: bool = False  # the server may close the connection before it has read all of it
    settle: bool = True

    def head(self) -> bytes:
        path = self.path.encode("utf-8", "surrogatepass") if isinstance(self.path, str) else self.path
        headers = {
            "Host": "localhost",
            "Content-Type": JSON_TYPE,
            "Content-Length": str(len(self.body)),
            "X-API-Key": "tml-fuzz",
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            self.method.encode()
            + b" "
            + path
            + b" HTTP/1.1\r\n"
            + lines.encode("latin-1", "replace")
            + b"\r\n"
        )

    def __str__(self) -> str:
        headers = {k: v[:80] for k, v in self.headers.items()}
        return (
            f"{self.method} {self.path[:200]!r} {headers or ''} {len(self.body)} bytes: {self.body[:300]!r}"
        )


@dataclass
class Answer:
    status: int
    content_type: str
    body: bytes

    def json(self):
        return json.loads(self.body)


class Connection:
    """A keep-alive connection that sends exactly the bytes it is given."""

    def __init__(self, port: int):
        self.port, self.socket = port, None

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        self.socket = None

    def _open(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, case: Case) -> Answer:
        fresh = self.socket is None
        try:
            return self._ask(case)
        except TimeoutError:
            self.close()
            raise
        except (OSError, HTTPException):
            self.close()
            if fresh:
                raise
            return self._ask(case)  # the server may close an idle connection at any time

    def _ask(self, case: Case) -> Answer:
        if self.socket is None:
            self._open()
        try:
            self.socket.sendall(case.head() + case.body)
        except (BrokenPipeError, ConnectionResetError):
            if not case.long_body:
                raise
        response = HTTPResponse(self.socket, method=case.method)
        response.begin()
        body = response.read()
        if response.will_close or case.long_body:
            self.close()
        return Answer(response.status, response.headers.get("content-type", ""), body)


@dataclass
class World:
    """What exists on the server, by name."""

    base: str
    session: str
    spare: str
    model: str
    samplers: list[str]
    paths: list[str]
    files: list[str]


def judge(case: Case, answer: Answer) -> str | None:
    """What is wrong with an answer, if anything."""
    if b"Traceback" in answer.body:
        return f"a traceback: {answer.body[:300]!r}"
    if answer.status >= 500:
        return f"status {answer.status}: {answer.body[:300]!r}"
    if answer.status >= 400 and case.method != "HEAD":
        try:
            content = answer.json()
        except ValueError:
            return f"status {answer.status} without JSON: {answer.body[:100]!r}"
        message = (
            content.get("detail")
            or content.get("error")
            or content.get("message")
            or (content.get("type") == "try_again")
            if isinstance(content, dict)
            else None
        )
        if not message:
            return f"status {answer.status} without a message: {answer.body[:100]!r}"
    return None


class Siege:
    """Sends cases, judges answers, and lets the innocent client take a step now and then."""

    def __init__(self, server: Server, innocent: Callable[[], None], every: int):
        self.server, self.process = server, psutil.Process(server.process.pid)
        self.port = int(server.url.rsplit(":", 1)[1])
        self.sent, self.retrieved, self.faults = 0, 0, []
        self.every = every  # so many requests between two steps of the innocent client
        self.memory: dict[int, int] = {}
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(THREADS)
        self._innocent = ThreadPoolExecutor(1)
        self._step, self.steps = innocent, []
        self.quiet: list[float] = []  # losses of the innocent client's twin, which trained in peace
        self.seen: list[float] = []  # and its own
        self._lock = threading.Lock()
        self.renew()

    def post(self, route: str, body: object) -> dict:
        return self.ask(Case("POST", f"{API}/{route}", dumps(body))).json()

    def renew(self) -> None:
        """A session with a training client, samplers and checkpoints, for valid requests to start from."""
        opened = types.CreateSessionRequest(tags=[], user_metadata={}, sdk_version="0.38.0")
        session, spare = (self.post("create_session", opened)["session_id"] for _ in range(2))
        lora = types.LoraConfig(rank=4, train_unembed=False)
        made = self.post(
            "create_model",
            types.CreateModelRequest(
                session_id=session, model_seq_id=0, base_model=self.server.model, lora_config=lora
            ),
        )
        model = self.result(made["request_id"]).json()["model_id"]
        saved = []
        for route, kind in (
            ("save_weights", types.SaveWeightsRequest),
            ("save_weights_for_sampler", types.SaveWeightsForSamplerRequest),
            ("save_weights_external", types.SaveWeightsExternalRequest),
        ):
            asked = self.post(route, kind(model_id=model, path="base", seq_id=next(sequence)))
            saved.append(self.result(asked["request_id"]).json()["path"])
        samplers = [
            self.post(
                "create_sampling_session",
                types.CreateSamplingSessionRequest(
                    session_id=session, sampling_session_seq_id=number, base_model=base, model_path=path
                ),
            )["sampling_session_id"]
            for number, (base, path) in enumerate([(self.server.model, None), (None, saved[1])])
        ]
        external = f"{API}/training_runs/{model}/checkpoints/external_weights/base/external_weights_urls"
        urls = self.ask(Case("GET", external)).json()["urls"].values()
        files = [re.sub("^http://[^/]*", "", url) for url in urls]
        self.world = World(self.server.model, session, spare, model, samplers, saved, files)

    def end_round(self, number: int) -> None:
        """Close the session, and note the memory that the process keeps."""
        for session in (self.world.session, self.world.spare):
            self.ask(Case("POST", f"{API}/sessions/{session}/finish", b'{"reason": {"type": "success"}}'))
        deadline = time.monotonic() + 60
        while self.ask(Case("GET", "/")).json()["queued"] and time.monotonic() < deadline:
            time.sleep(0.2)
        seen = []
        for _ in range(3):  # the server gives memory back when it has been idle for a second
            time.sleep(0.5)
            seen.append(self.process.memory_info().rss // MIB)
        self.memory[number] = min(seen)

    def connection(self) -> Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self.port)
        return self._local.connection

    def ask(self, case: Case) -> Answer:
        return self.connection().ask(case)

    def result(self, request_id: str) -> Answer:
        """The end of an accepted operation."""
        deadline = time.monotonic() + 2 * ANSWER_SECONDS
        while time.monotonic() < deadline:
            with self._lock:
                self.retrieved += 1
            answer = self.ask(
                Case(
                    "POST",
                    f"{API}/retrieve_future",
                    dumps({"request_id": request_id}),
                    {"Accept": PROTO_TYPE},
                )
            )
            if answer.status != 408:
                return answer
        raise TimeoutError(f"{request_id} did not end")

    def attack(self, case: Case) -> Answer | None:
        with self._lock:
            self.sent += 1
            if self.sent % self.every == 0:
                self.steps.append(self._innocent.submit(self._step))
        try:
            answer = self.ask(case)
            fault = judge(case, answer) or self.fault_of_operation(case, answer)
        except (OSError, HTTPException, ValueError) as error:
            answer, fault = None, f"{type(error).__name__}: {error}"
        if fault:
            with self._lock:
                self.faults.append((fault, str(case)))
        return answer

    def fault_of_operation(self, case: Case, answer: Answer) -> str | None:
        """What is wrong with the end of an operation, if the answer says that one was accepted."""
        as_json = answer.status == 200 and answer.content_type.startswith(JSON_TYPE)
        if not case.settle or case.method == "HEAD" or not as_json:
            return None
        content = answer.json()
        if not isinstance(content, dict) or not isinstance(content.get("request_id"), str):
            return None
        ended = self.result(content["request_id"])
        if ended.content_type.startswith(JSON_TYPE) and ended.json().get("category") == "server":
            return f"the operation failed inside: {ended.body[:300]!r}"
        return judge(case, ended)

    def storm(self, cases: list[Case]) -> list[Answer | None]:
        assert self.server.is_running(), f"the server is gone:\n{self.server.log.read_text()[-3000:]}"
        if sum("TimeoutError" in fault for fault, _ in self.faults) > 10:
            self.verdict()  # too many requests hang for the rest to end in time
        return list(self._pool.map(self.attack, cases))

    def verdict(self) -> None:
        """Fail with one example of each kind of fault since the last verdict."""
        faults, self.faults = self.faults, []
        kinds: dict[str, list[str]] = {}
        for fault, case in faults:
            kinds.setdefault(re.sub(r"\d+|0x[0-9a-f]+|'[^']*'", "…", fault)[:120], []).append(
                f"{fault}\n    {case}"
            )
        text = "\n".join(f"{len(examples)} times: {examples[0]}" for examples in kinds.values())
        if faults:
            pytest.fail(f"{len(faults)} bad answers of {len(kinds)} kinds:\n{text}", pytrace=False)

    def after(self) -> None:
        for step in self.steps:
            step.result(timeout=120)
