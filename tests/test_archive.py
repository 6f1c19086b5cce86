"""Archives: packed reproducibly, unpacked only when safe, whole or not at all."""

import gzip
import io
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import ModelError, RunError
from helpers.weights.archive import extract_archive, pack_folder
from helpers.weights.fresh_folder import fresh_folder


def _member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def _archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    path.write_bytes(gzip.compress(raw.getvalue()))
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
    "twice, other letters for one accent": [
        _member(unicodedata.normalize("NFC", "é")),
        _member(unicodedata.normalize("NFD", "é"), b"y"),
    ],
    "twice, other case and accent": [_member("stra\u00dfe/\u00c9"), _member("STRASSE/e\u0301", b"y")],
    "folders in folders": [_member("a/" * 17 + "b")],
    "headers in headers": [_member("././@LongLink", b"n", type=tarfile.GNUTYPE_LONGNAME)] * 2000,
    "file as folder": [_member("a"), _member("a/b")],
    "long name": [_member("n" * 300)],
    "empty": [],
}


@pytest.mark.parametrize(
    "case,after_a_good_one",
    [(case, after) for case in HOSTILE for after in (False, True) if case != "empty" or not after],
)
def test_hostile_archives_leave_nothing(tmp_path, case, after_a_good_one):
    archive = _archive(tmp_path / "a.tar.gz", ([GOOD] if after_a_good_one else []) + HOSTILE[case])
    (tmp_path / "in").mkdir()
    with pytest.raises(ModelError):
        extract_archive(archive, tmp_path / "in" / "new" / "model_weights")
    assert list((tmp_path / "in").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "in"]


def test_a_hostile_archive_leaves_an_earlier_folder_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep").write_text("mine")
    with pytest.raises(ModelError):
        extract_archive(
            _archive(tmp_path / "a.tar.gz", [GOOD, *HOSTILE["parent"]]), tmp_path / "out", overwrite=True
        )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["keep"]
    with pytest.raises(RunError, match="not empty"):
        extract_archive(_archive(tmp_path / "b.tar.gz", [GOOD]), tmp_path / "out")


def test_bombs(tmp_path):
    zeros = _member("zeros", b"\0" * (80 << 20))
    bomb = _archive(tmp_path / "bomb.tar.gz", [zeros])
    with pytest.raises(ModelError, match="larger than"):
        extract_archive(bomb, tmp_path / "out")
    with pytest.raises(ModelError, match="larger than"):
        extract_archive(
            _archive(tmp_path / "b.tar.gz", [_member("a", b"x" * 2000)]), tmp_path / "out", max_bytes=1000
        )
    with pytest.raises(ModelError, match="more than 10 members"):
        extract_archive(
            _archive(tmp_path / "c.tar.gz", [_member(f"f{i}") for i in range(11)]),
            tmp_path / "out",
            max_members=10,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize(("size", "count"), [(50 << 20, 1), ((16 << 10) + 1, 1), (8 << 10, 33)])
def test_large_headers_are_neither_read_into_memory_nor_searched(tmp_path, monkeypatch, kind, size, count):
    """Digits alone take the search in Python 3.11.7 quadratic time."""
    for method in ("_proc_gnulong", "_proc_pax"):
        monkeypatch.setattr(tarfile.TarInfo, method, lambda info, tar: _pass_over(info, tar, size))
    header = _member("././@LongLink", type=kind, size=size)[0].tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((header + b"1" * -(-size // 512) * 512) * count))
    with pytest.raises(ModelError, match=r"headers of [\d,]+ bytes"):
        extract_archive(tmp_path / "a.tar.gz", tmp_path / "out")


def _pass_over(info: tarfile.TarInfo, tar: Any, size: int) -> tarfile.TarInfo:
    assert size < 16 << 10, "a large header is read"
    tar.fileobj.read(-(-size // 512) * 512)
    return info.fromtarfile(tar)


def test_an_archive_that_is_not_compressed_is_unpacked(tmp_path):
    packed = _archive(tmp_path / "a.tar.gz", [GOOD, _member("weights", b"w" * 1000)])
    plain = gzip.decompress(packed.read_bytes())
    path = tmp_path / "plain.tar"
    path.write_bytes(plain)
    assert extract_archive(path, tmp_path / "out") == {"adapter_config.json": 2, "weights": 1000}
    for hostile in ("parent", "symlink", "twice"):
        path.write_bytes(gzip.decompress(_archive(packed, HOSTILE[hostile]).read_bytes()))
        with pytest.raises(ModelError, match="not safe"):
            extract_archive(path, tmp_path / "new")
    for cut in (plain[:1024], plain[:2000], plain[:2560]):  # after a member, in one, before the end
        path.write_bytes(cut)
        with pytest.raises(ModelError, match="damaged"):
            extract_archive(path, tmp_path / "new")
    for magic, kind in ((b"PK\3\4", "a zip file"), (b"\xfd7zXZ\0", "xz"), (b"BZh9", "bzip2")):
        path.write_bytes(magic + plain)
        with pytest.raises(ModelError, match=rf"is .*{kind}"):
            extract_archive(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_archives(tmp_path):
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
    members = [
        _member(".", b"", type=tarfile.DIRTYPE),
        _member("./sub", b"", type=tarfile.DIRTYPE),
        _member("./sub/a", b"abc"),
        _member("é" * 60 + "n" * 100, b"d"),
        _member("empty", b""),
    ]
    sizes = extract_archive(_archive(tmp_path / "a.tar.gz", members), tmp_path / "out")
    assert sizes == {"sub/a": 3, "é" * 60 + "n" * 100: 1, "empty": 0}
    assert (tmp_path / "out" / "sub" / "a").read_bytes() == b"abc"


def test_a_python_without_the_filter_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(ModelError, match=r"(?s)no data filter.*3\.11\.4"):
        extract_archive(_archive(tmp_path / "a.tar.gz", [GOOD]), tmp_path / "out")


def test_modes_and_owners_of_an_archive_do_not_count(tmp_path):
    archive = _archive(tmp_path / "a.tar.gz", [_member("run.sh", b"x", mode=0o6777, uid=0, mtime=1)])
    extract_archive(archive, tmp_path / "out")
    found = (tmp_path / "out" / "run.sh").stat()
    assert found.st_mode & 0o7111 == 0 and found.st_uid == os.getuid() and found.st_mtime > 1


def test_packing_forgets_times_and_owners(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        for file in ("b", "a", "sub/c") if name == "one" else ("sub/c", "a", "b"):
            (tmp_path / name / file).write_text(file)
    os.utime(tmp_path / "two" / "a", (1, 1))
    os.chmod(tmp_path / "two" / "a", 0o600)
    packed = [
        pack_folder(tmp_path / name, tmp_path / f"{name}.tar.gz").read_bytes() for name in ("one", "two")
    ]
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
