"""connect(): one call that gives a Tinker service: the stub on this machine, hosted Tinker, or a URL."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from helpers import local_model, net, paths
from helpers.errors import BackendError, RunError
from helpers.files import private_folder
from helpers.stub_folder import running_server
from helpers.text import printable
from helpers.train import keys, lineup, models
from helpers.train.patches import follow_no_redirects, stop_waiting_when_ended
from helpers.train.whereabouts import session_metadata

HOSTED = "hosted Tinker"
START_SECONDS = 120
REACH_SECONDS = 10
IDLE_SECONDS = 1800  # a stub that `connect` started ends when unused for this long


@dataclass(frozen=True)
class Backend:
    """A Tinker service to train and sample on.

    Attributes:
        kind: `stub`, `hosted` or `url`.
        url: where it is; None for hosted Tinker.
        api_key: what is sent there.
        service_client: the SDK's client, with a session of its own.
        rest_client: the SDK's client for checkpoints and runs.
    """

    kind: str
    url: str | None
    service_client: Any = field(repr=False)
    rest_client: Any = field(repr=False)
    api_key: str = field(repr=False)

    def __str__(self) -> str:
        return {
            "stub": f"stub Tinker backend on this machine ({self.url})",
            "hosted": HOSTED,
            "url": f"Tinker server at {self.url}",
        }[self.kind]

    def base_model(self, name: str = "") -> str:
        """The base model to train: `name`; if it is empty, the local one on the stub, the only one that
        another server offers, or the one that the course takes on hosted Tinker.

        Raises:
            ModelError: `name` is a local folder that holds no model.
            BackendError: the service does not offer the model; names those that it does, and a replacement.
        """
        if name or self.kind == "stub":
            name = models.resolve_base_model(name)
        if self.kind == "stub":
            return name
        return lineup.choose_model(name, _offered(self.rest_client), str(self), self.kind == "hosted")


class NoAnswerError(BackendError):
    """The service can't be reached now."""


@dataclass(frozen=True)
class KeyTrial:
    """What came of trying a key. Printed, it is a note unless the key was accepted.

    Attributes:
        accepted: False where nothing could be tried.
    """

    accepted: bool
    what: str
    fix: str = ""

    def __str__(self) -> str:
        note = "" if self.accepted else "note: "
        return printable(f"{note}{self.what}" + (f"\n→ {self.fix}" if self.fix else ""))


def connect(backend: str = "auto") -> Backend:
    """Connect to a Tinker service. It is told the course's notebook and stage, as metadata of the session.

    Args:
        backend: `auto` takes the server at `TINKER_BASE_URL` if that is set, else hosted Tinker if
            `TINKER_API_KEY` is set, else the stub. `stub`, `hosted` or a URL choose one. The stub is found if
            it runs and started if not. Which key goes where is in `train/keys.py`.

    Raises:
        BackendError: it can't be reached or started, refuses the key, or is not to be trusted with one.
    """
    kind, url = choose_backend(backend)
    if kind == "stub":
        server, fix = start_stub(), "end it, and it is started anew: course stub stop"
        url, key = server["url"], keys.stub_key(server["key"])
        service, rest = _clients(url, key, fix)
        stop_waiting_when_ended(url, service.holder, rest.holder)
    else:
        address, key, fix = _reach(kind, url)
        service, rest = _clients(address, key, fix)
    atexit.register(_close, service)
    return Backend(kind, None if kind == "hosted" else url, service, rest, key)


def check_key() -> KeyTrial | None:
    """Try the key that later notebooks will use. Nothing is tried where the stub of this machine will do the
    work, and in `course run`, which has asked its backend at the start.

    On a server at a URL this begins a session, so that an instructor sees that the learner is there.

    Returns:
        What came of it; None if there is nothing to say.

    Raises:
        BackendError: the key is missing or wrong, or must not be sent there.
    """
    if os.environ.get(keys.TRIED):
        return None
    kind, _ = choose_backend("auto")
    if kind == "stub" and os.environ.get(keys.SERVER_KEY):
        what = f"{keys.SERVER_KEY} is set and TINKER_BASE_URL is not: the stub of this machine is used"
        return KeyTrial(False, what)
    try:
        if kind == "url":
            return KeyTrial(True, f"{connect('auto')}: your key is accepted")
        if kind == "hosted":
            served_models("auto")
    except NoAnswerError as error:  # the network may be back when training begins
        return KeyTrial(False, error.what, error.fix)
    return None


def _reach(kind: str, url: str | None) -> tuple[str, str, str]:
    """The address of hosted Tinker or of a server that answers, the key for it, and what to check if it
    refuses that.
    """
    if kind == "hosted":
        key, url = keys.hosted_key(), url or keys.HOSTED_URL
        if problem := net.no_answer(url, REACH_SECONDS):  # the SDK would try for minutes
            raise NoAnswerError(
                f"{HOSTED} is {problem}", "check the network; if you use a proxy, set HTTPS_PROXY"
            )
        return url, key, f"check {keys.HOSTED_KEY}"
    url = url or ""
    _check_reachable(url)
    return url, keys.server_key(), keys.server_key_advice()


def _clients(url: str, key: str, fix: str) -> tuple[Any, Any]:
    """Clients of the SDK that have been let in, one with a session of its own."""
    with _let_in(url, fix) as tinker:
        service = tinker.ServiceClient(session_metadata(), base_url=url, api_key=key)
        rest = tinker.RestClient(base_url=url, api_key=key)
        _offered(rest)
        service.holder.get_session_id()
    return service, rest


@contextlib.contextmanager
def _let_in(url: str, fix: str) -> Iterator[Any]:
    """The SDK, whose errors say which server refused the connection."""
    import tinker

    follow_no_redirects()
    try:
        yield tinker
    except tinker.TinkerError as error:
        raise BackendError(f"{url} refused the connection: {error}", fix) from error


def _offered(rest: Any) -> dict[str, Any]:
    """The SDK's `SupportedModel` of each model that a service offers, by name."""
    offered = rest.get_server_capabilities().result().supported_models
    return {model.model_name: model for model in offered if model.model_name}


def served_models(backend: str) -> dict[str, Any]:
    """What hosted Tinker or a server at a URL offers now, by name, asked without beginning a session.

    Args:
        backend: as for `connect`; not the stub.

    Raises:
        BackendError: as `connect`.
    """
    address, key, fix = _reach(*choose_backend(backend))
    with _let_in(address, fix) as tinker:
        return _offered(tinker.RestClient(base_url=address, api_key=key))


def _close(service: Any) -> None:
    """End the session when the notebook's kernel ends, so that the server frees its memory at once."""
    with contextlib.suppress(Exception):  # the process is ending: a server that is gone needs no goodbye
        service.close("success").result(timeout=5)


def choose_backend(backend: str) -> tuple[str, str | None]:
    """Kind and address of a backend by its name, without asking it.

    Raises:
        BackendError: there is no such backend.
    """
    if backend == "auto":
        backend = os.environ.get("TINKER_BASE_URL") or (
            "hosted" if os.environ.get(keys.HOSTED_KEY) else "stub"
        )
    if backend in ("stub", "hosted"):
        return backend, None
    if backend.startswith(("http://", "https://")):
        url = backend.rstrip("/")
        return "hosted" if keys.is_hosted(url) else "url", url
    raise BackendError(
        f"no backend {backend!r}", "use 'auto', 'stub', 'hosted', or the URL of a Tinker-compatible server"
    )


def _check_reachable(url: str) -> None:
    keys.check_address(url)
    try:
        net.get(f"{url}/api/v1/healthz", seconds=10)
    except OSError as error:
        raise NoAnswerError(
            f"no Tinker server answers at {url}: {error}", "start it, or correct TINKER_BASE_URL"
        ) from error


def stub_state_dir() -> Path:
    """Where the stub that `connect` starts keeps its checkpoints."""
    return paths.cache_dir() / "stub"


def running_stub() -> dict | None:
    """What the running stub says of itself (`url`, `pid`, `base_models`, `key`), or None if none runs."""
    return running_server(stub_state_dir())


def start_stub() -> dict:
    """The stub on this machine, as `running_stub` describes it, started if none runs. Safe when several
    notebooks ask at once.

    Raises:
        BackendError: it did not come up; says where its log is.
        RunError: its folder can't be used.
    """
    if server := running_stub():
        return server
    local_model.local_base_model()
    state = private_folder(stub_state_dir())
    try:
        with FileLock(state / "start.lock"):
            return running_stub() or _launch(state)
    except OSError as error:
        raise RunError(
            f"can't write into {state}: {error.strerror}", "free disk space, or set TINKER_COURSE_HOME"
        ) from error


def _launch(state: Path) -> dict:
    """Start a stub and wait until it answers."""
    log_path = state / "server.log"
    command = [sys.executable, "-m", "helpers.stub_tinker", "--port", "0", "--state-dir", str(state)]
    with open(log_path, "w") as log:
        process = subprocess.Popen(
            [*command, "--idle-exit", str(IDLE_SECONDS)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=paths.ROOT,
            env=keys.environment_of_stub(),
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if (server := running_stub()) and server["pid"] == process.pid:
            return server
        time.sleep(0.2)
    process.kill()
    raise BackendError(
        f"the stub Tinker backend did not start:\n{log_path.read_text()[-1500:].strip()}",
        f"its whole log is {log_path}",
    )


def stop_stub() -> bool:
    """Ask the running stub to finish what it accepted and end. False if none runs."""
    server = running_stub()
    if server is None:
        return False
    os.kill(server["pid"], signal.SIGTERM)
    return True
