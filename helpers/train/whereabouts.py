"""What a service is told of a notebook, so that an instructor sees who needs help: which one it is, when it
connects, and how far its training is. The status page of the course's stub shows it; other services keep it
with the session, or drop it.
"""

import os
from pathlib import Path
from typing import Any

from helpers.paths import NOTEBOOKS

PROGRESS = "course_progress"  # the name of an event; the stub knows it
_stage: dict[str, str] = {}


def enter_stage(notebook: str, stage: str) -> None:
    """Say which notebook and stage of a run this process works on; `open_stage` does it."""
    _stage.update(notebook=notebook, stage=stage)


def session_metadata() -> dict[str, str]:
    """`notebook` and `stage` of this process, as far as they are known.

    Outside of stages Jupyter tells the notebook's name; one that is not of the course is not passed on.
    """
    if _stage:
        return dict(_stage)
    name = Path(os.environ.get("JPY_SESSION_NAME", "")).stem
    return {"notebook": name} if name and (NOTEBOOKS / f"{name}.ipynb").is_file() else {}


def tell(backend: Any, training_client: Any, **progress: int) -> None:
    """Say how far a training run is. It goes out with the SDK's telemetry, within 10 s, and not to hosted
    Tinker.

    Args:
        progress: `step`, `steps` (of how many), and `correct` and `total` of the last validation.
    """
    telemetry = None if backend.kind == "hosted" else backend.service_client.get_telemetry()
    if telemetry:  # None if TINKER_TELEMETRY turns it off
        telemetry.log(PROGRESS, {"run": training_client.model_id, **progress})
