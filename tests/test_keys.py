"""Keys go to the server that they are for, and to no other."""

import functools
import json
import os
from collections.abc import Callable

import pytest
import tinker
from browser_attack import Answering, serving
from tinker import _base_client
from tinker.lib import base_url

from helpers.errors import BackendError
from helpers.train import keys
from helpers.train.backend import choose_backend, connect

HOSTED, SERVER = "tml-hosted-key", "tml-server-key"
CONFIG = "/api/v1/client/config"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A shell in which everything is set that the SDK reads."""
    for name in ("TINKER_BASE_URL", keys.ALLOW_HTTP):
        monkeypatch.delenv(name, raising=False)
    for name in (keys.HOSTED_KEY, *keys.OF_HOSTED):
        monkeypatch.setenv(name, f"echo {HOSTED}" if name.endswith("CMD") else HOSTED)
    monkeypatch.setenv(keys.SERVER_KEY, SERVER)
    monkeypatch.setattr(keys, "_set_aside", {})


def recorder(reached: list, answer: Callable[[str], tuple[int, dict, dict]]) -> type[Answering]:
    """A server that notes the path and the headers of each request.

    Args:
        answer: status, JSON and headers of the answer to a path.
    """

    class Recorder(Answering):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reached.append((self.path, str(self.headers)))
            status, body, headers = answer(self.path)
            self.send(status, json.dumps(body).encode(), Content_Type="application/json", **headers)

        do_GET = do_POST = handle_any

    return Recorder


def sent_to(reached: list) -> str:
    return " ".join(headers for _, headers in reached)


def refuse(path: str) -> tuple[int, dict, dict]:
    return (200 if path.endswith("/healthz") else 401), {"detail": "no"}, {}


def ask_for_commands(path: str) -> tuple[int, dict, dict]:
    """A server that wants credentials from the user's command, as hosted Tinker may."""
    wanted = {"pjwt_auth_enabled": True, "credential_default_source": "credential_cmd"}
    return (200, wanted, {}) if path == CONFIG else refuse(path)


@pytest.mark.parametrize("answer", [refuse, ask_for_commands])
@pytest.mark.parametrize("by_variable", [False, True])
def test_another_server_gets_its_own_key_only(monkeypatch, answer, by_variable):
    reached: list = []
    with serving(recorder(reached, answer)) as url:
        if by_variable:
            monkeypatch.setenv("TINKER_BASE_URL", url)
        with pytest.raises(BackendError, match=r"(?s)refused the connection.*TINKER_SERVER_API_KEY"):
            connect("auto" if by_variable else url)
    assert SERVER in sent_to(reached) and HOSTED not in sent_to(reached)


def test_a_server_gets_no_hosted_key_for_want_of_its_own(monkeypatch):
    monkeypatch.delenv(keys.SERVER_KEY)
    reached: list = []
    with serving(recorder(reached, refuse)) as url, pytest.raises(BackendError):
        connect(url)
    assert keys.PLACEHOLDER in sent_to(reached) and HOSTED not in sent_to(reached)


def test_hosted_means_hosted(monkeypatch):
    """Whatever TINKER_BASE_URL says."""
    reached, asked = [], []
    monkeypatch.setattr(
        "helpers.train.backend._clients", lambda url, key, fix: asked.append((url, key)) or (None, None)
    )
    monkeypatch.setattr("atexit.register", lambda *_: None)
    monkeypatch.setattr("helpers.net.no_answer", lambda url, seconds: None)
    keys.server_key()  # an earlier connection of this process, to another server
    with serving(recorder(reached, refuse)) as url:
        monkeypatch.setenv("TINKER_BASE_URL", url)
        connect("hosted")
    assert asked == [(base_url.DEFAULT_BASE_URL, HOSTED)] and not reached
    assert HOSTED in os.environ["TINKER_CREDENTIAL_CMD"]
    assert choose_backend(base_url.DEFAULT_BASE_URL)[0] == "hosted"
    assert choose_backend("https://tinker.thinkingmachines.dev.evil.test/services")[0] == "url"


@pytest.mark.parametrize(
    "where",
    ["http://192.0.2.7:8000", "http://localhost.evil.test", "http://a@[::1]", "http://[::1", "http://"],
)
def test_plain_http_to_another_machine_is_refused_with_advice(where):
    with pytest.raises(BackendError) as caught:
        connect(where)
    assert "https://" in caught.value.fix


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://lab.example"]
)
def test_this_machine_and_https_are_fine(where):
    keys.check_address(where)


def test_plain_http_can_be_allowed(monkeypatch):
    monkeypatch.setenv(keys.ALLOW_HTTP, "1")
    keys.check_address("http://lab.example:8765")


# Redirects


@pytest.fixture
def plain_sdk(monkeypatch):
    """The SDK without the patch, and for the length of a test only."""
    wrapped = _base_client.AsyncHttpxClientWrapper
    unwrapped = wrapped.func if isinstance(wrapped, functools.partial) else wrapped
    monkeypatch.setattr(_base_client, "AsyncHttpxClientWrapper", unwrapped)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_leads_the_key_nowhere(plain_sdk, first, status):
    """The SDK's first request goes by httpx, the others by pyqwest."""
    lured: list = []

    def redirect(path: str) -> tuple[int, dict, dict]:
        if path.endswith("/healthz") or (path == CONFIG and not first):
            return 200, {}, {}
        return status, {}, {"Location": elsewhere + path}

    leads = serving(recorder([], redirect))
    with (
        serving(recorder(lured, refuse)) as elsewhere,
        leads as url,
        pytest.raises(BackendError, match="refused"),
    ):
        connect(url)
    assert not lured


def test_without_the_patch_the_sdk_still_sends_the_key_along(plain_sdk):
    lured: list = []

    def redirect(path: str) -> tuple[int, dict, dict]:
        return 307, {}, {"Location": elsewhere + path}

    leads = serving(recorder([], redirect))
    with serving(recorder(lured, refuse)) as elsewhere, leads as url, pytest.raises(tinker.TinkerError):
        tinker.RestClient(base_url=url, api_key=SERVER)
    assert SERVER in sent_to(lured), "it follows redirects without the key now: the patch can go"


def test_the_stub_is_started_without_keys_of_others(monkeypatch):
    monkeypatch.setenv(keys.STUB_KEY, "tml-my-own")
    started = keys.environment_of_stub()
    assert started.keys() & {keys.HOSTED_KEY, keys.SERVER_KEY, keys.STUB_KEY} == {keys.STUB_KEY}
    assert keys.stub_key("tml-of-the-folder") == "tml-my-own"
