"""One run in plain values: its settings, stages, scores, files and versions. `course show` prints it."""

import os
from dataclasses import asdict
from typing import Any

from helpers.paths import package_versions
from helpers.runs.info import RunInfo, size_and_change, summary
from helpers.runs.like import settings_used
from helpers.runs.run_files import scores
from helpers.runs.settings import defaults_of

SHOWN = {"status", "seconds", "finished", "summary", "shared_from"}


def describe(run: RunInfo) -> dict[str, Any]:
    """All that `course show` says, ready for JSON.

    Raises:
        RunError: the manifest can't be used.
    """
    manifest, installed = run.manifest, package_versions()
    settings, notes = settings_used(manifest)
    split = manifest.stages.split
    rows, problems = scores(run)
    return summary(run) | {
        "base_model": manifest.base_model,
        "backend": manifest.backend.kind if manifest.backend else None,
        "settings": changed_settings(settings),
        "notes": notes,
        "failure": manifest.failure.model_dump(mode="json") if manifest.failure else None,
        "stages": {
            name: entry.model_dump(mode="json", include=SHOWN) for name, entry in manifest.stages.items()
        },
        "data": [row.model_dump(mode="json") for row in split.data] if split else [],
        "sources": [asdict(source) for source in split.results.sources] if split and split.results else [],
        "scores": rows,
        "problems": problems,
        "artefacts": artefacts(run),
        "packages": {
            name: {"version": version, "now": installed.get(name)}
            for name, version in manifest.packages.items()
        },
    }


def changed_settings(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings that differ from a notebook's default: `value`, and `defaults` by stage."""
    rows = {name: {"value": value, "defaults": defaults_of(name)} for name, value in settings.items()}
    return {
        name: row
        for name, row in rows.items()
        if any(row["value"] != default for default in row["defaults"].values())
    }


def artefacts(run: RunInfo) -> list[dict[str, Any]]:
    """What the manifest lists: `stage`, `path` and `bytes`; None for what is not there."""
    return [
        {"stage": stage, "path": name, "bytes": _size(run, name)}
        for stage, entry in run.manifest.stages.items()
        for name in entry.artefacts
    ]


def _size(run: RunInfo, name: str) -> int | None:
    path = run.path / name
    if not os.path.lexists(path):
        return None
    return size_and_change(path)[0] if path.is_dir() and not path.is_symlink() else os.lstat(path).st_size
