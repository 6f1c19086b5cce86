"""For developers, `make lock`: resolve pyproject.toml into requirements.lock and requirements-gpu.lock anew,
with hashes of all files.

It runs on the system's Python with the standard library alone.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import install  # noqa: E402

UV = "uv==0.13.9"  # pinned so that the locks' form stays the same
HEAD = """\
# Made by `make lock` from pyproject.toml: edit that, not this. install.py installs it with
# --no-deps, because some packages ask for what they do not need (see pyproject.toml), and with
# --require-hashes: a file that is not listed here is refused.
# For Linux on x86-64, Python 3.11 to 3.13.
"""


def make_locks() -> None:
    """Write both locks. Pins that still fit stay as they are.

    Raises:
        InstallError: uv can't be had, or the hashes of PyTorch's CPU builds can't.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "uv")
        install.make_venv(str(environment))
        install.pip(str(environment / "bin" / "python"), [UV], "uv", 1)
        write_lock(environment / "bin" / "uv", "cpu", install.LOCK, cpu_builds)
        write_lock(environment / "bin" / "uv", "gpu", install.GPU_LOCK, lambda pin: [])


def write_lock(uv: Path, kind: str, lock: str, more_hashes: Callable[[str], list[str]]) -> None:
    """Resolve the dependencies of `kind` and write its lock."""
    with tempfile.TemporaryDirectory() as folder:
        project, resolved = Path(folder, "pyproject.toml"), Path(folder, "requirements.txt")
        project.write_text(wanted(kind), encoding="utf-8")
        pins = install.entries(install.read_lock(lock)) if Path(lock).exists() else []
        # Without hashes: uv would keep those it finds.
        resolved.write_text("\n".join(pin for pin, _ in pins), encoding="utf-8")
        options = "--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet"
        command = [uv, "pip", "compile", *options.split(), "--output-file", resolved, project]
        subprocess.run(command, check=True, cwd=folder)
        text = tidy(resolved.read_text(encoding="utf-8"), more_hashes)
    Path(lock).write_text(text, encoding="utf-8")
    install.say(f"Wrote {lock} with {len(install.entries(text))} pins.")


def wanted(kind: str) -> str:
    """A pyproject.toml with what `cpu` or `gpu` asks for."""
    own = tomllib.loads(Path(install.PROJECT).read_text(encoding="utf-8"))
    project, uv, change = own["project"], own["tool"]["uv"], own["tool"]["course"][kind]
    replaced = change.get("replaced", {})
    parts = {
        "project": {
            **{name: project[name] for name in ("name", "version", "requires-python")},
            "dependencies": [replaced.get(pin.partition("==")[0], pin) for pin in project["dependencies"]],
        },
        "tool.uv": {
            "environments": uv["environments"],
            "override-dependencies": uv["override-dependencies"] + change.get("override-dependencies", []),
        },
    }
    return "".join(
        f"[{part}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        for part, values in parts.items()
    )


def tidy(text: str, more_hashes: Callable[[str], list[str]] = lambda pin: []) -> str:
    """A lock without the marker that every line has: the course runs on Linux x86-64 only.

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
        make_locks()
    except install.InstallError as error:
        sys.exit(str(error))
