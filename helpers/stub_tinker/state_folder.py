"""The state folder of a server that runs: whose it is, and the notes that say where the server is."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from helpers.errors import CourseError
from helpers.files import write_json
from helpers.stub_tinker.status import SERVER_FILE, TOKEN_FILE


class Notes:
    """A file that says where the server is, and the token that opens its status page to who may read it."""

    def __init__(self, state: Path):
        self._server, self._token = state / SERVER_FILE, state / TOKEN_FILE

    def exist(self) -> bool:
        """Whether a server serves; one that is ending has taken its notes away."""
        return self._server.exists()

    def write(self, url: str, base_models: list[str], token: str) -> None:
        self._token.unlink(missing_ok=True)
        with open(os.open(self._token, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        write_json(self._server, {"url": url, "pid": os.getpid(), "base_models": base_models})

    def remove(self) -> None:
        for path in (self._server, self._token):
            path.unlink(missing_ok=True)


def take(state: Path) -> Notes:
    """Take a state folder for this process, after a server that is just ending.

    Raises:
        CourseError: a server that goes on uses it.
    """
    notes = Notes(state)
    try:
        lock(
            state, notes.exist, lambda: print(f"waiting for the server that uses {state} to end", flush=True)
        )
    except TimeoutError:
        raise CourseError(
            f"another stub Tinker backend uses {state}",
            "give this one another folder with --state-dir, or stop the other",
        ) from None
    return notes


def lock(folder: Path, in_use: Callable[[], bool], on_wait: Callable[[], None], seconds: float = 60) -> int:
    """Take a folder for this process; the lock goes when the process ends, however it ends.

    Args:
        in_use: whether its holder serves; one that is ending is waited for.
        on_wait: called once, if there is a wait.

    Returns:
        The descriptor that holds it.

    Raises:
        TimeoutError: another process keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    deadline = time.monotonic() + seconds
    waited = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if in_use() or time.monotonic() > deadline:
                os.close(handle)
                raise TimeoutError from None
        if not waited:
            on_wait()
            waited = True
        time.sleep(0.1)
