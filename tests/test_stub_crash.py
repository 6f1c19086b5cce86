"""A crash before every call of the store that changes the disk: a new start finds the old or the new."""

import builtins
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.stub_tinker import disk
from helpers.stub_tinker.checkpoint_store import Store

CRASHED = 9
CHANGING = (
    "replace",
    "rename",
    "fsync",
    "mkdir",
    "unlink",
    "remove",
    "rmdir",
    "write",
    "ftruncate",
    "sendfile",
)
RUN = {
    "owner": "local",
    "base_model": "m",
    "lora_rank": 4,
    "train_attn": True,
    "train_mlp": True,
    "train_unembed": False,
    "session": "s",
    "user_metadata": {},
}
OLD = "tinker://run/weights/old"


def files(value: float) -> dict:
    tensors = {"a": torch.full((40, 50), value), "b": torch.full((7,), value)}
    return {
        "adapter_model.safetensors": tensors,
        "adapter_config.json": json.dumps({"value": value}).encode(),
        "optimizer.safetensors": dict(tensors),
    }


def save(store: Store, name: str, value: float, overwrite: bool = False) -> str:
    return store.save("run", "weights", name, files(value), {"step": int(value)}, None, overwrite)


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "save": lambda store: save(store, "new", 2.0),
    "overwrite": lambda store: save(store, "old", 2.0, overwrite=True),
    "delete": lambda store: store.delete(OLD, "local"),
    "set_ttl": lambda store: store.set_ttl(OLD, "local", 100_000),
    "create_run": lambda store: store.create_run("second", RUN),
    "copy": lambda store: store.copy(OLD, "local", "copied", None, None, None),
}


class Crash:
    """Ends this process before its `number`-th call that opens to write, writes, syncs, renames, removes."""

    def __init__(self, number: int):
        self.left = number

    def now(self, half_done: Callable[[], object] | None = None) -> None:
        """Count one call; at the last one, do half of it if it can be cut, and end."""
        self.left -= 1
        if self.left == 0:
            if half_done:
                half_done()
            os._exit(CRASHED)

    def arm(self) -> None:
        """Count the calls of `open`, of safetensors and of `os` from now on."""
        opened, save_file = io.open, disk.save_file

        def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(path, mode, *args, **kwargs)
            self.now()
            return TornFile(self, opened(path, mode, *args, **kwargs))

        def torn_save(tensors: dict, path: Path) -> None:
            def half() -> None:
                save_file(tensors, path)
                os.truncate(path, os.stat(path).st_size // 2)

            self.now(half)
            save_file(tensors, path)

        builtins.open = io.open = open_file
        disk.save_file = torn_save
        for name in CHANGING:
            setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.now()
            return function(*args, **kwargs)

        return call


class TornFile:
    """A file whose write is cut in half by the crash."""

    def __init__(self, crash: Crash, file: Any):
        self.crash, self.file = crash, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "TornFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        self.crash.now(lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
        return self.file.write(data)


def visible(folder: Path) -> dict:
    """All that a fresh store shows, with the contents of every checkpoint."""
    store = Store(folder)
    shown: dict[str, Any] = {"runs": sorted(run["training_run_id"] for run in store.list_runs("local"))}
    for checkpoint in store.list_checkpoints("local"):
        loaded = store.load(checkpoint["tinker_path"], "local")
        assert loaded.weights.keys() == loaded.optimizer.keys() == {"a", "b"}
        contents = [
            sorted((key, value.unique().tolist(), tuple(value.shape)) for key, value in tensors.items())
            for tensors in (loaded.weights, loaded.optimizer)
        ]
        shown[checkpoint["tinker_path"]] = contents, loaded.details["step"], bool(checkpoint["expires_at"])
    return shown


def crash_at(number: int, folder: Path, operation: str) -> bool:
    """Run an operation in a process that crashes at its `number`-th call. Returns whether it got so far."""
    store = Store(folder)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        Crash(number).arm()
        try:
            OPERATIONS[operation](store)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, CRASHED), f"call {number}: exit {status}"
    return status == CRASHED


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".old")]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_before_any_call_leaves_the_old_or_the_new(operation, tmp_path):
    before, done = tmp_path / "before", tmp_path / "done"
    store = Store(before)
    store.create_run("run", RUN)
    save(store, "old", 1.0)
    shutil.copytree(before, done)
    OPERATIONS[operation](Store(done))
    old, new = visible(before), visible(done)
    allowed = [old, new]
    if operation == "copy":  # makes its run first; asked again, it goes on from there
        allowed.insert(1, {**old, "runs": new["runs"]})
    assert old != new
    stages = []
    for number in range(1, 500):
        folder = tmp_path / f"crash-{number}"
        shutil.copytree(before, folder)
        crashed = crash_at(number, folder, operation)
        shown = visible(folder)
        assert shown in allowed, f"a crash before call {number} leaves {shown}"
        assert not leftovers(folder), number
        stages.append(allowed.index(shown))
        check_usable(folder, operation)
        shutil.rmtree(folder)
        if not crashed:
            break
    assert stages[0] == 0 and stages[-1] == len(allowed) - 1
    assert stages == sorted(stages), "what once shows stays"


def check_usable(folder: Path, operation: str) -> None:
    """After a crash, the same can be asked again, and names are free to use."""
    store = Store(folder)
    if operation == "copy":
        assert store.load(str(OPERATIONS["copy"](store)), "local").details["step"] == 1
    elif operation in ("save", "overwrite", "delete"):
        assert store.load(save(store, "old", 3.0, overwrite=True), "local").details["step"] == 3
