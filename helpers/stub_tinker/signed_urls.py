"""URLs of files of external weights. Who holds one may fetch its file, without a key, until it expires or who
asked for it may no longer read the checkpoint.
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
        message = f"{path}\n{identity}\n{file}\n{expires}\n{owner}"
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()

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
            raise StoreError("this URL has expired: ask for new ones", 403)
        folder, details, _ = self._store.find(path, owner)
        if file not in details["files"]:
            raise StoreError(f"{path} has no file {file!r}", 404)
        return folder / file
