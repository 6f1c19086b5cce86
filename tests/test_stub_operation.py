"""Running a stub backend: keys, the status page, an orderly stop, and requests that mean harm."""

import asyncio
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
import tinker
import zstandard
from stub import Server
from test_stub_server import datums, train
from tinker import types

from helpers.paths import ROOT
from helpers.stub_tinker.starting import bind

KEYS = ("tml-alpha", "tml-beta")


@pytest.fixture(scope="module")
def server(small_model, tmp_path_factory):
    """A server with two keys, one given as an option and one in a file."""
    folder = tmp_path_factory.mktemp("operation")
    (folder / "keys.txt").write_text(f"# the class of Tuesday\n\n{KEYS[1]}\n")
    server = Server(
        small_model, folder / "state", "--api-key", KEYS[0], "--api-key-file", str(folder / "keys.txt")
    )
    yield server
    server.stop()
    log = server.log.read_text()
    assert "Traceback" not in log and not any(key in log for key in KEYS)


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict]:
    """One request whose path is sent as it is."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {
            "X-API-Key": KEYS[0],
            **({"Content-Length": str(len(body))} if body is not None else {}),
            **headers,
        }.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.headers)
    finally:
        connection.close()


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "helpers.stub_tinker", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "STUB_TINKER_API_KEY"},
    )


def test_answers_are_sent_without_delay():
    """Or the system holds back the second part of each answer for 40 ms: twenty times what the rest of a small request takes."""

    async def accepted() -> int:
        found = asyncio.get_running_loop().create_future()

        def handle(_, writer):
            found.set_result(
                writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            )
            writer.close()

        async with await asyncio.start_server(handle, sock=bind("127.0.0.1", 0)) as server:
            socket.create_connection(server.sockets[0].getsockname()).close()
            return await found

    assert asyncio.run(accepted()) == 1


# Keys


def test_either_key_is_let_in_and_no_other(server):
    for key in KEYS:
        assert server.rest(key).list_training_runs().result().training_runs == []
    for key in ("tml-gamma", "tml-alph", "tml-alphaa", "", "tml-\xe4"):
        assert ask(server, "GET", "/api/v1/training_runs", **{"X-API-Key": key})[0] == 401
    for file in server.state.rglob("*"):
        if file.is_file():
            assert not any(key.encode() in file.read_bytes() for key in KEYS), file


def test_bad_keys_and_files_are_one_clear_line_that_does_not_show_them(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("tml-good\nsecret-without-prefix\n")
    for arguments, words in [
        (("--api-key-file", str(file)), "key 2 of 2 must start with tml-"),
        (("--api-key", "secret-x"), "the key must start with tml-"),
        (("--api-key-file", str(tmp_path / "none.txt")), "none.txt"),
    ]:
        result = run("--port", "0", "--state-dir", str(tmp_path / "state"), *arguments)
        assert (
            result.returncode == 1
            and words in result.stderr
            and "secret" not in result.stderr
            and "Traceback" not in result.stderr
        )
    file.write_text("# nothing\n")
    assert "holds no key" in run("--port", "0", "--api-key-file", str(file)).stderr


# Status


@pytest.fixture(scope="module")
def clients(server):
    """One client of each key, which have trained and sampled."""
    services = []
    for key, name in zip(KEYS, ("<script>alert(1)</script>", "beta \x1b[31m")):
        service = tinker.ServiceClient(base_url=server.url, api_key=key, display_name=name)
        client = service.create_lora_training_client(server.model, rank=8).result()
        train(client, 1)
        service.create_sampling_client(base_model=server.model).result().sample(
            types.ModelInput.from_ints([1, 2]), 1, types.SamplingParams(max_tokens=3, stop=[])
        ).result()
        services.append(service)
    yield services
    for service in services:
        service.close("success").result()


def test_a_key_sees_its_own_clients_and_a_sum_of_the_others(server, clients):
    status = json.loads(ask(server, "GET", "/")[1])
    own, others = status["clients"]
    assert own["name"] == "<script>alert(1)</script>" and others["name"] == "1 of other keys"
    assert (
        own["training_clients"] == own["samplers"] == 1
        and own["tokens_trained"] == 120
        and own["tokens_sampled"] == 3
    )
    assert own["memory_mib"] > 0 and own["trained_per_second"] > 0 and own["queued"] == 0
    assert (
        status["tokens_trained"] == 240
        and status["memory_mib"] > 0
        and status["uptime_seconds"] >= 0
        and status["service"] == "stub_tinker"
    )


def test_a_browser_gets_a_page_after_giving_the_key_as_password(server, clients):
    code, _, headers = ask(server, "GET", "/", Accept="text/html", **{"X-API-Key": ""})
    assert code == 401
    page_headers = {
        "Accept": "text/html,application/xhtml+xml",
        "Authorization": "Basic " + base64.b64encode(f"anyone:{KEYS[1]}".encode()).decode(),
    }
    request = urllib.request.Request(server.url, headers=page_headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        page, kind = answer.read().decode(), answer.headers["Content-Type"]
    assert (
        kind.startswith("text/html")
        and "beta" in page
        and "<script" not in page
        and 'http-equiv="refresh"' in page
    )
    assert (
        "color-scheme: light dark" in page
        and "viewport" in page
        and "http://" not in page.replace(server.url, "")
        and "https://" not in page
    )
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(
            urllib.request.Request(
                server.url, headers={**page_headers, "Authorization": "Basic bm9ib2R5OndoYXQ="}
            ),
            timeout=30,
        )
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic")
    assert (
        ask(
            server,
            "GET",
            "/api/v1/training_runs",
            Authorization=page_headers["Authorization"],
            **{"X-API-Key": ""},
        )[0]
        == 401
    )  # of the page only


def test_the_operator_sees_every_client_in_a_terminal(server, clients):
    result = run("--status", "--state-dir", str(server.state))
    assert result.returncode == 0, result.stderr
    assert (
        server.url in result.stdout
        and "<script>alert(1)</script>" in result.stdout
        and "beta" in result.stdout
        and "\x1b" not in result.stdout
    )
    assert "240 tokens" in result.stdout and "of other keys" not in result.stdout
    by_key = run("--status", "--url", server.url, "--api-key", KEYS[0])
    assert by_key.returncode == 0 and "of other keys" in by_key.stdout
    assert "401" in run("--status", "--url", server.url).stderr
    assert (server.state / "status_token").stat().st_mode & 0o077 == 0


def test_the_status_of_no_server_is_one_clear_line(tmp_path):
    for arguments in (("--state-dir", str(tmp_path)), ("--url", "http://127.0.0.1:9")):
        result = run("--status", *arguments)
        assert (
            result.returncode == 1
            and "no stub Tinker backend" in result.stderr
            and "Traceback" not in result.stderr
        )


# An orderly stop


def test_a_stopping_server_finishes_what_it_accepted(small_model, tmp_path):
    server = Server(small_model, tmp_path / "state")
    service = server.connect()
    client = service.create_lora_training_client(server.model, rank=8, seed=1).result()
    sampler = service.create_sampling_client(base_model=server.model).result()
    waits = [client.forward_backward(datums(32, 60), "cross_entropy") for _ in range(6)] + [
        client.optim_step(types.AdamParams(learning_rate=1e-2))
    ]
    save = client.save_state("last")
    sample = sampler.sample(
        types.ModelInput.from_ints([1, 2, 3]), 2, types.SamplingParams(max_tokens=40, stop=[])
    )
    sent = 1 + len(waits) + 2  # with create_model, save_state and sample
    while json.load(urllib.request.urlopen(server.url, timeout=30))["clients"][0]["requests"] < sent:
        assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    while (server.state / "server.json").exists():  # it has taken note
        assert server.process.poll() is None
    code, answer = server.post(
        "/api/v1/create_session",
        json.dumps({"tags": [], "user_metadata": {}, "sdk_version": "0"}).encode(),
        **{"X-API-Key": "tml-test"},
    )
    assert (code, "stopping" in json.loads(answer)["detail"]) == (403, True)
    with pytest.raises(tinker.PermissionDeniedError, match="stopping"):
        server.connect().create_lora_training_client(server.model).result(timeout=60)
    assert all(wait.result(timeout=60) for wait in waits)
    path = save.result(timeout=60).path
    assert [len(s.tokens) for s in sample.result(timeout=60).sequences] == [40, 40]
    assert server.process.wait(timeout=60) == 0
    said = server.log.read_text()
    assert "stopping: " in said and "stopped" in said and "Traceback" not in said
    again = Server(small_model, tmp_path / "state")
    assert (
        again.connect().create_training_client_from_state_with_optimizer(path).result().get_info().lora_rank
        == 8
    )
    again.stop()


def test_an_unused_server_stops_at_once_and_a_second_signal_ends_one_that_waits(small_model, tmp_path):
    server = Server(small_model, tmp_path / "state")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0
    server = Server(small_model, tmp_path / "state")
    service = server.connect()
    client = service.create_lora_training_client(server.model, rank=8).result()
    body = json.dumps({"model_id": client.model_id, "seq_id": 5, "path": "never-fetched"}).encode()
    assert server.post("/api/v1/save_weights", body, **{"X-API-Key": "tml-test"})[0] == 200
    server.process.send_signal(signal.SIGTERM)
    while "waiting up to" not in server.log.read_text():
        assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) == 1
    again = Server(small_model, tmp_path / "state")
    assert [c.checkpoint_id for c in again.rest().list_user_checkpoints().result().checkpoints] == [
        "weights/never-fetched"
    ]
    taken = run("--port", "0", "--state-dir", str(again.state), "--base-model", str(small_model))
    assert taken.returncode == 1 and "another stub Tinker backend uses" in taken.stderr
    again.stop()


# Requests that mean harm

SESSION = {"tags": [], "user_metadata": {}, "sdk_version": "0", "type": "create_session"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a":' * 100_000, "nested|not JSON"),
        (b"[" * 1_000_000, "nested|not JSON"),
        (b'{"tags": [' + b"9" * 5000 + b"]}", "64 bits"),
        (b'{"tags": [1e999]}', "too large"),
        (b'{"tags": [NaN]}', "finite"),
        (b'{"tags": [-Infinity]}', "finite"),
        (b'{"sdk_version": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"sdk_version": "\xed\xa0\x80"}', "UTF-8"),
        (b"\xff\xfe{\x00}\x00", "UTF-8"),
        (b"null", "JSON object"),
        (b'"text"', "JSON object"),
        (b"{}", "Field required"),
        (json.dumps({**SESSION, "tags": "x"}).encode(), "tags"),
        (json.dumps({**SESSION, "sdk_version": 5}).encode(), "sdk_version"),
        (json.dumps({**SESSION, "user_metadata": [1]}).encode(), "user_metadata"),
        (json.dumps({**SESSION, "user_metadata": {"k": "v" * 20_000}}).encode(), "user_metadata is over"),
        (json.dumps({**SESSION, "tags": ["t" * 20_000]}).encode(), "tags is over"),
        (json.dumps({**SESSION, "display_name": "n" * 300}).encode(), "display_name is over"),
    ],
)
def test_a_body_that_is_no_request_is_named(server, body, words):
    code, answer, _ = ask(server, "POST", "/api/v1/create_session", body)
    detail = json.loads(answer)["detail"]
    assert code in (400, 422) and any(word in detail for word in words.split("|")) and len(detail) < 5000


def test_metadata_that_is_no_text_is_kept_as_text(server):
    code, answer, _ = ask(
        server,
        "POST",
        "/api/v1/create_session",
        json.dumps({**SESSION, "user_metadata": {"lr": 0.5, "deep": {"a": [1]}}}).encode(),
    )
    session = json.loads(answer)["session_id"]
    assert server.rest(KEYS[0]).get_session(session).result().user_metadata == {
        "lr": "0.5",
        "deep": '{"a": [1]}',
    }


@pytest.mark.parametrize(
    "body",
    [
        zstandard.compress(b"\0" * (200 << 20)),  # its header says how large it is
        zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * (200 << 20)),
    ],
)
def test_a_small_body_that_unpacks_to_a_large_one_is_refused(server, body):
    assert len(body) < 100_000
    before = json.loads(ask(server, "GET", "/")[1])["memory_mib"]
    code, answer, _ = ask(server, "POST", "/api/v1/forward_backward", body, **{"Content-Encoding": "zstd"})
    assert code == 413 and "over 64 MiB" in json.loads(answer)["detail"]
    assert json.loads(ask(server, "GET", "/")[1])["memory_mib"] < before + 150


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"Content-Encoding": "zstd"}, b"not zstd", 400),
        ({"Content-Encoding": "zstd"}, zstandard.compress(b"x" * 1000)[:-5], 400),
        ({"Content-Encoding": "gzip"}, b"x", 415),
        ({"Content-Length": str(1 << 40)}, b"", 413),
        ({"Content-Length": "9" * 30}, b"", 413),
    ],
)
def test_bodies_that_lie_about_themselves_are_refused(server, headers, body, code):
    got, answer, _ = ask(server, "POST", "/api/v1/forward_backward", body, **headers)
    assert got == code or got == 400
    assert got != code or json.loads(answer)["detail"]


def test_a_client_that_hangs_up_in_the_middle_of_a_body_does_no_harm(server):
    for _ in range(5):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=30)
        connection.putrequest("POST", "/api/v1/forward_backward")
        connection.putheader("X-API-Key", KEYS[0])
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"half")
        connection.close()
    assert ask(server, "GET", "/api/v1/healthz")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "codes"),
    [
        ("GET", "/api/v1/training_runs/%2e%2e", {400, 404}),
        ("GET", "/api/v1/training_runs/%2e%2e%2f%2e%2e%2fetc", {400, 404}),
        ("GET", "/api/v1/training_runs/a%00b", {400}),
        ("GET", "/api/v1/training_runs/" + "x" * 5000, {400, 404}),
        ("GET", "/api/v1/training_runs/%ff%fe", {400}),
        ("DELETE", "/api/v1/training_runs/r/checkpoints/weights/%2e%2e", {400}),
        ("DELETE", "/api/v1/training_runs/r/checkpoints/etc/passwd", {400}),
        ("DELETE", "/api/v1/training_runs/%2e%2e/checkpoints/weights/x", {400}),
        ("GET", "/api/v1/sessions/%2e%2e%2frun", {404}),
        ("GET", "/api/v1/sessions/%2e%2e", {404}),
        ("GET", "/api/v1/sessions/" + "s" * 5000, {404}),
        ("GET", "/api/v1/samplers/%00", {404}),
        ("GET", "/files/%2e%2e/x/url_secret?expires=9999999999&signature=", {400, 403}),
        ("GET", "/files/r/%00/f?expires=9999999999&signature=%ff", {400, 403}),
        ("GET", "/files/r/n/f?expires=%C2%B2&signature=x", {400}),
        ("GET", "/files/r/n/f", {400}),
        ("GET", "/api/v1/training_runs?limit=-1", {400}),
        ("GET", "/api/v1/training_runs?limit=" + "9" * 500, {400}),
        ("GET", "/api/v1/checkpoints?offset=%C2%B2", {400}),
        ("GET", "/api/v1/training_runs?access_scope=everything", {400}),
        ("GET", "/api/v1/create_session", {405}),
        ("DELETE", "/api/v1/training_runs", {405}),
        ("OPTIONS", "/api/v1/asample", {405}),
        ("TRACE", "/api/v1/asample", {400, 405}),
        ("PATCH", "/nowhere", {404}),
        ("POST", "/", {405}),
        ("GET", "//", {404}),
    ],
)
def test_strange_paths_and_methods_are_4xx_with_a_message(server, method, path, codes):
    code, answer, _ = ask(server, method, path)
    assert code in codes, answer
    assert len(json.loads(answer)["detail"]) < 5000


@pytest.mark.parametrize("host", ["[::1", "a b", 'x"y', "é", ""])
def test_a_host_that_is_no_address_is_refused_where_it_matters(server, host):
    code = ask(
        server,
        "GET",
        "/api/v1/training_runs/r/checkpoints/external_weights/x/external_weights_urls",
        Host=host,
    )[0]
    assert 400 <= code < 500 and ask(server, "GET", "/api/v1/healthz", Host=host)[0] in (200, 400)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl_seconds": "x"},
        {"ttl_seconds": 1.5},
        {"ttl_seconds": True},
        {"ttl_seconds": -1},
        {"ttl_seconds": 10**15},
        {"ttl_seconds": []},
    ],
)
def test_a_time_to_live_of_another_kind_is_refused(server, clients, body):
    code, answer, _ = ask(
        server, "PUT", "/api/v1/training_runs/r/checkpoints/weights/x/ttl", json.dumps(body).encode()
    )
    assert code in (400, 404) and ("ttl_seconds" in json.loads(answer)["detail"] or code == 404)


@pytest.mark.parametrize(
    "endpoint",
    [
        "session_heartbeat",
        "retrieve_future",
        "get_info",
        "weights_info",
        "join_sampling_session",
        "create_model",
        "optim_step",
        "save_weights",
        "load_weights",
        "save_weights_for_sampler",
        "save_weights_external",
        "create_sampling_session",
        "asample",
        "copy_weights",
        "sessions/search",
    ],
)
def test_fields_of_every_wrong_type_are_4xx(server, endpoint):
    fields = (
        "session_id",
        "request_id",
        "model_id",
        "tinker_path",
        "sampling_session_id",
        "model_seq_id",
        "seq_id",
        "path",
        "optimizer",
        "source_path",
        "ttl_seconds",
        "limit",
        "user_metadata",
        "destination_project_id",
    )
    for value in (None, True, 3, -1.5, 2**62, "", "x", [], [[]], {}, {"a": {}}):
        body = json.dumps({field: value for field in fields}).encode()
        code, answer, _ = ask(server, "POST", f"/api/v1/{endpoint}", body)
        assert 400 <= code < 500 and json.loads(answer)["detail"], (value, answer)


def test_many_at_once_share_the_store(server):
    """Sessions made and ended by many threads at once are all there, once."""
    rest, before = (
        server.rest(KEYS[1]),
        len(server.rest(KEYS[1]).list_sessions(limit=10_000).result().sessions),
    )

    def make() -> None:
        for _ in range(10):
            session = json.loads(
                ask(
                    server,
                    "POST",
                    "/api/v1/create_session",
                    json.dumps(SESSION).encode(),
                    **{"X-API-Key": KEYS[1]},
                )[1]
            )["session_id"]
            assert (
                ask(server, "POST", f"/api/v1/sessions/{session}/finish", b"{}", **{"X-API-Key": KEYS[1]})[0]
                == 204
            )

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    sessions = rest.list_sessions(limit=10_000).result().sessions
    assert len(sessions) == len(set(sessions)) == before + 80
