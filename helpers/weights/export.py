"""From a checkpoint on the server to adapter files on this machine.

    made = download_checkpoint_archive(service_client, "tinker://RUN/weights/final", "model-checkpoint.tar.gz")
    extract_archive("model-checkpoint.tar.gz", "model_weights")
    describe_adapter("model_weights")["rank"]

An archive is a file from elsewhere: it is unpacked only after every member has been checked.
"""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from helpers.errors import BackendError, ModelError, RunError
from helpers.files import read_json

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
CHUNK = 1 << 20
MIB, GIB = 1 << 20, 1 << 30
MAX_RATIO = 100  # trained weights hardly compress; 100 to 1 is a bomb
MAX_DEPTH = 16  # folders in a name: a header of 4 KiB can name 2,000
TRIES = 4
PAUSE = 1.0  # seconds before the second try, twice that before the third, and so on
EXPORT_SECONDS = 6 * 3600  # how long a temporary export lives if it can't be deleted
PROBE = list(range(100, 164))  # tokens that every vocabulary has, to tell one set of weights from another
SAME_WEIGHTS = (
    1e-3  # nats a token, on average; one step at a learning rate of 1e-3 moved a small model by 3e-2
)


# ---- folders that appear whole or not at all


@contextlib.contextmanager
def fresh_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder next to `folder`, and rename it to `folder` when the block ends well.

    When the block fails, or is interrupted, the temporary folder and the parents made for it go, and `folder` stays as it was.

    Raises:
        RunError: `folder` exists and holds something while `overwrite` is off, or can't be written.
    """
    folder = Path(folder).absolute()
    if folder.is_symlink() or folder.is_file():
        raise RunError(f"{folder} is not a folder", "choose another place")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise RunError(
            f"{folder} exists and is not empty", "choose another folder, delete it, or pass overwrite=True"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
    except OSError as error:
        raise RunError(
            f"can't write {folder}: {error.strerror}", "choose a folder you may write to"
        ) from error
    try:
        yield temporary
        if folder.is_dir():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(
                OSError
            ):  # not empty: it holds the new folder, or what another put there
                parent.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Delete temporary folders of processes that were killed, and of this one."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        match = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d+)\.(tmp|old)", path.name)
        if match and (int(match[1]) == os.getpid() or not Path(f"/proc/{match[1]}").exists()):
            shutil.rmtree(path, ignore_errors=True)


# ---- download


def download_checkpoint_archive(
    service_client: Any, path: str, out: str | Path, progress: bool = True, rest_client: Any = None
) -> dict[str, Any]:
    """Make the guide's `model-checkpoint.tar.gz` from a checkpoint path, of this run or of any other that you may read.

    Args:
        service_client: `tinker.ServiceClient`.
        path: `tinker://RUN/external_weights/NAME`, whose files have their URLs; `tinker://RUN/weights/NAME`, which is first
            loaded into a new training client and saved as external weights for a while; or
            `tinker://RUN/sampler_weights/NAME`, which has no files: then `weights/NAME` of the same run is taken, if it is
            there and both score the same tokens alike. A line says so.
        out: the archive to write. It appears when it is complete; same content, same bytes (with the same zlib).
        progress: show a bar that counts bytes.
        rest_client: `tinker.RestClient` of the same service; made from `service_client` if left out.

    Returns:
        `{"checkpoint": path, "source": the checkpoint that was exported, "archive" (file name), "bytes", "sha256",
        "files": {name: {"bytes", "sha256"}}}`.

    Raises:
        BackendError: the path is not one, is a sampler checkpoint without its training checkpoint, or the server or the
            transfer fails.
        ModelError: the checkpoint is not a LoRA adapter.
        RunError: `out` can't be written.
    """
    out, path = Path(out), str(path).strip()
    kind = _checkpoint_kind(path)
    rest = rest_client or _rest_client(service_client)
    source = _training_checkpoint_of(rest, path) if kind == "sampler" else path
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".download-", dir=out.parent)
    except OSError as error:
        raise RunError(
            f"can't write into {out.parent}: {error.strerror}", "choose a folder you may write to"
        ) from error
    with scratch:
        folder = Path(scratch.name)
        with _external_path(service_client, rest, path, source) as external:
            _download_files(rest, external, folder, progress)
        _check_adapter_files(folder, path)
        files = {name: _size_and_hash(folder / name) for name in _file_names(folder)}
        pack_folder(folder, out)
    return {"checkpoint": path, "source": source, "archive": out.name, **_size_and_hash(out), "files": files}


def _checkpoint_kind(path: str) -> str:
    from tinker import ParsedCheckpointTinkerPath

    try:
        if "" in path.removeprefix("tinker://").split("/"):
            raise ValueError("a part is empty")
        return ParsedCheckpointTinkerPath.from_tinker_path(path).checkpoint_type
    except ValueError as error:
        raise BackendError(
            f"{path!r} is not a checkpoint path",
            "it looks like tinker://RUN/external_weights/NAME or tinker://RUN/weights/NAME",
        ) from error


def _rest_client(service_client: Any) -> Any:
    with warnings.catch_warnings():
        # Deprecated in favour of tinker.RestClient(), which would have to be told address and key a second time.
        warnings.simplefilter("ignore", FutureWarning)
        return service_client.create_rest_client()


# ---- sampler checkpoints, which have no files


def _training_checkpoint_of(rest: Any, path: str) -> str:
    """The one training checkpoint with the run and the name of a sampler checkpoint.

    Raises:
        BackendError: there is none, or more than one; names the paths that can be downloaded.
    """
    run, _, name = path.removeprefix("tinker://").split("/")
    try:
        listed = rest.list_checkpoints(run).result().checkpoints
    except Exception as error:
        raise BackendError(
            f"{path} is a sampler checkpoint, which has no files, and the server lists no others of its run: {error}",
            "check the path, or use a weights/ or external_weights/ path",
        ) from error
    with_files = [checkpoint.tinker_path for checkpoint in listed if checkpoint.checkpoint_type != "sampler"]
    same_name = [other for other in with_files if other == f"tinker://{run}/weights/{name}"]
    if len(same_name) == 1:
        return same_name[0]
    if with_files:
        fix = f"if one of these is what you want, give its path: {', '.join(with_files[:4])}"
    else:
        fix = (
            "save files from the training client, training_client.save_weights_external(name).result().path, "
            f"or the training state beside the sampler's weights, training_client.save_state({name!r})"
        )
    found = "lists more than one training checkpoint" if same_name else "has no training checkpoint"
    raise BackendError(
        f"{path} is a sampler checkpoint, which has no files, and its run {found} of that name", fix
    )


def _check_same_weights(service_client: Any, training_client: Any, path: str, source: str) -> None:
    """Say that `source`, loaded in `training_client`, holds the weights that `path` samples from, or refuse.

    A name proves little: `save_state(name, overwrite=True)` may have come steps later. So both score the same tokens, and
    may differ by no more than `path` does from itself, asked twice (a busy service rounds each call otherwise).
    """
    from tinker import ModelInput

    asked = service_client.create_sampling_client(model_path=path).result()
    loaded = training_client.save_weights_and_get_sampling_client().result()
    futures = [client.compute_logprobs(ModelInput.from_ints(PROBE)) for client in (asked, asked, loaded)]
    first, again, other = [future.result()[1:] for future in futures]
    noise, difference = _mean_difference(first, again), _mean_difference(first, other)
    measured = f"log-probabilities of {len(PROBE)} tokens differ by {difference:.0e} on average, and by {noise:.0e} from call to call"
    if not difference <= max(SAME_WEIGHTS, 3 * noise):
        raise BackendError(
            f"{path} has no files, and {source} has its name but other weights: {measured}",
            f"if {source} is what you want, give that path",
        )
    print(f"{path} has no files: took {source}, which has the same run, name and weights ({measured})")


def _mean_difference(left: list[float], right: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(left)


@contextlib.contextmanager
def _external_path(service_client: Any, rest: Any, path: str, source: str) -> Iterator[str]:
    """`source` itself if it has files, or a temporary export of it that is deleted after use."""
    if _checkpoint_kind(source) == "external":
        yield source
        return
    try:
        client = service_client.create_training_client_from_state(source).result()
        if source != path:
            _check_same_weights(service_client, client, path, source)
        external = (
            client.save_weights_external(f"download-{uuid.uuid4().hex[:8]}", ttl_seconds=EXPORT_SECONDS)
            .result()
            .path
        )
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(
            f"can't export {source}: {error}", "check the path and that its run still exists"
        ) from error
    try:
        yield external
    finally:
        with contextlib.suppress(Exception):  # it expires by itself
            rest.delete_checkpoint_from_tinker_path(external).result()


# ---- transfer


class _SignedUrls:
    """The signed addresses of a checkpoint's files; new ones are asked for before they end, or when one is refused."""

    def __init__(self, rest: Any, path: str):
        self._rest, self._path = rest, path
        self.renew()

    def renew(self) -> None:
        try:
            self._answer = self._rest.get_external_weights_urls(self._path).result()
        except Exception as error:
            raise BackendError(
                f"the server has no files for {self._path}: {error}",
                "check the path; exports can expire, then save_weights_external(name) again",
            ) from error

    @property
    def names(self) -> list[str]:
        return sorted(self._answer.urls)

    def of(self, name: str) -> str:
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


def _download_files(rest: Any, path: str, folder: Path, progress: bool) -> None:
    from tqdm import tqdm

    urls = _SignedUrls(rest, path)
    if not urls.names:
        raise BackendError(f"the server lists no files for {path}", "export the checkpoint again")
    names = {name: _safe_name(name) for name in urls.names}
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
        for name, safe in names.items():
            if safe.endswith(".age"):
                raise BackendError(
                    f"{path} is encrypted ({name})", "decrypt it with `age -d`, or export it without age keys"
                )
            _fetch(urls, name, folder / safe, bar)


def _fetch(urls: _SignedUrls, name: str, target: Path, bar: Any) -> None:
    """Download one file in up to `TRIES` tries. What a cut left is kept if the server can go on from there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    start, etag = bar.n, None
    for attempt in range(1, TRIES + 1):
        have = target.stat().st_size if etag and target.exists() else 0
        # With If-Range a server that has another file by now sends all of it, with status 200.
        request = urllib.request.Request(
            urls.of(name), headers={"Range": f"bytes={have}-", "If-Range": etag} if have else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                have = have if response.status == 206 else 0
                etag = response.headers.get("ETag")
                bar.update(start + have - bar.n)
                bar.total = start + have + (response.length or 0)
                _append(response, target, have, bar)
            return
        except (OSError, HTTPException) as error:  # URLError, timeouts and cut connections are OSErrors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
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


def _append(response: Any, target: Path, have: int, bar: Any) -> None:
    expected, done = response.length, 0
    with open(target, "ab" if have else "wb") as file:
        while block := response.read(CHUNK):
            file.write(block)
            done += len(block)
            bar.update(len(block))
    if expected is not None and done != expected:
        raise ConnectionError(f"got {have + done:,} of {have + expected:,} bytes")


def _check_adapter_files(folder: Path, path: str) -> None:
    """Raises ModelError if a file of an adapter is missing, or is another thing under its name, an error page for one."""
    from safetensors import SafetensorError, safe_open

    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"the checkpoint {path} holds no {' and no '.join(missing)}",
            "export a LoRA training client's weights with save_weights_external(name)",
        )
    try:
        read_json(folder / "adapter_config.json")
        with safe_open(folder / "adapter_model.safetensors", framework="pt"):
            pass
    except (SafetensorError, RunError, OSError) as error:
        raise ModelError(
            f"what the server sent for {path} is damaged: {str(error).splitlines()[0]}", "run the cell again"
        ) from error


def _size_and_hash(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


# ---- pack and unpack


def _file_names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def pack_folder(folder: str | Path, out: str | Path) -> Path:
    """Write a folder's files into a `.tar.gz`: names sorted, no times, no owners, so the same content gives the same bytes.

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
            for name in _file_names(folder):
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


class _SmallHeaders(tarfile.TarInfo):
    """A header whose extra records (long names, pax) stay small: tarfile reads those into memory whole."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "tarfile.TarInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and info.size > MIB:
            raise _Refused(f"a header of {info.size:,} bytes")
        return info


class _Refused(Exception):
    """Why an archive is not unpacked."""


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


def extract_archive(
    archive: str | Path,
    folder: str | Path,
    max_bytes: int = 64 * GIB,
    max_members: int = 1000,
    overwrite: bool = False,
) -> dict[str, int]:
    """Unpack a checkpoint archive into `folder`, or leave nothing behind.

    Refused: absolute paths, `..`, links, devices, sparse files, names that are equal or would be on a system that ignores
    case or the form of accents, more than 16 folders deep, more than `max_members` members, more than `max_bytes` bytes,
    and more than 100 bytes for each byte of the archive (64 MiB are always allowed).

    Returns:
        Size in bytes of each file, by name.

    Raises:
        ModelError: the archive is missing, damaged, or refused.
        RunError: `folder` is not empty and `overwrite` is off, or can't be written.
    """
    archive = Path(archive)
    try:
        limit = min(max_bytes, MAX_RATIO * archive.stat().st_size + 64 * MIB)
        raw = open(archive, "rb")
    except OSError as error:
        raise ModelError(
            f"can't read the archive {archive}: {error.strerror}", "run notebook 04_export again"
        ) from error
    with raw, fresh_folder(folder, overwrite) as temporary:
        try:
            with gzip.open(raw) as stream:
                sizes = _extract(
                    _Counted(stream, limit + (max_members + 2) * 4096), temporary, limit, max_members
                )
        except _Refused as error:
            raise ModelError(
                f"{archive} is not safe to unpack: {error}", "use an archive from a source you trust"
            ) from error
        except (
            tarfile.TarError,
            EOFError,
            gzip.BadGzipFile,
            ValueError,
            OverflowError,
            LookupError,
            RecursionError,
        ) as error:
            raise ModelError(f"{archive} is damaged: {error}", "download it again") from error
        except OSError as error:
            cause = error.strerror or str(error)
            raise ModelError(
                f"can't unpack {archive}: {cause}", "check free disk space and download it again"
            ) from error
        except Exception as error:
            if type(error).__module__ != "zlib":
                raise
            raise ModelError(f"{archive} is damaged: {error}", "download it again") from error
    return sizes


def _extract(stream: BinaryIO, folder: Path, limit: int, max_members: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_SmallHeaders) as tar:
        for count, member in enumerate(tar, start=1):
            if count > max_members:
                raise _Refused(f"more than {max_members} members")
            if member.isdir() and member.name.strip("/") in (".", ""):
                continue
            name = _safe_member(member)
            if _folded(name) in seen:
                raise _Refused(f"the name {name!r} comes twice, perhaps in another spelling")
            seen.add(_folded(name))
            if member.isdir():
                (folder / name).mkdir(parents=True, exist_ok=True)
                continue
            if sum(sizes.values()) + member.size > limit:
                raise _Refused(f"{name!r} would make it larger than {limit:,} bytes")
            sizes[name] = _write_member(tar, member, folder / name)
        while stream.read(CHUNK):  # read to the end, so that a cut or a wrong checksum shows
            pass
    if not sizes:
        raise _Refused("it holds no files")
    return dict(sorted(sizes.items()))


def _folded(name: str) -> str:
    """What is equal for two names that macOS or Windows take for one: case and form of accents don't count."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _safe_member(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        raise _Refused(f"{member.name!r} is a link")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise _Refused(f"{member.name!r} is not a plain file")
    if member.size < 0:
        raise _Refused(f"{member.name!r} has a negative size")
    try:
        return _safe_name(member.name)
    except BackendError as error:
        raise _Refused(str(error).split("\n")[0]) from error


def _safe_name(name: str) -> str:
    """A relative name that stays in its folder on any system, `./` taken off."""
    parts = PurePosixPath(name).parts
    bad = (
        not parts
        or name.startswith(("/", "~"))
        or ".." in parts
        or "\\" in name
        or ":" in name
        or any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in name)
        or len(parts) > MAX_DEPTH
        or max(len(part.encode("utf-8", "replace")) for part in parts) > 255
    )
    if bad:
        raise BackendError(f"unsafe file name {name[:80]!r}", "use a checkpoint from a source you trust")
    return PurePosixPath(name).as_posix()


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with tar.extractfile(member) as source, open(target, "xb") as file:
        while block := source.read(CHUNK):
            file.write(block)
            done += len(block)
    if done != member.size:
        raise EOFError(f"{member.name!r} is cut after {done:,} of {member.size:,} bytes")
    return done


# ---- what an adapter holds


def read_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and tensors of an adapter folder, Tinker's or PEFT's.

    Returns:
        `adapter_config.json` as a dict, and `{tensor name: torch.Tensor}` on the CPU.

    Raises:
        ModelError: a file is missing or damaged, or the config lacks `r` or `lora_alpha`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} is not an adapter folder: {' and '.join(missing)} missing",
            "run notebook 04_export again",
        )
    try:
        config = read_json(folder / "adapter_config.json")
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, RunError, OSError) as error:
        raise ModelError(
            f"the adapter in {folder} is damaged: {error}", "download and unpack it again"
        ) from error
    for key in ("r", "lora_alpha"):
        if not isinstance(config, dict) or not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise ModelError(
                f"{folder}/adapter_config.json has no usable {key!r}", "download and unpack it again"
            )
    if not any(".lora_A" in name for name in tensors):
        raise ModelError(
            f"{folder}/adapter_model.safetensors holds no LoRA weights", "export the right checkpoint"
        )
    return config, tensors


def lora_pairs(tensors: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """`{module path: (A, B)}`, A of shape (rank, in) and B of (out, rank).

    Raises:
        ModelError: an A has no B, or the other way round.
    """
    pairs = {}
    for name in sorted(tensors):
        if ".lora_A" in name:
            module = name.split(".lora_A")[0].removeprefix("base_model.model.")
            other = name.replace(".lora_A", ".lora_B")
            if other not in tensors:
                raise ModelError(f"the adapter has {name} but no {other}", "export the checkpoint again")
            pairs[module] = (tensors[name], tensors[other])
    halves = sum(".lora_B" in name for name in tensors)
    if halves != len(pairs):
        raise ModelError(
            f"the adapter has {halves} lora_B tensors for {len(pairs)} lora_A", "export the checkpoint again"
        )
    return pairs


def delta_norm(a: Any, b: Any, scale: float) -> float:
    """Frobenius norm of `scale * B @ A`, without making the large product: ‖BA‖² = sum(BᵀB ∘ AAᵀ)."""
    a, b = a.double(), b.double()
    squared = ((b.transpose(-1, -2) @ b) * (a @ a.transpose(-1, -2))).sum()
    return scale * float(squared.clamp(min=0)) ** 0.5


def describe_adapter(folder: str | Path) -> dict[str, Any]:
    """What an adapter changes, and how much.

    Returns:
        `rank`, `alpha`, `scale` (alpha / rank), `target_modules`, `dtype`, `parameters`, `parameters_per_layer`
        (`{layer or "other": count}`), and `modules`: rows `{"name", "layer" (None outside the layers), "module",
        "parameters", "norm"}`, where `norm` is the Frobenius norm of scale·B·A, the change of that weight matrix.

    Raises:
        ModelError: the folder is not a whole LoRA adapter.
    """
    config, tensors = read_adapter(folder)
    scale = config["lora_alpha"] / config["r"]
    modules, per_layer = [], {}
    for name, (a, b) in lora_pairs(tensors).items():
        match = re.search(r"\.layers\.(\d+)\.", f".{name}")
        layer = int(match[1]) if match else None
        count = a.numel() + b.numel()
        per_layer[layer if match else "other"] = per_layer.get(layer if match else "other", 0) + count
        modules.append(
            {
                "name": name,
                "layer": layer,
                "module": name.rsplit(".", 1)[-1],
                "parameters": count,
                "norm": delta_norm(a, b, scale),
            }
        )
    modules.sort(key=lambda row: (row["layer"] is None, row["layer"] or 0, row["name"]))
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "scale": scale,
        "target_modules": sorted({row["module"] for row in modules}),
        "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        "parameters": sum(row["parameters"] for row in modules),
        "parameters_per_layer": dict(
            sorted(per_layer.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        ),
        "modules": modules,
    }
