"""Checkpoints: downloaded whole, from every kind of path, or not at all."""

import hashlib
import resource
import threading
import warnings
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
import torch
from file_servers import (
    Chunked,
    CutsAlways,
    CutsFirst,
    Endless,
    Expires,
    FileServer,
    GoesOn,
    Moves,
    OtherPart,
    Plain,
)
from safetensors.torch import save_file
from tinker import types

from helpers.errors import BackendError, ModelError, RunError
from helpers.weights import describe_adapter, download_checkpoint_archive, extract_archive, transfer

EXTERNAL = "tinker://run/external_weights/final"


def _ready(value):
    return SimpleNamespace(result=lambda: value)


class FakeService:
    """What download_checkpoint_archive uses of a ServiceClient; the files come over real HTTP."""

    def __init__(self, folder, url, server):
        self.folder, self.url, self.server = folder, url, server
        self.deleted: list[str] = []
        self.loaded: list[str] = []
        self.signed = 0
        self.suffixes, self.expires_in = [""], timedelta(hours=1)
        self.listed = [
            ("training", "tinker://run/weights/epoch-2"),
            ("sampler", "tinker://run/sampler_weights/epoch-2"),
            ("training", "tinker://run/weights/epoch-1"),
            ("sampler", "tinker://run/sampler_weights/epoch-3"),
        ]

    def create_rest_client(self):
        return self

    def create_training_client_from_state(self, path):
        self.loaded.append(path)
        saved = SimpleNamespace(path="tinker://run/external_weights/temporary")
        return _ready(SimpleNamespace(save_weights_external=lambda name, ttl_seconds: _ready(saved)))

    def get_external_weights_urls(self, path):
        names = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]
        suffix = self.suffixes[min(self.signed, len(self.suffixes) - 1)]
        self.signed += 1
        return _ready(
            SimpleNamespace(
                urls={n: f"{self.url}/{n}{suffix}" for n in names},
                expires=datetime.now(UTC) + self.expires_in,
            )
        )

    def delete_checkpoint_from_tinker_path(self, path):
        self.deleted.append(path)
        return _ready(None)

    def list_checkpoints(self, run):
        return _ready(
            SimpleNamespace(
                checkpoints=[SimpleNamespace(checkpoint_type=t, tinker_path=p) for t, p in self.listed]
            )
        )


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    save_file(
        {"x.lora_A.weight": torch.arange(100_000.0).reshape(4, -1)}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0)


@pytest.fixture
def serve():
    servers = []

    def start(folder, handler=Plain) -> Any:
        server = FileServer(partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return FakeService(folder, f"http://127.0.0.1:{server.server_port}", server)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_pack_unpack_gives_the_same_files(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    made = download_checkpoint_archive(service, EXTERNAL, tmp_path / "a" / "model-checkpoint.tar.gz", False)
    sizes = extract_archive(tmp_path / "a" / "model-checkpoint.tar.gz", tmp_path / "out")
    assert sizes == {p.name: p.stat().st_size for p in checkpoint.iterdir()}
    for file in checkpoint.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert (
        set(made["files"]) == set(sizes)
        and made["bytes"] == (tmp_path / "a" / made["archive"]).stat().st_size
    )
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model-checkpoint.tar.gz"]
    assert service.loaded == []


def test_same_checkpoint_same_bytes(tmp_path, checkpoint, serve):
    made = [
        download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / name, False)
        for name in ("one.tar.gz", "two.tar.gz")
    ]
    assert made[0]["sha256"] == made[1]["sha256"]
    (checkpoint / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 9}')
    changed = download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / "three.tar.gz", False)
    assert changed["sha256"] != made[0]["sha256"]


def test_training_path_goes_through_a_temporary_export(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    download_checkpoint_archive(service, "tinker://run/weights/epoch-2", tmp_path / "a.tar.gz", False)
    assert service.loaded == ["tinker://run/weights/epoch-2"]
    assert service.deleted == ["tinker://run/external_weights/temporary"]


def test_a_sampler_path_without_its_training_checkpoint_names_paths_to_use(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    with pytest.raises(
        BackendError, match=r"(?s)no training checkpoint of that name.*tinker://run/weights/epoch-2"
    ):
        download_checkpoint_archive(
            service, "tinker://run/sampler_weights/epoch-3", tmp_path / "a.tar.gz", False
        )
    service.listed *= 2
    with pytest.raises(BackendError, match="more than one"):
        download_checkpoint_archive(
            service, "tinker://run/sampler_weights/epoch-2", tmp_path / "a.tar.gz", False
        )
    service.listed = []
    with pytest.raises(BackendError, match="save_weights_external"):
        download_checkpoint_archive(
            service, "tinker://run/sampler_weights/epoch-2", tmp_path / "a.tar.gz", False
        )
    service.listed = None
    with pytest.raises(BackendError, match="lists no others"):
        download_checkpoint_archive(
            service, "tinker://run/sampler_weights/epoch-2", tmp_path / "a.tar.gz", False
        )
    assert not (tmp_path / "a.tar.gz").exists() and service.loaded == []


@pytest.mark.parametrize(
    "path",
    [
        "",
        "final",
        "tinker://run/final",
        "https://x/y/z",
        "tinker://a/b/c/d",
        "tinker://a/models/b",
        "tinker:///weights/b",
        "tinker://a/weights/",
    ],
)
def test_what_is_no_path_is_refused(tmp_path, checkpoint, serve, path):
    with pytest.raises(BackendError, match="not a checkpoint path"):
        download_checkpoint_archive(serve(checkpoint), path, tmp_path / "a.tar.gz", False)


def test_a_cut_transfer_starts_again(tmp_path, checkpoint, serve):
    CutsFirst.seen = set()
    made = download_checkpoint_archive(serve(checkpoint, CutsFirst), EXTERNAL, tmp_path / "a.tar.gz", False)
    assert made["files"]["adapter_model.safetensors"] == recorded(checkpoint / "adapter_model.safetensors")
    assert len(CutsFirst.seen) == 2


def recorded(file):
    return {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_a_cut_transfer_goes_on_where_it_stopped(tmp_path, checkpoint, serve, capsys):
    service = serve(checkpoint, GoesOn)
    made = download_checkpoint_archive(service, EXTERNAL, tmp_path / "a.tar.gz")
    whole = checkpoint / "adapter_model.safetensors"
    assert made["files"]["adapter_model.safetensors"] == recorded(whole)
    assert service.server.asked == [None, None, f"bytes={whole.stat().st_size // 2}-"]
    assert "100%" in capsys.readouterr().out


def test_a_file_that_changed_under_a_cut_is_fetched_anew(tmp_path, checkpoint, serve, monkeypatch):
    whole = checkpoint / "adapter_model.safetensors"
    monkeypatch.setattr(
        transfer.time, "sleep", lambda _: save_file({"x.lora_A.weight": torch.ones(4, 25_000)}, whole)
    )
    made = download_checkpoint_archive(serve(checkpoint, GoesOn), EXTERNAL, tmp_path / "a.tar.gz", False)
    assert made["files"]["adapter_model.safetensors"] == recorded(whole)


def test_a_cut_without_a_stated_length_is_seen(tmp_path, checkpoint, serve):
    with pytest.raises(BackendError, match="can't download"):
        download_checkpoint_archive(serve(checkpoint, Chunked), EXTERNAL, tmp_path / "a.tar.gz", False)


@pytest.mark.parametrize(
    ("handler", "limits", "words"),
    [
        (Endless, {"MAX_UNANNOUNCED": 100_000}, r"adapter_config\.json is larger than 100,000"),
        (Plain, {"MAX_BYTES": 100_000}, r"adapter_model\.safetensors is larger than 99,"),
        (Plain, {"MAX_FILES": 1}, "lists 2 files"),
        (OtherPart, {}, r"asked for a file from byte 200,\d+ on, the server sent .bytes 1200"),
    ],
)
def test_what_a_server_may_send_is_bounded(tmp_path, checkpoint, serve, monkeypatch, handler, limits, words):
    for name, value in limits.items():
        monkeypatch.setattr(transfer, name, value)
    with pytest.raises(BackendError, match=words):
        download_checkpoint_archive(serve(checkpoint, handler), EXTERNAL, tmp_path / "d" / "a.tar.gz", False)
    assert list((tmp_path / "d").iterdir()) == []


def test_a_redirection_leads_to_the_same_host_only(tmp_path, checkpoint, serve):
    service, other = serve(checkpoint, Moves), serve(checkpoint, Moves)
    service.server.moved_to = service.url
    made = download_checkpoint_archive(service, EXTERNAL, tmp_path / "a.tar.gz", False)
    assert made["files"]["adapter_model.safetensors"] == recorded(checkpoint / "adapter_model.safetensors")
    for target in (other.url, service.url.replace("127.0.0.1", "localhost"), "ftp://127.0.0.1"):
        service.server.moved_to = target
        with pytest.raises(BackendError, match=r"sends the download on to another host, (http|ftp)://"):
            download_checkpoint_archive(service, EXTERNAL, tmp_path / "b.tar.gz", False)


def test_an_expired_address_is_asked_for_again(tmp_path, checkpoint, serve):
    service = serve(checkpoint, Expires)
    service.suffixes = ["?old", "?new"]
    made = download_checkpoint_archive(service, EXTERNAL, tmp_path / "a.tar.gz", False)
    assert (
        made["files"]["adapter_model.safetensors"] == recorded(checkpoint / "adapter_model.safetensors")
        and service.signed == 2
    )
    service.suffixes = ["?old"]
    with pytest.raises(BackendError, match="403"):
        download_checkpoint_archive(service, EXTERNAL, tmp_path / "b.tar.gz", False)


def test_an_address_about_to_expire_is_not_used(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    service.expires_in = timedelta(minutes=4)
    download_checkpoint_archive(service, EXTERNAL, tmp_path / "a.tar.gz", False)
    assert service.signed == 3  # once to list, once for each file


def test_the_bar_counts_bytes(tmp_path, checkpoint, serve, capsys):
    download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / "a.tar.gz")
    last = capsys.readouterr().out.split("\r")[-1]
    assert "100%" in last and "400k/400k" in last and "B/s" in last
    download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / "a.tar.gz", progress=False)
    assert capsys.readouterr().out == ""


def test_an_error_page_is_not_taken_for_weights(tmp_path, checkpoint, serve):
    (checkpoint / "adapter_model.safetensors").write_text("<html>Please log in</html>")
    with pytest.raises(ModelError, match="damaged"):
        download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / "a.tar.gz", False)
    assert not (tmp_path / "a.tar.gz").exists()


def test_a_full_disk_is_not_called_a_connection(tmp_path, checkpoint, serve):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"(?s)can't write adapter_model\.safetensors.*free disk space"):
            download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / "d" / "a.tar.gz", False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "d").iterdir()) == []
    with pytest.raises(RunError, match="can't write into"):
        download_checkpoint_archive(serve(checkpoint), EXTERNAL, "/proc/none/a.tar.gz", False)


def test_a_transfer_that_stays_cut_leaves_nothing(tmp_path, checkpoint, serve):
    with pytest.raises(BackendError, match="10 of"):
        download_checkpoint_archive(
            serve(checkpoint, CutsAlways),
            EXTERNAL,
            tmp_path / "d" / "a.tar.gz",
            False,
        )
    assert list((tmp_path / "d").iterdir()) == []


def test_not_an_adapter(tmp_path, checkpoint, serve):
    (checkpoint / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config.json"):
        download_checkpoint_archive(serve(checkpoint), EXTERNAL, tmp_path / "a.tar.gz", False)
    assert not (tmp_path / "a.tar.gz").exists()


def test_server_addresses_that_are_not_http_are_refused(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    service.url = f"file://{checkpoint}"
    with pytest.raises(BackendError, match="http"):
        download_checkpoint_archive(service, EXTERNAL, tmp_path / "a.tar.gz", False)


# ---- on the stub, through the SDK


@pytest.fixture(scope="module")
def trained(server, service):
    """Paths of step-1, saved as training, sampler and external weights; `latest` trained one step more."""
    client = service.create_lora_training_client(base_model=server.model, rank=4, seed=0).result()

    def step():
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(list(range(100, 140))),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData(data=list(range(101, 141)), dtype="int64", shape=[40]),
                "weights": tinker.TensorData(data=[1.0] * 40, dtype="float32", shape=[40]),
            },
        )
        client.forward_backward([datum], "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result()

    step()
    paths = {
        "training": client.save_state("step-1").result().path,
        "sampler": client.save_weights_for_sampler("step-1").result().path,
        "external": client.save_weights_external("step-1").result().path,
        "overwritten": client.save_weights_for_sampler("latest").result().path,
        "alone": client.save_weights_for_sampler("alone").result().path,
    }
    step()
    client.save_state("latest").result()
    return paths


def test_one_archive_from_three_kinds_of_path(tmp_path, server, service, trained, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        made = {
            kind: download_checkpoint_archive(
                service, f" {trained[kind]}\n", tmp_path / f"{kind}.tar.gz", False
            )
            for kind in ("external", "training", "sampler")
        }
    assert len({m["sha256"] for m in made.values()}) == 1
    assert {kind: m["source"] for kind, m in made.items()} == {
        kind: trained["training" if kind == "sampler" else kind] for kind in made
    }
    said = capsys.readouterr().out.splitlines()
    assert (
        len(said) == 1
        and f"{trained['sampler']} has no files: took {trained['training']}, which has the same run"
        in said[0]
    )
    left = [
        c.tinker_path
        for c in server.rest().list_user_checkpoints().result().checkpoints
        if "/download-" in c.tinker_path
    ]
    assert left == []
    extract_archive(tmp_path / "sampler.tar.gz", tmp_path / "model_weights")
    description = describe_adapter(tmp_path / "model_weights")
    assert description["rank"] == 4 and all(
        row["norm"] > 0 for row in description["modules"] if row["layer"] is not None
    )


def test_a_name_that_was_used_again_is_not_taken_for_the_same_weights(tmp_path, service, trained):
    with pytest.raises(
        BackendError, match=r"(?s)/weights/latest has its name but other weights.*give that path"
    ):
        download_checkpoint_archive(service, trained["overwritten"], tmp_path / "a.tar.gz", False)
    with pytest.raises(BackendError, match=r"(?s)no training checkpoint of that name.*/weights/"):
        download_checkpoint_archive(service, trained["alone"], tmp_path / "a.tar.gz", False)
    assert list(tmp_path.iterdir()) == []


def test_paths_that_the_stub_does_not_have(tmp_path, service, trained):
    run = trained["training"].split("/")[2]
    for path in (
        f"tinker://{run}/weights/none",
        f"tinker://{run}/external_weights/none",
        "tinker://nobody/weights/x",
        "tinker://nobody/sampler_weights/x",
    ):
        with pytest.raises(BackendError, match=r"(?s)(nobody|none).*→"):
            download_checkpoint_archive(service, path, tmp_path / "a.tar.gz", False)
