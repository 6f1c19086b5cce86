"""Sweeps in tests: `Notebooks` stands in for `course run`, with stages that are done at once."""

import json
from pathlib import Path
from typing import Any

from commands import course
from runs_for_tests import begin_stage, finish_stage

from helpers.errors import DataError
from helpers.evaluate.score import Score
from helpers.runs import save_scores
from helpers.runs.failures import record_failure
from helpers.runs.manifest import LessonEntry, now
from helpers.runs.run import Run
from helpers.runs.settings import settings_until
from helpers.runs.stages import STAGES
from helpers.runs.sweep.plan import Sweep
from helpers.runs.sweep.results import RESULTS, csv_text


class Notebooks:
    """Takes the place of `helpers.runs.sweep.run.course_run`.

    Attributes:
        calls: run, last stage or lesson, and given settings (of the stages `base_run` alone) of each call.
        broken: the stage or lesson in which a run fails, by the run's name.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.broken: dict[str, str] = {}

    def __call__(self, run: Run, until: str, given: dict[str, Any], environment: dict[str, str]) -> int:
        if until not in STAGES:
            return self.lesson(run, until, given)
        self.calls.append((run.name, until, given.get("base_run")))
        failure = run.manifest.failure
        chosen = run.manifest.settings | given
        run.update(settings=chosen, failure=None)
        for stage in settings_until(until, chosen):
            if run.manifest.stages.is_done(stage) and not (failure and failure.stage == stage):
                continue
            if self.broken.get(run.name) == stage:
                begin_stage(run, stage, **chosen)
                record_failure(run, stage, DataError("it broke", "make it whole"))
                return 1
            finish(run, stage, **chosen)
        return 0

    def lesson(self, run: Run, lesson: str, given: dict[str, Any]) -> int:
        """A lesson whose scores follow its `group_size`."""
        self.calls.append((run.name, lesson, given))
        entry = LessonEntry(status="started", started=now(), settings=given)
        with run.edit() as manifest:
            manifest.lessons[lesson] = entry
        if self.broken.get(run.name) == lesson:
            record_failure(run, lesson, DataError("it broke", "make it whole"))
            return 1
        score = given["group_size"]
        save_scores(run.file(lesson), {"after": {"right": Score(score, 100), "KL": score / 64}})
        with run.edit() as manifest:
            manifest.lessons[lesson] = entry.model_copy(update={"status": "done", "seconds": 63.0})
        return 0


def finish(run: Run, stage: str, **chosen: Any) -> None:
    """What a notebook leaves. A higher rank is better, up to 16; a higher learning rate gives more loss."""
    results = {"base_from": chosen.get("base_run") or None} if stage == "evaluate" else {}
    finish_stage(run, stage, results=results, **chosen)
    run.file(f"{stage}/by.txt").write_text(run.name)
    if stage == "train":
        settings = run.stage("train").settings
        right = min(settings.rank, 16)
        best = {"step": 9, "loss": settings.learning_rate, "correct": right, "total": 20}
        run.file("train/best_checkpoint.json").write_text(json.dumps(best))


def write_table(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    """The part of `write_results` that takes no time."""
    (sweep.folder / RESULTS).write_text(csv_text(sweep, rows))


def data_of(path: Path) -> dict[str, str]:
    return {"data_files": str(path)}


def sweep_of_two(capsys, data: Path) -> tuple[int, str, str]:
    return course(capsys, "sweep", "--name", "s", "--data", data, "--grid", "rank=2,16")
