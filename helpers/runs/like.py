"""`course run --like RUN`: that run's parameters, and what is no longer as it was then."""

from typing import Any

from helpers.runs.run import data_fingerprints
from helpers.paths import package_versions
from helpers.runs.settings import run_parameters


def parameters_like(
    manifest: dict[str, Any], known: dict[str, dict[str, Any]], chosen: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Parameters for a run like an earlier one, and what to know before comparing the two.

    Args:
        manifest: of the earlier run.
        known: from `settings.notebook_parameters`.
        chosen: what the user set beside it; it beats the run's.

    Returns:
        Parameters, those of `chosen` included, and notes: a sentence each.

    Raises:
        BackendError: there is no such backend.
    """
    parameters, notes = run_parameters(manifest, known)
    parameters |= chosen
    notes += backend_notes(manifest, parameters.get("backend_name", known["train"]["backend_name"]))
    notes += version_notes(manifest.get("packages", {}))
    return parameters, notes + data_notes(
        manifest, parameters.get("data_files", known["split"]["data_files"])
    )


def backend_notes(manifest: dict[str, Any], backend_name: str) -> list[str]:
    """A note if `auto` means another service now, or the user chose another.

    Raises:
        BackendError: there is no such backend.
    """
    from helpers.train.backend import choose_backend

    then, now = manifest.get("backend"), choose_backend(backend_name)[0]
    kind = then.get("kind") if isinstance(then, dict) else None
    return [f"it ran on {kind}, this one will on {now}"] if kind and kind != now else []


def version_notes(then: dict[str, str]) -> list[str]:
    """A note a package whose version is another one now."""
    now = package_versions()
    return [
        f"{name} was {then.get(name, 'not installed')}, is {now.get(name, 'not installed')}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]


def data_notes(manifest: dict[str, Any], data_files: str) -> list[str]:
    """Notes on data files that are not what the run read.

    Args:
        manifest: of the earlier run.
        data_files: what the new run will read.
    """
    split = manifest["stages"].get("split", {})
    then = {row["path"]: row for row in split.get("data", []) if isinstance(row, dict) and "path" in row}
    if not then:
        return ["the earlier run kept no hash of its data files: whether they changed can't be told"]
    now = {row["path"]: row for row in data_fingerprints(data_files)}
    if list(then) != list(now):
        return [f"other data files: {', '.join(then)} then, {', '.join(now)} now"]
    changed = [
        (path, then[path], row) for path, row in now.items() if row["sha256"] != then[path].get("sha256")
    ]
    return [_changed(path, old, row) for path, old, row in changed]


def _changed(path: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    what = f"data set {path}" if "revision" in now else f"data file {path}"
    if now["sha256"] is None:
        return f"{what} can't be reached" if "revision" in now else f"{what} is not there"
    revisions = (
        f", revision {then.get('revision')} then, {now['revision']} now" if now.get("revision") else ""
    )
    return f"{what} has changed: {then.get('bytes')} bytes then, {now['bytes']} now, another hash{revisions}"
