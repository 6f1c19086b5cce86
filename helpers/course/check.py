"""Does this machine have what the course needs? One line an answer, and the fix beside each that is no.

Nothing heavy is imported, so it takes about a second. `course check` and the first cell of notebook 00 call
it.

    report = check_environment()
    print(report)
    report.ready
"""

import argparse
import importlib.util
import os
import platform
import shutil
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import local_model, model_folder, net, paths
from helpers.course import completers
from helpers.course.arguments import add_command
from helpers.errors import CourseError
from helpers.paths import ROOT, runs_dir

SET_UP = "run `make run`, or `python install.py --here` in your own environment"
MEMORY_NEEDED = 6  # GiB: the stub takes 2 to 3, vLLM as much again
DISK_NEEDED, DISK_WANTED = 2, 4  # GB free: one run takes about 1.2


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "check",
        run,
        "say what works on this machine, and what to do about the rest",
        "One line a thing that the course needs: [OK], [NOTE] or [FAIL], and the fix.",
        "course check",
        "course check --backend hosted",
    )
    backend = parser.add_argument("--backend", metavar="BACKEND", help="auto, stub, hosted, or a URL")
    completers.offer(backend, completers.backends)


def run(options: argparse.Namespace) -> int:
    report = check_environment(options.backend)
    print(report)
    return 0 if report.ready else 1


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        status: "OK", "FAIL" (the course will not work) or "NOTE" (it will, but something is worth knowing).
        name: what was checked.
        found: what was found.
        fix: what to do about it; empty if nothing.
    """

    status: str
    name: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All answers, in the order to print them."""

    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.status == "FAIL"]

    @property
    def ready(self) -> bool:
        """Whether the course will work here."""
        return not self.failed

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(_line(check.status, f"{check.name:{width}}  {check.found}", width))
            if check.fix:
                lines.append(_line("", f"→ {check.fix}", width))
        many = f"{len(self.failed)} of {len(self.checks)} checks failed: see the → lines."
        return "\n".join([*lines, "", "Everything the course needs is here." if self.ready else many])


def _line(status: str, text: str, width: int) -> str:
    first = f"[{status}]".ljust(7) if status else " " * (7 + width + 2)
    return textwrap.fill(
        text,
        110,
        initial_indent=first,
        subsequent_indent=" " * (7 + width + 2 + (0 if status else 2)),
        break_long_words=False,
        break_on_hyphens=False,
    )


def check_environment(backend: str | None = None) -> Report:
    """Check Python, kernel, processor, memory, disk, base model, backend and model hub.

    Args:
        backend: as for `connect`: None or "auto", "stub", "hosted", or the URL of a Tinker-compatible server.

    Returns:
        The answers. It raises nothing: whatever is wrong is an answer.
    """
    hub: list[Check] = []
    waiting = threading.Thread(target=lambda: hub.append(check_hub()), daemon=True)
    waiting.start()  # the slowest answer, so it is asked first
    checks = [
        check_python(),
        check_kernel(),
        check_processor(),
        check_memory(),
        *check_disk(),
        check_base_model(),
    ]
    checks += [check_backend(backend), *check_later_key()]
    waiting.join(2.5)
    late = Check("NOTE", "model hub", "no answer in 2.5 s", "not needed with the local base model")
    return Report([*checks, *(hub or [late])])


def _short(path: str | Path) -> str:
    """A path as one can show it to others: from the project's or the home folder on."""
    path = Path(path).absolute()
    if path == ROOT:
        return "the project folder"
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    home = Path(os.path.expanduser("~"))
    return f"~/{path.relative_to(home)}" if home != Path("/") and path.is_relative_to(home) else str(path)


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Python 3.11 to 3.13."""
    found = ".".join(map(str, version))
    if (3, 11) <= version[:2] <= (3, 13):
        return Check("OK", "Python", found)
    return Check("FAIL", "Python", found, "use Python 3.11, 3.12 or 3.13: make run PYTHON=python3.11")


def check_kernel(prefix: str = sys.prefix) -> Check:
    """This process runs in an environment that the course's set-up made, not in some other Jupyter kernel."""
    stamp = Path(prefix, "tinker-course.json")
    if stamp.is_file() or Path(prefix).absolute() in (ROOT / ".venv", ROOT / ".venv-gpu"):
        return Check("OK", "environment", _short(prefix))
    return Check(
        "FAIL",
        "environment",
        f"this is {prefix}, which the course's set-up has not made",
        "start Jupyter with `make lab`, or choose the kernel of .venv (VS Code: Select Kernel → .venv)",
    )


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """AVX2 at least, for vLLM on the CPU; AVX-512 and bfloat16 instructions make everything faster."""
    try:
        flags = set(
            next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
        )
    except (OSError, StopIteration):
        return Check(
            "NOTE",
            "processor",
            f"{platform.machine()}, instruction sets unknown",
            "vLLM on the CPU needs AVX2",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast = [
        text
        for flag, text in [("avx512f", "AVX-512"), ("avx512_bf16", "AVX512_BF16"), ("amx_bf16", "AMX")]
        if flag in flags
    ]
    if "avx512f" in flags:
        slow = "" if len(fast) > 1 else "without bfloat16 instructions training takes about twice as long"
        return Check(
            "OK" if len(fast) > 1 else "NOTE", "processor", f"{cores} cores, {', '.join(fast)}", slow
        )
    if "avx2" in flags:
        return Check(
            "NOTE",
            "processor",
            f"{cores} cores, AVX2, no AVX-512",
            "everything works; training and vLLM take several times as long",
        )
    return Check(
        "FAIL",
        "processor",
        f"{cores} cores, no AVX2",
        "vLLM can't run here: use a machine with AVX2 (any x86-64 server since 2015)",
    )


def check_memory() -> Check:
    from helpers.memory import machine_memory

    total, free = machine_memory()
    found = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} free"
    if total < 0.95 * MEMORY_NEEDED * 2**30:  # a machine sold with 6 GiB shows a little less
        return Check("FAIL", "memory", found, f"the course needs {MEMORY_NEEDED} GiB")
    if free < 4 * 2**30:
        return Check("NOTE", "memory", found, "close other programs before 06_vllm_inference")
    return Check("OK", "memory", found)


def check_disk(
    folders: tuple[Path, ...] | None = None, usage: Callable[[Path], Any] = shutil.disk_usage
) -> list[Check]:
    """Free disk space where runs and the base model go: one answer for each disk."""
    try:
        folders = folders or (runs_dir(), paths.cache_dir())
    except CourseError as error:
        return [Check("FAIL", "disk", error.what, error.fix)]
    disks: dict[int, Path] = {}
    for folder in folders:
        folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
        disks.setdefault(folder.stat().st_dev, folder)
    return [_check_disk(folder, usage(folder).free / 1e9) for folder in disks.values()]


def _check_disk(folder: Path, free: float) -> Check:
    found = f"{free:.1f} GB free in {_short(folder)}"
    if not os.access(folder, os.W_OK):
        return Check(
            "FAIL",
            "disk",
            f"{folder} can't be written",
            "set COURSE_RUNS_DIR (runs) and TINKER_COURSE_HOME (base model) to folders of yours",
        )
    if free < DISK_NEEDED:
        return Check("FAIL", "disk", found, f"free some: a run needs {DISK_NEEDED} GB")
    if free < DISK_WANTED:
        return Check("NOTE", "disk", found, "enough for one run; delete old folders in runs/ before more")
    return Check("OK", "disk", found)


def check_base_model() -> Check:
    """The local base model is there and whole, or can be made."""
    try:
        folder = paths.cache_dir() / "models" / local_model.LOCAL_MODEL
        model_folder.check_path(folder)
        damage = local_model.find_damage(folder)
        if damage is None:
            return Check("OK", "base model", _short(folder))
        local_model.find_gguf()
    except CourseError as error:
        return Check("FAIL", "base model", error.what, error.fix)
    if not folder.exists():
        return Check("NOTE", "base model", "not made yet", "made by itself on first use, in half a minute")
    return Check(
        "NOTE",
        "base model",
        f"{_short(folder)}: {damage}",
        "made again by itself on next use, in half a minute",
    )


def check_backend(backend: str | None = None) -> Check:
    """The Tinker backend that `connect(backend)` would use. A key is never shown."""
    choice = (backend or "auto").strip()
    if choice == "auto":
        choice = os.environ.get("TINKER_BASE_URL") or (
            "hosted" if os.environ.get("TINKER_API_KEY") else "stub"
        )
    if choice == "hosted":
        return _check_key()
    if choice == "stub":
        return _check_stub()
    if not choice.startswith(("http://", "https://")):
        return Check(
            "FAIL",
            "backend",
            f"{choice!r} is no backend",
            "use auto, stub, hosted, or a URL that starts with http:// or https://",
        )
    from helpers.train import keys

    if keys.is_hosted(choice):
        return _check_key()
    try:
        keys.check_address(choice)
    except CourseError as error:
        return Check("FAIL", "backend", error.what, error.fix)
    answer = _get(f"{choice.rstrip('/')}/api/v1/healthz", 2)
    if answer in ("200", "401", "403"):
        return Check("OK", "backend", f"{choice} answers")
    return Check(
        "FAIL",
        "backend",
        f"{choice} does not answer as a Tinker server ({answer})",
        "start it, or check TINKER_BASE_URL; unset it to use the stub",
    )


def check_later_key() -> list[Check]:
    """The key of the service that notebooks will use, where the environment names one."""
    from helpers.train.backend import check_key

    try:
        trial = check_key()
    except CourseError as error:
        return [Check("FAIL", "key", error.what, error.fix)]
    return [Check("OK" if trial.accepted else "NOTE", "key", trial.what, trial.fix)] if trial else []


def _check_key() -> Check:
    key = os.environ.get("TINKER_API_KEY", "")
    if not key:
        return Check(
            "FAIL",
            "backend",
            "hosted Tinker, but TINKER_API_KEY is not set",
            "export TINKER_API_KEY=tml-…, or use the stub, which needs no key",
        )
    if not key.startswith(("tml-", "eyJ")):
        return Check(
            "FAIL",
            "backend",
            "hosted Tinker, but TINKER_API_KEY is no Tinker key: these start with tml-",
            "copy the key from the Tinker console again",
        )
    return Check("OK", "backend", "hosted Tinker, TINKER_API_KEY is set (jobs there cost money)")


def _check_stub() -> Check:
    missing = [
        name
        for name in ("helpers.stub_tinker", "starlette", "uvicorn", "torch", "peft")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Check("FAIL", "backend", f"the stub lacks {', '.join(missing)}", SET_UP)
    from helpers.train.backend import running_stub

    server = running_stub()
    state = f"running at {server['url']}" if server else "starts by itself when it is first used"
    return Check("OK", "backend", f"stub on this machine, {state}")


def check_hub() -> Check:
    """The model hub: only models other than the local one need it."""
    try:
        problem = net.hub_problem()
    except ImportError:
        return Check("NOTE", "model hub", "huggingface_hub is not installed", SET_UP)
    if problem is None:
        return Check("OK", "model hub", "reachable")
    return Check("NOTE", "model hub", problem, "not needed with the local base model")


def _get(url: str, seconds: float) -> str:
    """The HTTP status of `url` as text, or why there is none."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as reply:
            return str(reply.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__
