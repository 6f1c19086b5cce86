"""Archives: downloaded whole, packed reproducibly, unpacked only when safe. Adapters: described right."""

import gzip
import io
import tarfile
import threading
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from helpers.errors import BackendError, ModelError, RunError
from helpers.export import (
    describe_adapter,
    download_checkpoint_archive,
    extract_archive,
    fresh_folder,
    pack_folder,
)


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class _CutsFirst(_Handler):
    """Cuts the first answer for each file after 10 bytes."""

    seen: set = set()

    def copyfile(self, source, outputfile):
        if self.path not in self.seen:
            self.seen.add(self.path)
            outputfile.write(source.read(10))
            return
        super().copyfile(source, outputfile)


class _CutsAlways(_Handler):
    def copyfile(self, source, outputfile):
        outputfile.write(source.read(10))


def _ready(value):
    return SimpleNamespace(result=lambda: value)


class FakeService:
    """What download_checkpoint_archive uses of a ServiceClient; the files come over real HTTP."""

    def __init__(self, folder, url):
        self.folder, self.url, self.deleted, self.loaded = folder, url, [], []

    def create_rest_client(self):
        return self

    def create_training_client_from_state(self, path):
        self.loaded.append(path)
        saved = SimpleNamespace(path="tinker://run/external_weights/temporary")
        return _ready(SimpleNamespace(save_weights_external=lambda name, ttl_seconds: _ready(saved)))

    def get_external_weights_urls(self, path):
        names = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]
        return _ready(SimpleNamespace(urls={n: f"{self.url}/{n}" for n in names}, expires=datetime.now(timezone.utc) + timedelta(hours=1)))

    def delete_checkpoint_from_tinker_path(self, path):
        self.deleted.append(path)
        return _ready(None)

    def list_checkpoints(self, run):
        rows = [("training", "tinker://run/weights/epoch-2"), ("sampler", "tinker://run/sampler_weights/epoch-2")]
        return _ready(SimpleNamespace(checkpoints=[SimpleNamespace(checkpoint_type=t, tinker_path=p) for t, p in rows]))


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 400)
    return folder


@pytest.fixture
def serve():
    servers = []

    def start(folder, handler=_Handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return FakeService(folder, f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_pack_unpack_gives_the_same_files(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    made = download_checkpoint_archive(service, "tinker://run/external_weights/final", tmp_path / "a" / "model-checkpoint.tar.gz", False)
    sizes = extract_archive(tmp_path / "a" / "model-checkpoint.tar.gz", tmp_path / "out")
    assert sizes == {p.name: p.stat().st_size for p in checkpoint.iterdir()}
    for file in checkpoint.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert set(made["files"]) == set(sizes) and made["bytes"] == (tmp_path / "a" / made["archive"]).stat().st_size
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model-checkpoint.tar.gz"]
    assert service.loaded == []


def test_same_checkpoint_same_bytes(tmp_path, checkpoint, serve):
    made = [download_checkpoint_archive(serve(checkpoint), "tinker://run/external_weights/final", tmp_path / name, False)
            for name in ("one.tar.gz", "two.tar.gz")]
    assert made[0]["sha256"] == made[1]["sha256"]
    (checkpoint / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 9}')
    changed = download_checkpoint_archive(serve(checkpoint), "tinker://run/external_weights/final", tmp_path / "three.tar.gz", False)
    assert changed["sha256"] != made[0]["sha256"]


def test_training_path_goes_through_a_temporary_export(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    download_checkpoint_archive(service, "tinker://run/weights/epoch-2", tmp_path / "a.tar.gz", False)
    assert service.loaded == ["tinker://run/weights/epoch-2"]
    assert service.deleted == ["tinker://run/external_weights/temporary"]


def test_sampler_path_names_the_path_to_use(tmp_path, checkpoint, serve):
    with pytest.raises(BackendError, match="tinker://run/weights/epoch-2"):
        download_checkpoint_archive(serve(checkpoint), "tinker://run/sampler_weights/epoch-2", tmp_path / "a.tar.gz", False)


@pytest.mark.parametrize("path", ["", "final", "tinker://run/final", "https://x/y/z", "tinker://a/b/c/d", "tinker://a/models/b"])
def test_what_is_no_path_is_refused(tmp_path, checkpoint, serve, path):
    with pytest.raises(BackendError, match="not a checkpoint path"):
        download_checkpoint_archive(serve(checkpoint), path, tmp_path / "a.tar.gz", False)


def test_a_cut_transfer_starts_again(tmp_path, checkpoint, serve):
    _CutsFirst.seen = set()
    made = download_checkpoint_archive(serve(checkpoint, _CutsFirst), "tinker://run/external_weights/final", tmp_path / "a.tar.gz", False)
    assert made["files"]["adapter_model.safetensors"]["bytes"] == 102400
    assert len(_CutsFirst.seen) == 2


def test_a_transfer_that_stays_cut_leaves_nothing(tmp_path, checkpoint, serve):
    with pytest.raises(BackendError, match="10 of"):
        download_checkpoint_archive(serve(checkpoint, _CutsAlways), "tinker://run/external_weights/final", tmp_path / "d" / "a.tar.gz", False)
    assert list((tmp_path / "d").iterdir()) == []


def test_not_an_adapter(tmp_path, checkpoint, serve):
    (checkpoint / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="adapter_config.json"):
        download_checkpoint_archive(serve(checkpoint), "tinker://run/external_weights/final", tmp_path / "a.tar.gz", False)
    assert not (tmp_path / "a.tar.gz").exists()


def test_server_addresses_that_are_not_http_are_refused(tmp_path, checkpoint, serve):
    service = serve(checkpoint)
    service.url = f"file://{checkpoint}"
    with pytest.raises(BackendError, match="http"):
        download_checkpoint_archive(service, "tinker://run/external_weights/final", tmp_path / "a.tar.gz", False)


# ---- unpacking


def _member(name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def _archive(path, members, compress=True):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    path.write_bytes(gzip.compress(raw.getvalue()) if compress else raw.getvalue())
    return path


GOOD = _member("adapter_config.json", b"{}")
HOSTILE = {
    "absolute path": [_member("/tmp/evil")],
    "parent": [_member("../evil")],
    "hidden parent": [_member("a/b/../../../evil")],
    "only parent": [_member("..", b"", type=tarfile.DIRTYPE)],
    "backslash parent": [_member("..\\evil")],
    "drive": [_member("C:evil")],
    "home": [_member("~/evil")],
    "newline": [_member("a\nb")],
    "symlink": [_member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "symlink inside": [_member("link", b"", type=tarfile.SYMTYPE, linkname="adapter_config.json")],
    "through a symlink": [_member("d", b"", type=tarfile.SYMTYPE, linkname="/tmp"), _member("d/evil")],
    "hard link": [_member("link", b"", type=tarfile.LNKTYPE, linkname="adapter_config.json")],
    "character device": [_member("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block device": [_member("disk", b"", type=tarfile.BLKTYPE)],
    "pipe": [_member("pipe", b"", type=tarfile.FIFOTYPE)],
    "twice": [_member("a"), _member("a", b"y")],
    "twice, other spelling": [_member("a"), _member("./a", b"y")],
    "twice, other case": [_member("Model"), _member("model", b"y")],
    "file as folder": [_member("a"), _member("a/b")],
    "long name": [_member("n" * 300)],
    "empty": [],
}


@pytest.mark.parametrize("case,after_a_good_one", [(case, after) for case in HOSTILE for after in (False, True) if case != "empty" or not after])
def test_hostile_archives_leave_nothing(tmp_path, case, after_a_good_one):
    archive = _archive(tmp_path / "a.tar.gz", ([GOOD] if after_a_good_one else []) + HOSTILE[case])
    (tmp_path / "in").mkdir()
    with pytest.raises(ModelError):
        extract_archive(archive, tmp_path / "in" / "model_weights")
    assert list((tmp_path / "in").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "in"]


def test_a_hostile_archive_leaves_an_earlier_folder_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep").write_text("mine")
    with pytest.raises(ModelError):
        extract_archive(_archive(tmp_path / "a.tar.gz", [GOOD, *HOSTILE["parent"]]), tmp_path / "out", overwrite=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["keep"]
    with pytest.raises(RunError, match="not empty"):
        extract_archive(_archive(tmp_path / "b.tar.gz", [GOOD]), tmp_path / "out")


def test_bombs(tmp_path):
    zeros = _member("zeros", b"\0" * (80 << 20))
    bomb = _archive(tmp_path / "bomb.tar.gz", [zeros])
    with pytest.raises(ModelError, match="larger than"):
        extract_archive(bomb, tmp_path / "out")
    with pytest.raises(ModelError, match="larger than"):
        extract_archive(_archive(tmp_path / "b.tar.gz", [_member("a", b"x" * 2000)]), tmp_path / "out", max_bytes=1000)
    with pytest.raises(ModelError, match="more than 10 members"):
        extract_archive(_archive(tmp_path / "c.tar.gz", [_member(f"f{i}") for i in range(11)]), tmp_path / "out", max_members=10)
    assert not (tmp_path / "out").exists()


def test_a_bomb_in_a_header_is_not_read_into_memory(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 50 << 20
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"n" * (50 << 20)))
    with pytest.raises(ModelError, match="header of"):
        extract_archive(tmp_path / "a.tar.gz", tmp_path / "out")


def test_damaged_archives(tmp_path):
    import os

    good = _archive(tmp_path / "good.tar.gz", [GOOD, _member("weights", os.urandom(200_000))]).read_bytes()
    broken = {
        "cut": good[: len(good) // 2],
        "cut in the checksum": good[:-4],
        "not gzip": b"hello" * 1000,
        "empty": b"",
        "one byte wrong": good[:100_000] + bytes([good[100_000] ^ 255]) + good[100_001:],
        "gzip of no tar": gzip.compress(b"hello" * 1000),
    }
    for name, content in broken.items():
        path = tmp_path / "broken.tar.gz"
        path.write_bytes(content)
        with pytest.raises(ModelError):
            extract_archive(path, tmp_path / "out")
            pytest.fail(f"accepted: {name}")
        assert not (tmp_path / "out").exists(), name
    with pytest.raises(ModelError, match="can't read"):
        extract_archive(tmp_path / "missing.tar.gz", tmp_path / "out")


def test_good_archives_of_other_makers(tmp_path):
    members = [_member(".", b"", type=tarfile.DIRTYPE), _member("./sub", b"", type=tarfile.DIRTYPE), _member("./sub/a", b"abc"),
               _member("é" * 60 + "n" * 100, b"d"), _member("empty", b"")]
    sizes = extract_archive(_archive(tmp_path / "a.tar.gz", members), tmp_path / "out")
    assert sizes == {"sub/a": 3, "é" * 60 + "n" * 100: 1, "empty": 0}
    assert (tmp_path / "out" / "sub" / "a").read_bytes() == b"abc"


def test_packing_forgets_times_and_owners(tmp_path):
    import os

    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        for file in ("b", "a", "sub/c") if name == "one" else ("sub/c", "a", "b"):
            (tmp_path / name / file).write_text(file)
    os.utime(tmp_path / "two" / "a", (1, 1))
    os.chmod(tmp_path / "two" / "a", 0o600)
    packed = [pack_folder(tmp_path / name, tmp_path / f"{name}.tar.gz").read_bytes() for name in ("one", "two")]
    assert packed[0] == packed[1]


def test_fresh_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(KeyboardInterrupt), fresh_folder(tmp_path / "model") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / ".model.999999999.tmp"  # of a process that was killed
    left.mkdir()
    with fresh_folder(tmp_path / "model") as folder:
        (folder / "whole").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# ---- describing


def test_describe_adapter_agrees_with_the_full_product(tmp_path):
    import json

    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors, expected = {}, {}
    for layer in range(2):
        for module, (out, width) in {"self_attn.q_proj": (12, 8), "mlp.down_proj": (8, 20)}.items():
            a, b = torch.randn(4, width), torch.randn(out, 4)
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
            expected[layer, module.split(".")[1]] = float((2.0 * b @ a).norm())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    description = describe_adapter(tmp_path)
    assert (description["rank"], description["alpha"], description["scale"]) == (4, 8, 2.0)
    assert description["target_modules"] == ["down_proj", "q_proj"] and description["dtype"] == "float32"
    per_layer = 4 * (12 + 8) + 4 * (8 + 20)
    assert description["parameters_per_layer"] == {0: per_layer, 1: per_layer} and description["parameters"] == 2 * per_layer
    assert {(r["layer"], r["module"]): r["norm"] for r in description["modules"]} == pytest.approx(expected, rel=1e-6)

    from helpers.plots import weight_change_heatmap

    axes = weight_change_heatmap(description).axes[0]
    grid = axes.images[0].get_array()
    assert grid.shape == (2, 2) and grid[1, 0] == pytest.approx(expected[0, "q_proj"])


def test_describe_adapter_says_what_is_wrong(tmp_path):
    with pytest.raises(ModelError, match="missing"):
        describe_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(ModelError, match="damaged"):
        describe_adapter(tmp_path)
