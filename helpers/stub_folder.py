"""The state folder of a stub backend, as the server that uses it and who looks for that server both know it.

    STATE/key           lets this user in, and nobody else: only this user can read it
    STATE/server.json   where the server is, while one runs

Whoever answers at that address has to prove that it knows the key before the key is sent there.
"""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from helpers import net
from helpers.files import write_text

KEY_FILE = "key"
SERVER_FILE = "server.json"
NONCE = "[0-9a-f]{32}"


def own_key(state: Path) -> str:
    """The key of a state folder, made if there is none that other users can't read.

    Raises:
        RunError: it can't be written.
    """
    path = state / KEY_FILE
    if not path.is_file() or path.stat().st_mode & 0o077 or not path.read_text().startswith("tml-"):
        write_text(path, f"tml-{secrets.token_urlsafe(24)}", private=True)
    return path.read_text()


def proof(key: str, nonce: str, url: str) -> str:
    """What only someone with the key can answer to a nonce. It is good for one address: passing on the answer
    of a server at another one proves nothing.
    """
    return hmac.new(key.encode(), f"stub_tinker {nonce} {url}".encode(), hashlib.sha256).hexdigest()


def running_server(state: Path) -> dict | None:
    """What the server that uses a state folder says of itself, or None if none runs.

    Returns:
        `url`, `pid`, `base_models`, and `key`, which lets this user in.
    """
    note = state / SERVER_FILE
    try:
        if note.stat().st_uid != os.geteuid():
            return None
        server, key, nonce = (
            json.loads(note.read_text()),
            (state / KEY_FILE).read_text(),
            secrets.token_hex(16),
        )
        answer = json.loads(net.get(f"{server['url']}/api/v1/healthz?nonce={nonce}", seconds=5))
        is_ours = hmac.compare_digest(answer["proof"], proof(key, nonce, server["url"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or nobody behind it, or somebody else
    return {**server, "key": key} if is_ours else None
