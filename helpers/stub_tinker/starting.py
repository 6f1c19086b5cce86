"""The start of a server: mistakes in its options are said before the libraries that compute are imported."""

import argparse
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import local_model, model_folder
from helpers.errors import CourseError
from helpers.files import private_folder
from helpers.net import is_loopback
from helpers.stub_folder import KEY_FILE
from helpers.stub_tinker.options import api_keys, state_dir
from helpers.stub_tinker.status import TOKEN_FILE


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        CourseError: the port is taken or the address is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends answers without delay (TCP_NODELAY) only on sockets that name the protocol; else each
        # takes 40 ms more.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        return listener
    except (OSError, OverflowError) as error:
        raise CourseError(
            f"can't listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            "choose another with --port, or --port 0 for any free one",
        ) from error


def run(
    options: argparse.Namespace, say: Callable[[str, argparse.Namespace, Any], None] | None = None
) -> int:
    """Serve until stopped by a signal or by idleness. Returns the exit status.

    Args:
        options: from `parse_arguments`.
        say: called once when the server is up, with its address, the options and the `Service`; says what an
            operator wants to know if None.

    Raises:
        CourseError: an option can't be followed, or the port or the state folder is taken or can't be used.
    """
    keys = api_keys(options)
    listener = bind(options.host, options.port)
    private_folder(state_dir(options))
    folders = [str(Path(folder).absolute()) for folder in options.base_model]
    folders = folders or [str(local_model.local_base_model())]
    for folder in folders:
        model_folder.check_model_folder(folder)
    from helpers.stub_tinker.serving import serve  # imports torch and the SDK, which takes seconds

    serve(options, keys, listener, folders, say or say_started)
    return 0


def say_started(url: str, options: argparse.Namespace, service: Any) -> None:
    """What an operator wants to know when the server is up."""
    state = state_dir(options)
    key_file = shlex.quote(str(state / KEY_FILE))
    allow = "" if is_loopback(options.host) else " TINKER_ALLOW_HTTP=1"
    precision = str(service.dtype).split(".")[-1]
    lines = [
        f"stub Tinker backend on {url} ({service.device.type}, {precision})",
        f"  checkpoints in {state}",
        f"  to use it:  export TINKER_BASE_URL={url}{allow} TINKER_SERVER_API_KEY=$(cat {key_file})",
        "              (programs other than this course: TINKER_API_KEY)",
        f"  to see what it does:  python -m helpers.stub_tinker --status --state-dir {state}, or {url} in a "
        f"browser (any name; as password, the text in {state / TOKEN_FILE})",
        "  base models: " + "\n               ".join(service.engine.bases),
    ]
    print("\n".join(lines), flush=True)
