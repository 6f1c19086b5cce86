"""Several runs on one page: what differs between them, and how they score.

A reader wants to know whether a setting made the difference. So settings come first, then scores with their
intervals, then the paired test on the same problems, which sees smaller differences than the intervals do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import DataError, RunError
from helpers.evaluate.paired import mcnemar
from helpers.files import write_text
from helpers.runs.info import RunInfo, readable_run
from helpers.runs.lesson_scores import LessonScore, read_scores
from helpers.runs.report import comparison_tables, figures
from helpers.runs.report.gaps import gaps
from helpers.runs.report.render import render
from helpers.runs.result_files import Results
from helpers.runs.result_forms import Sample
from helpers.runs.run import Run
from helpers.runs.stages import STAGES

FLIPS = 10  # of each kind, for each pair


@dataclass(frozen=True)
class Group:
    """Runs that were scored on the same test problems."""

    names: list[str]
    problems: frozenset[tuple[int, str, str]]


def write_comparison(runs: list[Run], path: Path) -> Path:
    """Write a page that compares runs. They need not be complete.

    Args:
        runs: two or more. The first is the one that the others are paired with.
        path: the HTML file to write.

    Raises:
        DataError: fewer than two runs.
        RunError: a run's manifest is damaged, or the file can't be written.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} runs make no comparison", "give two or more")
    return write_text(path, comparison_page([readable_run(str(run.path)) for run in runs])[0])


def comparison_page(runs: list[RunInfo]) -> tuple[str, list[str]]:
    """The page, and what is missing, stale or damaged in the runs, a sentence each."""
    results = {run.name: Results(run) for run in runs}
    # a sweep ends early: no gap in its runs
    begun = [stage for stage in STAGES if any(stage in run.statuses for run in runs)]
    found = [f"run {run.name}: {words}" for run in runs for words in gaps(run, results[run.name], begun)]

    lessons: dict[str, dict[str, dict[str, LessonScore]]] = {}
    for run in runs:
        for lesson in filter(run.manifest.lesson_is_done, run.manifest.lessons):
            try:
                if own := read_scores(Run(run.path), lesson):
                    lessons.setdefault(lesson, {})[run.name] = own
            except RunError as error:
                found.append(f"run {run.name}: {error.what}: {error.fix}")

    def of_done(stage: str, name: str) -> dict[str, Any]:
        """A file of each run that has it and whose stage is done."""
        done = [run.name for run in runs if run.statuses.get(stage) == "done"]
        return {run: value for run in done if (value := getattr(results[run], name))}

    samples = of_done("evaluate", "samples")
    groups = same_problems(samples)
    html = render(
        "comparison.html.jinja",
        runs=runs,
        gaps=found,
        lessons=comparison_tables.lesson_scores(lessons),
        headlines={name: own.headlines for name, own in results.items()},
        flags=[f"{run.name}: {run.flag}" for run in runs if run.flag],
        metrics=of_done("train", "metrics"),
        checkpoints=of_done("train", "checkpoints"),
        parity={"merge": of_done("merge", "merge_parity"), "vllm": of_done("vllm", "vllm_parity")},
        groups=groups,
        not_paired=[run.name for run in runs if run.name not in samples],
        pairs=paired(groups, samples),
        tables=comparison_tables,
        figures=figures,
        flips_shown=FLIPS,
    )
    return html, found


def same_problems(samples: dict[str, list[Sample]]) -> list[Group]:
    """The runs by what they were asked, in the order in which they were named."""
    groups: dict[frozenset[tuple[int, str, str]], Group] = {}
    for name, rows in samples.items():
        asked = frozenset((row.index, row.problem, row.expected) for row in rows)
        groups.setdefault(asked, Group([], asked)).names.append(name)
    return list(groups.values())


def paired(groups: list[Group], samples: dict[str, list[Sample]]) -> list[comparison_tables.Pair]:
    """The first run of each group beside the others of it, all tests adjusted for one another."""
    rows = {name: [sample.model_dump() for sample in own] for name, own in samples.items()}
    results = {
        (first, other): mcnemar(rows[first], rows[other])
        for first, *others in (group.names for group in groups)
        for other in others
    }
    adjusted = holm([result["p_value"] for result in results.values()])
    return [
        comparison_tables.Pair(*names, result, p)
        for (names, result), p in zip(results.items(), adjusted, strict=True)
    ]


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment of p-values for several tests, in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
