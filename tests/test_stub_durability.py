"""What the stub backend reported as saved survives a kill at any moment, a full disk and a repeated request."""

import builtins
import http.client
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tinker
import torch
from safetensors.torch import load, load_file
from stub import Server
from test_stub_server import datums, prompt, train
from tinker import types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from helpers.paths import ROOT
from helpers.stub_tinker import disk
from helpers.stub_tinker.store import Store

ROUNDS = 8
API = "/api/v1"
KINDS = ("weights", "sampler_weights", "external_weights")
OPERATIONS = {
    "weights": "save_weights",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}

# One process imports the libraries and forks a server for each line it reads: a start then takes a fraction of a second.
FORKING = """
import json, os, signal, sys
import torch, transformers, uvicorn, tinker.types
import helpers.stub_tinker.serving
from transformers import AutoTokenizer
from helpers.stub_tinker import __main__ as stub
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    log, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.argv = ["stub_tinker", *arguments]
        os._exit(stub.main())
    print(pid, flush=True)
"""


class ForkedServer(Server):
    """A server that `forking` starts; it is killed, never stopped."""

    def __init__(self, forking: subprocess.Popen, model: Path, state: Path):
        self.model, self.state, self.log = str(model), state, state / "log.txt"
        state.mkdir(parents=True, exist_ok=True)
        (state / "server.json").unlink(missing_ok=True)
        arguments = [
            "--port",
            "0",
            "--state-dir",
            str(state),
            "--base-model",
            self.model,
            "--precision",
            "float32",
        ]
        forking.stdin.write(json.dumps([str(self.log), *arguments]) + "\n")
        forking.stdin.flush()
        self.pid = psutil.Process(int(forking.stdout.readline()))
        deadline = time.monotonic() + 60
        while not (state / "server.json").exists():
            assert self.pid.is_running() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        self.url = json.loads((state / "server.json").read_text())["url"]

    def kill(self) -> None:
        self.pid.kill()
        self.pid.wait(timeout=30)


class Wire:
    """Requests as the SDK sends them, without its retries: when the server is killed, the next request fails."""

    def __init__(self, url: str):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self.seq = 0

    def post(self, route: str, body: dict | bytes) -> bytes:
        kind = "application/x-protobuf" if isinstance(body, bytes) else "application/json"
        self.connection.request(
            "POST",
            f"{API}/{route}",
            body if isinstance(body, bytes) else json.dumps(body),
            {"Content-Type": kind, "X-API-Key": "tml-test"},
        )
        response = self.connection.getresponse()
        content = response.read()
        assert response.status in (200, 204, 408), (route, response.status, content)
        return b"" if response.status == 408 else content

    def future(self, route: str, body: dict | bytes) -> bytes:
        request_id = json.loads(self.post(route, body))["request_id"]
        while not (content := self.post("retrieve_future", {"request_id": request_id})):
            pass
        return content

    def start(self, model: str) -> str:
        session = json.loads(
            self.post(
                "create_session",
                {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0", "type": "create_session"},
            )
        )["session_id"]
        made = self.future(
            "create_model",
            {
                "session_id": session,
                "model_seq_id": 0,
                "base_model": model,
                "lora_config": {"rank": 4, "seed": 1, "train_unembed": False},
            },
        )
        self.session, self.model = session, json.loads(made)["model_id"]
        return self.model

    def step(self, rate: float = 1e-2) -> None:
        self.future("forward_backward", self.datums_body())
        self.future(
            "optim_step",
            {"model_id": self.model, "seq_id": self.next(), "adam_params": {"learning_rate": rate}},
        )

    def next(self) -> int:
        self.seq += 1
        return self.seq

    def datums_body(self, forward_only: bool = False, seq_id: int | None = None) -> bytes:
        message = forward_backward_request_to_proto(
            ForwardBackwardRequest(
                forward_backward_input=ForwardBackwardInput(data=datums(2, 8), loss_fn="cross_entropy"),
                model_id=self.model,
                seq_id=seq_id or self.next(),
            )
        )
        message.forward_only = forward_only
        return message.SerializeToString()

    def logprobs(self) -> np.ndarray:
        output = deserialize_forward_backward_output(
            self.future("forward_backward", self.datums_body(forward_only=True))
        )
        return np.concatenate([item["logprobs"].to_numpy() for item in output.loss_fn_outputs])


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".old")]


def check_files(state: Path) -> set[str]:
    """The tinker paths of all checkpoint folders, each of them whole."""
    found = set()
    for note in (state / "runs").glob("*/*/*/checkpoint.json"):
        for name, size in json.loads(note.read_text())["files"].items():
            assert (note.parent / name).stat().st_size == size
            if name.endswith(".safetensors"):
                load_file(note.parent / name)
        run, kind, name = note.parent.relative_to(state / "runs").parts
        found.add(f"tinker://{run}/{kind}/{name}")
    folders = {path for kind in KINDS for path in (state / "runs").glob(f"*/{kind}/*")}
    assert len(folders) == len(found), "a checkpoint folder without checkpoint.json"
    return found


def save_until_killed(
    server: Server, saved: dict[str, np.ndarray], pending: dict[str, np.ndarray], running: threading.Event
) -> None:
    """Train and save without end; what is reported goes into `saved`, what is under way into `pending`."""
    wire = Wire(server.url)
    try:
        model = wire.start(server.model)
        running.set()
        for i in range(10_000):
            wire.step()
            logprobs = wire.logprobs()
            kind = KINDS[i % 3]
            name = "latest" if i % 6 == 0 else f"step-{i}"
            path = f"tinker://{model}/{kind}/{name}"
            pending.clear()
            pending[path] = logprobs
            body = {"model_id": model, "path": name, "seq_id": wire.next()} | (
                {"overwrite": True} if kind == "weights" else {}
            )
            answer = json.loads(wire.future(OPERATIONS[kind], body))
            assert answer.get("path") == path, answer
            saved[path] = logprobs
    except (OSError, http.client.HTTPException):
        running.set()


def test_killed_at_any_moment_nothing_reported_is_lost(small_model, tmp_path):
    forking = subprocess.Popen(
        [sys.executable, "-c", FORKING], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    state, moments = tmp_path / "state", random.Random(0)
    all_saved: set[str] = set()
    unreported: set[str] = set()  # under way at a kill: they may be there, whole, or not
    server = ForkedServer(forking, small_model, state)
    try:
        for _ in range(ROUNDS):
            saved, pending, running = {}, {}, threading.Event()
            saver = threading.Thread(target=save_until_killed, args=(server, saved, pending, running))
            saver.start()
            assert running.wait(timeout=60)
            saver.join(timeout=moments.uniform(0, 1.5))  # it goes on saving until the kill
            assert saver.is_alive()
            server.kill()
            saver.join(timeout=60)
            server = ForkedServer(forking, small_model, state)
            assert not leftovers(state)
            all_saved |= set(saved)
            unreported |= set(pending)
            check_restored(server, saved, pending, all_saved, unreported)
    finally:
        server.kill()
        forking.stdin.close()
        forking.wait(timeout=30)
    assert len(all_saved) >= ROUNDS  # a round is long enough for about two
    assert "Traceback" not in server.log.read_text()


def check_restored(
    server: Server, saved: dict, pending: dict, all_saved: set[str], unreported: set[str]
) -> None:
    """Every reported checkpoint is listed and gives the logprobs of its moment; listed ones are whole, and load."""
    wire = Wire(server.url)
    wire.start(server.model)
    wire.connection.request("GET", f"{API}/checkpoints?limit=100000", headers={"X-API-Key": "tml-test"})
    listed = {c["tinker_path"] for c in json.loads(wire.connection.getresponse().read())["checkpoints"]}
    assert all_saved <= listed and listed == check_files(server.state)
    assert listed <= all_saved | unreported
    for path in set(saved) | (listed & set(pending)):
        versions = [table[path] for table in (saved, pending) if path in table]
        if "/weights/" in path:
            restored = Wire(server.url)
            restored.session = wire.session
            restored.model = json.loads(
                restored.future(
                    "load_weights",
                    {
                        "session_id": wire.session,
                        "model_seq_id": wire.next(),
                        "path": path,
                        "optimizer": True,
                    },
                )
            )["model_id"]
            got = restored.logprobs()
            assert any(np.array_equal(got, logprobs) for logprobs in versions), path
        elif "/sampler_weights/" in path:
            wire.post(
                "create_sampling_session",
                {"session_id": wire.session, "sampling_session_seq_id": wire.next(), "model_path": path},
            )
    if newest := [path for path in saved if "/weights/" in path]:
        service = server.connect()
        client = service.create_training_client_from_state_with_optimizer(newest[-1]).result()
        output = client.forward(datums(2, 8), "cross_entropy").result()
        got = np.concatenate([item["logprobs"].to_numpy() for item in output.loss_fn_outputs])
        assert any(
            np.array_equal(got, table[newest[-1]]) for table in (saved, pending) if newest[-1] in table
        )
        service.close("success").result()


# A crash before every single call that changes the disk

RUN = {
    "owner": "local",
    "created": "",
    "base_model": "m",
    "lora_rank": 4,
    "train_attn": True,
    "train_mlp": True,
    "train_unembed": False,
    "session": "s",
    "user_metadata": {},
}


def files(value: float) -> dict:
    tensors = {"a": torch.full((40, 50), value), "b": torch.full((7,), value)}
    return {
        "adapter_model.safetensors": tensors,
        "adapter_config.json": json.dumps({"value": value}).encode(),
        "optimizer.safetensors": dict(tensors),
    }


STORE_OPERATIONS: dict[str, Callable[[Store], object]] = {
    "save": lambda store: store.save("run", "weights", "new", files(2.0), {"step": 2}, None, False),
    "overwrite": lambda store: store.save("run", "weights", "old", files(2.0), {"step": 2}, None, True),
    "delete": lambda store: store.delete("tinker://run/weights/old", "local"),
    "set_ttl": lambda store: store.set_ttl("tinker://run/weights/old", "local", 100_000),
    "create_run": lambda store: store.create_run("second", RUN),
}


def crash_before_call(number: int) -> None:
    """Make this process end before its `number`-th call that opens for writing, writes, syncs, renames, makes or removes."""
    calls = 0

    def crash(torn: Callable[[], object] | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            if torn:
                torn()
            os._exit(9)

    def counted(function):
        def call(*args, **kwargs):
            crash()
            return function(*args, **kwargs)

        return call

    class TornFile:
        """A file whose write is cut in half by the crash."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            crash(lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
            return self.file.write(data)

    opened = io.open

    def open_file(path, mode="r", *args, **kwargs):
        if not set(mode) & set("wax+"):
            return opened(path, mode, *args, **kwargs)
        crash()
        return TornFile(opened(path, mode, *args, **kwargs))

    builtins.open = io.open = open_file
    for name in ("replace", "rename", "fsync", "mkdir", "unlink", "remove", "rmdir", "write", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    if save_file := getattr(disk, "save_file", None):

        def torn_save(tensors, path, *args, **kwargs):
            def half() -> None:
                save_file(tensors, path)
                os.truncate(path, os.stat(path).st_size // 2)

            crash(half)
            return save_file(tensors, path, *args, **kwargs)

        disk.save_file = torn_save


def visible(folder: Path) -> dict:
    """All that a fresh store shows, with the contents of every checkpoint."""
    store = Store(folder)
    shown = {"runs": sorted(run["training_run_id"] for run in store.list_runs("local"))}
    for checkpoint in store.list_checkpoints("local"):
        path = checkpoint["tinker_path"]
        loaded = store.load(path, "local")
        assert loaded[0].keys() == loaded[1].keys() == {"a", "b"}
        shown[path] = (
            [
                sorted((k, v.unique().tolist(), tuple(v.shape)) for k, v in tensors.items())
                for tensors in loaded[:2]
            ],
            loaded[2]["step"],
            bool(checkpoint["expires_at"]),
        )
    return shown


@pytest.mark.parametrize("operation", STORE_OPERATIONS)
def test_a_crash_before_any_call_leaves_the_old_or_the_new(operation, tmp_path):
    before = tmp_path / "before"
    store = Store(before)
    store.create_run("run", RUN)
    store.save("run", "weights", "old", files(1.0), {"step": 1}, None, False)
    done = tmp_path / "done"
    shutil.copytree(before, done)
    STORE_OPERATIONS[operation](Store(done))
    old, new = visible(before), visible(done)
    assert old != new
    seen = []
    for number in range(1, 500):
        folder = tmp_path / f"crash-{number}"
        shutil.copytree(before, folder)
        store = Store(folder)
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            crash_before_call(number)
            try:
                STORE_OPERATIONS[operation](store)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9), f"call {number}: exit {status}"
        shown = visible(folder)
        assert shown in (old, new), f"a crash before call {number} leaves {shown}"
        assert not leftovers(folder), number
        seen.append(shown == new)
        shutil.rmtree(folder)
        if status == 0:
            break
    assert seen[-1] and not seen[0] and seen == sorted(seen), "once the new state shows it stays"


# Resume


def batch(step: int) -> list[types.Datum]:
    return datums(6, 10 + step)


def adapter(client: tinker.TrainingClient, server: Server, name: str) -> dict[str, torch.Tensor]:
    import urllib.request

    urls = (
        server.rest()
        .get_external_weights_urls(client.save_weights_external(name).result().path)
        .result()
        .urls
    )
    with urllib.request.urlopen(urls["adapter_model.safetensors"]) as file:
        return load(file.read())


def test_a_killed_and_resumed_run_ends_where_an_unbroken_one_does(small_model, tmp_path):
    server = Server(small_model, tmp_path / "state")
    service = server.connect()
    unbroken = service.create_lora_training_client(server.model, rank=8, seed=3, train_unembed=False).result()
    losses = [train(unbroken, 1, batch(step))[0] for step in range(9)]
    expected = adapter(unbroken, server, "final")
    client = service.create_lora_training_client(server.model, rank=8, seed=3, train_unembed=False).result()
    assert [train(client, 1, batch(step))[0] for step in range(4)] == losses[:4]
    path = client.save_state("last").result().path
    train(client, 1, batch(4))
    client.forward_backward(batch(5), "cross_entropy").result()  # its gradient is lost with the kill
    server.kill()
    server = Server(small_model, tmp_path / "state")
    service = server.connect()
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert [train(resumed, 1, batch(step))[0] for step in range(4, 9)] == losses[4:]
    final = adapter(resumed, server, "final")
    assert final.keys() == expected.keys() and all(torch.equal(final[key], expected[key]) for key in expected)
    service.close("success").result()
    server.stop()


# A disk that refuses


@pytest.fixture(params=["tmpfs", "read-only", "file-size-limit", "file-in-the-way"])
def refusing(request, small_model, tmp_path):
    """A server, the way to make its disk refuse a run's checkpoints, the way to undo that, and a word of the message."""
    state = tmp_path / "state"
    runs = state / "runs"
    runs.mkdir(parents=True)
    mounted = request.param in ("tmpfs", "read-only")
    if mounted and (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(runs)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a tmpfs needs rights that this user has not")
    server = Server(small_model, state)
    filler, process = runs / "filler", psutil.Process(server.process.pid)

    def refuse(run: str) -> None:
        if request.param == "tmpfs":
            with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
                while file.write(b"x" * 65536):
                    pass
        elif request.param == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)
        elif request.param == "file-size-limit":
            process.rlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        else:
            for kind in KINDS:
                (runs / run / kind).write_text("in the way")

    def allow(run: str) -> None:
        if request.param == "tmpfs":
            filler.unlink()
        elif request.param == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(runs)], check=True)
        elif request.param == "file-size-limit":
            process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            for kind in KINDS:
                (runs / run / kind).unlink()

    word = {
        "tmpfs": "space",
        "read-only": "[Rr]ead-only",
        "file-size-limit": "large",
        "file-in-the-way": "(?i)exists|directory",
    }[request.param]
    yield server, refuse, allow, word
    server.kill()
    if mounted:
        subprocess.run(["umount", "-l", str(runs)], check=True)


def test_a_disk_that_refuses_fails_the_save_and_nothing_else(refusing):
    server, refuse, allow, word = refusing
    service = server.connect()
    client, neighbour = (
        service.create_lora_training_client(server.model, rank=32, seed=1, train_unembed=False).result()
        for _ in range(2)
    )
    quiet = train(client, 2)
    run = client.model_id
    refuse(run)
    for save in (client.save_state, client.save_weights_for_sampler, client.save_weights_external):
        with pytest.raises(tinker.TinkerError, match=word) as caught:
            save("kept").result()
        assert "Traceback" not in str(caught.value)
    assert train(neighbour, 2) == pytest.approx(quiet, rel=1e-6)
    assert train(client, 1)[0] < quiet[0]
    allow(run)
    assert not leftovers(server.state)
    assert server.rest().list_checkpoints(run).result().checkpoints == []
    paths = [
        save("kept").result().path
        for save in (client.save_state, client.save_weights_for_sampler, client.save_weights_external)
    ]
    resumed = service.create_training_client_from_state_with_optimizer(paths[0]).result()
    assert train(resumed, 1) == pytest.approx(train(client, 1), rel=1e-6)
    assert check_files(server.state) == set(paths)
    assert "Traceback" not in server.log.read_text()
    service.close("success").result()


# Repeated requests


def twenty(server: Server, route: str, body: dict | bytes) -> set[bytes]:
    """What the futures of 20 posts of one request say, posted at once."""

    def post(_) -> bytes:
        wire = Wire(server.url)
        return wire.future(route, body)

    with ThreadPoolExecutor(20) as pool:
        return set(pool.map(post, range(20)))


def test_a_request_posted_twenty_times_is_done_once(server):
    once, many = Wire(server.url), Wire(server.url)
    for wire in (once, many):
        wire.start(server.model)
    body = {
        "session_id": many.session,
        "model_seq_id": 7,
        "base_model": server.model,
        "lora_config": {"rank": 4, "seed": 1, "train_unembed": False},
    }
    made = twenty(server, "create_model", body)
    assert len(made) == 1
    for _ in range(3):
        once.step(0.1)
        assert len(twenty(server, "forward_backward", many.datums_body())) == 1
        assert (
            len(
                twenty(
                    server,
                    "optim_step",
                    {"model_id": many.model, "seq_id": many.next(), "adam_params": {"learning_rate": 0.1}},
                )
            )
            == 1
        )
    assert np.array_equal(many.logprobs(), once.logprobs())
    saves = twenty(server, "save_weights", {"model_id": many.model, "seq_id": many.next(), "path": "one"})
    assert [json.loads(answer).get("path") for answer in saves] == [f"tinker://{many.model}/weights/one"]
    assert [c.checkpoint_id for c in server.rest().list_checkpoints(many.model).result().checkpoints] == [
        "weights/one"
    ]
    note = json.loads(
        (server.state / "runs" / many.model / "weights" / "one" / "checkpoint.json").read_text()
    )
    assert note["step"] == 3


def test_a_sample_posted_twenty_times_is_drawn_once(server, service):
    def sampled() -> int:
        import urllib.request

        with urllib.request.urlopen(
            urllib.request.Request(
                server.url + "/", headers={"X-API-Key": "tml-test", "Accept": "application/json"}
            )
        ) as answer:
            return json.load(answer)["tokens_sampled"]

    wire = Wire(server.url)
    wire.start(server.model)
    sampler = json.loads(
        wire.post(
            "create_sampling_session",
            {"session_id": wire.session, "sampling_session_seq_id": 1, "base_model": server.model},
        )
    )["sampling_session_id"]
    before = sampled()
    body = {
        "sampling_session_id": sampler,
        "seq_id": 1,
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": prompt().to_ints()}]},
        "sampling_params": {"max_tokens": 20, "temperature": 1.0, "stop": []},
    }
    assert len(twenty(server, "asample", body)) == 1
    assert sampled() - before == 40
    assert len(twenty(server, "asample", body | {"seq_id": 2})) == 1  # another request draws anew
    assert sampled() - before == 80
