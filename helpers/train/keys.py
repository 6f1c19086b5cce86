"""Which key goes to which server. The one for hosted Tinker goes nowhere else.

TINKER_API_KEY          hosted Tinker
TINKER_SERVER_API_KEY   the server at TINKER_BASE_URL, or at another URL
STUB_TINKER_API_KEY     the stub on this machine; if it isn't set, the one in its state folder
"""

import os
from urllib.parse import urlsplit

from helpers import net
from helpers.errors import BackendError

# What the SDK takes if nothing is set.
HOSTED_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"
HOSTED_KEY = "TINKER_API_KEY"
SERVER_KEY = "TINKER_SERVER_API_KEY"
STUB_KEY = "STUB_TINKER_API_KEY"
ALLOW_HTTP = "TINKER_ALLOW_HTTP"
TRIED = "COURSE_KEY_TRIED"  # `course run` sets it for its notebooks: it has asked the service already
PLACEHOLDER = "tml-no-key"  # for a server that asks for none: the SDK always sends one

# The SDK reads these too, and sends what they stand for to any server, or to any that asks for it.
OF_HOSTED = ("TINKER_CREDENTIAL_CMD", "CLOUDFLARE_ACCESS_CLIENT_ID", "CLOUDFLARE_ACCESS_CLIENT_SECRET")
_set_aside: dict[str, str] = {}


def hosted_key() -> str:
    """The key for hosted Tinker.

    Raises:
        BackendError: it is not set.
    """
    os.environ.update(_set_aside)
    if key := os.environ.get(HOSTED_KEY):
        return key
    raise BackendError(
        f"hosted Tinker needs a key, and {HOSTED_KEY} is not set",
        f"export {HOSTED_KEY}=tml-…, or use backend 'stub'",
    )


def server_key() -> str:
    """The key for a server at a URL."""
    set_hosted_aside()
    return os.environ.get(SERVER_KEY) or PLACEHOLDER


def server_key_advice() -> str:
    """What to do when a server at a URL refuses the key."""
    if os.environ.get(SERVER_KEY):
        return f"check {SERVER_KEY}, the key for this server, and the address"
    return f"{SERVER_KEY} is not set: stop JupyterLab, export the key for this server, and start it again"


def stub_key(own: str) -> str:
    """The key for the stub on this machine.

    Args:
        own: the one of its state folder.
    """
    set_hosted_aside()
    return os.environ.get(STUB_KEY) or own


def environment_of_stub() -> dict[str, str]:
    """The environment to start a stub in: this process's, without keys for others."""
    return {
        name: value for name, value in os.environ.items() if name == STUB_KEY or not name.endswith("_API_KEY")
    }


def is_hosted(url: str) -> bool:
    """Whether a URL is of hosted Tinker."""
    return url.startswith(HOSTED_URL.removesuffix("services/tinker-prod"))


def check_address(url: str) -> None:
    """Refuse to send a key, or data, in plain HTTP to another machine.

    Raises:
        BackendError: the URL is plain HTTP, not of this machine, and `TINKER_ALLOW_HTTP` is not 1.
    """
    try:
        parts = urlsplit(url)
        host = "" if parts.username else parts.hostname or ""
    except ValueError:
        host = ""
    if not host:
        raise BackendError(
            "the server's address names no machine, or has a user name in it",
            "give one such as https://server.example",
        )
    if url.startswith("https://") or net.is_loopback(host) or os.environ.get(ALLOW_HTTP) == "1":
        return
    raise BackendError(
        f"{url} is plain HTTP to another machine: anyone on the way can read your key and your data",
        f"use https://…; if you trust the whole network, as in a classroom, export {ALLOW_HTTP}=1",
    )


def set_hosted_aside() -> None:
    """Take what the SDK would send to any server out of this process's environment, until `hosted_key`."""
    _set_aside.update({name: os.environ.pop(name) for name in OF_HOSTED if name in os.environ})
