"""Requests that mean harm or make no sense: each is a 4xx with a message, and the server goes on."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from stub_memory import forget_peak, peak

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
    code, answer, _ = server.ask("POST", "/api/v1/create_session", body)
    detail = json.loads(answer)["detail"]
    assert code in (400, 422) and any(word in detail for word in words.split("|")) and len(detail) < 5000


def test_metadata_that_is_no_text_is_kept_as_text(server):
    answer = server.ask(
        "POST",
        "/api/v1/create_session",
        json.dumps({**SESSION, "user_metadata": {"lr": 0.5, "deep": {"a": [1]}}}).encode(),
    )[1]
    session = json.loads(answer)["session_id"]
    assert server.rest().get_session(session).result().user_metadata == {
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
    before = forget_peak(server)
    code, answer, _ = server.ask("POST", "/api/v1/forward_backward", body, **{"Content-Encoding": "zstd"})
    assert code == 413 and "over 64 MiB" in json.loads(answer)["detail"]
    assert peak(server) - before < 150 << 20


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
    got, answer, _ = server.ask("POST", "/api/v1/forward_backward", body, **headers)
    assert got == code or got == 400
    assert got != code or json.loads(answer)["detail"]


def test_a_client_that_hangs_up_in_the_middle_of_a_body_does_no_harm(server):
    for _ in range(5):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/api/v1/forward_backward")
        connection.putheader("X-API-Key", server.key)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"half")
        connection.close()
    assert server.ask("GET", "/api/v1/healthz")[0] == 200


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
    code, answer, _ = server.ask(method, path)
    assert code in codes, answer
    assert len(json.loads(answer)["detail"]) < 5000


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
def test_a_time_to_live_of_another_kind_is_refused(server, body):
    path = "/api/v1/training_runs/r/checkpoints/weights/x/ttl"
    code, answer, _ = server.ask("PUT", path, json.dumps(body).encode())
    assert (code, "ttl_seconds" in json.loads(answer)["detail"]) == (400, True)


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
        code, answer, _ = server.ask("POST", f"/api/v1/{endpoint}", body)
        assert 400 <= code < 500 and json.loads(answer)["detail"], (value, answer)


def test_many_at_once_share_the_store(server):
    """Sessions made and ended by many threads at once are all there, once."""
    key = {"X-API-Key": "tml-many"}
    made = []

    def make(_: int) -> None:
        for _ in range(10):
            answer = server.ask("POST", "/api/v1/create_session", json.dumps(SESSION).encode(), **key)[1]
            session = json.loads(answer)["session_id"]
            made.append(session)
            assert server.ask("POST", f"/api/v1/sessions/{session}/finish", b"{}", **key)[0] == 204

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    sessions = server.rest("tml-many").list_sessions(limit=10_000).result().sessions
    assert sorted(sessions) == sorted(made) and len(set(made)) == 80
