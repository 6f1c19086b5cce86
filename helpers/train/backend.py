"""connect(): one call that gives a Tinker service: the stub on this machine, hosted Tinker, or a URL."""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from helpers import local_model, net, paths
from helpers.errors import BackendError
from helpers.train import models
from helpers.train.patches import stop_waiting_when_ended

HOSTED_MODEL = "Qwen/Qwen3-30B-A3B-Instruct-2507"
STUB_KEY = "tml-stub"
START_SECONDS = 120
IDLE_SECONDS = 1800  # a stub that `connect` started ends when unused for this long


@dataclass(frozen=True)
class Backend:
    """A Tinker service to train and sample on.

    Attributes:
        kind: `stub`, `hosted` or `url`.
        url: where it is; None for hosted Tinker.
        api_key: what to send; None means that the SDK takes `TINKER_API_KEY`.
        service_client: the SDK's client, with a session of its own.
        rest_client: the SDK's client for checkpoints and runs.
    """

    kind: str
    url: str | None
    service_client: Any = field(repr=False)
    rest_client: Any = field(repr=False)
    api_key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return {
            "stub": f"stub Tinker backend on this machine ({self.url})",
            "hosted": "hosted Tinker",
            "url": f"Tinker server at {self.url}",
        }[self.kind]

    def base_model(self, name: str = "") -> str:
        """The base model to train: `name`; if it is empty, the only one that the server offers, or the
        guide's.

        Raises:
            ModelError: `name` is a local folder that holds no model.
        """
        if name or self.kind == "stub":
            return models.resolve_base_model(name)
        offered = [
            model.model_name for model in self.rest_client.get_server_capabilities().result().supported_models
        ]
        return offered[0] if len(offered) == 1 else HOSTED_MODEL


def connect(backend: str = "auto") -> Backend:
    """Connect to a Tinker service.

    Args:
        backend: `auto` takes the server at `TINKER_BASE_URL` if that is set, else hosted Tinker if
            `TINKER_API_KEY` is set, else the stub. `stub`, `hosted` or a URL choose one. The stub is found if
            it runs and started if not.

    Raises:
        BackendError: it can't be reached or started, or it refuses the key.
    """
    kind, url = choose_backend(backend)
    key = _key(kind)
    if kind == "stub":
        url = start_stub()
    elif url:
        _check_reachable(url)
    import tinker

    arguments: dict[str, Any] = {"base_url": url, "api_key": key} if url else {}
    try:
        service = tinker.ServiceClient(**arguments)
        rest = tinker.RestClient(**arguments)
        rest.get_server_capabilities().result()
    except tinker.TinkerError as error:
        raise BackendError(
            f"{url or 'hosted Tinker'} refused the connection: {error}",
            "check TINKER_API_KEY and the address",
        ) from error
    if kind == "stub" and url:
        stop_waiting_when_ended(url, service.holder, rest.holder)
    atexit.register(_close, service)
    return Backend(kind, url, service, rest, key)


def _key(kind: str) -> str:
    """What to send as the key: never your real one to the stub."""
    if kind == "stub":
        return os.environ.get("STUB_TINKER_API_KEY", STUB_KEY)
    key = os.environ.get("TINKER_API_KEY")
    if kind == "hosted" and not key:
        raise BackendError(
            "hosted Tinker needs a key, and TINKER_API_KEY is not set",
            "export TINKER_API_KEY=tml-…, or use backend 'stub'",
        )
    return key or STUB_KEY


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
        if url := os.environ.get("TINKER_BASE_URL"):
            return "url", url
        return ("hosted", None) if os.environ.get("TINKER_API_KEY") else ("stub", None)
    if backend in ("stub", "hosted"):
        return backend, None
    if backend.startswith(("http://", "https://")):
        return "url", backend.rstrip("/")
    raise BackendError(
        f"no backend {backend!r}", "use 'auto', 'stub', 'hosted', or the URL of a Tinker-compatible server"
    )


def _check_reachable(url: str) -> None:
    try:
        net.get(f"{url}/api/v1/healthz", seconds=10)
    except OSError as error:
        raise BackendError(
            f"no Tinker server answers at {url}: {error}", "start it, or correct TINKER_BASE_URL"
        ) from error


def stub_state_dir() -> Path:
    """Where the stub that `connect` starts keeps its checkpoints."""
    return paths.cache_dir() / "stub"


def running_stub() -> dict | None:
    """What the running stub says of itself (`url`, `pid`, `base_models`), or None if none runs."""
    note = stub_state_dir() / "server.json"
    try:
        server = json.loads(note.read_text())
        if json.loads(net.get(f"{server['url']}/api/v1/healthz", seconds=5)).get("service") == "stub_tinker":
            return server
    except (OSError, ValueError, KeyError):
        return None  # no note, or nobody behind it: not running
    return None


def start_stub() -> str:
    """The URL of the stub on this machine, started if none runs. Safe when several notebooks ask at once.

    Raises:
        BackendError: it did not come up; says where its log is.
    """
    if server := running_stub():
        return server["url"]
    local_model.local_base_model()
    state = stub_state_dir()
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(state / "start.lock"):
        server = running_stub() or _launch(state)
    return server["url"]


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
            env={key: value for key, value in os.environ.items() if key != "TINKER_API_KEY"},
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
