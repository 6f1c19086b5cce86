"""Download a checkpoint's files from their signed addresses, with a bar, and go on after a cut.

`tinker_cookbook.weights.download` does this without a bar and starts over after a cut, which at some
gigabytes and a home connection means for ever; so this is ours.

The server is not trusted: how much it may send is bounded, and an address leads to its own host and no other.
"""

import errno
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from helpers.errors import BackendError, RunError
from helpers.weights.archive import CHUNK, GIB, is_safe_name

if TYPE_CHECKING:
    import tinker
    from tqdm import tqdm

TRIES = 4
PAUSE = 1.0  # seconds before the second try, twice that before the third, and so on
MAX_FILES, MAX_BYTES = 1000, 64 * GIB  # of a checkpoint, as in extract_archive
MAX_UNANNOUNCED = 4 * GIB  # of a file whose size the server does not say
CAN_NOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def download_files(rest: "tinker.RestClient", path: str, folder: Path, progress: bool = True) -> None:
    """Download every file of an external checkpoint into `folder`.

    Args:
        rest: a client of the service that holds the checkpoint.
        path: `tinker://RUN/external_weights/NAME`.
        folder: an existing folder.
        progress: show a bar that counts bytes.

    Raises:
        BackendError: the server lists no files, or more than 1,000; gives an unsafe name or address, or one
            that leads to another host; has more than 64 GiB, or more than 4 GiB of a file whose size it does
            not say; or a transfer fails four times; or a file is encrypted.
        RunError: a file can't be written.
    """
    from tqdm import tqdm

    urls = SignedUrls(rest, path)
    if not urls.names:
        raise BackendError(f"the server lists no files for {path}", "export the checkpoint again")
    if len(urls.names) > MAX_FILES:
        raise BackendError(
            f"the server lists {len(urls.names):,} files for {path}",
            "use a checkpoint from a source you trust",
        )
    for name in urls.names:
        if not is_safe_name(name):
            raise BackendError(f"unsafe file name {name[:80]!r}", "use a checkpoint from a source you trust")
        if name.endswith(".age"):
            raise BackendError(
                f"{path} is encrypted ({name})", "decrypt it with `age -d`, or export it without age keys"
            )
    with tqdm(
        total=0,
        unit="B",
        unit_scale=True,
        file=sys.stdout,
        mininterval=1,
        ncols=90,
        disable=not progress,
        desc="downloading",
    ) as bar:
        total = 0
        for name in urls.names:
            target = folder / PurePosixPath(name)
            _fetch(urls, name, target, bar, total)
            total += target.stat().st_size


class SignedUrls:
    """The signed addresses of a checkpoint's files, renewed before they end or when one is refused."""

    def __init__(self, rest: "tinker.RestClient", path: str):
        self._rest, self._path = rest, path
        self.renew()

    def renew(self) -> None:
        """Ask the server for new addresses.

        Raises:
            BackendError: it has none.
        """
        try:
            self._answer = self._rest.get_external_weights_urls(self._path).result()
        except Exception as error:
            raise BackendError(
                f"the server has no files for {self._path}: {error}",
                "check the path; exports can expire, then save_weights_external(name) again",
            ) from error

    @property
    def names(self) -> list[str]:
        """The checkpoint's file names, sorted."""
        return sorted(self._answer.urls)

    def of(self, name: str) -> str:
        """An address that is good for at least five minutes.

        Raises:
            BackendError: the file is gone, or the address is not http(s).
        """
        if datetime.now(UTC) >= self._answer.expires - timedelta(minutes=5):
            self.renew()
        url = self._answer.urls.get(name)
        if url is None:
            raise BackendError(
                f"the server no longer lists {name} of {self._path}", "export the checkpoint again"
            )
        if urllib.parse.urlparse(url).scheme not in ("http", "https"):
            raise BackendError(
                f"the server gave a download address that is not http(s) for {name}", "report it to them"
            )
        return url


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to where the signed address leads itself."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if _origin(newurl) != _origin(req.full_url):
            raise BackendError(
                f"{_origin(req.full_url)} sends the download on to another host, {_origin(newurl)}",
                "report it to the server's owner: an address should lead to the file itself",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> str:
    """Scheme, host and port: what must be equal for two addresses to be of one server."""
    parts = urllib.parse.urlsplit(url)
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual)}"


def _fetch(urls: SignedUrls, name: str, target: Path, bar: "tqdm", start: int) -> None:
    """Download one file in up to `TRIES` tries. A cut is resumed if the server can do that.

    Args:
        start: bytes of the files before it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    opener = urllib.request.build_opener(_SameHost)
    etag = None
    for attempt in range(1, TRIES + 1):
        have = target.stat().st_size if etag and target.exists() else 0
        # With If-Range a server that has another file by now sends all of it, with status 200.
        headers = {"Range": f"bytes={have}-", "If-Range": etag} if have and etag else {}
        request = urllib.request.Request(urls.of(name), headers=headers)
        try:
            with opener.open(request, timeout=60) as response:
                have = have if _goes_on(response, have) else 0
                etag = response.headers.get("ETag")
                bar.update(start + have - bar.n)
                bar.total = start + have + (response.length or 0)
                _append(response, target, have, bar, MAX_BYTES - start)
            return
        # URLError, timeouts and cut connections are OSErrors; ValueError: a redirection to no address at all
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in CAN_NOT_WRITE:
                raise RunError(
                    f"can't write {target.name}: {error.strerror}",
                    "free disk space, or choose another folder",
                ) from error
            if attempt == TRIES:
                raise BackendError(
                    f"can't download {name}: {error}", "check the connection and run the cell again"
                ) from error
            if isinstance(error, urllib.error.HTTPError):  # most often 403: the address has expired
                etag = None if error.code == 416 else etag
                urls.renew()
        time.sleep(PAUSE * attempt)


def _goes_on(response: HTTPResponse, have: int) -> bool:
    """Whether the answer is the rest of a file, after `have` bytes."""
    if response.status != 206:
        return False
    part, end = response.headers.get("Content-Range", ""), have + (response.length or 0)
    if part not in (f"bytes {have}-{end - 1}/{end}", f"bytes {have}-{end - 1}/*"):
        raise BackendError(
            f"asked for a file from byte {have:,} on, the server sent {part[:60] or 'another part'!r}",
            "run the cell again",
        )
    return True


def _append(response: HTTPResponse, target: Path, have: int, bar: "tqdm", room: int) -> None:
    """Write what comes, up to `room` bytes for the whole file, or 4 GiB if its size was not announced."""
    expected, done = response.length, 0
    limit = min(room, MAX_UNANNOUNCED) if expected is None else room
    with open(target, "ab" if have else "wb") as file:
        while have + max(done, expected or 0) <= limit and (block := response.read(CHUNK)):
            file.write(block)
            done += len(block)
            bar.update(len(block))
    if have + max(done, expected or 0) > limit:
        raise BackendError(
            f"{target.name} is larger than {limit:,} bytes, more than a checkpoint needs",
            "use a checkpoint from a source you trust",
        )
    if expected is not None and done != expected:
        raise ConnectionError(f"got {have + done:,} of {have + expected:,} bytes")
