"""URLs of files of external weights, and of sessions' traces. Who holds one may fetch its file, without a
key, until it expires or who asked for it may no longer read the checkpoint.
"""

import hashlib
import hmac
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

from helpers.stub_tinker.checkpoint_store import Store, parse_path
from helpers.stub_tinker.errors import StoreError
from helpers.stub_tinker.state_folder import secret

SECONDS = 3600
EXPIRED = "this URL has expired: ask for a new one"


class SignedUrls:
    """Signs and checks URLs of a store's files with a secret that the state folder keeps."""

    def __init__(self, folder: Path, store: Store):
        self._store, self._secret = store, secret(folder)

    def urls(self, path: str, owner: str, server_url: str) -> dict:
        """A URL for each file of a checkpoint that `owner` may read, and when they expire."""
        files = self._store.find(path, owner)[1]["files"]
        expires = int(time.time()) + SECONDS
        run, _, name = parse_path(path)
        urls = {
            file: f"{server_url}/files/{quote(run)}/{quote(name)}/{quote(file)}?"
            + urlencode(
                {"expires": expires, "for": owner, "signature": self.sign(path, file, expires, owner)}
            )
            for file in files
        }
        return {"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()}

    def sign(self, path: str, file: str, expires: int, owner: str) -> str:
        """A signature for this very checkpoint: one saved later under the same name has another.

        Raises:
            StoreError: there is no such checkpoint.
        """
        details = self._store.look_up(path)[1]
        if details is None:
            raise StoreError(f"there is no checkpoint {path}", 404)
        identity = details.get("id") or details["time"]
        return self._signature(path, identity, file, expires, owner)

    def _signature(self, *parts: object) -> str:
        message = "\n".join(map(str, parts))
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()

    def trace_url(self, session: str, owner: str, server_url: str) -> str:
        """A URL for the trace of a session of `owner`."""
        expires = int(time.time()) + SECONDS
        signature = self._signature("trace", session, expires, owner)
        query = urlencode({"expires": expires, "for": owner, "signature": signature})
        return f"{server_url}/files/{quote(session)}/trace?{query}"

    def check_trace(self, session: str, expires: int, owner: str, signature: str) -> None:
        """Raises:
        StoreError: the signature is wrong, or the time is over.
        """
        expected = self._signature("trace", session, expires, owner)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise StoreError("the signature of this URL is wrong", 403)
        if expires < time.time():
            raise StoreError(EXPIRED, 403)

    def file(self, path: str, file: str, expires: int, owner: str, signature: str) -> Path:
        """The file that a signed URL names.

        Args:
            owner: who asked for the URL. Of another's checkpoint, it has to be published still.

        Raises:
            StoreError: the signature is wrong, the time is over, or the file is gone or no longer published.
        """
        if self._store.look_up(path)[1] is None or not hmac.compare_digest(
            self.sign(path, file, expires, owner).encode(), signature.encode()
        ):
            raise StoreError("the signature of this URL is wrong, or its checkpoint is gone", 403)
        if expires < time.time():
            raise StoreError(EXPIRED, 403)
        folder, details, _ = self._store.find(path, owner)
        if file not in details["files"]:
            raise StoreError(f"{path} has no file {file!r}", 404)
        return folder / file
