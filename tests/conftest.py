"""What several test files share. Keep it small."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of the local base model, in its usual place; made once (about 30 s) if it is not there yet."""
    from helpers.models import local_base_model

    return local_base_model()
