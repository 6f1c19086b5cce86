"""Experiment trackers, for those who have one: W&B, Trackio or Neptune, through the cookbook's loggers.

    pip install trackio            # or wandb, or neptune-scale
    WANDB_PROJECT=my-project course run

`WANDB_PROJECT` names the project for all three, as in the cookbook's own recipes. Without it nothing is
tracked.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_cookbook.utils.ml_log import Logger


def trackers(folder: Path, settings: dict[str, Any]) -> "Logger | None":
    """The cookbook's loggers for the tracker that is installed; None unless `WANDB_PROJECT` names a project.

    Args:
        folder: of the train stage; its run's name names the run in the tracker.
        settings: what to show beside the curves.
    """
    project = os.environ.get("WANDB_PROJECT")
    if not project:
        return None
    from tinker_cookbook.utils import ml_log

    return ml_log.setup_logging(
        str(folder / "trackers"),
        wandb_project=project,
        wandb_name=folder.absolute().parent.name,
        config=settings,
        do_configure_logging_module=False,
    )
