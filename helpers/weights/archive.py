"""A checkpoint's archive, packed reproducibly and unpacked only when safe.

    pack_folder("adapter", "model-checkpoint.tar.gz")
    extract_archive("model-checkpoint.tar.gz", "model_weights")   # or a plain .tar

An archive may come from anywhere, so it is hostile until proven otherwise. Each member goes through the
standard library's `data` filter (PEP 706), which keeps it inside the folder and ignores owners and modes.
What the filter lets through and an adapter never needs is refused before it: links, absolute names, and names
that collide or mean something else on another system. Sizes and counts are limited before anything is
allocated for them.
"""

import contextlib
import gzip
import io
import os
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from helpers.errors import ModelError, RunError
from helpers.weights.fresh_folder import fresh_folder

CHUNK = 1 << 20
MIB, GIB = 1 << 20, 1 << 30
MAX_RATIO = 100  # trained weights hardly compress; 100 to 1 is a bomb
MAX_DEPTH = 16  # folders in a name: a header of 4 KiB can name 2,000
# Of headers with long names (pax, GNU): of one, and of all in an archive. Python 3.11 before 3.11.10 searches
# them in quadratic time (CVE-2024-6232): 0.3 s for 16 KiB, 68 s for 256 KiB.
MAX_HEADER, MAX_HEADERS = 16 << 10, 256 << 10
OTHER_KINDS = {
    b"PK": "a zip file",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
}


def file_names(folder: Path) -> list[str]:
    """Names of all files in a folder and its subfolders, relative to it and sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def is_safe_name(name: str) -> bool:
    """Whether a file of this name stays in its folder on any system, and can be written there."""
    parts = PurePosixPath(name).parts
    return bool(
        parts
        and not name.startswith(("/", "~"))
        and ".." not in parts
        and "\\" not in name
        and ":" not in name
        and all(ord(c) >= 32 and ord(c) != 127 and not 0xD800 <= ord(c) <= 0xDFFF for c in name)
        and len(parts) <= MAX_DEPTH
        and max(len(part.encode("utf-8", "replace")) for part in parts) <= 255
    )


def pack_folder(folder: str | Path, out: str | Path) -> Path:
    """Write a folder's files into a `.tar.gz`.

    Names are sorted, times and owners left out, so that the same content gives the same bytes (with the same
    zlib).

    Returns:
        `out`.

    Raises:
        RunError: the archive can't be written.
    """
    folder, out = Path(folder), Path(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in file_names(folder):
                info = tarfile.TarInfo(name)
                info.size, info.mode = (folder / name).stat().st_size, 0o644
                with open(folder / name, "rb") as file:
                    archive.addfile(info, file)
        os.replace(temporary, out)
    except OSError as error:
        raise RunError(
            f"can't write {out}: {error.strerror}", "free disk space, or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return out


def extract_archive(
    archive: str | Path,
    folder: str | Path,
    max_bytes: int = 64 * GIB,
    max_members: int = 1000,
    overwrite: bool = False,
) -> dict[str, int]:
    """Unpack a checkpoint archive, `.tar.gz` or plain `.tar`, into `folder`, or leave nothing behind.

    Refused: absolute paths, `..`, links, devices, sparse files, names that are equal or would be on a system
    that ignores case or the form of accents, more than 16 folders deep, more than `max_members` members, more
    than `max_bytes` bytes, more than 100 bytes for each byte of the archive (64 MiB are always allowed), and
    long names that take more than 16 KiB, or 256 KiB in all.

    Returns:
        Size in bytes of each file, by name.

    Raises:
        ModelError: the archive is missing, damaged, refused, or of another kind; or this Python is older than
            the `data` filter.
        RunError: `folder` is not empty and `overwrite` is off, or can't be written.
    """
    archive = Path(archive)
    if not hasattr(tarfile, "data_filter"):
        raise ModelError(
            "this Python can't unpack archives safely: its tarfile has no data filter",
            "use Python 3.11.4 or newer",
        )
    try:
        limit = min(max_bytes, MAX_RATIO * archive.stat().st_size + 64 * MIB)
        raw = open(archive, "rb")  # noqa: SIM115  (closed below, after the folder is in its place)
    except OSError as error:
        raise ModelError(
            f"can't read the archive {archive}: {error.strerror}", "run notebook 04_export again"
        ) from error
    with (
        raw,
        fresh_folder(folder, overwrite) as temporary,
        _reasons(archive),
        _unzipped(raw, archive) as stream,
    ):
        counted = _Counted(cast(BinaryIO, stream), limit + (max_members + 2) * 4096)
        return _extract(counted, temporary, limit, max_members)


def _unzipped(raw: BinaryIO, archive: Path) -> BinaryIO:
    """The tar file in an archive, which may be compressed by gzip or not at all."""
    head = raw.read(tarfile.BLOCKSIZE)
    raw.seek(0)
    for magic, kind in OTHER_KINDS.items():
        if head.startswith(magic):
            raise ModelError(
                f"{archive} is {kind}, not a .tar.gz or .tar", "unpack it, and pack it with tar -czf"
            )
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return cast(BinaryIO, gzip.open(raw))
    return raw


class _Refused(Exception):
    """Why an archive is not unpacked."""


@contextlib.contextmanager
def _reasons(archive: Path) -> Iterator[None]:
    """Turn what tarfile, gzip and zlib raise into a ModelError that says what to do."""
    try:
        yield
    except (_Refused, tarfile.FilterError) as error:
        raise ModelError(
            f"{archive} is not safe to unpack: {error}", "use an archive from a source you trust"
        ) from error
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        ValueError,
        OverflowError,
        LookupError,
        RecursionError,
    ) as error:
        raise ModelError(f"{archive} is damaged: {error}", "download it again") from error
    except OSError as error:
        raise ModelError(
            f"can't unpack {archive}: {error.strerror or error}",
            "check free disk space and download it again",
        ) from error


class _SmallHeaders(tarfile.TarInfo):
    """A header whose extra records (long names, pax) stay small: tarfile reads and searches those whole.

    One class an archive: `extra` counts their bytes.
    """

    extra = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_SmallHeaders":
        if not buf:  # tarfile takes this for the end, so that members could be missing
            raise tarfile.ReadError("the end is missing")
        info = super().frombuf(buf, encoding, errors)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            cls.extra += max(0, info.size)
            if info.size > MAX_HEADER or cls.extra > MAX_HEADERS:
                raise _Refused(f"headers of {cls.extra:,} bytes")
        return info


class _Counted(io.RawIOBase):
    """A stream that stops when more comes out of it than was agreed."""

    def __init__(self, stream: BinaryIO, limit: int):
        self.stream, self.left = stream, limit

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(block)
        if self.left < 0:
            raise _Refused("more data inside than its size allows: it may be a decompression bomb")
        return block


def _extract(stream: _Counted, folder: Path, limit: int, max_members: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    headers = type("_Headers", (_SmallHeaders,), {})
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=headers) as tar:
        for count, member in enumerate(tar, start=1):
            if count > max_members:
                raise _Refused(f"more than {max_members} members")
            if member.isdir() and member.name.strip("/") in (".", ""):
                continue
            name = _checked_name(member, seen)
            if member.isfile():
                if sum(sizes.values()) + member.size > limit:
                    raise _Refused(f"{name!r} would make it larger than {limit:,} bytes")
                sizes[name] = member.size
            tar.extract(member, folder, set_attrs=False, filter="data")
        while stream.read(CHUNK):  # read to the end, so that a cut or a wrong checksum shows
            pass
    if not sizes:
        raise _Refused("it holds no files")
    return dict(sorted(sizes.items()))


def _checked_name(member: tarfile.TarInfo, seen: set[str]) -> str:
    """A member's name, `./` taken off; it is added to the names `seen`."""
    if not (member.isdir() or member.isreg()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "not a plain file"
        raise _Refused(f"{member.name!r} is {kind}")
    if member.size < 0:
        raise _Refused(f"{member.name!r} has a negative size")
    if not is_safe_name(member.name):
        raise _Refused(f"unsafe file name {member.name[:80]!r}")
    name = PurePosixPath(member.name).as_posix()
    if _folded(name) in seen:
        raise _Refused(f"the name {name!r} comes twice, perhaps in another spelling")
    seen.add(_folded(name))
    return name


def _folded(name: str) -> str:
    """Equal for two names that macOS or Windows take for one: case and form of accents don't count."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
