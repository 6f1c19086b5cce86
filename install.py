#!/usr/bin/env python3
"""Set the course up: make .venv with exactly what requirements.lock lists. Does nothing when that is done.

    python3 install.py           into .venv, which it makes (`make run` and `make test` call this)
    python  install.py --here    into the active conda or virtual environment

With --gpu it installs requirements-gpu.lock, which has the CUDA builds of PyTorch and vLLM, into .venv-gpu.

It runs on the system's Python with the standard library alone, and its syntax is kept plain enough for an old
Python 3 to read it and say that it is too old.
"""

import hashlib
import json
import os
import shutil
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV, GPU_VENV = os.path.join(ROOT, ".venv"), os.path.join(ROOT, ".venv-gpu")
LOCK, GPU_LOCK = os.path.join(ROOT, "requirements.lock"), os.path.join(ROOT, "requirements-gpu.lock")
PROJECT = os.path.join(ROOT, "pyproject.toml")
STAMP, LOG = "tinker-course.json", "tinker-course-install.log"

OLDEST, NEWEST = (3, 11), (3, 13)
CHECKED = ["--no-deps", "--require-hashes"]  # for pip: only files whose hashes the lock lists
DISK_NEEDED, GPU_DISK_NEEDED = 5.0, 20.0  # GB: 3.6 for the CPU's environment, the rest for pip's downloads
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 4

# Runs in the environment's own Python: prints, as JSON, what the lock asks for and the environment lacks. pip
# writes RECORD last, so a package without one was cut off half-way.
COMPARE = r"""
import importlib.metadata as m, json, re, sys
from pip._vendor.packaging.requirements import Requirement
name = lambda text: re.sub(r"[-_.]+", "-", text).lower()
have = {}
for d in m.distributions():
    if d.metadata["Name"]:
        have[name(d.metadata["Name"])] = d.version if d.read_text("RECORD") else "half of it"
lines = [line.strip() for line in open(sys.argv[1], encoding="utf-8")]
wanted = [Requirement(line.rstrip("\\ ")) for line in lines if line and line[0] not in "#-"]
wanted = [r for r in wanted if not r.marker or r.marker.evaluate()]
wrong = {}
for r in wanted:
    found = have.get(name(r.name))
    if found is None or not r.specifier.contains(found.replace("half of it", "0"), prereleases=True):
        wrong[r.name] = [str(r.specifier), found]
cuda = []
for d in m.distributions(name="torch"):  # the CUDA build asks for NVIDIA's libraries, the CPU build for none
    for r in map(Requirement, d.requires or []):
        if re.match("nvidia-|cuda-|triton", r.name) and (not r.marker or r.marker.evaluate({"extra": ""})):
            if have.get(name(r.name), "half of it") == "half of it":
                cuda.append(r.name)
print(json.dumps({"wrong": wrong, "count": len(wanted), "cuda_libraries_missing": cuda}))
"""


class InstallError(Exception):
    """What is wrong and what to do, in one text."""


class NotOffered(InstallError):
    """No package index has such a version for this Python."""


def refusal(version, system, machine):
    """Why the course can't be installed on such a machine, or None.

    Args:
        version: the Python version, as a tuple that starts (major, minor).
        system: as `platform.system()` says, such as "Linux".
        machine: as `platform.machine()` says, such as "x86_64".
    """
    if system != "Linux" or machine != "x86_64":
        return (
            f"The course needs Linux on x86-64; this is {system} on {machine}.\n"
            "-> On Windows use WSL 2. On a Mac or an ARM machine use a Linux x86-64 machine or container."
        )
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        word = "old" if tuple(version[:2]) < OLDEST else "new"
        return (
            f"Python {version[0]}.{version[1]} is too {word}: the course needs Python 3.11, 3.12 or 3.13.\n"
            "-> Install one and name it: make run PYTHON=python3.11 (or use environment.yml with conda)."
        )
    return None


def fingerprint(path):
    """SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def wanted_stamp(lock):
    """What the stamp of a finished installation says: any difference means there is something to do."""
    return {"lock": fingerprint(lock), "project": fingerprint(PROJECT), "folder": ROOT}


def read_stamp(prefix):
    """The stamp in the environment folder `prefix`; {} if there is none or it can't be read."""
    try:
        with open(os.path.join(prefix, STAMP), encoding="utf-8") as file:
            stamp = json.load(file)
        return stamp if isinstance(stamp, dict) else {}
    except (OSError, ValueError):
        return {}


def is_installed(prefix, lock):
    """True if the environment in `prefix` was installed to the end, here, from today's `lock` and project."""
    return os.path.exists(os.path.join(prefix, "bin", "python")) and read_stamp(prefix) == wanted_stamp(lock)


def write_stamp(prefix, lock):
    """Say that the installation in `prefix` is finished."""
    path = os.path.join(prefix, STAMP)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(wanted_stamp(lock), file, indent=2)
        file.write("\n")
    os.replace(path + ".tmp", path)


def install(prefix, lock):
    """Bring the environment in `prefix` to what `lock` says, from whatever state it is in."""
    python = os.path.join(prefix, "bin", "python")
    start = time.time()
    state = compare(python, lock)
    if os.path.exists(os.path.join(prefix, STAMP)):
        os.remove(os.path.join(prefix, STAMP))  # from here on a Ctrl-C leaves an unfinished installation
    clear_halves(prefix, list(state["wrong"]) + state["cuda_libraries_missing"])
    if state["wrong"]:
        check_disk(prefix, lock)
        say(announcement(len(state["wrong"]), state["count"], prefix, lock))
        if "torch" in state["wrong"] and lock != GPU_LOCK:
            install_torch(python)
        pip(python, [*CHECKED, "-r", lock], "packages", state["count"])
        state = compare(python, lock)
    if state["cuda_libraries_missing"]:
        install_cuda_libraries(python, state["cuda_libraries_missing"])
    if state["wrong"]:
        names = ", ".join(
            "{}{} (found: {})".format(name, *pair) for name, pair in sorted(state["wrong"].items())[:5]
        )
        raise InstallError(
            "{} packages did not arrive: {}\n-> Run the same command again.".format(
                len(state["wrong"]), names
            )
        )
    pip(python, ["--no-deps", "--no-build-isolation", "-e", ROOT], "the course itself", 1)
    write_stamp(prefix, lock)
    make_base_model(python)
    say(f"Ready, after {time.time() - start:.0f} s.")


def make_base_model(python):
    """Make the local base model now, so no notebook waits for it. If that fails, a notebook says why."""
    import subprocess

    made = subprocess.call(
        [python, "-c", "from helpers.train.models import local_base_model; local_base_model()"],
        stderr=subprocess.DEVNULL,
    )
    if made != 0:
        say(
            "The base model could not be made now. The first notebook tries it again, and says what is wrong."
        )


def announcement(missing, count, prefix, lock):
    """What is going to be installed, and what it takes."""
    if missing > count / 2:
        size = "several GB of downloads" if lock == GPU_LOCK else "about 2 to 4 minutes and 3.6 GB"
        return f"Installing {count} packages into {prefix}: {size}, once."
    return f"Going on: {missing} of {count} packages are missing or of another version in {prefix}."


def compare(python, lock):
    """What the lock asks for and the environment of `python` lacks."""
    import subprocess

    result = subprocess.run([python, "-I", "-c", COMPARE, lock], capture_output=True)
    if result.returncode:
        raise InstallError(
            "{} can't be used:\n{}\n-> Delete {} and run the same command again.".format(
                python,
                result.stderr.decode(errors="replace").strip()[-600:],
                os.path.dirname(os.path.dirname(python)),
            )
        )
    return json.loads(result.stdout.decode())


def clear_halves(prefix, names):
    """Remove what pip left of packages when it was cut off: it can't replace them by itself."""
    import glob

    plain = {name.lower().replace("-", "_").replace(".", "_") for name in names}
    for folder in glob.glob(os.path.join(prefix, "lib", "python3*", "site-packages", "*.dist-info")):
        name = os.path.basename(folder).split("-")[0].lower().replace(".", "_")
        if name in plain and not os.path.exists(os.path.join(folder, "RECORD")):
            shutil.rmtree(folder, ignore_errors=True)


def install_torch(python):
    """Install torch alone, as the CPU build: most machines' default index has a CUDA build of several GB.

    It is asked for by name: of a folder's files pip knows no hash beforehand, and would rather take the other
    build from an index. Where the CPU build can't be had, torch comes from wherever pip is set up to look.
    """
    pin, hashes = torch_entry()
    index = ["--extra-index-url", CPU_INDEX] if reachable(CPU_INDEX + "/torch/") else []
    try:
        pip_from(python, [*CHECKED, *index, "-r"], written(pin + "+cpu", hashes), "PyTorch", 1)
    except NotOffered:
        pip_from(python, [*CHECKED, "-r"], written(pin, hashes), "PyTorch", 1)


def install_cuda_libraries(python, names):
    """Install what the CUDA build of torch asks for. It is not in the lock, so pip can't check its files."""
    say("The CPU build of PyTorch could not be had, so the CUDA build came. It runs on the CPU too, but")
    say("needs NVIDIA's libraries, about 3 GB more. Installing them, without a check of their hashes, since")
    say("requirements.lock doesn't list them: {}.".format(", ".join(sorted(names))))
    check_disk(os.path.dirname(os.path.dirname(python)), LOCK)
    pins = [pin for pin, _ in entries(read_lock())]
    pip_from(python, [torch_entry()[0], "-c"], "\n".join(pins), "CUDA libraries", 20)


def read_lock(lock=LOCK):
    """The text of a lock; by default, of the one for CPUs."""
    with open(lock, encoding="utf-8") as file:
        return file.read()


def torch_entry():
    """torch's pin in the lock, and its hashes."""
    return next(entry for entry in entries(read_lock()) if entry[0].startswith("torch=="))


def entries(text):
    """A lock's pins in order, each with its hashes: [("torch==2.13.0", ["sha256:6746…", …]), …]."""
    found = []
    for line in text.splitlines():
        line = line.strip().rstrip("\\ ")
        if line.startswith("--hash="):
            found[-1][1].append(line[len("--hash=") :])
        elif line and not line.startswith("#"):
            found.append((line, []))
    return found


def written(pin, hashes):
    """An entry of the lock as text, without a line break at its end."""
    return " \\\n    ".join([pin] + ["--hash=" + digest for digest in hashes])


def reachable(url):
    """True if `url` answers within PROBE_SECONDS, the look-up of its name included."""
    import threading

    answers = []

    def ask():
        import urllib.request

        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as reply:
                answers.append(reply.status == 200)
        except Exception:  # any failure means: do without
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers and answers[0])


def pip_from(python, arguments, text, what, count):
    """Run `pip install` with `arguments` and the name of a file that holds `text`."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        pip(python, [*arguments, file.name], what, count)


def pip(python, arguments, what, count):
    """Run `pip install`: show how far it is, log what it says, and show the end of that if it fails."""
    import subprocess

    log = os.path.join(os.path.dirname(os.path.dirname(python)), LOG)
    options = "--disable-pip-version-check --no-input --no-warn-script-location --progress-bar off"
    command = [python, "-m", "pip", "install", *options.split(), *arguments]
    with open(log, "a+", encoding="utf-8", errors="replace") as output:
        output.seek(0, os.SEEK_END)
        start = output.tell()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            watch(process, log, start, what, count)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        output.seek(start)
        words = output.read()
    if process.returncode:
        # Where pip is set up with constraints, it calls it a conflict if nothing is offered.
        absent = "No matching distribution" in words or "ResolutionImpossible" in words
        kind = NotOffered if absent else InstallError
        raise kind(failure(words, what, log, python))


def watch(process, log, start, what, count):
    """Show progress till pip ends: redrawn each second on a terminal, a line each half minute elsewhere."""
    import subprocess

    began, said, terminal = time.time(), time.time(), sys.stdout.isatty()
    while True:
        try:
            process.wait(timeout=1)
            break
        except subprocess.TimeoutExpired:
            pass
        if not terminal and time.time() - said < 30:
            continue
        said = time.time()
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            words = file.read()
        fetched = min(count, words.count("\nCollecting ") + words.startswith("Collecting "))
        step = "writing files" if "\nInstalling collected" in words else f"fetched {fetched} of {count}"
        line = f"  {what}: {step}, {time.time() - began:.0f} s"
        sys.stdout.write("\r" + line.ljust(70) if terminal else line + "\n")
        sys.stdout.flush()
    if terminal:
        sys.stdout.write("\r" + " " * 70 + "\r")


def failure(words, what, log, python):
    """pip's own errors, and what may fix them."""
    import re

    if "DO NOT MATCH THE HASHES" in words:
        names = re.findall(r"^    (\S+==\S+).*:\n +Expected", words, re.MULTILINE)
        return (
            "{}: refused, because the SHA-256 of the file that pip got is not in requirements.lock.\n"
            "-> {} -m pip cache purge, then run the same command again: a download may have been damaged.\n"
            "   If it's refused again, don't trust the package index that pip uses here: pip config list.\n"
            "   All of pip's output: {}".format(", ".join(names) or what, python, log)
        )
    lines = [line for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-5:]
    text = "pip could not install {}:\n  {}\n".format(what, "\n  ".join(line[:300] for line in errors[-5:]))
    if "No space left" in words:
        return text + "-> Free some disk space, then run the same command again."
    if "No matching distribution" in words or "connection" in words.lower():
        return (
            text
            + "-> Check network and proxy settings, then run the same command again: it goes on from here.\n"
            + "   All of pip's output: "
            + log
        )
    return text + "-> Run the same command again: it goes on from here.\n   All of pip's output: " + log


def check_disk(prefix, lock):
    """Refuse to begin where the disk is too full to end."""
    free = shutil.disk_usage(prefix).free / 1e9
    needed = GPU_DISK_NEEDED if lock == GPU_LOCK else DISK_NEEDED
    if free < needed:
        raise InstallError(
            f"{free:.1f} GB are free on the disk of {prefix}; the packages need {needed:.0f} GB.\n"
            "-> Free some space, then run the same command again."
        )


def make_venv(path):
    """Make the virtual environment, or make it anew if it is broken, of another Python, or was moved here."""
    import subprocess

    python = os.path.join(path, "bin", "python")
    if os.path.exists(path):
        moved = read_stamp(path).get("folder", ROOT) != ROOT  # its scripts hold the old path
        probe = [python, "-I", "-c", "import pip, sys; print(sys.version_info[:2])"]
        try:
            works = (
                subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                .stdout.decode()
                .strip()
            )
        except OSError:
            works = ""
        supported = [str((3, minor)) for minor in range(OLDEST[1], NEWEST[1] + 1)]
        if works in supported and not moved:
            return
        say(f"The environment in {path} can't be used here; making it again.")
    try:
        import ensurepip  # noqa: F401  Debian ships it apart
        import venv
    except ImportError as error:
        raise InstallError(
            "This Python can't make virtual environments: Debian and Ubuntu ship that part apart.\n"
            "-> sudo apt install python{}.{}-venv, then run the same command again.".format(
                *sys.version_info[:2]
            )
        ) from error
    venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(path)


def active_prefix():
    """The folder of the active conda or virtual environment.

    Raises:
        InstallError: this is the system's own Python, which should be left alone.
    """
    if sys.prefix != sys.base_prefix or os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        return sys.prefix
    raise InstallError(
        f"--here needs an active conda or virtual environment; {sys.executable} is the system's Python.\n"
        "-> conda env create -f environment.yml; conda activate tinker-course; python install.py --here"
    )


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def unsafe_tarfile():
    """What to do about a Python 3.11 older than 3.11.4, whose tarfile can't filter what it unpacks."""
    import tarfile

    words = "This Python can't unpack archives safely.\n-> Take 3.11.4 or later: make run PYTHON=python3.12"
    return None if hasattr(tarfile, "data_filter") else words


def main(arguments):
    import platform

    unknown = [argument for argument in arguments if argument not in ("--here", "--gpu")]
    if unknown:
        say("Unknown: {}\n{}".format(" ".join(unknown), __doc__))
        return 2
    reason = refusal(sys.version_info, platform.system(), platform.machine()) or unsafe_tarfile()
    if reason:
        sys.stderr.write(reason + "\n")
        return 1
    try:
        lock, own = (GPU_LOCK, GPU_VENV) if "--gpu" in arguments else (LOCK, VENV)
        prefix = active_prefix() if "--here" in arguments else own
        if is_installed(prefix, lock):
            return 0
        one_at_a_time(prefix, lock)
        return 0
    except InstallError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Run the same command again: it goes on from here.\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"{error}\n-> Check that you may write to {ROOT} and that the disk is not full.\n")
        return 1


def one_at_a_time(prefix, lock):
    """Install, one process at a time: `make run` and `make test` may be started together."""
    import fcntl

    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another installation is going on; waiting for it.")
            fcntl.flock(folder, fcntl.LOCK_EX)
        if is_installed(prefix, lock):
            return
        if prefix in (VENV, GPU_VENV):
            make_venv(prefix)
        install(prefix, lock)
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
