"""What several test files share. Keep it small."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of the local base model, in its usual place; made once (about 30 s) if it is not there yet."""
    from helpers.models import local_base_model

    return local_base_model()


@pytest.fixture(scope="session")
def course_env(tmp_path_factory, base_model) -> Iterator[dict[str, str]]:
    """Environment of a user with an empty home for runs and the stub, and the base model already made. Ends the stub."""
    home = tmp_path_factory.mktemp("course-home")
    (home / "models").symlink_to(base_model.parent)
    env = {key: value for key, value in os.environ.items() if not key.startswith("TINKER_")}
    env |= {"TINKER_COURSE_HOME": str(home), "COURSE_RUNS_DIR": str(tmp_path_factory.mktemp("runs"))}
    yield env
    subprocess.run([sys.executable, "-m", "helpers.cli", "stub", "stop"], env=env, check=True, stdout=subprocess.DEVNULL)
