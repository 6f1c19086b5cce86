"""Who is let in, and as whom: the API key that a request brings."""

import base64
import binascii
import contextlib
import hashlib
import hmac
from collections.abc import Mapping

from starlette.requests import Request

STATUS_PATH = "/"
OPEN_PATHS = ("/api/v1/healthz", "/files/")  # a file's URL carries its own signature
EARLIER_KEY = "tml-stub"  # what notebooks sent to a stub of an earlier version


class Access:
    """Judges requests by their keys, and says whose things they may see.

    Args:
        keys: the API keys that clients may send, the one of the state folder first.
        secret: of the state folder. Without it nobody can tell from an owner's id which key it stands for,
            however easy to guess that key is.
        token: opens the status page, with every client in it.
    """

    def __init__(self, keys: list[str], secret: bytes, token: str = ""):
        self._token = token
        self._owners = {key: _keyed(secret, key) for key in keys}
        self.earlier_owners = {
            _plain(EARLIER_KEY): self._owners[keys[0]],
            **{_plain(key): owner for key, owner in self._owners.items()},
        }

    def allows(self, request: Request) -> bool:
        if request.scope["path"].startswith(OPEN_PATHS):
            return True
        presented = _presented(request)
        matches = [_same(presented, key) for key in self._owners]  # all: the time says nothing about which
        return any(matches) or self.is_operator(request)

    def is_operator(self, request: Request) -> bool:
        """Whether a request for the status page brings the token."""
        at_status = request.scope["path"] == STATUS_PATH
        return bool(self._token) and at_status and _same(_presented(request), self._token)

    def owner(self, request: Request) -> str:
        """Whose things a request may see; empty for one that brings no key."""
        return self._owners.get(_presented(request), "")

    def names(self, given: Mapping[str, str]) -> dict[str, str]:
        """What owners are called on the status page: as `given` says it of a key, else by the key's place."""
        return {
            owner: given.get(key) or (f"key {place}" if place else "this machine's own key")
            for place, (key, owner) in enumerate(self._owners.items())
        }


def _keyed(secret: bytes, key: str) -> str:
    return hmac.new(secret, b"owner " + key.encode(), hashlib.sha256).hexdigest()[:16]


def _plain(key: str) -> str:
    """The owner's id in a state folder of an earlier version."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _presented(request: Request) -> str:
    """The key in X-API-Key or, as OpenAI's clients send it, in Authorization: Bearer. For the status page,
    the password of Basic authentication too.
    """
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    at_status = request.scope["path"] == STATUS_PATH
    if at_status and kind.lower() == "basic" and "x-api-key" not in request.headers:
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
    bearer = value if kind.lower() == "bearer" else ""
    return request.headers.get("x-api-key", bearer)


def _same(presented: str, key: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), key.encode())
