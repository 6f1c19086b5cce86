"""Checkpoints survive a kill at any line of the code that writes them, a full disk, and damaged files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.paths import ROOT
from helpers.stub_tinker.errors import StoreError, WriteError
from helpers.stub_tinker.session_store import SessionStore
from helpers.stub_tinker.signed_urls import SignedUrls
from helpers.stub_tinker.state_folder import lock
from helpers.stub_tinker.store import Store

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


# A kill between any two lines

OPERATIONS = {
    "save": lambda store: save(store, "new", 3.0),
    "overwrite": lambda store: save(store, "old", 2.0, overwrite=True),
    "set_ttl": lambda store: store.set_ttl("tinker://run/weights/old", "me", 7200),
    "delete": lambda store: store.delete("tinker://run/weights/old", "me"),
    "create_run": lambda store: store.create_run("second", RUN),
    "copy": lambda store: store.copy("tinker://run/weights/old", "me", "copied", None, None, None),
}
ALLOWED = {  # what may be there afterwards: as before, or as asked
    "save": [{"old": 1.0}, {"old": 1.0, "new": 3.0}],
    "overwrite": [{"old": 1.0}, {"old": 2.0}],
    "set_ttl": [{"old": 1.0}],
    "delete": [{"old": 1.0}, {}],
    "create_run": [{"old": 1.0}],
    "copy": [{"old": 1.0}, {"old": 1.0, "copied": 1.0}],
}


def state(store: Store) -> dict[str, float]:
    return {
        ("copied" if "copied" in c["tinker_path"] else c["tinker_path"].rsplit("/")[-1]): content(
            store, c["tinker_path"]
        )
        for c in store.list_checkpoints("me")
    }


def kill_everywhere(operation: str, folder: Path) -> int:
    """Run an operation again and again in a child that is killed at its 1st, 2nd, 3rd … line; check what a new start finds."""
    template = folder / "template"
    store = Store(template)
    store.create_run("run", RUN)
    save(store, "old", 1.0)
    kills, seen = 0, []
    while True:
        place = folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        child = os.fork()
        if child == 0:
            left = kills
            sources = ("store.py", "disk.py", "shutil.py")

            def trace(frame, event, argument):
                nonlocal left
                if not frame.f_code.co_filename.endswith(sources):
                    return None
                if event == "line":
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                return trace

            opened = Store(place)
            sys.settrace(trace)
            OPERATIONS[operation](opened)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        after = Store(place)
        found = state(after)
        assert found in ALLOWED[operation], (operation, kills, found)
        assert not list(place.rglob(".*")), (operation, kills)  # nothing half-written is left
        if "second" in {run["training_run_id"] for run in after.list_runs("me")}:
            assert after.run_info("second", "me")["lora_rank"] == 8
        if found:
            expires = {c["tinker_path"]: c["expires_at"] for c in after.list_checkpoints("me")}[
                "tinker://run/weights/old"
            ]
            assert expires is None or operation == "set_ttl"
        OPERATIONS["overwrite"](after) if "old" in found else save(
            after, "old", 2.0
        )  # the name is free to use
        assert content(after, "tinker://run/weights/old") == 2.0
        seen.append(found)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and found == ALLOWED[operation][-1]
            return kills
        kills += 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_line_loses_nothing_and_leaves_nothing_half_there(operation, tmp_path):
    """In a process of its own: the children are forks, and pytest's process has threads."""
    code = f"import test_stub_store; print(test_stub_store.kill_everywhere({operation!r}, test_stub_store.Path({str(tmp_path)!r})))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) > 10  # so many places were tried


# Disks


@pytest.mark.parametrize("what", ["tensors", "bytes", "json"])
def test_a_full_disk_is_said_and_what_was_there_stays(what, tmp_path):
    """A limit on the size of files stands for the full disk: the same path of errors from the system and from safetensors."""
    code = f"""
import resource, signal, torch
from helpers.stub_tinker.store import Store
from helpers.stub_tinker.errors import WriteError
import test_stub_store as t
store = Store(t.Path({str(tmp_path)!r}))
store.create_run("run", t.RUN)
t.save(store, "old", 1.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
big = {{"tensors": {{"adapter_model.safetensors": {{"a": torch.zeros(100_000)}}}}, "bytes": {{"x.age": b"x" * 100_000}}, "json": {{}}}}[{what!r}]
details = {{"user_metadata": {{"k": "v" * 100_000}}}} if {what!r} == "json" else {{}}
for name, overwrite in (("new", False), ("old", True)):
    try:
        store.save("run", "weights", name, big, details, None, overwrite)
    except WriteError as error:
        print(error)
assert t.state(store) == {{"old": 1.0}} and not list(store.runs.rglob(".*")), list(store.runs.rglob("*"))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines() == [
        f"the server could not write the checkpoint weights/{name}: File too large" for name in ("new", "old")
    ]


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
    signature = urls.sign(path, "adapter_config.json", later)
    assert urls.file(path, "adapter_config.json", later, signature).read_bytes() == b"{}"
    other = save(store, "out2", 1.0, kind="external_weights")
    for forged in [
        (path, "adapter_model.safetensors", later, signature),
        (path, "adapter_config.json", later + 1, signature),
        (other, "adapter_config.json", later, signature),
        (path, "adapter_config.json", later, signature[:-1]),
        (path, "adapter_config.json", later, ""),
        (path, "adapter_config.json", later, "é"),
    ]:
        with pytest.raises(StoreError, match="signature") as caught:
            urls.file(*forged)
        assert caught.value.status == 403
    with pytest.raises(StoreError, match="expired"):
        urls.file(path, "adapter_config.json", 1, urls.sign(path, "adapter_config.json", 1))
    store.delete(path, "me")
    with pytest.raises(StoreError, match="gone"):
        urls.file(path, "adapter_config.json", later, signature)
    save(store, "out", 1.0, kind="external_weights")  # the same name, even the same content
    with pytest.raises(StoreError, match="signature"):
        urls.file(path, "adapter_config.json", later, signature)


# One process a folder


def test_a_state_folder_is_of_one_process(tmp_path):
    code = "import sys; from pathlib import Path; from helpers.stub_tinker.state_folder import lock; lock(Path(sys.argv[1]), bool, print); print('mine', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
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
