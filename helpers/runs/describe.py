"""A run in rows, for `course show` and the report: settings that were changed, what the stages made."""

import os
from dataclasses import dataclass
from typing import Any

from helpers.runs.info import RunInfo, size_and_change


@dataclass(frozen=True)
class ChangedSetting:
    """A setting with another value than the default; `stages` are those in which both are the same."""

    name: str
    value: Any
    default: Any
    stages: list[str]


@dataclass(frozen=True)
class Artefact:
    """A file or folder that the manifest lists; `bytes` is None if it is no longer there."""

    stage: str
    path: str
    bytes: int | None


def changed_settings(run: RunInfo) -> list[ChangedSetting]:
    """The settings that differ from the default, in the order of the notebooks."""
    found: list[ChangedSetting] = []
    for stage, entry in run.manifest.stages.items():
        for name, value in entry.settings.changed.items():
            default = type(entry.settings).model_fields[name].default
            same = [row for row in found if (row.name, row.value, row.default) == (name, value, default)]
            if same:
                same[0].stages.append(stage)
            else:
                found.append(ChangedSetting(name, value, default, [stage]))
    return found


def artefacts(run: RunInfo) -> list[Artefact]:
    """What the manifest lists, with its size on disk."""
    rows = []
    for stage, entry in run.manifest.stages.items():
        for name in entry.artefacts:
            path = run.path / name
            there = os.path.lexists(path)
            folder = there and path.is_dir() and not path.is_symlink()
            size = size_and_change(path)[0] if folder else os.lstat(path).st_size if there else None
            rows.append(Artefact(stage, name, size))
    return rows
