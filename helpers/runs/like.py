"""`course run --like RUN`: that run's settings, and what is no longer as it was then."""

from typing import Any

from helpers.data.hub import HUB
from helpers.paths import package_versions
from helpers.runs.manifest import DataFile, Manifest
from helpers.runs.run import data_fingerprints
from helpers.runs.settings import OTHER_RUNS, fields_named, settings_of


def settings_like(manifest: Manifest, chosen: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings for a run like an earlier one, and what to know before comparing the two.

    Args:
        manifest: of the earlier run.
        chosen: what the user set beside it; it beats the run's.

    Returns:
        Settings, those of `chosen` included, and notes: a sentence each.

    Raises:
        CourseError: there is no such backend.
    """
    settings, notes = settings_used(manifest)
    settings |= chosen
    notes += backend_notes(manifest, settings_of("train", settings).backend_name)
    notes += version_notes(manifest.packages)
    return settings, notes + data_notes(manifest, settings_of("split", settings).data_files)


def settings_used(manifest: Manifest) -> tuple[dict[str, Any], list[str]]:
    """The settings that give a run like this one with the notebooks of today.

    `course run` keeps what the user chose. What a stage used counts as well, where it differs from today's
    default: a notebook that was run by hand records nothing else, and the default may have been another one.

    Returns:
        Settings by name, and notes on what can't be taken over as it was.
    """
    notes = [
        f"setting {name}={value!r} is left out: no notebook has it today"
        for name, value in manifest.settings.items()
        if not fields_named(name)
    ]
    settings = {
        name: value
        for name, value in manifest.settings.items()
        if fields_named(name) and name not in OTHER_RUNS
    }
    for name, value in _changed_in_stages(manifest).items():
        if name in settings:
            continue
        settings[name] = value
        theirs = {
            stage: getattr(entry.settings, name)
            for stage, entry in manifest.stages.items()
            if stage in fields_named(name)
        }
        if any(other != value for other in theirs.values()):
            values = ", ".join(f"{stage} {other!r}" for stage, other in theirs.items())
            notes.append(f"stages had different values of {name} ({values}): all get {value!r}")
    return settings, notes


def _changed_in_stages(manifest: Manifest) -> dict[str, Any]:
    """Settings that a stage used with another value than the default; of several stages, the first one's."""
    found: dict[str, Any] = {}
    for _, entry in manifest.stages.items():
        for name, value in entry.settings.changed.items():
            if name not in OTHER_RUNS:
                found.setdefault(name, value)
    return found


def backend_notes(manifest: Manifest, backend_name: str) -> list[str]:
    """A note if `auto` means another service now, or the user chose another.

    Raises:
        BackendError: there is no such backend.
    """
    from helpers.train.backend import choose_backend

    then, now = manifest.backend, choose_backend(backend_name)[0]
    return [f"it ran on {then.kind}, this one will on {now}"] if then and then.kind != now else []


def version_notes(then: dict[str, str]) -> list[str]:
    """A note for each package whose version is another one now."""
    now = package_versions()
    return [
        f"{name} was {then.get(name, 'not installed')}, is {now.get(name, 'not installed')}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]


def data_notes(manifest: Manifest, data_files: str) -> list[str]:
    """Notes on data files that are not what the run read.

    Args:
        manifest: of the earlier run.
        data_files: what the new run will read.
    """
    split = manifest.stages.split
    if split is None:
        return ["the earlier run did not get as far as reading its data"]
    then = {row.path: row for row in split.data}
    now = {row.path: row for row in data_fingerprints(data_files)}
    if list(then) != list(now):
        return [f"other data files: {', '.join(then)} then, {', '.join(now)} now"]
    return [_changed(then[path], row) for path, row in now.items() if row.sha256 != then[path].sha256]


def _changed(then: DataFile, now: DataFile) -> str:
    on_the_hub = now.path.startswith(HUB)
    what = f"data set {now.path}" if on_the_hub else f"data file {now.path}"
    if now.sha256 is None:
        return f"{what} can't be reached" if on_the_hub else f"{what} is not there"
    revisions = f", revision {then.revision} then, {now.revision} now" if on_the_hub else ""
    return f"{what} has changed: {then.bytes} bytes then, {now.bytes} now, another hash{revisions}"
