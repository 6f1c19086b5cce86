"""For developers, `make lock`: resolve pyproject.toml into requirements.lock anew, with hashes of all files.

It runs on the system's Python with the standard library alone.
"""

import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import install  # noqa: E402

UV = "uv==0.13.9"  # pinned so that the lock's form stays the same
HEAD = """\
# Made by `make lock` from pyproject.toml: edit that, not this. install.py installs it with
# --no-deps, because some packages ask for what they do not need (see pyproject.toml), and with
# --require-hashes: a file that is not listed here is refused.
# For Linux on x86-64, Python 3.11 to 3.13.
"""


def make_lock() -> None:
    """Write requirements.lock. Pins that still fit stay as they are.

    Raises:
        InstallError: uv can't be had, or the hashes of PyTorch's CPU builds can't.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "uv")
        install.make_venv(str(environment))
        install.pip(str(environment / "bin" / "python"), [UV], "uv", 1)
        resolved = Path(folder, "requirements.txt")
        pins = [pin for pin, _ in install.entries(install.read_lock())]
        resolved.write_text("\n".join(pins), encoding="utf-8")  # without hashes: uv would keep those it finds
        options = "--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet"
        command = [environment / "bin" / "uv", "pip", "compile", *options.split()]
        subprocess.run([*command, "--output-file", resolved, install.PROJECT], check=True, cwd=ROOT)
        text = tidy(resolved.read_text(encoding="utf-8"), cpu_builds)
    Path(install.LOCK).write_text(text, encoding="utf-8")
    install.say(f"Wrote {install.LOCK} with {len(install.entries(text))} pins.")


def tidy(text: str, more_hashes: Callable[[str], list[str]] = lambda pin: []) -> str:
    """The lock without the marker that every line has: the course runs on Linux x86-64 only.

    Args:
        more_hashes: takes a pin, gives hashes to add to it.
    """
    lines = []
    for line, hashes in install.entries(text):
        pin, _, marker = line.partition(" ; ")
        tests = [test for test in marker.split(" and ") if not test.startswith(("platform_", "sys_platform"))]
        if tests == ["python_full_version < '3.14'"]:  # always so here
            tests = []
        if any(tests):
            pin += " ; " + " and ".join(tests)
        lines.append(install.written(pin, sorted({*hashes, *more_hashes(pin)})))
    return HEAD + "\n".join(lines) + "\n"


def cpu_builds(pin: str) -> list[str]:
    """Hashes of PyTorch's CPU builds, which are in its own index only; none for other packages than torch.

    Where that index can't be reached, those that the lock lists for the same version.

    Raises:
        InstallError: it can't be reached and the lock has another version, or it lacks a build.
    """
    if not pin.startswith("torch=="):
        return []
    url = install.CPU_INDEX + "/torch/"
    if not install.reachable(url):
        if kept := dict(install.entries(install.read_lock())).get(pin):
            return kept
        raise install.InstallError(
            f"{url} can't be reached, and requirements.lock has no hashes of the CPU builds of {pin}.\n"
            "-> Run make lock where it can be reached."
        )
    with urllib.request.urlopen(url, timeout=60) as reply:
        page = reply.read().decode()
    version = re.escape(pin.removeprefix("torch=="))
    file = rf"torch-{version}(?:%2B|\+)cpu-(cp3\d+)-\1-\w*x86_64\.whl#(sha256)=([0-9a-f]{{64}})"
    builds = {python: f"{kind}:{digest}" for python, kind, digest in re.findall(file, page)}
    wanted = [f"cp3{minor}" for minor in range(install.OLDEST[1], install.NEWEST[1] + 1)]
    if missing := [python for python in wanted if python not in builds]:
        raise install.InstallError(
            f"{url} lists no hash of the CPU build of {pin} for {', '.join(missing)}.\n"
            "-> Choose another version of torch in pyproject.toml."
        )
    return [builds[python] for python in wanted]


if __name__ == "__main__":
    try:
        make_lock()
    except install.InstallError as error:
        sys.exit(str(error))
