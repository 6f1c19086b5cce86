"""What is refused before a key is looked at: requests that a web page may have made a browser send.

The browser writes Host and Origin, whatever the page wants. A page whose name was made to lead here (DNS
rebinding) shows in Host, a page of another origin in Origin, and a form can't send JSON.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.requests import Request

from helpers.net import is_loopback

MAX_HEADERS = 64 << 10  # bytes, with the address
READING = ("GET", "HEAD")
CONTENT_TYPES = ("application/json", "application/x-protobuf")


class Gate:
    """Judges requests by where they say that they come from and go to.

    Args:
        host: the address that the server listens on.
        names: others of this machine that clients may use.
    """

    def __init__(self, host: str, names: list[str]):
        self._open = not is_loopback(host)
        own = [host, socket.gethostname(), f"{socket.gethostname()}.local"] if self._open else [host]
        self._names = {name.lower() for name in [*own, *names]}

    def objection(self, request: Request) -> tuple[str, int] | None:
        """Why a request is refused, and the status that says so, or None."""
        headers = request.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if _size(request) > MAX_HEADERS:
            return f"the headers are over {MAX_HEADERS >> 10} KiB", 431
        if not self._is_own(host):
            return (
                f"this server does not go by the name {host[:100]!r}. Use the address that it printed at its "
                "start; for another name of its machine, start it with --name",
                403,
            )
        if origin is not None and origin.partition("://")[2] != host:
            return f"web pages of {origin[:100]!r} may not use this server", 403
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method not in READING and kind not in CONTENT_TYPES:
            return f"send Content-Type: {' or '.join(CONTENT_TYPES)}, also without a body", 415
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this server. An IP address can't be made to lead elsewhere."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if is_loopback(name) or name in self._names:
            return True
        try:
            return self._open and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _size(request: Request) -> int:
    address = len(request.scope["raw_path"]) + len(request.scope["query_string"])
    return address + sum(len(name) + len(value) for name, value in request.headers.raw)
