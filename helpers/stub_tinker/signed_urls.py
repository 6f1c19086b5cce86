"""URLs of files of external weights: who holds one may fetch its file, without a key, until it expires."""

import hashlib
import hmac
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

from helpers.stub_tinker.checkpoint_store import Store, parse_path
from helpers.stub_tinker.errors import StoreError

SECONDS = 3600


class SignedUrls:
    """Signs and checks URLs of a store's files with a secret that the state folder keeps."""

    def __init__(self, folder: Path, store: Store):
        self._store, self._secret = store, _read_secret(folder / "url_secret")

    def urls(self, path: str, owner: str, server_url: str) -> dict:
        """A URL for each file of a checkpoint that `owner` may read, and when they expire."""
        files = self._store.find(path, owner)[1]["files"]
        expires = int(time.time()) + SECONDS
        run, _, name = parse_path(path)
        urls = {
            file: f"{server_url}/files/{quote(run)}/{quote(name)}/{quote(file)}?"
            + urlencode({"expires": expires, "signature": self.sign(path, file, expires)})
            for file in files
        }
        return {"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()}

    def sign(self, path: str, file: str, expires: int) -> str:
        """A signature for this very checkpoint: one saved later under the same name has another.

        Raises:
            StoreError: there is no such checkpoint.
        """
        details = self._store.look_up(path)[1]
        if details is None:
            raise StoreError(f"there is no checkpoint {path}", 404)
        identity = details.get("id") or details["time"]
        message = f"{path}\n{identity}\n{file}\n{expires}"
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()

    def file(self, path: str, file: str, expires: int, signature: str) -> Path:
        """The file that a signed URL names.

        Raises:
            StoreError: the signature is wrong, the time is over, or the file is gone.
        """
        folder, details, _ = self._store.look_up(path)
        if details is None or not hmac.compare_digest(
            self.sign(path, file, expires).encode(), signature.encode()
        ):
            raise StoreError("the signature of this URL is wrong, or its checkpoint is gone", 403)
        if expires < time.time():
            raise StoreError("this URL has expired: ask for new ones", 403)
        if file not in details["files"]:
            raise StoreError(f"{path} has no file {file!r}", 404)
        return folder / file


def _read_secret(path: Path) -> bytes:
    """The secret of a state folder, made if there is none."""
    if not path.is_file() or path.stat().st_size != 32:
        temporary = path.with_name(".url_secret.tmp")
        with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        os.replace(temporary, path)
    return path.read_bytes()
