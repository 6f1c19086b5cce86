"""The store on disks that fail, and its checkpoints that expire. Signed URLs, and the lock of the folder."""

import json
import os
import subprocess
import sys
from pathlib import Path  # noqa: F401  (used by FULL_DISK)

import pytest
import torch

from helpers.paths import ROOT
from helpers.stub_tinker.checkpoint_store import Store
from helpers.stub_tinker.errors import StoreError, WriteError
from helpers.stub_tinker.session_store import SessionStore
from helpers.stub_tinker.signed_urls import SignedUrls
from helpers.stub_tinker.state_folder import lock

RUN = {
    "owner": "me",
    "base_model": "b",
    "lora_rank": 8,
    "train_attn": True,
    "train_mlp": True,
    "train_unembed": False,
    "session": "s",
    "user_metadata": {},
}


def files(value: float) -> dict:
    return {
        "adapter_model.safetensors": {"a": torch.full((64,), value)},
        "adapter_config.json": b"{}",
        "optimizer.safetensors": {"m": torch.full((64,), -value)},
    }


def save(
    store: Store, name: str, value: float, overwrite: bool = False, run: str = "run", kind: str = "weights"
) -> str:
    return store.save(run, kind, name, files(value), {"step": int(value)}, None, overwrite)


def content(store: Store, path: str) -> float:
    """The value of a whole checkpoint: all its files and its details agree."""
    weights, optimizer, details, _ = store.load(path, "me")
    value = float(weights["a"][0])
    assert (
        torch.equal(weights["a"], torch.full((64,), value))
        and torch.equal(optimizer["m"], -weights["a"])
        and details["step"] == value
    )
    return value


@pytest.fixture()
def store(tmp_path):
    store = Store(tmp_path)
    store.create_run("run", RUN)
    return store


def state(store: Store) -> dict[str, float]:
    """The values of all checkpoints by name."""
    paths = [checkpoint["tinker_path"] for checkpoint in store.list_checkpoints("me")]
    return {path.rsplit("/")[-1]: content(store, path) for path in paths}


# Disks


FULL_DISK = """
import resource, signal, sys, torch
import test_stub_store as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = t.Store(t.Path(sys.argv[1]))
store.create_run("run", t.RUN)
t.save(store, "old", 1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
note = {"user_metadata": {"k": "v" * 100_000}}
tensors = {"a": torch.zeros(100_000)}
large = [({"adapter_model.safetensors": tensors}, {}), ({"x.age": b"x" * 100_000}, {}), ({}, note)]
for files, details in large:
    for name, overwrite in (("new", False), ("old", True)):
        try:
            store.save("run", "weights", name, files, details, None, overwrite)
        except t.WriteError as error:
            print(error)
assert t.state(store) == {"old": 1.0} and not list(store.runs.rglob(".*")), list(store.runs.rglob("*"))
"""


def in_a_process(code: str, *arguments: str) -> str:
    """What a program prints that may import this module."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    """Tensors, bytes and JSON on a full disk. A limit on the size of files has the system say the same."""
    said = in_a_process(FULL_DISK, str(tmp_path)).splitlines()
    line = "the server could not write the checkpoint weights/{}: File too large"
    assert said == [line.format(name) for name in ("new", "old")] * 3


def test_no_space_left_is_named_whoever_reports_it(store, monkeypatch):
    from safetensors import SafetensorError

    from helpers.stub_tinker import disk as module

    for error in (
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):

        def refuse(*arguments, error=error):
            raise error

        monkeypatch.setattr(module, "save_file", refuse)
        with pytest.raises(
            WriteError, match="could not write the checkpoint weights/x: No space left on device"
        ):
            save(store, "x", 1.0)
    monkeypatch.undo()
    assert content(store, save(store, "x", 1.0)) == 1.0


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"owner": 3}',
        b'{"time": "yesterday", "files": {}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_skipped_and_named_once(store, tmp_path, damage, caplog):
    store.create_run("broken", RUN)
    kept, lost = save(store, "kept", 1.0), save(store, "lost", 2.0)
    (tmp_path / "runs" / "broken" / "run.json").write_bytes(damage)
    (tmp_path / "runs" / "run" / "weights" / "lost" / "checkpoint.json").write_bytes(damage)
    SessionStore(tmp_path)
    (tmp_path / "sessions" / "s.json").write_bytes(damage)
    again, sessions = Store(tmp_path), SessionStore(tmp_path)
    for _ in range(2):
        assert [c["tinker_path"] for c in again.list_checkpoints("me")] == [kept] and content(
            again, kept
        ) == 1.0
        assert [run["training_run_id"] for run in again.list_runs("me")] == ["run"]
        assert sessions.all_of("me") == []
    assert [record.getMessage().count("damaged file") for record in caplog.records] == [1, 1, 1]
    with pytest.raises(StoreError, match="no checkpoint"):
        again.load(lost, "me")


def test_damaged_weights_are_an_error_that_names_the_checkpoint(store, tmp_path):
    path = save(store, "cut", 1.0)
    (tmp_path / "runs/run/weights/cut/adapter_model.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(StoreError, match="tinker://run/weights/cut are damaged"):
        store.load(path, "me")


def test_an_expired_checkpoint_is_gone_and_its_name_is_free(store, tmp_path):
    path = save(store, "short", 1.0)
    record = tmp_path / "runs/run/weights/short/checkpoint.json"
    record.write_text(
        json.dumps({**json.loads(record.read_text()), "expires_at": "2020-01-01T00:00:00+00:00"})
    )
    with pytest.raises(StoreError, match="no checkpoint"):
        store.load(path, "me")
    assert not record.exists() and content(store, save(store, "short", 2.0)) == 2.0


@pytest.mark.parametrize("ttl", [0, -5, 10**12, 10**400, True, 1.5, "3600"])
def test_a_time_to_live_that_makes_no_sense_is_refused(store, ttl):
    with pytest.raises(StoreError, match="ttl_seconds"):
        store.save("run", "weights", "x", files(1.0), {}, ttl, False)
    with pytest.raises(StoreError, match="ttl_seconds"):
        store.set_ttl(save(store, "y", 1.0), "me", ttl)


# Signed URLs


def test_a_signed_url_is_of_one_checkpoint_one_file_and_one_time(store, tmp_path):
    urls = SignedUrls(tmp_path, store)
    later = 4_000_000_000
    path = save(store, "out", 1.0, kind="external_weights")
    signature = urls.sign(path, "adapter_config.json", later, "me")
    assert urls.file(path, "adapter_config.json", later, "me", signature).read_bytes() == b"{}"
    other = save(store, "out2", 1.0, kind="external_weights")
    for forged in [
        (path, "adapter_model.safetensors", later, "me", signature),
        (path, "adapter_config.json", later + 1, "me", signature),
        (other, "adapter_config.json", later, "me", signature),
        (path, "adapter_config.json", later, "me", signature[:-1]),
        (path, "adapter_config.json", later, "me", ""),
        (path, "adapter_config.json", later, "another", signature),
        (path, "adapter_config.json", later, "me", "é"),
    ]:
        with pytest.raises(StoreError, match="signature") as caught:
            urls.file(*forged)
        assert caught.value.status == 403
    with pytest.raises(StoreError, match="expired"):
        urls.file(path, "adapter_config.json", 1, "me", urls.sign(path, "adapter_config.json", 1, "me"))
    store.delete(path, "me")
    with pytest.raises(StoreError, match="gone"):
        urls.file(path, "adapter_config.json", later, "me", signature)
    save(store, "out", 1.0, kind="external_weights")  # the same name, even the same content
    with pytest.raises(StoreError, match="signature"):
        urls.file(path, "adapter_config.json", later, "me", signature)


# One process a folder


LOCKING = """
import sys
from pathlib import Path  # noqa: F401  (used by FULL_DISK)
from helpers.stub_tinker.state_folder import lock
lock(Path(sys.argv[1]), bool, print)
print("mine", flush=True)
sys.stdin.read()
"""


def test_a_state_folder_is_of_one_process(tmp_path):
    command = [sys.executable, "-c", LOCKING, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    try:
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(TimeoutError):
            lock(tmp_path, lambda: True, lambda: None)
    finally:
        holder.kill()
        holder.wait()
    waits = []
    os.close(lock(tmp_path, lambda: False, lambda: waits.append(1)))  # it went with its process
    assert not waits
