"""The tables on the page of one run."""

from collections.abc import Mapping

from helpers.evaluate.score import Headline
from helpers.runs.describe import Artefact, changed_settings
from helpers.runs.info import RunInfo
from helpers.runs.manifest import DataFile, Manifest, SplitResults
from helpers.runs.report.render import MEAN_F1, NONE, Table, interval, score_cells, small
from helpers.runs.result_forms import Checkpoint, Counts, Evaluation, Parity, Speed
from helpers.runs.settings import written
from helpers.text import clock, percent, size_text


def changed(run: RunInfo) -> Table:
    """Settings with another value than the default."""
    rows = [
        [row.name, written(row.value), written(row.default), ", ".join(row.stages)]
        for row in changed_settings(run)
    ]
    return Table(
        "Settings that are not the default", ["setting", "value", "default", "stages"], rows, code=(0, 1, 2)
    )


def settings(manifest: Manifest) -> Table:
    """All settings."""
    rows = [
        [stage, name, written(value)]
        for stage, entry in manifest.stages.items()
        for name, value in entry.settings
    ]
    return Table(
        "All settings, as each stage recorded them", ["stage", "setting", "value"], rows, code=(1, 2)
    )


def data_files(files: list[DataFile]) -> Table:
    """Data files with their hashes."""
    rows = [[row.path, size_text(row.bytes), row.sha256 or "could not be read"] for row in files]
    return Table("Data files that were read", ["file", "size", "SHA-256"], rows, right=(1,), code=(0, 2))


def split(results: SplitResults) -> Table:
    """The parts of the split."""
    rows = [[part, f"{size:,}", f"{results.left_out.get(part, 0):,}"] for part, size in results.sizes.items()]
    return Table("The split", ["part", "records", "left out by a limit"], rows, right=(1, 2))


def checkpoints(rows: list[Checkpoint]) -> Table:
    """Checkpoints with their scores."""
    return Table(
        "Checkpoints, scored on the validation part",
        ["step", "loss, nats a token", "right"],
        [[row.step, f"{row.loss:.3f}", f"{row.correct}/{row.total}"] for row in rows],
        right=(0, 1, 2),
    )


def scores(headlines: Mapping[str, Headline], measure: str) -> Table:
    """Each model on the test set."""
    rows = [[model, *score_cells(headline)] for model, headline in headlines.items()]
    head = ["model", "right", measure, "95% interval", *MEAN_F1]
    if not any(headline.mean_f1 for headline in headlines.values()):
        head, rows = head[:-2], [row[:-2] for row in rows]
    return Table(f"The test set: {measure}", head, rows, right=range(1, 6))


def base_model(evaluation: Evaluation) -> Table:
    """The base model, in each way in which it was asked."""
    rows = [
        [_marked(row.name, row.name == evaluation.base_prompting), row.told(evaluation.task)]
        for row in evaluation.base_promptings
    ]
    return Table("The base model, by how it was asked", ["asked in", "test set"], rows)


def _marked(name: str, strongest: bool) -> str:
    return f"{name}, the strongest" if strongest else name


def by_kind(kind: str, base: Mapping[str, Counts], tuned: Mapping[str, Counts]) -> Table:
    """Base and tuned model in each category, or for each kind of template."""

    def right(counts: Counts | None) -> str:
        return f"{counts.correct}/{counts.total}" if counts else NONE

    rows = [
        [name, right(base.get(name)), right(own), percent(own.score.accuracy), interval(own.score)]
        for name, own in tuned.items()
    ]
    head = [kind, "base", "tuned", "rate, tuned", "95% interval, tuned"]
    return Table(f"Right answers by {kind}", head, rows, right=(1, 2, 3, 4))


def parity(caption: str, *rows: Parity | None) -> Table:
    """Pairs of models; those that are None were not compared."""
    head = ["compared", "prompts", "tokens", "largest difference, nats", "tolerance", "mean difference"]
    return Table(
        caption,
        [*head, "its tolerance", "same token chosen", "within"],
        [
            [
                f"{row.other} to {row.reference}",
                row.prompts,
                f"{row.tokens:,}",
                small(row.max_abs_logprob_diff),
                small(row.tolerance),
                small(row.mean_abs_logprob_diff),
                small(row.mean_tolerance),
                NONE if row.token_agreement is None else percent(row.token_agreement),
                row.passed,
            ]
            for row in rows
            if row
        ],
        right=range(1, 8),
    )


def speed(speed: Speed) -> Table:
    """vLLM beside other engines."""
    rates = {f"vLLM, {row.at_once} at once": row.tokens_per_second for row in speed.throughput}
    rows = [[name, f"{rate:,.0f}"] for name, rate in (rates | speed.others).items()]
    return Table("Tokens a second", ["engine", "tokens a second"], rows, right=(1,))


def files(artefacts: list[Artefact]) -> Table:
    """What the stages made."""
    rows = [
        [row.path, row.stage, "missing" if row.bytes is None else size_text(row.bytes)] for row in artefacts
    ]
    return Table("What the stages made", ["file or folder", "stage", "size"], rows, right=(2,), code=(0,))


def lessons(manifest: Manifest) -> Table:
    """The notebooks of Parts 2 and 3 that ran on this run."""
    rows = [
        [
            f"notebooks/{name}.ipynb",
            entry.failure.what if entry.failure else entry.status,
            clock(entry.seconds),
            ", ".join(f"{key}={written(value)}" for key, value in entry.settings.items()) or "the defaults",
        ]
        for name, entry in manifest.lessons.items()
    ]
    return Table(
        "Notebooks of parts 2 and 3", ["notebook", "status", "time", "settings"], rows, right=(2,), code=(0,)
    )


def times(manifest: Manifest) -> Table:
    """The time of each stage, and what it went to."""
    seconds = {name: entry.seconds for name, entry in manifest.stages.items() if entry.seconds is not None}
    total = sum(seconds.values())
    work = {
        name: ", ".join(f"{kind} {clock(spent)}" for kind, spent in entry.work_seconds.items())
        for name, entry in manifest.stages.items()
    }
    return Table(
        "Time of each stage, minutes:seconds, the start of the notebook not counted",
        ["stage", "time", "share", "of it"],
        [
            [name, clock(spent), f"{spent / total:.0%}" if total else NONE, work[name]]
            for name, spent in seconds.items()
        ],
        right=(1, 2),
    )


def versions(packages: Mapping[str, str]) -> Table:
    """Packages with their versions."""
    caption = "Packages that decide the numbers, as they were"
    return Table(caption, ["package", "version"], list(packages.items()), code=(0, 1))
