"""Who can't use a stub on this machine: web pages, other users, and whoever opens connections only."""

import asyncio
import contextlib
import hashlib
import json
import os
import pwd
import resource
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tinker
import uvicorn
from browser_attack import Answering, attack, find_browser, serving
from starlette.requests import Request
from stub import Server, command

from helpers import stub_folder
from helpers.errors import CourseError
from helpers.runs.run import new_run
from helpers.stub_folder import own_key, running_server
from helpers.stub_tinker import connections, state_folder
from helpers.stub_tinker.access import Access
from helpers.stub_tinker.gate import Gate

LIST = "/api/v1/training_runs"
MAKE = "/api/v1/create_session"
SESSION = b'{"tags": [], "user_metadata": {}, "sdk_version": "0", "type": "create_session"}'


# Web pages


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({}, 200, "training_runs"),
        ({"Host": "localhost"}, 200, "training_runs"),
        ({"Host": "[::1]:9"}, 200, "training_runs"),
        ({"Host": "evil.test"}, 403, "--name"),
        ({"Host": "127.0.0.1.evil.test:8765"}, 403, "--name"),
        ({"Host": "192.0.2.7"}, 403, "--name"),
        ({"Host": ""}, 403, "--name"),
        ({"Host": "[::1"}, 403, "--name"),
        ({"Origin": "http://evil.test"}, 403, "web pages of"),
        ({"Origin": "http://127.0.0.1:3000"}, 403, "web pages of"),
        ({"Origin": "null"}, 403, "web pages of"),
        ({"X-Long": "x" * 70_000}, 431, "64 KiB"),
        ({"X-API-Key": "tml-stub"}, 401, "missing or wrong"),
        ({"X-API-Key": ""}, 401, "missing or wrong"),
    ],
)
def test_only_who_names_the_server_and_brings_a_key_is_let_in(server, headers, status, words):
    code, answer, _ = server.ask("GET", LIST, **headers)
    assert (code, words in answer.decode()) == (status, True), answer
    assert status == 401 or server.ask("GET", "/api/v1/healthz", **headers)[0] == status


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; a=b"]
)
def test_a_form_cannot_change_anything(server, kind):
    own = {"Content-Type": kind}
    assert server.ask("POST", MAKE, SESSION, **own)[0] == 415
    assert server.ask("DELETE", f"{LIST}/r/checkpoints/weights/x", **own)[0] == 415
    assert server.ask("POST", MAKE, SESSION, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


@pytest.mark.parametrize(
    ("host", "names", "asked", "let_in"),
    [
        ("0.0.0.0", [], "192.0.2.7:8765", True),
        ("0.0.0.0", [], "[2001:db8::1]:8765", True),
        ("0.0.0.0", [], socket.gethostname(), True),
        ("0.0.0.0", [], "evil.test", False),
        ("lab.example", [], "LAB.example:8765", True),
        ("0.0.0.0", ["lab.example"], "lab.example", True),
        ("127.0.0.1", ["proxy.example"], "proxy.example", True),
    ],
)
def test_names_of_a_server_on_a_network(host, names, asked, let_in):
    """An address in digits can't be rebound, so on a network any is fine."""
    scope = {"type": "http", "method": "GET", "raw_path": b"/", "query_string": b""}
    request = Request({**scope, "headers": [(b"host", asked.encode())]})
    assert (Gate(host, names).objection(request) is None) == let_in


@pytest.mark.skipif(not find_browser(), reason="no chromium or google-chrome is installed")
def test_a_page_in_a_real_browser_gets_nothing(server, service, tmp_path):
    client = service.create_lora_training_client(server.model, rank=4).result()
    client.save_weights_external("kept").result()
    before = server.rest().list_sessions(limit=10_000).result().sessions
    results = attack(int(server.url.rsplit(":", 1)[1]), client.model_id, server.key, tmp_path / "profile")
    assert len(results) == 16
    assert {name: got for name, got in results.items() if got[0] not in (0, 403)} == {}
    assert "rebound: list" in results and results["rebound: list"][0] == 403  # it did reach the server
    assert server.rest().list_sessions(limit=10_000).result().sessions == before
    kept = server.rest().list_checkpoints(client.model_id).result().checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in kept] == ["external_weights/kept"]


# Other users of this machine


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_reads_neither_keys_nor_runs(small_model, monkeypatch):
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)  # pytest's own folders are closed to others
        monkeypatch.setenv("COURSE_RUNS_DIR", f"{home}/runs")
        run, state = new_run("mine").path, Path(home) / "stub"
        state.mkdir(mode=0o755)  # as an earlier version made it
        server = Server(small_model, state)
        for word in ("cat", "ls"):
            files = [state / "key", state / "server.json", state / "status_token", run / "manifest.json"]
            for path in files if word == "cat" else [state, run]:
                result = subprocess.run(
                    [word, path], user="nobody", group="nogroup", capture_output=True, text=True
                )
                assert "Permission denied" in result.stderr and not result.stdout, path
        assert subprocess.run(["ls", home], user="nobody", capture_output=True).returncode == 0
        server.stop()


def test_a_key_is_made_once_for_this_user_alone(tmp_path):
    key = own_key(tmp_path)
    path = tmp_path / stub_folder.KEY_FILE
    assert len(key) > 30 and own_key(tmp_path) == key and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # others may have read it
    assert own_key(tmp_path) != key and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_server_is_found_again_and_uses_the_same_key(server):
    found = running_server(server.state)
    assert found and found["url"] == server.url
    assert (
        tinker.RestClient(base_url=server.url, api_key=found["key"]).list_training_runs().result() is not None
    )
    assert found["key"] not in server.log.read_text()


def impostor(reached: list, relay: str) -> type[Answering]:
    """A server that says that it is a stub. Notes what reaches it."""

    class Impostor(Answering):
        def do_GET(self) -> None:
            reached.append((self.path, dict(self.headers)))
            answer = json.dumps({"status": "ok", "service": "stub_tinker", "proof": "0" * 64}).encode()
            self.send(200, urllib.request.urlopen(relay + self.path).read() if relay else answer)

    return Impostor


@pytest.mark.parametrize("relays", [False, True])
def test_an_impostor_is_not_taken_for_the_stub_and_never_sees_the_key(server, tmp_path, relays):
    """It may even pass the nonce on to the real one."""
    key = own_key(server.state if relays else tmp_path)
    (tmp_path / "key").write_text(key)
    reached: list = []
    with serving(impostor(reached, server.url if relays else "")) as url:
        (tmp_path / "server.json").write_text(json.dumps({"url": url, "pid": 1, "base_models": []}))
        assert running_server(tmp_path) is None
    assert len(reached) == 1 and key not in str(reached)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_note_that_another_user_wrote_is_not_read(server, tmp_path):
    for name in ("key", "server.json"):
        shutil.copy(server.state / name, tmp_path)
    assert running_server(tmp_path)
    os.chown(tmp_path / "server.json", pwd.getpwnam("nobody").pw_uid, -1)
    assert running_server(tmp_path) is None


def test_an_owner_does_not_tell_the_key(server):
    run = server.connect("tml-first")
    run.create_lora_training_client(server.model, rank=4).result()
    owner = server.rest("tml-first").list_training_runs().result().training_runs[0].model_owner
    assert owner not in [hashlib.sha256(b"tml-first").hexdigest()[:length] for length in (8, 16, 64)]
    ids = [Access(["tml-a"], secret).earlier_owners for secret in (b"one", b"other")]
    assert set(ids[0].values()).isdisjoint(ids[1].values())
    run.close("success").result()


def test_what_an_earlier_version_kept_is_still_there(small_model, tmp_path):
    """Its owners were plain hashes: of `tml-stub`, for what belongs to this user, or of a client's key."""
    server = Server(small_model, tmp_path / "state")
    service = server.connect("tml-a")
    paths = [service.create_lora_training_client(server.model, rank=4).result().save_state("s").result().path]
    paths.append(
        service.create_lora_training_client(server.model, rank=4).result().save_state("s").result().path
    )
    server.kill()
    for path, key in zip(paths, ("tml-stub", "tml-b"), strict=True):
        note = server.state / "runs" / path.split("/")[2] / "run.json"
        plain = hashlib.sha256(key.encode()).hexdigest()[:16]
        note.write_text(json.dumps(json.loads(note.read_text()) | {"owner": plain}))
    again = Server(small_model, tmp_path / "state")
    for path, key in zip(paths, (own_key(again.state), "tml-b"), strict=True):
        kept = again.rest(key).list_user_checkpoints().result().checkpoints
        assert [checkpoint.tinker_path for checkpoint in kept] == [path]
    assert again.rest("tml-a").list_user_checkpoints().result().checkpoints == []
    again.stop()


def test_a_file_can_be_fetched_only_while_its_checkpoint_is_published(server):
    owner = server.connect("tml-first")
    client = owner.create_lora_training_client(server.model, rank=4).result()
    path = client.save_weights_external("shared").result().path
    own, other = server.rest("tml-first"), server.rest("tml-other")
    own.publish_checkpoint_from_tinker_path(path).result()
    urls = [
        rest.get_external_weights_urls(path).result().urls["adapter_config.json"] for rest in (own, other)
    ]
    assert all(urllib.request.urlopen(url).status == 200 for url in urls)
    own.unpublish_checkpoint_from_tinker_path(path).result()
    assert urllib.request.urlopen(urls[0]).status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(urls[1])
    owner.close("success").result()


# Connections


class FewFiles(Server):
    files = 256


def test_idle_connections_neither_stop_the_server_nor_fill_the_log(small_model, tmp_path):
    server = FewFiles(small_model, tmp_path / "state")
    before, port = server.log.stat().st_size, int(server.url.rsplit(":", 1)[1])
    with contextlib.ExitStack() as stack:
        for number in range(1100):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            if number % 2:
                idle.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert server.ask("GET", LIST)[0] == 200
        service = server.connect()
        assert service.create_lora_training_client(server.model, rank=4).result(timeout=30).model_id
        service.close("success").result()
    assert server.log.stat().st_size == before
    server.stop()


@pytest.fixture
def quick(monkeypatch):
    """A server with short times, whose only answer is `ok`. Gives its port."""
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", **connections.options()))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"", 0),
        (b"GET / HT", 0),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", 0),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbod", 0),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHo", 1),
    ],
)
def test_a_client_that_stops_in_the_middle_is_let_go(quick, sent, answers):
    with socket.create_connection(("127.0.0.1", quick), timeout=20) as client:
        client.sendall(sent)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(4096):
                got += block
    assert got.count(b"200 OK") == answers


def test_a_client_that_drips_is_let_go(quick):
    """A byte now and then does not buy more time."""
    with socket.create_connection(("127.0.0.1", quick), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        with pytest.raises(OSError):
            for _ in range(100):
                client.sendall(b"X")
                time.sleep(0.1)


def test_headers_without_end_are_refused_at_64_kib(quick, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 20)  # it is their size that counts
    with socket.create_connection(("127.0.0.1", quick), timeout=20) as client:
        sent = 0
        with pytest.raises(OSError):
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            while sent < 64 << 20:
                client.sendall(b"x" * 16384)
                sent += 16384
        assert sent < 16 << 20  # what the system buffers


# Faults at the start


def test_a_state_folder_that_cannot_be_used_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("--port", "0", "--state-dir", str(tmp_path / "file" / "state"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert str(tmp_path / "file" / "state") in result.stderr and "Not a directory" in result.stderr


def test_a_full_disk_is_one_clear_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = (own_key, state_folder.secret, lambda state: state_folder.Notes(state).write("http://u", [], "t"))
    for step in steps:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(CourseError) as caught, state_folder.usable(tmp_path):
                step(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (
            str(tmp_path) in caught.value.what and "File too large" in caught.value.what and caught.value.fix
        )


def test_a_port_out_of_range_is_one_clear_line(tmp_path):
    result = command("--port", "70000", "--state-dir", str(tmp_path))
    assert result.returncode == 1 and "can't listen" in result.stderr and "Traceback" not in result.stderr
