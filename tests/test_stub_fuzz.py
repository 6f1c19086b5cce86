"""More than 10,000 hostile requests over HTTP: each is answered, none with a 5xx, and an innocent client notices nothing."""

import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from itertools import count

import numpy as np
import psutil
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from stub import Server
from test_stub_server import datums, train
from tinker import types
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types import (
    client_config_request,
    future_retrieve_request,
    futures_retrieve_request,
    telemetry_send_request,
)
from tinker.types.copy_weights_request import CopyWeightsRequest
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest
from tinker.types.get_info_request import GetInfoRequest
from tinker.types.join_sampling_session_request import JoinSamplingSessionRequest
from tinker.types.session_search_request import SessionSearchRequest

LEAST_REQUESTS = 10_000
ANSWER_SECONDS = 30
GROWTH_MIB = 60
BATCH = 20  # requests of one example, sent by several threads
THREADS = 4
ROUNDS = (1, 2)
API = "/api/v1"
JSON_TYPE, PROTO_TYPE = "application/json", "application/x-protobuf"
MIB = 1 << 20

sequence = count(1)  # fresh sequence numbers, so that no request is a repetition of another


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
            "Host": "stub",
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


class Siege:
    """Sends cases, judges answers, and lets the innocent client take a step now and then."""

    def __init__(self, server: Server, innocent: Callable[[], None]):
        self.server, self.process = server, psutil.Process(server.process.pid)
        self.port = int(server.url.rsplit(":", 1)[1])
        self.sent, self.retrieved, self.faults = 0, 0, []
        self.memory: dict[int, int] = {}
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(THREADS)
        self._innocent = ThreadPoolExecutor(1)
        self._step, self.steps = innocent, []
        self._lock = threading.Lock()
        self.renew()

    def renew(self) -> None:
        """A session with a training client, samplers and checkpoints, for valid requests to start from."""

        def post(route: str, body) -> dict:
            return self.ask(Case("POST", f"{API}/{route}", dumps(body))).json()

        session = post(
            "create_session", types.CreateSessionRequest(tags=[], user_metadata={}, sdk_version="0.38.0")
        )["session_id"]
        spare = post(
            "create_session", types.CreateSessionRequest(tags=[], user_metadata={}, sdk_version="0.38.0")
        )["session_id"]
        made = post(
            "create_model",
            types.CreateModelRequest(
                session_id=session,
                model_seq_id=0,
                base_model=self.server.model,
                lora_config=types.LoraConfig(rank=4, train_unembed=False),
            ),
        )
        model = self.result(made["request_id"]).json()["model_id"]
        saved = {}
        for route, kind in (
            ("save_weights", types.SaveWeightsRequest),
            ("save_weights_for_sampler", types.SaveWeightsForSamplerRequest),
            ("save_weights_external", types.SaveWeightsExternalRequest),
        ):
            saved[route] = self.result(
                post(route, kind(model_id=model, path="base", seq_id=next(sequence)))["request_id"]
            ).json()["path"]
        samplers = [
            post(
                "create_sampling_session",
                types.CreateSamplingSessionRequest(
                    session_id=session, sampling_session_seq_id=i, base_model=base, model_path=path
                ),
            )["sampling_session_id"]
            for i, (base, path) in enumerate(
                [(self.server.model, None), (None, saved["save_weights_for_sampler"])]
            )
        ]
        urls = self.ask(
            Case(
                "GET", f"{API}/training_runs/{model}/checkpoints/external_weights/base/external_weights_urls"
            )
        ).json()["urls"]
        self.world = World(
            self.server.model,
            session,
            spare,
            model,
            samplers,
            list(saved.values()),
            [re.sub("^http://[^/]*", "", url) for url in urls.values()],
        )

    def end_round(self, number: int) -> None:
        """Close the session, and note the memory that the process keeps."""
        for session in (self.world.session, self.world.spare):
            self.ask(Case("POST", f"{API}/sessions/{session}/finish", b'{"reason": {"type": "success"}}'))
        deadline = time.monotonic() + 60
        while self.ask(Case("GET", "/")).json()["queued"] and time.monotonic() < deadline:
            time.sleep(0.2)
        seen = []
        for _ in range(10):  # the server gives memory back when it has been idle for a second
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
            if self.sent % 250 == 0:
                self.steps.append(self._innocent.submit(self._step))
        try:
            answer = self.ask(case)
            fault = judge(case, answer)
            if (
                not fault
                and case.settle
                and case.method != "HEAD"
                and answer.status == 200
                and answer.content_type.startswith(JSON_TYPE)
            ):
                content = answer.json()
                if isinstance(content, dict) and isinstance(content.get("request_id"), str):
                    ended = self.result(content["request_id"])
                    fault = judge(case, ended)
                    if ended.content_type.startswith(JSON_TYPE) and ended.json().get("category") == "server":
                        fault = f"the operation failed inside: {ended.body[:300]!r}"
        except (OSError, HTTPException, ValueError) as error:
            answer, fault = None, f"{type(error).__name__}: {error}"
        if fault:
            with self._lock:
                self.faults.append((fault, str(case)))
        return answer

    def storm(self, cases: list[Case]) -> list[Answer | None]:
        assert self.server.process.poll() is None, (
            f"the server is gone:\n{self.server.log.read_text()[-3000:]}"
        )
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


def dumps(body) -> bytes:
    """JSON of a body; a string `@@text@@` stands for `text` without quotes, so that no-JSON and huge values can be sent."""
    if hasattr(body, "model_dump"):
        body = body.model_dump(mode="json", exclude_none=True)
    return re.sub(r'"@@(.*?)@@"', r"\1", json.dumps(body)).encode()


def bodies(
    world: World, fresh: Callable[[], int] = lambda: next(sequence)
) -> dict[str, Callable[[], object]]:
    """Valid requests of every POST route with a JSON body, made from the SDK's own models. `fresh` gives sequence numbers."""

    def name() -> str:
        return f"made-{fresh()}"

    model = world.model
    tokens = types.ModelInput.from_ints([5, 6, 7, 8])
    sampling = types.SamplingParams(max_tokens=3, temperature=1.0, seed=1)
    return {
        "client/config": lambda: client_config_request.ClientConfigRequest(sdk_version="0.38.0"),
        "client/dynamic_config": lambda: {},
        "auth/token": lambda: {},
        "create_session": lambda: types.CreateSessionRequest(
            tags=["a"], user_metadata={"k": "v"}, sdk_version="0.38.0", display_name="fuzz"
        ),
        "session_heartbeat": lambda: types.SessionHeartbeatRequest(session_id=world.session),
        "telemetry": lambda: telemetry_send_request.TelemetrySendRequest(
            events=[], platform="linux", sdk_version="0.38.0", session_id=world.session, process_uuid="u"
        ),
        "create_model": lambda: types.CreateModelRequest(
            session_id=world.session,
            model_seq_id=fresh(),
            base_model=world.base,
            lora_config=types.LoraConfig(rank=2, seed=1),
        ),
        "get_info": lambda: GetInfoRequest(model_id=model),
        "optim_step": lambda: types.OptimStepRequest(
            model_id=model, seq_id=fresh(), optim_params=types.AdamParams(learning_rate=1e-4)
        ),
        "save_weights": lambda: types.SaveWeightsRequest(
            model_id=model, path=name(), seq_id=fresh(), ttl_seconds=3600, user_metadata={"a": "b"}
        ),
        "save_weights_for_sampler": lambda: types.SaveWeightsForSamplerRequest(
            model_id=model, path=name(), seq_id=fresh()
        ),
        "save_weights_for_sampler?ephemeral": lambda: types.SaveWeightsForSamplerRequest(
            model_id=model, sampling_session_seq_id=fresh(), seq_id=fresh()
        ),
        "save_weights_external": lambda: types.SaveWeightsExternalRequest(
            model_id=model, path=name(), seq_id=fresh(), ttl_seconds=3600
        ),
        "load_weights": lambda: types.LoadWeightsRequest(
            model_id=model, seq_id=fresh(), path=world.paths[0], optimizer=False
        ),
        "load_weights?create": lambda: types.LoadWeightsRequest(
            session_id=world.session, model_seq_id=fresh(), path=world.paths[0], optimizer=True
        ),
        "create_sampling_session": lambda: types.CreateSamplingSessionRequest(
            session_id=world.session, sampling_session_seq_id=fresh(), model_path=world.paths[1]
        ),
        "asample": lambda: types.SampleRequest(
            sampling_session_id=world.samplers[fresh() % 2],
            seq_id=fresh(),
            num_samples=2,
            prompt=tokens,
            sampling_params=sampling,
        ),
        "asample?scored": lambda: types.SampleRequest(
            sampling_session_id=world.samplers[1],
            seq_id=fresh(),
            prompt=tokens,
            sampling_params=sampling,
            prompt_logprobs=True,
            topk_prompt_logprobs=2,
            topk_sample_logprobs=2,
        ),
        "retrieve_future": lambda: future_retrieve_request.FutureRetrieveRequest(
            request_id=f"{model}:create"
        ),
        "retrieve_futures": lambda: futures_retrieve_request.FuturesRetrieveRequest(
            target=futures_retrieve_request.SamplingSessionFuturesTarget(
                sampling_session_id=world.samplers[0]
            ),
            timeout=0.1,
        ),
        "cancel_future": lambda: {"request_id": f"{model}:create"},
        "weights_info": lambda: {"tinker_path": world.paths[0]},
        "copy_weights": lambda: CopyWeightsRequest(
            session_id=world.session, model_seq_id=fresh(), source_path=world.paths[0]
        ),
        "join_sampling_session": lambda: JoinSamplingSessionRequest(sampling_session_id=world.samplers[0]),
        "create_custom_loss": lambda: {
            "session_id": world.session,
            "custom_loss_seq_id": 1,
            "name": "x",
            "inputs": [],
            "graph": {},
            "type": "create_custom_loss",
        },
        "sessions/search": lambda: SessionSearchRequest(),
    }


def paths(
    world: World, run: str, kind: str, name: str, session: str, sampler: str
) -> list[tuple[str, str, object]]:
    """Method, path and body of every route with a parameter in its path, made from these parameters."""
    checkpoint = f"{API}/training_runs/{run}/checkpoints/{kind}/{name}"
    return [
        ("GET", f"{API}/training_runs/{run}", None),
        ("GET", f"{API}/training_runs/{run}/checkpoints", None),
        ("GET", f"{checkpoint}/external_weights_urls", None),
        ("DELETE", checkpoint, None),
        ("PUT", f"{checkpoint}/ttl", {"ttl_seconds": 3600}),
        ("POST", f"{checkpoint}/publish", {}),
        ("DELETE", f"{checkpoint}/publish", None),
        ("GET", f"{API}/samplers/{sampler}", None),
        ("GET", f"{API}/sessions/{session}", None),
        ("POST", f"{API}/sessions/{session}/finish", {"reason": {"type": "success"}, "detail": "done"}),
        ("PUT", f"{API}/sessions/{session}/project", {"project_id": "p"}),
        ("GET", f"{API}/sessions/{session}/trace_export", None),
        ("GET", f"/files/{run}/{kind}/{name}?expires=4102444800&signature=00", None),
    ]


DEEP = "@@" + "[" * 100_000 + "]" * 100_000 + "@@"
UNCLOSED = "@@" + '{"a":' * 100_000 + "@@"
NUMBERS = [
    0,
    -1,
    1,
    2,
    1.5,
    -0.0,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**32,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**12,
    10**30,
    1e308,
    1e-320,
    math.nan,
    math.inf,
    -math.inf,
    "@@1e400@@",
    "@@-1e400@@",
    "@@" + "9" * 5000 + "@@",
    "@@-" + "9" * 5000 + "@@",
    "@@0." + "0" * 5000 + "1@@",
    "@@01@@",
]
TEXTS = [
    "",
    " ",
    "a",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\U0001f600",
    "x" * 10_000,
    "..",
    "../..",
    "../../../../etc/passwd",
    "/etc/passwd",
    "%2e%2e%2f",
    "%00",
    "a/b",
    "a\\b",
    "~",
    "~root",
    ".",
    ".hidden",
    ".tmp-0",
    "con",
    "-rf",
    "a\nb",
    "a\r\nX: y",
    "ａｂｃ",
    "‮",
    "․․／",
    "'; DROP TABLE runs; --",
    "{{7*7}}",
    "$(id)",
    "tinker://",
    "tinker://a",
    "tinker://a/weights",
    "tinker://a/weights/b/c",
    "tinker://../weights/base",
    "tinker://a/../b",
    "tinker:///weights/x",
    "tinker://a/weights/",
    "tinker://a/weights/%2e%2e",
    "file:///etc/passwd",
    "TINKER://a/weights/b",
    "tinker://" + "a/" * 5000,
    "nan",
    "Infinity",
    "true",
    "null",
]
SHAPES = [
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    [[[]]],
    {"a": {}},
    {"": None},
    [0] * 10_000,
    ["x"] * 10_000,
    [""],
    [1, "a", None, {}],
    DEEP,
    UNCLOSED,
]
HOSTILE = NUMBERS + TEXTS + SHAPES
FIELDS = sorted(
    {
        name
        for model in (
            types.CreateModelRequest,
            types.OptimStepRequest,
            types.SaveWeightsRequest,
            types.SaveWeightsForSamplerRequest,
            types.SaveWeightsExternalRequest,
            types.LoadWeightsRequest,
            types.CreateSamplingSessionRequest,
            types.SampleRequest,
            types.SamplingParams,
            types.LoraConfig,
            types.AdamParams,
            CopyWeightsRequest,
        )
        for name in model.model_fields
    }
)
HEADERS = [{}] * 12 + [
    {"Content-Type": "text/plain"},
    {"Content-Type": PROTO_TYPE},
    {"Content-Type": ""},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "x" * 5000},
    {"Content-Encoding": "zstd"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "br, zstd, \xff"},
    {"Accept": "text/html"},
    {"X-API-Key": ""},
    {"X-API-Key": "tml-\xe9\xff"},
    {"X-API-Key": "x" * 20_000},
    {"Host": "evil.example:99999"},
    {"Host": ""},
    {"X-Forwarded-For": "1.1.1.1", "X-Forwarded-Proto": "https"},
    {"X-Tinker-Request-Iteration": "-1"},
    {"Range": "bytes=9999999999-"},
    {"Cookie": "a=" + "b" * 4000},
]


def positions(value, at=()) -> Iterator[tuple]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from positions(inner, (*at, key))


def replaced(value, at: tuple, new, drop: bool = False):
    """`value` with `new` at a position, or with that position taken out."""
    if not at:
        return new
    copy = value.copy()
    if len(at) > 1:
        copy[at[0]] = replaced(value[at[0]], at[1:], new, drop)
    elif drop:
        del copy[at[0]]
    else:
        copy[at[0]] = new
    return copy


anything = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(HOSTILE),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
        lambda s: st.lists(s, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), s, max_size=3),
        max_leaves=5,
    ),
)


fresh_numbers = st.integers(
    3 * 10**8, 2**31 - 1
)  # all of one length, so that what is drawn later depends on draws alone


@st.composite
def json_cases(draw, world: World) -> Case:
    """A valid request with one to three things wrong with it."""
    routes = bodies(world, lambda: draw(fresh_numbers))
    route = draw(st.sampled_from(sorted(routes)))
    valid = routes[route]()
    body = json.loads(dumps(valid))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        at = draw(st.sampled_from(list(positions(body))))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add"]))
        if kind == "add":
            body = (
                replaced(body, (draw(st.sampled_from(FIELDS)),), draw(anything))
                if isinstance(body, dict)
                else body
            )
        else:
            body = replaced(body, at, draw(anything), drop=kind == "drop")
    text = dumps(body)
    if draw(st.integers(0, 9)) == 0:
        text = corrupted(draw, text)
    return Case("POST", f"{API}/{route.split('?')[0]}", text, dict(draw(st.sampled_from(HEADERS))))


def corrupted(draw, data: bytes) -> bytes:
    """Cut, flipped, doubled or stuffed bytes."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    return draw(
        st.sampled_from(
            [
                data[:at],
                data[at:],
                data + data,
                data[:at] + b"\xff\xfe" + data[at:],
                data[:at] + bytes([(data[at] if data else 0) ^ 0x55]) + data[at + 1 :],
                b"\xef\xbb\xbf" + data,
                data.decode("utf-8", "replace").encode("utf-16"),
                data[:at] + b"\x00" + data[at:],
            ]
        )
    )


def int32(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def int64(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()


def float32(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def training_message(world: World, seq_id: int | None = None) -> pb.ForwardBackwardRequest:
    """A valid forward_backward of two datums, as the SDK encodes it."""
    return forward_backward_request_to_proto(
        ForwardBackwardRequest(
            forward_backward_input=ForwardBackwardInput(data=datums(2, 6), loss_fn="cross_entropy"),
            model_id=world.model,
            seq_id=seq_id or next(sequence),
        )
    )


def training_case(message: pb.ForwardBackwardRequest | bytes, **headers: str) -> Case:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return Case("POST", f"{API}/forward_backward", body, {"Content-Type": PROTO_TYPE, **headers})


# Many of the counts below do not fit what stands next to them: that is the point.
int_bytes = st.one_of(
    st.binary(max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(lambda v: int64(*v)),
    st.lists(st.integers(-1, 50_000), max_size=8).map(lambda v: int64(*v)),
)
float_bytes = st.one_of(
    st.binary(max_size=30),
    st.lists(st.floats(width=32), min_size=6, max_size=6).map(lambda v: float32(*v)),
    st.just(float32(*[1e38] * 6)),
)
dimension = st.one_of(st.integers(-2, 8), st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]))
LOSSES = [
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "",
    "no_such_loss",
    "CROSS_ENTROPY",
    "x" * 5000,
]
NAMES = ["target_tokens", "weights", "logprobs", "advantages", "mask", "", "x" * 1000]


@st.composite
def tensors(draw) -> pb.Tensor:
    tensor = pb.Tensor(
        dtype=draw(st.sampled_from([0, 1, 2, 3, 99, -1])), shape=draw(st.lists(dimension, max_size=3))
    )
    kind = draw(st.sampled_from(["dense", "dense", "csr", "none"]))
    if kind == "dense":
        tensor.dense = draw(int_bytes | float_bytes)
    if kind == "csr":
        tensor.sparse_csr.values, tensor.sparse_csr.crow_indices, tensor.sparse_csr.col_indices = (
            draw(int_bytes | float_bytes),
            draw(int_bytes),
            draw(int_bytes),
        )
    return tensor


@st.composite
def training_cases(draw, world: World) -> Case:
    """A valid forward_backward with one to three things wrong with it."""
    message = training_message(world, draw(fresh_numbers))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        datum = draw(st.sampled_from(list(message.data) or [message.data.add()]))
        match draw(st.integers(0, 11)):
            case 0 | 1 | 2:
                datum.loss_fn_inputs[draw(st.sampled_from(NAMES))].CopyFrom(draw(tensors()))
            case 3:
                datum.loss_fn_inputs.pop(draw(st.sampled_from(NAMES)), None)
            case 4:
                message.loss_fn = draw(st.sampled_from(LOSSES))
            case 5:
                message.loss_fn_config[
                    draw(st.sampled_from(["clip_low_threshold", "clip_high_threshold", "beta", "zzz", ""]))
                ] = draw(st.floats())
            case 6:
                message.loss_fn_config_v2[draw(st.sampled_from(["clip_low_threshold", "zzz"]))].text = draw(
                    st.text(max_size=5)
                )
            case 7:
                datum.model_input.add().encoded_text.tokens = draw(
                    st.binary(max_size=20)
                    | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(lambda v: int32(*v))
                )
            case 8:
                chunk = datum.model_input.add()
                if draw(st.booleans()):
                    chunk.image.data, chunk.image.format, chunk.image.expected_tokens = (
                        draw(st.binary(max_size=8)),
                        "png",
                        draw(st.integers(-(2**31), 2**31 - 1)),
                    )
                else:
                    chunk.dmel.dmel = draw(st.binary(max_size=8))
            case 9:
                message.seq_id = draw(st.integers(-(2**31), 2**31 - 1))
            case 10:
                message.model_id = draw(st.sampled_from([t for t in TEXTS if t.isprintable()]))
            case 11:
                del message.data[draw(st.integers(0, 2)) :]
    message.forward_only = draw(st.booleans())
    body = message.SerializeToString(deterministic=True)
    if draw(st.integers(0, 4)) == 0:
        body = corrupted(draw, body)
    headers = draw(
        st.sampled_from(
            [{}] * 8
            + [{"Content-Encoding": "zstd"}, {"Content-Encoding": "gzip"}, {"Content-Type": JSON_TYPE}]
        )
    )
    if draw(st.integers(0, 9)) == 0:
        body, headers = zstandard.ZstdCompressor().compress(body), {"Content-Encoding": "zstd"}
        body = corrupted(draw, body) if draw(st.booleans()) else body
    return training_case(body, **headers)


def quoted(text: str) -> str:
    """Percent-encoded throughout, so that any text is one part of a path."""
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


@st.composite
def path_cases(draw, world: World) -> Case:
    """A hostile value in one of the parameters of a path, encoded or not."""
    part = st.sampled_from([t[:4000] for t in TEXTS]) | st.text(min_size=1, max_size=12)
    text = draw(part)
    raw = re.sub(r"[^!-~]", "_", text) or "_"
    piece = draw(
        st.sampled_from(
            [
                raw,
                quoted(text),
                raw.replace("/", "%2f"),
                raw.replace(".", "%2e"),
                raw + "%00",
                raw + "?limit=" + raw,
                raw + "#x",
                "%",
                "%zz",
                "%c0%ae%c0%ae",
                "x" * 10_000,
            ]
        )
    )
    values = {
        "run": world.model,
        "kind": "weights",
        "name": "base",
        "session": world.spare,
        "sampler": world.samplers[0],
    }
    values[draw(st.sampled_from(sorted(values)))] = piece
    routes = paths(world, **values)
    method, path, body = draw(st.sampled_from(routes))
    if body is not None and draw(st.booleans()):
        body = {key: draw(anything) for key in body}
    if draw(st.integers(0, 4)) == 0:
        method = draw(
            st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND"])
        )
    return Case(method, path, b"" if body is None else dumps(body))


def corpus(world: World) -> list[Case]:
    """Written by hand: what random mutation would seldom hit."""
    routes = bodies(world)

    def changed(route: str, **changes) -> Case:
        body = json.loads(dumps(routes[route]()))
        for key, value in changes.items():
            body = replaced(body, tuple(key.split("__")), value)
        return Case("POST", f"{API}/{route.split('?')[0]}", dumps(body))

    cases = []
    for route in routes:
        address = f"{API}/{route.split('?')[0]}"
        valid = dumps(routes[route]())
        for body in (
            b"",
            b"null",
            b"3",
            b'"x"',
            b"[]",
            b"[{}]",
            b"{}",
            b"{",
            b"}",
            b"\xff\xfe\x00",
            b"\x00",
            b'{"a": "\xed\xa0\x80"}',
            b"NaN",
            b"1e400",
            b"9" * 5000,
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"{" + b'"a": 1, ' * 10_000 + b'"b": 2}',
            valid[:-1],
            valid + b"x",
            valid * 2,
            valid.decode().encode("utf-16"),
            b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
            b"a=1&b=2",
        ):
            cases.append(Case("POST", address, body))
        for method in ("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY"):
            cases.append(Case(method, address, valid))
        for value in ("@@" + "9" * 5000 + "@@", DEEP, "\ud800", "\x00", math.nan):
            cases += [
                Case("POST", address, dumps(replaced(json.loads(valid), (key,), value)))
                for key in json.loads(valid)
            ]
    for value in NUMBERS:
        cases += [
            changed("asample", num_samples=value),
            changed("asample", sampling_params__max_tokens=value),
            changed("asample", sampling_params__temperature=value),
            changed("asample", sampling_params__top_p=value),
            changed("asample", sampling_params__top_k=value),
            changed("asample", sampling_params__seed=value),
            changed("asample", seq_id=value),
            changed("asample?scored", topk_prompt_logprobs=value),
            changed("asample?scored", topk_sample_logprobs=value),
            changed("asample?scored", prompt_logprobs_last_n=value),
            changed("asample", prompt_alt_tokens_k=value),
            changed("create_model", lora_config__rank=value),
            changed("create_model", lora_config__seed=value),
            changed("create_model", model_seq_id=value),
            changed("save_weights", ttl_seconds=value),
            changed("save_weights_external", ttl_seconds=value),
            changed("save_weights_for_sampler", ttl_seconds=value),
            changed("save_weights", seq_id=value),
            changed("create_sampling_session", sampling_session_seq_id=value),
            Case(
                "PUT",
                f"{API}/training_runs/{world.model}/checkpoints/weights/base/ttl",
                dumps({"ttl_seconds": value}),
            ),
            Case("GET", f"{API}/training_runs?limit={dumps(value).decode()}"),
            Case("GET", f"{API}/checkpoints?offset={dumps(value).decode()}&limit=1"),
        ]
        cases += [
            changed("optim_step", **{f"adam_params__{key}": value}) for key in types.AdamParams.model_fields
        ]
        cases.append(
            changed("load_weights", path=world.paths[0])
        )  # puts back what an absurd learning rate has spoilt
    for text in TEXTS:
        cases += [
            changed("save_weights", path=text),
            changed("save_weights_for_sampler", path=text),
            changed("save_weights_external", path=text),
            changed("load_weights", path=text),
            changed("load_weights?create", path=text),
            changed("create_sampling_session", model_path=text),
            changed("weights_info", tinker_path=text),
            changed("asample", sampling_session_id=text),
            changed("retrieve_future", request_id=text),
            changed("get_info", model_id=text),
            changed("create_model", base_model=text),
            changed("create_model", session_id=text),
            changed("session_heartbeat", session_id=text),
            changed("save_weights_external", age_encryption_recipients=[text]),
            changed("asample", sampling_params__stop=text),
            changed("asample", sampling_params__stop=[text, ""]),
            changed("create_session", display_name=text, tags=[text], user_metadata={text: text}),
        ]
    cases += [
        changed("asample", sampling_params__stop=[f"stop {i}" for i in range(10_000)]),
        changed("asample", sampling_params__stop=["x" * 1_000_000]),
        changed("asample", sampling_params__stop=list(range(10_000))),
        changed("asample", sampling_params__stop=[10**30]),
        changed("asample", sampling_params__stop=[-1]),
        changed("asample", prompt={"chunks": []}),
        changed("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": []}]}),
        changed("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [1] * 100_000}]}),
        changed("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [2**40]}]}),
        changed("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [-1]}]}),
        changed("asample", prompt={"chunks": [{"type": "image", "data": "AAAA", "format": "png"}]}),
        changed("asample", prompt={"chunks": [{"type": "dmel", "dmel": "AAAA"}]}),
        changed("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [1]}] * 5000}),
        changed(
            "asample",
            prompt={
                "chunks": [{"type": "image_asset_pointer", "location": "file:///etc/passwd", "format": "png"}]
            },
        ),
        changed("asample", target_prompt_logprobs={"data": [1, 2, 3], "dtype": "int64", "shape": [3, 1]}),
        changed("asample", record_stability_info=True),
        changed("save_weights_external", age_encryption_recipients=[]),
        changed("save_weights_external", age_encryption_recipients=["age1" + "q" * 58] * 1000),
        changed("optim_step", adam_params={"type": "dimuon", "learning_rate": 1}),
        changed("create_model", optimizer_config={"type": "dimuon"}),
        changed("create_model", lora_config={"rank": 2, "train_mlp": False, "train_attn": False}),
        changed("create_model", user_metadata={"k" * 10_000: "v" * 100_000}),
        Case("POST", f"{API}/no_such_route", b"{}"),
        Case("GET", "/" + "a/" * 3000),
        Case("GET", "//etc/passwd"),
        Case("GET", "/files/../../etc/passwd"),
        Case("GET", "/files/a/b"),
        Case("GET", "*"),
        Case("OPTIONS", "*"),
        Case("GET", "http://evil.example/api/v1/healthz"),
        Case("GET", f"{API}/training_runs?" + "limit=1&" * 2000),
        Case("GET", f"{API}/training_runs?limit=%00&offset=%ff"),
        Case("GET", f"{API}/checkpoints?limit=%c2%b2"),
        Case("GET", f"{API}/sessions?limit=-1"),
        Case("GET", f"{API}/sessions?limit=99999999999999999999999"),
    ]
    for url in world.files:
        address, query = url.split("?")
        expires, signature = (part.split("=")[1] for part in query.split("&"))
        for path in (
            address,
            f"{address}?expires={expires}",
            f"{address}?signature={signature}",
            f"{address}?expires={expires}&signature=",
            f"{address}?expires={int(expires) + 1}&signature={signature}",
            f"{address}?expires=1&signature={signature}",
            f"{address}?expires={'9' * 5000}&signature={signature}",
            f"{address}?expires=%c2%b2&signature={signature}",
            f"{address}?expires=-1&signature={signature}",
            f"{address}?expires={expires}&signature=%c3%a9{signature}",
            f"{address}?expires={expires}&signature=%ff%00",
            f"{address}?expires={expires}&expires=1&signature={signature}",
            f"{address}/..?{query}",
            f"{address[:-4]}?{query}",
            re.sub("[^/]+$", "..%2fcheckpoint.json", address) + f"?{query}",
            re.sub("[^/]+$", "checkpoint.json", address) + f"?{query}",
        ):
            cases.append(Case("GET", path))
    return cases + training_corpus(world)


def training_corpus(world: World) -> list[Case]:
    """forward_backward messages that parse and make no sense."""

    def message(change) -> Case:
        valid = training_message(world)
        change(valid)
        return training_case(valid)

    def tensor(name: str, **values) -> Case:
        return message(lambda m: m.data[0].loss_fn_inputs[name].CopyFrom(pb.Tensor(**values)))

    def csr(values: bytes, crow: bytes, col: bytes, shape) -> Case:
        return tensor(
            "target_tokens",
            dtype=pb.DTYPE_INT64,
            shape=shape,
            sparse_csr=pb.SparseCsr(values=values, crow_indices=crow, col_indices=col),
        )

    ones, targets = float32(*[1] * 6), int64(*[1] * 6)
    cases = [
        tensor("weights", dtype=pb.DTYPE_FLOAT32, shape=shape, dense=data)
        for shape in (
            [],
            [6],
            [5],
            [7],
            [0],
            [-6],
            [2**62],
            [2**40, 2**40],
            [6, 1],
            [1, 6],
            [2, 3],
            [6, 0],
            [1] * 1000,
            [-1, -6],
            [0, 2**63 - 1],
        )
        for data in (
            b"",
            ones,
            ones[:-1],
            float32(*[math.nan] * 6),
            float32(*[math.inf] * 6),
            float32(*[1e38] * 6),
            float32(*[-1] * 6),
            float32(*[0] * 6),
        )
    ]
    cases += [
        tensor("target_tokens", dtype=dtype, shape=shape, dense=data)
        for dtype in (0, pb.DTYPE_FLOAT32, pb.DTYPE_INT64, 99)
        for shape in ([], [6], [3], [6, 1], [3, 2], [6, 2**40])
        for data in (
            targets,
            int64(*[-1] * 6),
            int64(*[2**62] * 6),
            int64(*[49_152] * 6),
            int64(*[-(2**63)] * 6),
            b"\x01" * 47,
            ones,
        )
    ]
    columns = int64(0, 0, 0, 0, 0, 0)
    cases += [
        csr(values, crow, col, shape)
        for values in (targets, b"", int64(1), b"\x01" * 9)
        for crow in (
            int64(0, 1, 2, 3, 4, 5, 6),
            int64(0, 6, 5, 4, 3, 2, 6),
            int64(0, -1, 2, 3, 4, 5, 6),
            int64(0, 1, 2, 3, 4, 5, 2**62),
            int64(0),
            b"",
            b"\x00" * 11,
            int64(5, 5, 5, 5, 5, 5, 5),
        )
        for col in (columns, int64(*[2**62] * 6), int64(*[-1] * 6), b"", b"\x00" * 5)
        for shape in ([6, 1], [6, 8], [6], [], [2**40, 2**40])
    ]
    for loss in LOSSES:
        cases.append(message(lambda m: setattr(m, "loss_fn", loss)))
        for value in (math.nan, math.inf, -1.0, 0.0, 1e308):
            for key in ("clip_low_threshold", "clip_high_threshold", "beta", "unknown"):

                def change(m, loss=loss, key=key, value=value):
                    m.loss_fn = loss
                    m.loss_fn_config[key] = value
                    m.loss_fn_config_v2[key].number = value
                    for datum in m.data:
                        datum.loss_fn_inputs.pop("weights")
                        for name in ("logprobs", "advantages"):
                            datum.loss_fn_inputs[name].CopyFrom(
                                pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[6], dense=float32(*[-1] * 6))
                            )

                cases.append(message(change))
        cases.append(
            message(
                lambda m, loss=loss: (
                    setattr(m, "loss_fn", loss),
                    setattr(m.loss_fn_config_v2["clip_low_threshold"], "text", "high"),
                )
            )
        )
    cases += [
        message(lambda m: m.ClearField("data")),
        message(lambda m: m.data.add()),
        message(lambda m: m.data[0].ClearField("model_input")),
        message(lambda m: m.data[0].ClearField("loss_fn_inputs")),
        message(lambda m: m.data[0].model_input.add()),
        message(lambda m: setattr(m, "model_id", "")),
        message(lambda m: setattr(m, "model_id", "\x00")),
        message(lambda m: setattr(m, "seq_id", 0)),
        message(lambda m: setattr(m, "seq_id", -1)),
        message(lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", b"\x01" * 23)),
        message(lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", int32(*[-1] * 6))),
        message(lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", int32(*[2**31 - 1] * 6))),
        message(lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", int32(*[1] * 100_000))),
        message(lambda m: [m.data.add() for _ in range(20_000)]),
        message(lambda m: setattr(m.data[0].model_input.add().image, "data", b"\x89PNG")),
        message(lambda m: setattr(m.data[0].model_input.add().dmel, "dmel", b"\x00")),
        training_case(b""),
        training_case(b"\xff" * 100),
        training_case(b"\x0a\xff\xff\xff\xff\x0f"),
        training_case(b"\x0b" * 10_000),
        training_case(b"{}"),
    ]
    valid = training_message(world).SerializeToString()
    cases += [training_case(valid[:cut]) for cut in range(0, len(valid), 7)]
    frame = zstandard.ZstdCompressor().compress(valid)
    for body in (
        b"",
        b"\x28\xb5\x2f\xfd",
        frame[:-3],
        frame[4:],
        frame + b"x",
        frame + frame,
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 62) + frame[6:],
        b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
        valid,
        b"\x28\xb5\x2f\xfd" + b"\x00" * 1000,
    ):
        cases.append(training_case(body, **{"Content-Encoding": "zstd"}))
    return cases


def raw_attacks(siege: Siege) -> None:
    """Bytes that are no HTTP, and HTTP that breaks its promises. The server may answer or close; it must go on."""
    valid = Case("POST", f"{API}/session_heartbeat", dumps({"session_id": siege.world.session}))
    chunked = b"POST /api/v1/create_session HTTP/1.1\r\nHost: stub\r\nX-API-Key: tml-fuzz\r\nTransfer-Encoding: chunked\r\n\r\n"
    streams = [
        b"\x00" * 1000,
        b"\xff" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost stub\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        chunked + b"zz\r\n",
        chunked + b"fffffffffffffffff\r\nx",
        chunked + b"5\r\n{}\r\n0\r\n\r\n",
        chunked + b"-1\r\n\r\n",
        chunked + b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
        valid.head() + valid.body + b"\x00\xff garbage \r\n\r\n" * 100,
        (valid.head() + valid.body) * 50 + b"GARBAGE",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\xff\xff",
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        b"\r\n" * 10_000,
    ]
    held = []
    for stream in streams:
        connection = socket.create_connection(("127.0.0.1", siege.port), timeout=ANSWER_SECONDS)
        held.append(connection)
        try:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while block := connection.recv(65536):
                received += block
        except (BrokenPipeError, ConnectionResetError):
            received = b""
        except TimeoutError:
            siege.faults.append(("a half-closed connection was left hanging", repr(stream[:200])))
        siege.sent += 1
        if re.search(rb"HTTP/1.1 5\d\d", received) or b"Traceback" in received:
            siege.faults.append((f"answer {received[:300]!r}", repr(stream[:200])))
    promised = []
    for path in ("create_session", "forward_backward", "asample", "retrieve_future"):
        connection = socket.create_connection(("127.0.0.1", siege.port), timeout=ANSWER_SECONDS)
        connection.sendall(
            f"POST {API}/{path} HTTP/1.1\r\nHost: a\r\nX-API-Key: tml-fuzz\r\nContent-Length: 1000000\r\n\r\n{{".encode()
        )  # and never the rest
        promised.append(connection)
        siege.sent += 1
    siege.storm([valid] * 20)  # the server answers others while it waits
    for connection in held + promised:
        connection.close()
    siege.storm([valid] * 20)


def giants(siege: Siege) -> None:
    """Bodies of tens of MiB, sent one after the other."""
    world = siege.world
    stuffed = dumps({"session_id": world.session, "type": "session_heartbeat", "pad": "x" * (20 * MIB)})
    message = training_message(world)
    message.data[0].loss_fn_inputs["weights"].dense = b"\x00" * (40 * MIB)
    for case in (
        Case("POST", f"{API}/session_heartbeat", stuffed),
        Case("POST", f"{API}/create_session", b"[" + b"0," * (35 * MIB) + b"0]", long_body=True),
        Case("POST", f"{API}/asample", b"\x00" * (80 * MIB), long_body=True),
        Case("POST", f"{API}/telemetry", b" " * (80 * MIB), long_body=True),
        training_case(message),
        Case(
            "POST",
            f"{API}/forward_backward",
            b"\x0a" * (70 * MIB),
            {"Content-Type": PROTO_TYPE},
            long_body=True,
        ),
    ):
        siege.storm([case])


@pytest.fixture(scope="module")
def server(small_model, tmp_path_factory) -> Iterator[Server]:
    server = Server(small_model, tmp_path_factory.mktemp("siege"))
    yield server
    server.stop()


MOST_STEPS = 70


@pytest.fixture(scope="module")
def siege(server) -> Iterator[Siege]:
    """The attack, and beside it a client that trains with real requests through the SDK."""
    service = server.connect()

    def learner():
        return service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()

    quiet = train(learner(), MOST_STEPS)
    innocent = learner()
    seen = train(innocent, 4)
    siege = Siege(server, lambda: seen.extend(train(innocent, 1)))
    siege.quiet, siege.seen, siege.innocent = quiet, seen, innocent
    yield siege
    service.close("success").result()


def hypothesis_storm(siege: Siege, cases, number: int, examples: int) -> None:
    """Send batches of drawn cases. Faults are collected, one of each kind is shown, and nothing is shrunk: a case is one request."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cases, min_size=BATCH, max_size=BATCH))
    def run(batch: list[Case]) -> None:
        siege.storm(batch)

    run()
    siege.verdict()


@pytest.fixture(scope="class", params=ROUNDS)
def number(request) -> int:
    return request.param


class TestSiege:
    """Two rounds of the same kinds of attack with other random numbers, so that memory after each can be compared."""

    def test_json_bodies(self, siege, number):
        hypothesis_storm(siege, json_cases(siege.world), number, 70)

    def test_training_messages(self, siege, number):
        hypothesis_storm(siege, training_cases(siege.world), number, 40)

    def test_paths_and_methods(self, siege, number):
        hypothesis_storm(siege, path_cases(siege.world), number, 40)

    def test_by_hand(self, siege, number):
        siege.storm(corpus(siege.world)[number - 1 :: 2])
        siege.verdict()

    def test_raw_sockets(self, siege, number):
        raw_attacks(siege)
        siege.verdict()

    def test_giant_bodies(self, siege, number):
        giants(siege)
        siege.verdict()

    def test_end_of_round(self, siege, number):
        """What the sessions held is freed; the next round starts with new ones."""
        siege.end_round(number)
        siege.renew()
        siege.verdict()


def test_a_zstd_bomb_does_not_fill_the_memory(siege):
    """A gigabyte of zeros in 32 kB, with and without its size in the frame's head, is refused before it is unpacked."""
    process = psutil.Process(siege.server.process.pid)
    zeros = b"\x00" * MIB
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    unsized = b"".join(compressor.compress(zeros) for _ in range(1024)) + compressor.flush()
    sized = zstandard.ZstdCompressor(level=1).compressobj(size=1024 * MIB)
    sized = b"".join(sized.compress(zeros) for _ in range(1024)) + sized.flush()
    before = process.memory_info().rss
    with open(f"/proc/{process.pid}/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    answers = siege.storm([training_case(body, **{"Content-Encoding": "zstd"}) for body in (unsized, sized)])
    siege.verdict()
    assert all(400 <= answer.status < 500 for answer in answers)
    peak = int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{process.pid}/status").read())[1]) * 1024
    assert peak - before < 400 * MIB


def test_a_spoilt_client_harms_only_itself(siege):
    """Weights of infinity train, sample and save with an error or a result, and the neighbours' samples stay as they were."""
    world = siege.world
    samples = [
        Case(
            "POST",
            f"{API}/asample",
            dumps(
                types.SampleRequest(
                    sampling_session_id=world.samplers[0],
                    seq_id=next(sequence),
                    prompt=types.ModelInput.from_ints([1, 2, 3]),
                    sampling_params=types.SamplingParams(max_tokens=8, temperature=1.0, seed=4, stop=[]),
                )
            ),
            settle=False,
        )
        for _ in range(3)
    ]
    alone = siege.result(siege.ask(samples[0]).json()["request_id"]).body
    ill = {"model_id": world.model, "adam_params": {"learning_rate": 1e38, "eps": 1e-12}}
    siege.storm([training_case(training_message(world))])
    siege.storm([Case("POST", f"{API}/optim_step", dumps({**ill, "seq_id": next(sequence)}))])
    siege.storm([training_case(training_message(world))])
    answer = siege.result(
        siege.ask(
            Case(
                "POST",
                f"{API}/save_weights_for_sampler",
                dumps(
                    {
                        "model_id": world.model,
                        "seq_id": next(sequence),
                        "sampling_session_seq_id": next(sequence),
                    }
                ),
            )
        ).json()["request_id"]
    ).json()
    crowd = [
        Case(
            "POST",
            f"{API}/asample",
            dumps(
                {
                    "sampling_session_id": answer["sampling_session_id"],
                    "seq_id": next(sequence),
                    "num_samples": 4,
                    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
                    "sampling_params": {"max_tokens": 30, "temperature": temperature},
                }
            ),
            settle=False,
        )
        for temperature in (0.0, 1.0, 1.0)
    ]
    ids = [
        answer.json()["request_id"]
        for answer in siege.storm([crowd[0], samples[1], crowd[1], samples[2], crowd[2]])
    ]
    ends = [siege.result(request_id) for request_id in ids]
    alone, *neighbours = (
        pb.SampleResponse.FromString(body).sequences[0] for body in (alone, ends[1].body, ends[3].body)
    )
    for neighbour in neighbours:
        assert neighbour.tokens == alone.tokens
        np.testing.assert_allclose(
            *(np.frombuffer(sequence.logprobs, np.float32) for sequence in (neighbour, alone)), atol=1e-5
        )
    siege.verdict()


def test_after_the_siege_all_is_as_before(siege):
    siege.after()
    print(
        f"\n{siege.sent} hostile requests, {siege.retrieved} polls, {len(siege.steps)} steps of the innocent client, memory {siege.memory} MiB"
    )
    assert siege.server.process.poll() is None
    assert siege.sent >= LEAST_REQUESTS
    siege.seen.extend(train(siege.innocent, 4))
    assert len(siege.seen) >= 8 + siege.sent // 250
    assert siege.seen == pytest.approx(siege.quiet[: len(siege.seen)], rel=1e-5)
    assert siege.memory[2] - siege.memory[1] <= GROWTH_MIB
    assert "Traceback" not in siege.server.log.read_text()
    assert not [path for path in siege.server.state.rglob("*") if ".tmp" in path.name]
