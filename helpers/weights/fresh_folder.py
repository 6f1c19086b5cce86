"""Folders that appear whole or not at all."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import RunError


@contextlib.contextmanager
def fresh_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder next to `folder`, and rename it to `folder` when the block ends well.

    When the block fails or is interrupted, the temporary folder and the parents made for it go, and `folder`
    stays as it was.

    Raises:
        RunError: `folder` exists and holds something while `overwrite` is off, or can't be written.
    """
    folder = Path(folder).absolute()
    _check_free(folder, overwrite)
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
            # Not empty: it holds the new folder, or what another process put there.
            with contextlib.suppress(OSError):
                parent.rmdir()


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.is_symlink() or folder.is_file():
        raise RunError(f"{folder} is not a folder", "choose another place")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise RunError(
            f"{folder} exists and is not empty", "choose another folder, delete it, or pass overwrite=True"
        )


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary folders of this process, and of processes that were killed."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        match = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d+)\.(tmp|old)", path.name)
        if match and (int(match[1]) == os.getpid() or not Path(f"/proc/{match[1]}").exists()):
            shutil.rmtree(path, ignore_errors=True)
