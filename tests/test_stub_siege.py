"""Hostile requests over HTTP: each is answered, none with a 5xx, and an innocent client notices nothing.

About a thousand in the plain run, and more than ten thousand in the soak.
"""

import errno
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from siege import ANSWER_SECONDS, API, JSON_TYPE, MIB, PROTO_TYPE, Case, Siege, dumps, sequence
from siege_corpus import corpus
from siege_requests import json_cases, path_cases
from siege_training import Corpus, training_case, training_cases, training_message
from stub import Server, train
from tinker.proto import tinker_public_pb2 as pb

BATCH = 20  # requests of one example, sent by several threads
ROUNDS = (1, 2)


@dataclass(frozen=True)
class Size:
    """How long a siege is.

    Attributes:
        json, training, paths: batches of drawn requests a round.
        stride: one of so many requests of the corpus is sent.
        every: requests between two steps of the innocent client.
        steps: that its twin takes in peace.
        least: requests in all.
        growth_mib: of the second round, at most; the less came before it, the more is still warm-up.
    """

    json: int
    training: int
    paths: int
    stride: int
    every: int
    steps: int
    least: int
    growth_mib: int


SMALL = Size(json=6, training=4, paths=4, stride=13, every=60, steps=30, least=900, growth_mib=100)
FULL = Size(json=70, training=40, paths=40, stride=1, every=250, steps=70, least=10_000, growth_mib=60)


@pytest.fixture(
    scope="module",
    params=[pytest.param(SMALL, id="small"), pytest.param(FULL, id="full", marks=pytest.mark.soak)],
)
def size(request) -> Size:
    return request.param


@pytest.fixture(scope="module")
def siege(size, small_model, tmp_path_factory) -> Iterator[Siege]:
    """The attack, and beside it a client that trains with real requests through the SDK."""
    server = Server(small_model, tmp_path_factory.mktemp("siege"))
    service = server.connect()

    def learner():
        return service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()

    quiet, innocent = train(learner(), size.steps), learner()
    siege = Siege(server, lambda: siege.seen.extend(train(innocent, 1)), size.every)
    siege.quiet, siege.seen = quiet, train(innocent, 4)
    yield siege
    service.close("success").result()
    server.stop()


def storm(siege: Siege, cases: st.SearchStrategy, number: int, examples: int) -> None:
    """Send batches of drawn cases. Faults are collected, and nothing is shrunk: a case is one request."""

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
    """Two rounds of the same kinds of attack with other numbers, to compare the memory after each."""

    def test_json_bodies(self, siege, size, number):
        storm(siege, json_cases(siege.world), number, size.json)

    def test_training_messages(self, siege, size, number):
        storm(siege, training_cases(siege.world), number, size.training)

    def test_paths_and_methods(self, siege, size, number):
        storm(siege, path_cases(siege.world), number, size.paths)

    def test_by_hand(self, siege, size, number):
        cases = corpus(siege.world) + Corpus(siege.world).everything()
        siege.storm(cases[number - 1 :: 2][:: size.stride])
        siege.verdict()

    def test_raw_sockets(self, siege, number):
        """The server may answer such bytes or close the connection; it must go on."""
        held = [send_and_close(siege, stream) for stream in no_http(siege)]
        held += unkept_promises(siege)
        beat = heartbeat(siege)
        siege.storm([beat] * 20)  # the server answers others while it waits
        for connection in held:
            connection.close()
        siege.storm([beat] * 20)
        siege.verdict()

    def test_giant_bodies(self, siege, number):
        for case in giants(siege):
            siege.storm([case])
        siege.verdict()

    def test_end_of_round(self, siege, number):
        """What the sessions held is freed; the next round starts with new ones."""
        siege.end_round(number)
        siege.renew()
        siege.verdict()


def heartbeat(siege: Siege) -> Case:
    return Case("POST", f"{API}/session_heartbeat", dumps({"session_id": siege.world.session}))


def head(route: str) -> bytes:
    """The first lines of a request that is let in."""
    lines = (
        f"POST {API}/{route} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {JSON_TYPE}",
        "X-API-Key: tml-fuzz",
    )
    return "".join(f"{line}\r\n" for line in lines).encode()


def no_http(siege: Siege) -> list[bytes]:
    """Bytes that are no HTTP, and HTTP that breaks its promises."""
    valid = heartbeat(siege)
    chunked = head("create_session") + b"Transfer-Encoding: chunked\r\n\r\n"
    return [
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


def send_and_close(siege: Siege, stream: bytes) -> socket.socket:
    """Send bytes, say that no more will come, and note a wrong answer. Returns the open connection."""
    connection = socket.create_connection(("127.0.0.1", siege.port), timeout=ANSWER_SECONDS)
    received = b""
    try:
        connection.sendall(stream)
        connection.shutdown(socket.SHUT_WR)
        while block := connection.recv(65536):
            received += block
    except TimeoutError:
        siege.faults.append(("a half-closed connection was left hanging", repr(stream[:200])))
    except OSError as error:  # the server has closed it; which of the three it is depends on the moment
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise
    siege.sent += 1
    if re.search(rb"HTTP/1.1 5\d\d", received) or b"Traceback" in received:
        siege.faults.append((f"answer {received[:300]!r}", repr(stream[:200])))
    return connection


def unkept_promises(siege: Siege) -> list[socket.socket]:
    """Connections that announce a body and never send the rest of it."""
    promised = []
    for route in ("create_session", "forward_backward", "asample", "retrieve_future"):
        connection = socket.create_connection(("127.0.0.1", siege.port), timeout=ANSWER_SECONDS)
        connection.sendall(head(route) + b"Content-Length: 1000000\r\n\r\n{")
        promised.append(connection)
        siege.sent += 1
    return promised


def giants(siege: Siege) -> list[Case]:
    """Bodies of tens of MiB, to be sent one after the other."""
    stuffed = {"session_id": siege.world.session, "type": "session_heartbeat", "pad": "x" * (20 * MIB)}
    message = training_message(siege.world)
    message.data[0].loss_fn_inputs["weights"].dense = b"\x00" * (40 * MIB)
    zeros = b"[" + b"0," * (35 * MIB) + b"0]"
    proto = {"Content-Type": PROTO_TYPE}
    return [
        Case("POST", f"{API}/session_heartbeat", dumps(stuffed)),
        Case("POST", f"{API}/create_session", zeros, long_body=True),
        Case("POST", f"{API}/asample", b"\x00" * (80 * MIB), long_body=True),
        Case("POST", f"{API}/telemetry", b" " * (80 * MIB), long_body=True),
        training_case(message),
        Case("POST", f"{API}/forward_backward", b"\x0a" * (70 * MIB), proto, long_body=True),
    ]


def sampling(sampler: str, temperature: float, **more: Any) -> Case:
    params = {"max_tokens": 8, "temperature": temperature, "seed": 4, "stop": []}
    body = {
        "sampling_session_id": sampler,
        "seq_id": next(sequence),
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": params,
    }
    return Case("POST", f"{API}/asample", dumps(body | more), settle=False)


def spoil(siege: Siege) -> str:
    """Give the siege's own training client weights of infinity; returns a sampler of them."""
    model = {"model_id": siege.world.model}
    ill = {"learning_rate": 1e38, "eps": 1e-12}
    siege.storm([training_case(training_message(siege.world))])
    step = {**model, "adam_params": ill, "seq_id": next(sequence)}
    siege.storm([Case("POST", f"{API}/optim_step", dumps(step))])
    siege.storm([training_case(training_message(siege.world))])
    numbers = {"seq_id": next(sequence), "sampling_session_seq_id": next(sequence)}
    asked = siege.post("save_weights_for_sampler", model | numbers)
    return siege.result(asked["request_id"]).json()["sampling_session_id"]


def test_a_spoilt_client_harms_only_itself(siege):
    """Weights of infinity train, sample and save somehow; neighbours' samples stay the same."""
    good = siege.world.samplers[0]
    alone = siege.result(siege.ask(sampling(good, 1.0)).json()["request_id"]).body
    bad = spoil(siege)
    crowd = [sampling(sampler, 1.0) for sampler in (bad, good, bad, good)]
    crowd.append(sampling(bad, 0.0, num_samples=4))
    answers = siege.storm(crowd)
    ends = [siege.result(answer.json()["request_id"]).body for answer in answers]
    expected, *neighbours = (
        pb.SampleResponse.FromString(body).sequences[0] for body in (alone, ends[1], ends[3])
    )
    for neighbour in neighbours:
        assert neighbour.tokens == expected.tokens
        logprobs = (np.frombuffer(sequence.logprobs, np.float32) for sequence in (neighbour, expected))
        np.testing.assert_allclose(*logprobs, atol=1e-5)
    siege.verdict()


def test_after_the_siege_all_is_as_before(siege, size):
    siege.after()
    print(
        f"\n{siege.sent} hostile requests, {siege.retrieved} polls, "
        f"{len(siege.steps)} steps of the innocent client, memory {siege.memory} MiB"
    )
    assert siege.server.is_running()
    assert siege.sent >= size.least
    assert len(siege.seen) >= 4 + siege.sent // size.every
    assert siege.seen == pytest.approx(siege.quiet[: len(siege.seen)], rel=1e-5)
    assert siege.memory[2] - siege.memory[1] <= size.growth_mib
    assert "Traceback" not in siege.server.log.read_text()
    assert not [path for path in siege.server.state.rglob("*") if ".tmp" in path.name]
