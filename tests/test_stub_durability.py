"""What a stub backend reported as saved survives a kill at any moment, a full disk and a repeated request."""

import http.client
import json
import os
import random
import resource
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load, load_file
from stub import Server, datums, prompt, train
from tinker import types
from wire import Wire

KINDS = ("weights", "sampler_weights", "external_weights")
OPERATIONS = ("save_weights", "save_weights_for_sampler", "save_weights_external")


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


# Kills at random moments


@dataclass
class Saver:
    """Trains and saves without end. Every checkpoint is noted with the logprobs of its moment.

    Attributes:
        saved: by path, those that the server reported.
        pending: the one that is under way.
        begun: the server has reported a first one, or is gone.
    """

    saved: dict[str, np.ndarray] = field(default_factory=dict)
    pending: dict[str, np.ndarray] = field(default_factory=dict)
    begun: threading.Event = field(default_factory=threading.Event)

    def save_until_killed(self, server: Server) -> None:
        wire = Wire(server.url)
        try:
            model = wire.start(server.model)
            for number in range(10_000):
                wire.step()
                self.save(wire, model, number)
                self.begun.set()
        except (OSError, http.client.HTTPException):
            self.begun.set()

    def save(self, wire: Wire, model: str, number: int) -> None:
        logprobs, kind = wire.logprobs(), KINDS[number % 3]
        name = "latest" if number % 6 == 0 else f"step-{number}"
        path = f"tinker://{model}/{kind}/{name}"
        self.pending = {path: logprobs}
        body = {"model_id": model, "path": name, "seq_id": wire.next()}
        body |= {"overwrite": True} if kind == "weights" else {}
        answer = json.loads(wire.future(OPERATIONS[number % 3], body))
        assert answer.get("path") == path, answer
        self.saved[path] = logprobs


@pytest.mark.parametrize("rounds", [2, pytest.param(8, marks=pytest.mark.soak)])
def test_killed_at_any_moment_nothing_reported_is_lost(rounds, small_model, tmp_path):
    state, moments = tmp_path / "state", random.Random(0)
    reported: set[str] = set()
    unreported: set[str] = set()  # under way at a kill: they may be there, whole, or not
    server = Server(small_model, state)
    try:
        for _ in range(rounds):
            saver = Saver()
            thread = threading.Thread(target=saver.save_until_killed, args=(server,))
            thread.start()
            assert saver.begun.wait(timeout=60)
            thread.join(timeout=moments.uniform(0, 1))  # it goes on saving until the kill
            assert thread.is_alive()
            server.kill()
            thread.join(timeout=60)
            server = Server(small_model, state)
            assert not leftovers(state)
            reported |= set(saver.saved)
            unreported |= set(saver.pending)
            listed = check_restored(server, saver)
            assert reported <= listed <= reported | unreported
    finally:
        server.kill()
    assert len(reported) >= rounds
    assert "Traceback" not in server.log.read_text()


def check_restored(server: Server, saver: Saver) -> set[str]:
    """Every checkpoint is whole, and loads with the logprobs of its moment. Returns the listed paths."""
    wire = Wire(server.url)
    wire.start(server.model)
    answer = json.loads(wire.request("GET", "checkpoints?limit=100000"))
    listed = {checkpoint["tinker_path"] for checkpoint in answer["checkpoints"]}
    assert listed == check_files(server.state)
    for path in set(saver.saved) | (listed & set(saver.pending)):
        session = {"session_id": wire.session}
        if "/weights/" in path:
            number = {"model_seq_id": wire.next(), "path": path, "optimizer": True}
            restored = Wire(server.url)
            restored.model = json.loads(restored.future("load_weights", session | number))["model_id"]
            versions = [table[path] for table in (saver.saved, saver.pending) if path in table]
            assert any(np.array_equal(restored.logprobs(), logprobs) for logprobs in versions), path
        elif "/sampler_weights/" in path:
            number = {"sampling_session_seq_id": wire.next(), "model_path": path}
            wire.post("create_sampling_session", session | number)
    return listed


# Resume


def batch(step: int) -> list[types.Datum]:
    return datums(6, 10 + step)


def adapter(client: tinker.TrainingClient, server: Server, name: str) -> dict[str, torch.Tensor]:
    path = client.save_weights_external(name).result().path
    urls = server.rest().get_external_weights_urls(path).result().urls
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
    (server.state / "runs" / "half").mkdir()  # as a kill in the middle of a new run may leave it
    server = Server(small_model, tmp_path / "state")
    service = server.connect()
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert [train(resumed, 1, batch(step))[0] for step in range(4, 9)] == losses[4:]
    final = adapter(resumed, server, "final")
    assert final.keys() == expected.keys() and all(torch.equal(final[key], expected[key]) for key in expected)
    service.close("success").result()
    server.stop()


# A disk that refuses


class FullDisk:
    """A tmpfs that is filled."""

    word = "space"

    def __init__(self, server: Server):
        self.filler = server.state / "runs" / "filler"

    def refuse(self, run: str) -> None:
        with pytest.raises(OSError, match="space"), open(self.filler, "wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass

    def allow(self, run: str) -> None:
        self.filler.unlink()


class ReadOnlyDisk:
    """A tmpfs that is mounted anew, for reading only."""

    word = "[Rr]ead-only"

    def __init__(self, server: Server):
        self.runs = str(server.state / "runs")

    def refuse(self, run: str) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.runs], check=True)

    def allow(self, run: str) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.runs], check=True)


class SmallFiles:
    """A limit on the size of the server's files."""

    word = "large"

    def __init__(self, server: Server):
        self.process = server.process

    def refuse(self, run: str) -> None:
        self.process.rlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    def allow(self, run: str) -> None:
        self.process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class FileInTheWay:
    """A file where the folder of a kind belongs."""

    word = "(?i)exists|directory"

    def __init__(self, server: Server):
        self.runs = server.state / "runs"

    def refuse(self, run: str) -> None:
        for kind in KINDS:
            (self.runs / run / kind).write_text("in the way")

    def allow(self, run: str) -> None:
        for kind in KINDS:
            (self.runs / run / kind).unlink()


@pytest.fixture(params=[FullDisk, ReadOnlyDisk, SmallFiles, FileInTheWay])
def refusing(request, small_model, tmp_path) -> Iterator[tuple]:
    """A server, and what makes its disk refuse a run's checkpoints."""
    state = tmp_path / "state"
    runs = state / "runs"
    runs.mkdir(parents=True)
    mounted = request.param in (FullDisk, ReadOnlyDisk)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(runs)]
    if mounted and (os.geteuid() or subprocess.run(mount, capture_output=True).returncode):
        pytest.skip("mounting a tmpfs needs rights that this user has not")
    server = Server(small_model, state)
    yield server, request.param(server)
    server.kill()
    if mounted:
        subprocess.run(["umount", "-l", str(runs)], check=True)


def test_a_disk_that_refuses_fails_the_save_and_nothing_else(refusing):
    server, disk = refusing
    service = server.connect()
    client, neighbour = (
        service.create_lora_training_client(server.model, rank=32, seed=1, train_unembed=False).result()
        for _ in range(2)
    )
    quiet = train(client, 2)
    run = client.model_id
    saves: list[Callable] = [
        client.save_state,
        client.save_weights_for_sampler,
        client.save_weights_external,
    ]
    disk.refuse(run)
    for save in saves:
        with pytest.raises(tinker.TinkerError, match=disk.word) as caught:
            save("kept").result()
        assert "Traceback" not in str(caught.value)
    assert train(neighbour, 2) == pytest.approx(quiet, rel=1e-6)
    assert train(client, 1)[0] < quiet[0]
    disk.allow(run)
    assert not leftovers(server.state)
    assert server.rest().list_checkpoints(run).result().checkpoints == []
    paths = [save("kept").result().path for save in saves]
    resumed = service.create_training_client_from_state_with_optimizer(paths[0]).result()
    assert train(resumed, 1) == pytest.approx(train(client, 1), rel=1e-6)
    assert check_files(server.state) == set(paths)
    assert "Traceback" not in server.log.read_text()
    service.close("success").result()


# Repeated requests


def twenty(server: Server, route: str, body: dict | bytes) -> set[bytes]:
    """What the futures of 20 posts of one request say, posted at once."""
    with ThreadPoolExecutor(20) as pool:
        return set(pool.map(lambda _: Wire(server.url).future(route, body), range(20)))


def test_a_request_posted_twenty_times_is_done_once(server):
    once, many = Wire(server.url), Wire(server.url)
    for wire in (once, many):
        wire.start(server.model)
    assert len(twenty(server, "create_model", many.model_body(server.model, 7))) == 1
    for _ in range(3):
        once.step(0.1)
        assert len(twenty(server, "forward_backward", many.datums_body())) == 1
        assert len(twenty(server, "optim_step", many.step_body(0.1))) == 1
    assert np.array_equal(many.logprobs(), once.logprobs())
    saves = twenty(server, "save_weights", {"model_id": many.model, "seq_id": many.next(), "path": "one"})
    assert [json.loads(answer).get("path") for answer in saves] == [f"tinker://{many.model}/weights/one"]
    kept = server.rest().list_checkpoints(many.model).result().checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in kept] == ["weights/one"]
    note = server.state / "runs" / many.model / "weights" / "one" / "checkpoint.json"
    assert json.loads(note.read_text())["step"] == 3


def test_a_sample_posted_twenty_times_is_drawn_once(server):
    def sampled() -> int:
        return json.loads(server.ask("GET", "/", Accept="application/json")[1])["tokens_sampled"]

    wire = Wire(server.url)
    wire.start(server.model)
    session = {"session_id": wire.session, "sampling_session_seq_id": 1, "base_model": server.model}
    sampler = json.loads(wire.post("create_sampling_session", session))["sampling_session_id"]
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
