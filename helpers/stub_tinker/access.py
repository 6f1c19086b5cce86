"""Who is let in, and as whom: the API key that a request brings."""

import base64
import binascii
import contextlib
import hashlib
import hmac

from starlette.requests import Request

STATUS_PATH = "/"
OPEN_PATHS = ("/api/v1/healthz", "/files/")  # a file's URL carries its own signature


class Access:
    """Judges requests by their keys.

    Args:
        keys: the API keys that clients may send; none lets everyone in.
        token: opens the status page, with every client in it.
    """

    def __init__(self, keys: list[str], token: str = ""):
        self.keys, self._token = keys, token

    def allows(self, request: Request) -> bool:
        if not self.keys or request.scope["path"].startswith(OPEN_PATHS):
            return True
        presented = _presented(request)
        matches = [_same(presented, key) for key in self.keys]  # all: the time says nothing about which
        return any(matches) or self.is_operator(request)

    def is_operator(self, request: Request) -> bool:
        """Whether a request for the status page brings the token."""
        at_status = request.scope["path"] == STATUS_PATH
        return bool(self._token) and at_status and _same(_presented(request), self._token)


def owner_of(request: Request) -> str:
    """Whose things a request may see: a hash of the key that it brings, on an open server too."""
    return hashlib.sha256(_presented(request).encode()).hexdigest()[:16]


def _presented(request: Request) -> str:
    """The key in X-API-Key, or, for the status page, the password of Basic authentication."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    at_status = request.scope["path"] == STATUS_PATH
    if at_status and kind.lower() == "basic" and "x-api-key" not in request.headers:
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
    return request.headers.get("x-api-key", "")


def _same(presented: str, key: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), key.encode())
