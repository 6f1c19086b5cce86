"""Running a stub backend for several people: keys, and who sees what on the status page."""

import base64
import json
import urllib.error
import urllib.request

import pytest
import tinker
from stub import Server, command, train
from tinker import types

KEYS = ("tml-alpha", "tml-beta")
NOBODY = "Basic bm9ib2R5OndoYXQ="


@pytest.fixture(scope="module")
def server(small_model, tmp_path_factory):
    """A server with two keys, one given as an option and one in a file."""
    folder = tmp_path_factory.mktemp("operation")
    (folder / "keys.txt").write_text(f"# the class of Tuesday\n\n{KEYS[1]}\n")
    server = Server(
        small_model, folder / "state", "--api-key", KEYS[0], "--api-key-file", str(folder / "keys.txt")
    )
    server.key = KEYS[0]
    yield server
    server.stop()
    log = server.log.read_text()
    assert "Traceback" not in log and not any(key in log for key in KEYS)


# Keys


def test_either_key_is_let_in_and_no_other(server):
    for key in KEYS:
        assert server.rest(key).list_training_runs().result().training_runs == []
    for key in ("tml-gamma", "tml-alph", "tml-alphaa", "", "tml-\xe4"):
        assert server.ask("GET", "/api/v1/training_runs", **{"X-API-Key": key})[0] == 401
    for file in server.state.rglob("*"):
        if file.is_file():
            assert not any(key.encode() in file.read_bytes() for key in KEYS), file


# Status


@pytest.fixture(scope="module")
def clients(server):
    """One client of each key, which have trained and sampled."""
    services = []
    for key, name in zip(KEYS, ("<script>alert(1)</script>", "beta \x1b[31m"), strict=True):
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
    status = json.loads(server.ask("GET", "/")[1])
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
    code, _, headers = server.ask("GET", "/", Accept="text/html", **{"X-API-Key": ""})
    assert code == 401 and {name.lower() for name in headers} >= {"www-authenticate"}
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
            urllib.request.Request(server.url, headers={**page_headers, "Authorization": NOBODY}), timeout=30
        )
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic")
    basic = {"Authorization": page_headers["Authorization"], "X-API-Key": ""}
    assert server.ask("GET", "/api/v1/training_runs", **basic)[0] == 401  # it opens the page only


def test_the_operator_sees_every_client_in_a_terminal(server, clients):
    result = command("--status", "--state-dir", str(server.state))
    assert result.returncode == 0, result.stderr
    assert (
        server.url in result.stdout
        and "<script>alert(1)</script>" in result.stdout
        and "beta" in result.stdout
        and "\x1b" not in result.stdout
    )
    assert "240 tokens" in result.stdout and "of other keys" not in result.stdout
    by_key = command("--status", "--url", server.url, "--api-key", KEYS[0])
    assert by_key.returncode == 0 and "of other keys" in by_key.stdout
    assert "401" in command("--status", "--url", server.url).stderr
    assert (server.state / "status_token").stat().st_mode & 0o077 == 0
