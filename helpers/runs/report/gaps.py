"""What is missing, stale or damaged in a run: a page never leaves it out without a word."""

from collections.abc import Iterable

from helpers.runs.info import RunInfo
from helpers.runs.result_files import Results
from helpers.runs.stages import STAGES


def stage_note(run: RunInfo, stage: str) -> str | None:
    """What a reader must know of a stage that is not simply done."""
    notebook, status = f"notebooks/{STAGES[stage].notebook}.ipynb", run.statuses.get(stage)
    if status == "done":
        return None
    if status is None:
        return f"stage {stage} was not run: {notebook} does it"
    if status == "stale":
        return (
            f"stage {stage} is stale: it belongs to an earlier model or split, since a stage before it ran "
            f"again; run {notebook}"
        )
    if run.state == "under way":
        return f"stage {stage} is under way"
    return (
        f"stage {stage} was begun and did not finish: run {notebook} again, or `course run --resume --name "
        f"{run.name}`"
    )


def gaps(run: RunInfo, results: Results, stages: Iterable[str] = tuple(STAGES)) -> list[str]:
    """All that is missing, stale or damaged, a sentence each. `stages` are those that the run should have."""
    notes = [note for stage in stages if (note := stage_note(run, stage))]
    return [*notes, *results.problems.values()]
