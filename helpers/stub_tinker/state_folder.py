"""The state folder of a server that runs: whose it is, its secrets, and notes of where the server is."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers.errors import CourseError
from helpers.files import write_json, write_text
from helpers.stub_folder import SERVER_FILE
from helpers.stub_tinker.errors import WriteError
from helpers.stub_tinker.status import TOKEN_FILE

CHOOSE = "free disk space, or choose another folder with --state-dir"


class Notes:
    """A file that says where the server is, and the token that opens its status page to who may read it."""

    def __init__(self, state: Path):
        self._server, self._token = state / SERVER_FILE, state / TOKEN_FILE

    def exist(self) -> bool:
        """Whether a server serves; one that is ending has taken its notes away."""
        return self._server.exists()

    def write(self, url: str, base_models: list[str], token: str) -> None:
        write_text(self._token, token, private=True)
        write_json(self._server, {"url": url, "pid": os.getpid(), "base_models": base_models})

    def remove(self) -> None:
        for path in (self._server, self._token):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def usable(state: Path) -> Iterator[None]:
    """Turn what the disk refuses at the start of a server into one line.

    Raises:
        CourseError: says which folder and why.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CourseError(f"can't use the state folder {state}: {reason}", CHOOSE) from error


def secret(state: Path) -> bytes:
    """The secret of a state folder, made if there is none. It signs URLs of files and hides keys."""
    path = state / "url_secret"
    if not path.is_file() or path.stat().st_size != 32:
        temporary = path.with_name(".url_secret.tmp")
        with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        os.replace(temporary, path)
    return path.read_bytes()


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
