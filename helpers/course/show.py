"""`course show`: all that is known of one run, or the table of a sweep."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from helpers.course import completers
from helpers.course.arguments import add_command
from helpers.course.list import minute
from helpers.text import clock, percent, printable, red, size_text, table

if TYPE_CHECKING:
    from helpers.runs.info import RunInfo

SHOWN = {"status", "seconds", "finished", "summary", "shared_from"}


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "show",
        run,
        "one run: settings, stages, scores, files, versions",
        "Everything that a run's manifest says, and how it differs from the notebooks' defaults of today. "
        "Of a sweep: its table.",
        "course show",
        "course show my-run --json",
    )
    name = parser.add_argument(
        "run",
        nargs="?",
        default="latest",
        metavar="RUN|SWEEP",
        help="its name, or that of a sweep (default: latest)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    completers.offer(name, completers.runs_and_sweeps)


def run(options: argparse.Namespace) -> int:
    from helpers.paths import runs_dir
    from helpers.runs.info import is_sweep, readable_run

    if is_sweep(runs_dir() / options.run):
        from helpers.course.sweep import print_results

        print_results(options.run, options.json)
    else:
        found = readable_run(options.run)
        print(json.dumps(describe(found), indent=2) if options.json else printable(page(found)))
        if found.flag and not options.json:
            print(red(found.flag))
    return 0


def describe(run: "RunInfo") -> dict[str, Any]:
    """All that `course show` says, ready for JSON."""
    from helpers.paths import package_versions
    from helpers.runs.describe import artefacts, changed_settings
    from helpers.runs.info import summary
    from helpers.runs.result_files import Results

    manifest, installed = run.manifest, package_versions()
    split, found = manifest.stages.split, run.evaluated
    results = Results(run)
    return summary(run) | {
        "base_model": manifest.base_model,
        "backend": manifest.backend.kind if manifest.backend else None,
        "settings": manifest.settings,
        "changed": [asdict(row) for row in changed_settings(run)],
        "failure": manifest.failure.model_dump(mode="json") if manifest.failure else None,
        "stages": {
            name: entry.model_dump(mode="json", include=SHOWN) for name, entry in manifest.stages.items()
        },
        "lessons": {
            name: entry.model_dump(mode="json", include=SHOWN | {"settings"})
            for name, entry in manifest.lessons.items()
        },
        "data": [row.model_dump(mode="json") for row in split.data] if split else [],
        "sources": [asdict(source) for source in split.results.sources] if split and split.results else [],
        "scores": [{"model": name} | headline.fields() for name, headline in results.headlines.items()],
        "base_promptings": [asdict(prompting) for prompting in found.base_promptings] if found else [],
        "controls": asdict(found.controls) if found else None,
        "problems": list(results.problems.values()),
        "artefacts": [asdict(row) for row in artefacts(run)],
        "packages": {
            name: {"version": version, "now": installed.get(name)}
            for name, version in manifest.packages.items()
        },
    }


def page(run: "RunInfo") -> str:
    """The same to read."""
    details = describe(run)
    latest = " (latest)" if run.latest else ""
    made = f"made {minute(run.created)} UTC, {size_text(run.bytes)}"
    lines = [f"run {run.name}{latest}: {run.state}, {made}", str(run.path)]
    if details["base_model"]:
        lines.append(f"{details['base_model'].rsplit('/', 1)[-1]} on {details['backend']}")
    for part in (_settings, _stages, _scores, _files, _data, _versions):
        if more := part(run, details):
            lines += ["", *more]
    return "\n".join(lines)


def _settings(run: "RunInfo", details: dict[str, Any]) -> list[str]:
    from helpers.runs.settings import defaults_of, written

    lines = ["settings that differ from the notebooks' defaults"]
    for row in details["changed"]:
        where = f" in {', '.join(row['stages'])}" if len(defaults_of(row["name"])) > 1 else ""
        lines.append(
            f"  {row['name']} = {written(row['value'])}{where}   (default {written(row['default'])})"
        )
    to_come = [
        f"  {name} = {written(value)}   (for a stage to come)"
        for name, value in run.manifest.settings.items()
        if not any(stage in run.statuses for stage in defaults_of(name))
        and any(value != default for default in defaults_of(name).values())
    ]
    return [*lines, *to_come] if details["changed"] or to_come else [*lines, "  none"]


def _stages(run: "RunInfo", details: dict[str, Any]) -> list[str]:
    if not details["stages"]:
        return ["no stage was begun"]
    rows = [["stage", "status", "time", "result"]]
    for name, row in details["stages"].items():
        status = f"{row['status']}, as in {row['shared_from']}" if row["shared_from"] else row["status"]
        rows.append([name, status, clock(row["seconds"]), row["summary"]])
    lines = [table(rows, right={2})]
    if failure := run.manifest.failure:
        lines.append(f"  {failure.stage} failed: {failure.what}")
        lines += [f"  → {failure.fix}"] if failure.fix else []
    for name, entry in run.manifest.lessons.items():
        lines.append(f"  {name}: {entry.status}, {clock(entry.seconds)}")
        lines += [f"  {name} failed: {entry.failure.what}"] if entry.failure else []
    return lines


def _scores(run: "RunInfo", details: dict[str, Any]) -> list[str]:
    rows = [["test set", "right", run.task.measure, "95% interval", "mean F1"]]
    for row in details["scores"]:
        low, high = row["ci95"]
        right, rate = f"{row['correct']}/{row['total']}", percent(row["accuracy"])
        mean_f1 = "–" if row["mean_f1"] is None else f"{row['mean_f1']:.2f}"
        rows.append([row["model"], right, rate, f"{percent(low)} to {percent(high)}", mean_f1])
    if run.task.name != "text":
        rows = [row[:-1] for row in rows]
    lines = [table(rows, right={1, 2})] if details["scores"] else []
    if found := run.evaluated:
        lines.append(f"  base model, asked in its strongest way on the test set: {found.base_prompting}")
        lines += [f"    {prompting.text(run.task)}" for prompting in found.base_promptings]
        lines += [f"  {line}" for line in found.controls.lines(run.task)]
    return lines + [f"  problem: {problem}" for problem in details["problems"]]


def _files(_: "RunInfo", details: dict[str, Any]) -> list[str]:
    rows = [["file", "size"]]
    for row in details["artefacts"]:
        rows.append([row["path"], "missing" if row["bytes"] is None else size_text(row["bytes"])])
    return [table(rows, right={1})] if details["artefacts"] else []


def _data(run: "RunInfo", details: dict[str, Any]) -> list[str]:
    split = run.manifest.stages.split
    if not details["data"] or split is None:
        return []
    lines = [f"  {row.path}  {size_text(row.bytes)}  sha256 {str(row.sha256)[:12]}…" for row in split.data]
    sources = split.results.sources if split.results else []
    return ["data", *lines, *(f"  {line}" for source in sources for line in str(source).splitlines())]


def _versions(_: "RunInfo", details: dict[str, Any]) -> list[str]:
    lines = ["versions"]
    for name, row in details["packages"].items():
        changed = "" if row["now"] == row["version"] else f"   (now {row['now'] or 'not installed'})"
        lines.append(f"  {name} {row['version']}{changed}")
    return lines
