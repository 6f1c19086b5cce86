"""What the page of a run and the page that compares runs share: how they say that something is missing, and how they write numbers."""

from collections.abc import Callable, Iterable
from typing import Any

from helpers.errors import RunError
from helpers.runs.report.html import problem, said, text
from helpers.runs.run_files import file_problems, one_line, scores
from helpers.runs.info import RunInfo
from helpers.runs.run import STAGES


def attempt(part: Callable[..., str], run: Any, problems: list[str]) -> str:
    """A part of the page; where a file is missing or damaged, a paragraph that says so, and a line in `problems`."""
    try:
        return part(run)
    except RunError as error:
        words = one_line(error)
        problems.append(words) if words not in problems else None
        return problem(words)


def stage_note(run: RunInfo, stage: str) -> str | None:
    """What a reader must know of a stage that is not simply done."""
    notebook, status = f"notebooks/{STAGES[stage][0]}.ipynb", run.statuses.get(stage)
    if status == "done":
        return None
    if status is None:
        return f"stage {stage} was not run: {notebook} does it"
    if status == "stale":
        return f"stage {stage} is stale: it belongs to an earlier model or split, since a stage before it ran again; run {notebook}"
    if run.state == "under way":
        return f"stage {stage} is under way"
    return f"stage {stage} was begun and did not finish: run {notebook} again, or `course run --resume --name {run.name}`"


def list_problems(run: RunInfo, stages: Iterable[str] = tuple(STAGES)) -> list[str]:
    """All that is missing, stale or damaged in a run, a sentence each. `stages` are those that it should have."""
    notes = [note for stage in stages if (note := stage_note(run, stage))]
    return list(dict.fromkeys([*notes, *file_problems(run), *scores(run)[1]]))


def exchange(question: str, expected: str, answers: dict[str, str]) -> str:
    """A problem, its reference and what models answered."""
    parts = {"problem": question, "expected": expected, **answers}
    return (
        '<dl class="sample">'
        + "".join(f"<div><dt>{text(who)}</dt><dd>{said(words)}</dd></div>" for who, words in parts.items())
        + "</dl>"
    )


# numbers and names


def interval(score: dict[str, Any]) -> str:
    return f"{score['ci95'][0]:.1%} to {score['ci95'][1]:.1%}"


def small(number: float) -> str:
    return f"{number:.2g}"


def p_text(p_value: float) -> str:
    return "below 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def model_name(run: RunInfo) -> str:
    return str(run.manifest.get("base_model") or "an unknown base model").rstrip("/").rsplit("/", 1)[-1]


def backend_kind(run: RunInfo) -> str:
    backend = run.manifest.get("backend")
    return str(backend.get("kind")) if isinstance(backend, dict) else "an unknown backend"


def work_seconds(entry: dict[str, Any]) -> dict[str, float]:
    """What a stage's time went to, by kind."""
    work = entry.get("work_seconds")
    return (
        {kind: spent for kind, spent in work.items() if isinstance(spent, (int, float))}
        if isinstance(work, dict)
        else {}
    )
