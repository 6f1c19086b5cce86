"""Starting and stopping a stub backend: its command, what it refuses in one clear line, an orderly stop."""

import asyncio
import errno
import json
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import tinker
from safetensors.torch import load_file, save_file
from stub import OwnServer, Server, command, datums, prompt
from tinker import types

from helpers.errors import CourseError
from helpers.stub_tinker.options import parse_arguments
from helpers.stub_tinker.starting import bind, run


def test_answers_are_sent_without_delay():
    """Or the system holds back the second part of each answer for 40 ms, twenty times what the rest takes."""

    async def accepted() -> int:
        found = asyncio.get_running_loop().create_future()

        def handle(_, writer):
            found.set_result(
                writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            )
            writer.close()

        async with await asyncio.start_server(handle, sock=bind("127.0.0.1", 0)) as server:
            socket.create_connection(server.sockets[0].getsockname()).close()
            return await found

    assert asyncio.run(accepted()) == 1


def refused(*arguments: str) -> str:
    """What the command says that refuses these arguments, in one clear line."""
    result = command(*arguments)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    return result.stderr


def refused_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The same in this process, which has imported torch: for what a server sees after that."""
    monkeypatch.setattr(sys, "setswitchinterval", Mock())  # it is the server's affair
    with pytest.raises(CourseError) as refusal:  # a server that does start is unused, and ends
        run(parse_arguments([*arguments, "--port", "0", "--idle-exit", "1"]))
    return str(refusal.value)


def test_bad_keys_and_files_are_one_clear_line_that_does_not_show_them(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("tml-good\nsecret-without-prefix\n")
    for arguments, words in [
        (("--api-key-file", str(file)), "key 2 of 2 must start with tml-"),
        (("--api-key", "secret-x"), "the key must start with tml-"),
        (("--api-key-file", str(tmp_path / "none.txt")), "none.txt"),
    ]:
        said = refused("--port", "0", "--state-dir", str(tmp_path / "state"), *arguments)
        assert words in said and "secret" not in said
    file.write_text("# nothing\n")
    assert "holds no key" in refused("--port", "0", "--api-key-file", str(file))


def test_a_taken_port_is_one_clear_line(server):
    port = server.url.rsplit(":", 1)[1]
    said = refused("--port", port)
    assert "can't listen" in said and "--port" in said


@pytest.mark.parametrize("fault", ["full disk", "read-only disk", "a file in its place"])
def test_a_state_folder_that_takes_nothing_is_one_clear_line(small_model, tmp_path, monkeypatch, fault):
    state, limits = tmp_path / "state", resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "read-only disk":
        refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
        monkeypatch.setattr(Path, "mkdir", Mock(side_effect=refusal))
    if fault == "a file in its place":
        state.write_text("")
    words = ["--port", "0", "--state-dir", str(state), "--base-model", str(small_model)]
    with pytest.raises(CourseError) as refused:
        if fault == "full disk":  # the system refuses all writing, with another reason
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            run(parse_arguments(words))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(state) in str(refused.value) and str(refused.value).count("\n") == 1


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    folder = tmp_path / "a" / "b" / "not-a-model"
    folder.mkdir(parents=True)
    assert str(folder) in refused("--port", "0", "--base-model", str(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model_type": "gpt2"}, "'gpt2' is not one of llama"), ({"hidden_size": None}, "hidden_size")],
)
def test_a_model_that_it_cannot_serve_is_one_clear_line(small_model, tmp_path, monkeypatch, change, words):
    folder = tmp_path / "a" / "model"
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    said = refused_here(monkeypatch, "--state-dir", str(tmp_path / "state"), "--base-model", str(folder))
    assert words in said and str(folder) in said


def test_a_model_without_some_weights_is_an_error_at_once(small_model, tmp_path):
    folder = tmp_path / "a" / "model"
    shutil.copytree(small_model, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if "layers.1." not in key},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    server = Server(folder, tmp_path / "state")
    service = server.connect()
    sampler = service.create_sampling_client(base_model=server.model).result()
    with pytest.raises(tinker.BadRequestError, match=r"layers\.1"):
        sampler.sample(prompt(), 1, types.SamplingParams(max_tokens=2)).result(timeout=60)
    with pytest.raises(tinker.BadRequestError, match=r"layers\.1"):
        service.create_lora_training_client(server.model, rank=4).result()
    service.close("success").result()
    server.stop()


def test_it_ends_by_itself_when_unused(small_model, tmp_path):
    server = Server(small_model, tmp_path / "state", "--idle-exit", "1")
    server.process.wait(timeout=30)
    assert server.log.read_text().endswith("exit status 0\n")
    assert not (tmp_path / "state" / "server.json").exists()


def test_the_status_of_no_server_is_one_clear_line(tmp_path):
    for arguments in (("--state-dir", str(tmp_path)), ("--url", "http://127.0.0.1:9")):
        assert "no stub Tinker backend" in refused("--status", *arguments)


# An orderly stop


def test_a_stopping_server_finishes_what_it_accepted(small_model, tmp_path):
    server = Server(small_model, tmp_path / "state")
    service = server.connect()
    client = service.create_lora_training_client(server.model, rank=8, seed=1).result()
    sampler = service.create_sampling_client(base_model=server.model).result()
    waits = [client.forward_backward(datums(8, 40), "cross_entropy") for _ in range(4)]
    waits.append(client.optim_step(types.AdamParams(learning_rate=1e-2)))
    save = client.save_state("last")
    sample = sampler.sample(prompt(1, 2, 3), 2, types.SamplingParams(max_tokens=40, stop=[]))
    sent = 1 + len(waits) + 2  # with create_model, save_state and sample
    while json.loads(server.ask("GET", "/")[1])["clients"][0]["requests"] < sent:
        assert server.is_running()
    server.process.send_signal(signal.SIGTERM)
    while (server.state / "server.json").exists():  # it has taken note
        assert server.is_running()
    body = json.dumps({"tags": [], "user_metadata": {}, "sdk_version": "0"}).encode()
    code, answer, _ = server.ask("POST", "/api/v1/create_session", body)
    assert (code, "stopping" in json.loads(answer)["detail"]) == (403, True)
    with pytest.raises(tinker.PermissionDeniedError, match="stopping"):
        server.connect().create_lora_training_client(server.model).result(timeout=60)
    assert all(wait.result(timeout=60) for wait in waits)
    path = save.result(timeout=60).path
    assert [len(s.tokens) for s in sample.result(timeout=60).sequences] == [40, 40]
    server.process.wait(timeout=60)
    said = server.log.read_text()
    assert "stopping: " in said and said.endswith("stopped\nexit status 0\n") and "Traceback" not in said
    again = Server(small_model, tmp_path / "state")
    resumed = again.connect().create_training_client_from_state_with_optimizer(path).result()
    assert resumed.get_info().lora_rank == 8
    again.stop()


def test_an_unused_server_stops_at_once(small_model, tmp_path):
    server = OwnServer(small_model, tmp_path / "state")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0


def test_a_second_signal_ends_a_server_that_waits_for_its_clients(small_model, tmp_path, monkeypatch):
    server = OwnServer(small_model, tmp_path / "state")
    client = server.connect().create_lora_training_client(server.model, rank=8).result()
    body = json.dumps({"model_id": client.model_id, "seq_id": 5, "path": "never-fetched"}).encode()
    assert server.ask("POST", "/api/v1/save_weights", body)[0] == 200
    server.process.send_signal(signal.SIGTERM)
    while "waiting up to" not in server.log.read_text():
        assert server.is_running()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) == 1
    again = Server(small_model, tmp_path / "state")
    kept = again.rest().list_user_checkpoints().result().checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in kept] == ["weights/never-fetched"]
    said = refused_here(monkeypatch, "--state-dir", str(again.state), "--base-model", str(small_model))
    assert "another stub Tinker backend uses" in said
    again.stop()
