"""The tables on the page that compares runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from helpers.evaluate.score import Headline
from helpers.runs.info import RunInfo
from helpers.runs.lesson_scores import LessonScore, score_rows
from helpers.runs.lessons import settings_had
from helpers.runs.report.page import backend_kind, model_name
from helpers.runs.report.render import MEAN_F1, NONE, Table, minute, p_text, score_cells, small, told
from helpers.runs.result_forms import Checkpoint, Parity, Step
from helpers.runs.settings import OTHER_RUNS, written
from helpers.runs.stages import STAGES
from helpers.text import clock

Headlines = Mapping[str, Mapping[str, Headline]]  # by run and model


@dataclass(frozen=True)
class Pair:
    """Two runs' answers to the same problems.

    Attributes:
        result: of `mcnemar`, `other` compared to `first`.
        adjusted: its p-value after Holm's adjustment for all pairs of the page.
    """

    first: str
    other: str
    result: dict[str, Any]
    adjusted: float


def overview(runs: list[RunInfo], headlines: Headlines) -> Table:
    """What a reader wants first."""

    def of(run: RunInfo, model: str) -> str:
        return told(headlines[run.name][model]) if model in headlines[run.name] else NONE

    rows = [
        [
            run.name,
            minute(run.created),
            run.progress,
            run.task.measure,
            of(run, "base model"),
            of(run, "tuned model, sampler"),
        ]
        for run in runs
    ]
    return Table(
        "The runs, in the order in which they were named; 95% intervals in brackets",
        ["run", "made (UTC)", "stages done", "measure", "base model", "tuned model"],
        rows,
        code=(0,),
    )


def compare_settings(runs: list[RunInfo]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Settings that differ, with the value of each run, and those that do not, with the one value.

    A run that did not come to a stage has no values of it, which is no difference. Nor is another run's name.
    A setting of several stages is named once where they agree.
    """
    different: dict[str, list[str]] = {}
    same: dict[str, str] = {}
    for name, by_stage in _settings(runs).items():
        stages_with: dict[tuple[str, ...], list[str]] = {}
        for stage, values in by_stage.items():
            stages_with.setdefault(tuple(values), []).append(stage)
        for values, stages in stages_with.items():
            label = name if len(stages_with) == 1 else f"{name} ({', '.join(stages)})"
            told = {value for value in values if value != NONE}
            if len(told) > 1:
                different[label] = list(values)
            else:
                same[label] = min(told)
    return different, same


def _settings(runs: list[RunInfo]) -> dict[str, dict[str, list[str]]]:
    """The value of each run, by the setting's name and by stage."""
    found = {
        "base model": {"": [model_name(run) for run in runs]},
        "backend": {"": [backend_kind(run) for run in runs]},
    }
    for place, run in enumerate(runs):
        for stage, entry in run.manifest.stages.items():
            for name, value in entry.settings:
                if name not in OTHER_RUNS:
                    values = found.setdefault(name, {}).setdefault(stage, [NONE] * len(runs))
                    values[place] = written(value)
        for lesson, entry in run.manifest.lessons.items():
            for name, value in settings_had(lesson, entry.settings).items():
                values = found.setdefault(name, {}).setdefault(lesson, [NONE] * len(runs))
                values[place] = written(value)
    return found


def different_settings(runs: list[RunInfo], different: Mapping[str, list[str]]) -> Table:
    """A row a setting if they outnumber the runs, else a row a run: a phone has room for few columns."""
    head = ["run", *different]
    rows = [[run.name, *values] for run, *values in zip(runs, *different.values(), strict=True)]
    if len(different) > len(runs):
        head = ["setting", *(run.name for run in runs)]
        rows = [[name, *values] for name, values in different.items()]
    return Table("What each run set", head, rows, code=range(len(head)))


def same_settings(same: Mapping[str, str]) -> Table:
    """Settings with one value."""
    return Table("Settings that are the same", ["setting", "value"], list(same.items()), code=(0, 1))


def lesson_scores(scores: Mapping[str, Mapping[str, dict[str, LessonScore]]]) -> list[Table]:
    """What notebooks of parts 2 and 3 measured, a column a run.

    Args:
        scores: by notebook and run.
    """
    return [
        Table(f"{lesson}; 95% intervals in brackets", ["score", *own], score_rows([*own.values()]), code=(0,))
        for lesson, own in scores.items()
    ]


def data(runs: list[RunInfo]) -> Table:
    """What each run read, and how it was split."""
    rows = []
    for run in runs:
        split = run.manifest.stages.split
        results = split.results if split else None
        sizes = results.sizes if results else {}
        parts = [f"{sizes[part]:,}" if part in sizes else NONE for part in ("train", "validation", "test")]
        files = ", ".join(row.path for row in split.data) if split else ""
        rows.append([run.name, files or NONE, *parts, results.leaks if results else NONE])
    head = ["run", "data files", "train", "validation", "test", "leaks"]
    return Table("Data and split", head, rows, right=(2, 3, 4, 5), code=(0, 1))


def changed_data(runs: list[RunInfo]) -> Table:
    """The data files that are not the same in all runs."""
    hashes: dict[str, list[str]] = {}
    for place, run in enumerate(runs):
        split = run.manifest.stages.split
        for file in split.data if split else []:
            own = hashes.setdefault(file.path, [NONE] * len(runs))
            own[place] = (file.sha256 or "could not be read")[:12]
    changed = {path: values for path, values in hashes.items() if len(set(values)) > 1}
    return Table(
        "Data files that are not the same in all runs, by the first 12 digits of their SHA-256",
        ["run", *changed],
        [[run.name, *(values[place] for values in changed.values())] for place, run in enumerate(runs)],
        code=range(len(changed) + 1),
    )


def scores(headlines: Headlines) -> Table:
    """Each model of each run."""
    found = [(name, model, own) for name, models in headlines.items() for model, own in models.items()]
    rows = [[name, model, own.measure, *score_cells(own)] for name, model, own in found]
    head = ["run", "model", "measure", "right", "rate", "95% interval", *MEAN_F1]
    if not any(own.mean_f1 for _, _, own in found):
        head, rows = head[:-2], [row[:-2] for row in rows]
    return Table("The test set", head, rows, right=range(3, 8), code=(0,))


def pairs(pairs: Sequence[Pair]) -> Table:
    """The paired tests."""
    head = ["pair", "difference, points", "gained", "lost", "both right", "both wrong", "p", "p by Holm"]
    rows = [
        [
            f"{pair.other} to {pair.first}",
            f"{100 * pair.result['difference']:+.1f}",
            len(pair.result["gained"]),
            len(pair.result["lost"]),
            pair.result["both_right"],
            pair.result["both_wrong"],
            p_text(pair.result["p_value"]),
            p_text(pair.adjusted),
        ]
        for pair in pairs
    ]
    return Table("Paired comparison on the same test problems", head, rows, right=range(1, 8), code=(0,))


def training(metrics: Mapping[str, list[Step]], checkpoints: Mapping[str, list[Checkpoint]]) -> Table:
    """The first and the last checkpoint of each run."""
    rows = [
        [
            name,
            len(metrics[name]) if name in metrics else NONE,
            f"{own[0].loss:.3f}",
            f"{own[-1].loss:.3f}",
            f"{own[0].correct}/{own[0].total}",
            f"{own[-1].correct}/{own[-1].total}",
        ]
        for name, own in checkpoints.items()
    ]
    head = ["run", "steps", "validation loss, first", "last", "validation right, first", "last"]
    return Table("Training in numbers", head, rows, right=range(1, 6), code=(0,))


def parity(runs: list[RunInfo], found: Mapping[str, Mapping[str, Parity]]) -> Table:
    """How far each run's models are apart.

    Args:
        found: by stage and run.
    """
    rows = []
    for run in runs:
        for stage, pair in (("merge", "merged model to trained model"), ("vllm", "vLLM to merged model")):
            own = found[stage].get(run.name)
            numbers = [small(own.max_abs_logprob_diff), small(own.tolerance), own.passed] if own else []
            rows.append([run.name, pair, *(numbers or [NONE, NONE, "not checked"])])
    return Table(
        "Log-probabilities of the same tokens: largest difference in nats",
        ["run", "compared", "difference", "tolerance", "within"],
        rows,
        right=(2, 3),
        code=(0,),
    )


def times(runs: list[RunInfo]) -> Table:
    """The time of each run's stages."""
    rows = []
    for run in runs:
        seconds = {stage: entry.seconds for stage, entry in run.manifest.stages.items()}
        total = sum(spent or 0 for spent in seconds.values())
        rows.append([run.name, *(clock(seconds.get(stage)) for stage in STAGES), clock(total)])
    head = ["run", *STAGES, "in all"]
    return Table("Time of each stage, minutes:seconds", head, rows, right=range(1, 8), code=(0,))


def work(runs: list[RunInfo], metrics: Mapping[str, list[Step]]) -> Table:
    """What the time went to, and how fast training was."""
    spent = {run.name: [entry.work_seconds for _, entry in run.manifest.stages.items()] for run in runs}
    kinds = list(dict.fromkeys(kind for stages in spent.values() for work in stages for kind in work))
    rows = []
    for name, stages in spent.items():
        speeds = [row.tokens_per_second for row in metrics.get(name, [])]
        sums = [clock(sum(work.get(kind, 0) for work in stages)) for kind in kinds]
        rows.append([name, *sums, f"{median(speeds):,.0f}" if speeds else NONE])
    return Table(
        "What of it went to which work, and the median speed of training",
        ["run", *kinds, "tokens/s in training"],
        rows,
        right=range(1, 2 + len(kinds)),
        code=(0,),
    )


def versions(runs: list[RunInfo]) -> tuple[Table, list[str]]:
    """The packages whose versions differ, and the others in words."""
    packages = [run.manifest.packages for run in runs]
    names = list(dict.fromkeys(name for own in packages for name in own))
    different = [name for name in names if len({own.get(name) for own in packages}) > 1]
    rows = [
        [run.name, *(run.manifest.packages.get(name, "not installed") for name in different)] for run in runs
    ]
    table = Table("Packages whose versions differ", ["run", *different], rows, code=range(len(different) + 1))
    return table, [f"{name} {packages[0][name]}" for name in names if name not in different]
