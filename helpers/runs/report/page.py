"""The page of one run, to read or to send, however far the run came.

Each section shows what is there, and says which stage or file is missing, stale or damaged.
"""

from pathlib import Path
from statistics import median

from helpers.files import write_text
from helpers.runs.describe import artefacts
from helpers.runs.info import RunInfo, readable_run
from helpers.runs.report import figures, run_tables
from helpers.runs.report.gaps import gaps, stage_note
from helpers.runs.report.render import render
from helpers.runs.result_files import Results
from helpers.runs.run import Run
from helpers.runs.stages import STAGES

SAMPLES = 6  # right ones, and as many wrong ones
FLIPS = 60  # of each kind


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder. The run need not be complete.

    Raises:
        RunError: the run's manifest is damaged, or the folder can't be written.
    """
    return write_text(run.file("report.html"), report_page(readable_run(str(run.path)))[0])


def report_page(run: RunInfo) -> tuple[str, list[str]]:
    """The page, and what is missing, stale or damaged in the run, a sentence each."""
    results = Results(run)
    found = gaps(run, results)
    speeds = [row.tokens_per_second for row in results.metrics or []]
    html = render(
        "run.html.jinja",
        run=run,
        results=results,
        gaps=found,
        notes={stage: stage_note(run, stage) for stage in STAGES},
        model=model_name(run),
        backend=backend_kind(run),
        data=_data(run),
        training_speed=median(speeds) if speeds else None,
        artefacts=artefacts(run),
        seconds=sum(entry.seconds or 0 for _, entry in run.manifest.stages.items()),
        tables=run_tables,
        figures=figures,
        samples_shown=SAMPLES,
        flips_shown=FLIPS,
    )
    return html, found


def model_name(run: RunInfo) -> str:
    """The base model without its folder."""
    return (run.manifest.base_model or "an unknown base model").rstrip("/").rsplit("/", 1)[-1]


def backend_kind(run: RunInfo) -> str:
    """Which kind of service trained the run."""
    return run.manifest.backend.kind if run.manifest.backend else "an unknown backend"


def _data(run: RunInfo) -> str:
    """What the model was tuned on, in a few words."""
    split = run.manifest.stages.split
    if not split or not split.data:
        return "data that the manifest does not name"
    names = ", ".join(Path(file.path).name for file in split.data)
    return f"{split.results.sizes['train']:,} examples of {names}" if split.results else names
