"""From a checkpoint on the server to an archive on this machine.

download_checkpoint_archive(service_client, "tinker://RUN/weights/final", "model-checkpoint.tar.gz")
"""

import contextlib
import hashlib
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import BackendError, ModelError, RunError
from helpers.files import read_json
from helpers.weights.adapter import ADAPTER_FILES
from helpers.weights.archive import file_names, pack_folder
from helpers.weights.base_model import cause
from helpers.weights.sampler_checkpoint import check_same_weights, training_checkpoint_of
from helpers.weights.transfer import download_files

if TYPE_CHECKING:
    import tinker

EXPORT_SECONDS = 6 * 3600  # how long a temporary export lives if it can't be deleted


def download_checkpoint_archive(
    service_client: "tinker.ServiceClient",
    path: str,
    out: str | Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the guide's `model-checkpoint.tar.gz` from a checkpoint path that you may read.

    Args:
        service_client: a client of the service that holds the checkpoint.
        path: `tinker://RUN/external_weights/NAME`, whose files have their URLs; `tinker://RUN/weights/NAME`,
            which is first loaded into a new training client and saved as external weights for a while; or
            `tinker://RUN/sampler_weights/NAME`, which has no files: then `weights/NAME` of the same run is
            taken, if it is there and both score the same tokens alike. A line says so.
        out: the archive to write. It appears when it is complete; same content, same bytes (with the same
            zlib).
        progress: show a bar that counts bytes.

    Returns:
        `{"checkpoint": path, "source": the checkpoint that was exported, "archive" (file name), "bytes",
        "sha256", "files": {name: {"bytes", "sha256"}}}`.

    Raises:
        BackendError: the path is not one, is a sampler checkpoint without its training checkpoint, or the
            server or the transfer fails.
        ModelError: the checkpoint is not a LoRA adapter.
        RunError: `out` can't be written.
    """
    out, path = Path(out), str(path).strip()
    kind = checkpoint_kind(path)
    rest = _rest_client(service_client)
    source = training_checkpoint_of(rest, path) if kind == "sampler" else path
    with _scratch_beside(out) as folder:
        with _external_path(service_client, rest, path, source) as external:
            download_files(rest, external, folder, progress)
        _check_adapter_files(folder, path)
        files = {name: _size_and_hash(folder / name) for name in file_names(folder)}
        pack_folder(folder, out)
    return {"checkpoint": path, "source": source, "archive": out.name, **_size_and_hash(out), "files": files}


def checkpoint_kind(path: str) -> str:
    """`training`, `sampler` or `external`.

    Raises:
        BackendError: the path is no checkpoint's.
    """
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


def _rest_client(service_client: "tinker.ServiceClient") -> "tinker.RestClient":
    with warnings.catch_warnings():
        # Deprecated in favour of tinker.RestClient(), which would have to be told address and key a second
        # time.
        warnings.simplefilter("ignore", FutureWarning)
        return service_client.create_rest_client()


@contextlib.contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `out`."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".download-", dir=out.parent)
    except OSError as error:
        raise RunError(
            f"can't write into {out.parent}: {error.strerror}", "choose a folder you may write to"
        ) from error
    with scratch:
        yield Path(scratch.name)


@contextlib.contextmanager
def _external_path(
    service_client: "tinker.ServiceClient", rest: "tinker.RestClient", path: str, source: str
) -> Iterator[str]:
    """`source` itself if it has files, or a temporary export of it that is deleted after use."""
    if checkpoint_kind(source) == "external":
        yield source
        return
    try:
        client = service_client.create_training_client_from_state(source).result()
        if source != path:
            check_same_weights(service_client, client, path, source)
        name = f"download-{uuid.uuid4().hex[:8]}"
        external = client.save_weights_external(name, ttl_seconds=EXPORT_SECONDS).result().path
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


def _check_adapter_files(folder: Path, path: str) -> None:
    """Check that an adapter's files are there, and no error page under one of their names.

    Raises:
        ModelError: one is missing or damaged.
    """
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
            f"what the server sent for {path} is damaged: {cause(error)}", "run the cell again"
        ) from error


def _size_and_hash(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
