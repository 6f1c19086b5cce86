"""`course list` and `course show`: what runs there are, and what is in one."""

import contextlib
import json
import os
from datetime import UTC, datetime
from typing import Any

from helpers.paths import package_versions, runs_dir
from helpers.runs.info import (
    RunInfo,
    find_runs,
    find_sweeps,
    parse_time,
    readable_run,
    size_and_change,
    summary,
)
from helpers.runs.run_files import scores
from helpers.runs.settings import notebook_parameters, run_parameters
from helpers.text import clock, size_text, table

# course list


def list_runs(as_json: bool = False) -> None:
    """Print the runs, newest first: a line each, or JSON."""
    runs = find_runs()
    if as_json:
        print(json.dumps([summary(run) for run in runs], indent=2))
        return
    if not runs:
        print(f"there is no run in {runs_dir()} yet: `course run` makes one")
        return
    rows = [["run", "made (UTC)", "base", "test", "size", "stages done"]]
    for run in runs:
        scores = [
            f"{value:.1%}" if value is not None else "–"
            for value in (run.accuracy("base_accuracy"), run.accuracy("test_accuracy"))
        ]
        name = f"{run.name} (latest)" if run.latest else run.name
        rows.append([name, _minute(run.created), *scores, size_text(run.bytes), run.progress])
    print(table(rows, right={2, 3, 4}))
    for sweep in find_sweeps():
        print(f"sweep {sweep.name}: `course show {sweep.name}` compares its runs")


# course show


def show_run(name: str = "latest", as_json: bool = False) -> None:
    """Print one run: parameters, stages, scores, artefacts, versions.

    Raises:
        RunError: there is no such run, or it is damaged.
    """
    details = describe(readable_run(name))
    print(json.dumps(details, indent=2) if as_json else _page(details))


def describe(run: RunInfo) -> dict[str, Any]:
    """All that `course show` says, as plain values."""
    known = notebook_parameters()
    parameters, notes = run_parameters(run.manifest, known)
    backend = run.manifest.get("backend")
    installed = package_versions()
    rows, problems = scores(run)
    shown = ("status", "seconds", "finished", "summary", "shared_from")
    stages = {name: {key: entry.get(key) for key in shown} for name, entry in run.manifest["stages"].items()}
    return summary(run) | {
        "base_model": run.manifest.get("base_model"),
        "backend": backend.get("kind") if isinstance(backend, dict) else None,
        "parameters": changed_parameters(parameters, known),
        "notes": notes,
        "stages": stages,
        "data": run.manifest["stages"].get("split", {}).get("data", []),
        "sources": run.manifest["stages"].get("split", {}).get("results", {}).get("sources", []),
        "scores": rows,
        "problems": problems,
        "artefacts": artefacts(run),
        "packages": {
            name: {"version": version, "now": installed.get(name)}
            for name, version in run.manifest.get("packages", {}).items()
        },
    }


def changed_parameters(
    parameters: dict[str, Any], known: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Parameters that differ from a notebook's default: `value`, and `defaults` by stage."""
    found = {}
    for name, value in parameters.items():
        defaults = {
            stage: stage_defaults[name] for stage, stage_defaults in known.items() if name in stage_defaults
        }
        if any(value != default for default in defaults.values()):
            found[name] = {"value": value, "defaults": defaults}
    return found


def artefacts(run: RunInfo) -> list[dict[str, Any]]:
    """What the manifest lists, with its size; None for what is not there."""
    rows = []
    for stage, entry in run.manifest["stages"].items():
        for name in entry.get("artefacts", []):
            path = run.path / name
            there = os.path.lexists(path)
            folder = there and path.is_dir() and not path.is_symlink()
            size = size_and_change(path)[0] if folder else os.lstat(path).st_size if there else None
            rows.append({"stage": stage, "path": name, "bytes": size})
    return rows


def _page(details: dict[str, Any]) -> str:
    latest = " (latest)" if details["latest"] else ""
    model = str(details["base_model"]).rsplit("/", 1)[-1]
    lines = [
        f"run {details['name']}{latest}: {details['state']}, made {_minute(parse_time(details['created']))} UTC, {size_text(details['bytes'])}",
        details["path"],
    ]
    if details["base_model"]:
        lines.append(f"{model} on {details['backend']}")
    lines += ["", "parameters that differ from the notebooks' defaults"]
    lines += [
        f"  {name} = {_value(row['value'])}   (default {_defaults(row['defaults'])})"
        for name, row in details["parameters"].items()
    ] or ["  none"]
    lines += [f"  note: {note}" for note in details["notes"]]
    rows = [["stage", "status", "time", "result"]]
    for name, row in details["stages"].items():
        status = f"{row['status']}, as in {row['shared_from']}" if row["shared_from"] else row["status"]
        rows.append([name, status, clock(row["seconds"]), row["summary"] or ""])
    lines += ["", table(rows, right={2})] if details["stages"] else ["", "no stage was begun"]
    if details["scores"]:
        rows = [["test set", "right", "rate", "95% interval"]]
        rows += [
            [
                row["model"],
                f"{row['correct']}/{row['total']}",
                f"{row['accuracy']:.1%}",
                f"{row['ci95'][0]:.1%} to {row['ci95'][1]:.1%}",
            ]
            for row in details["scores"]
        ]
        lines += ["", table(rows, right={1, 2})]
    lines += [f"  problem: {problem}" for problem in details["problems"]]
    if details["artefacts"]:
        rows = [["file", "size"]] + [
            [row["path"], "missing" if row["bytes"] is None else size_text(row["bytes"])]
            for row in details["artefacts"]
        ]
        lines += ["", table(rows, right={1})]
    if details["data"] or details["sources"]:
        lines += [
            "",
            "data",
            *(
                f"  {row.get('path')}  {size_text(row.get('bytes'))}  sha256 {str(row.get('sha256'))[:12]}…"
                for row in details["data"]
                if isinstance(row, dict)
            ),
            *(f"  {line}" for line in _source_lines(details["sources"])),
        ]
    lines += [
        "",
        "versions",
        *(
            f"  {name} {row['version']}"
            + ("" if row["now"] == row["version"] else f"   (now {row['now'] or 'not installed'})")
            for name, row in details["packages"].items()
        ),
    ]
    return "\n".join(lines)


def _source_lines(sources: Any) -> list[str]:
    """How the data were read, as notebook 01 says it: records, form, which column became which field."""
    from helpers.data.records import Source

    with contextlib.suppress(TypeError, AttributeError, ValueError):  # of another version, or written by hand
        return [line for source in sources for line in str(Source(**source)).splitlines()]
    return []


def _defaults(defaults: dict[str, Any]) -> str:
    """`32`, or, where stages differ, `8 in train, 32 in merge`."""
    if len({repr(value) for value in defaults.values()}) == 1:
        return _value(next(iter(defaults.values())))
    return ", ".join(f"{_value(value)} in {stage}" for stage, value in defaults.items())


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _minute(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
