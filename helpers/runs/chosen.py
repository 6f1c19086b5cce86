"""What a user typed or wrote into a file, as settings: profiles, NAME=VALUE, data files, paths.

    choose("small", ["rank=8"], data=["tickets.csv"])   # {"epochs": 2.0, …, "rank": 8, "data_files": …}

Everything after this takes settings by name, checked, with absolute paths.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.data.hub import HUB, hub_parts
from helpers.errors import CourseError
from helpers.files import read_toml
from helpers.runs.settings import check_settings, fields_named

PATHS = ("base_model", "benchmark_file")


def choose(
    profile: str | None = None,
    assignments: Sequence[str] = (),
    data: Sequence[str] = (),
    columns: str | None = None,
    backend: str | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Settings of the profile, then of the assignments, then of the others; each beats the ones before.

    Args:
        profile: its name, or a TOML file.
        assignments: `NAME=VALUE`, as after `-p`.
        data: paths and names of data sets.
        skip_bad: leave out records that can't be used.

    Raises:
        CourseError: there is no such profile, setting, file or model, or a value is not allowed.
    """
    found = read_profile(profile) if profile else {}
    for text in assignments:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise CourseError(f"-p {text!r} is not NAME=VALUE", "write for example -p epochs=1")
        found[name.strip()] = parse_value(name.strip(), value.strip())
    if data:
        found["data_files"] = ",".join(map(_place, data))
    if columns:
        found["columns"] = columns
    if backend:
        found["backend_name"] = backend
    if skip_bad:
        found["skip_bad"] = True
    return checked(found)


def checked(chosen: dict[str, Any]) -> dict[str, Any]:
    """Settings that every stage can take, with absolute paths that lead somewhere.

    Raises:
        CourseError: no stage takes such a setting, a value is not allowed, or a model or file is not there.
    """
    found = check_settings(chosen)
    for name in PATHS:  # notebooks run in a folder of their own
        if found.get(name) and Path(found[name]).exists():
            found[name] = str(Path(found[name]).absolute())
    if model := found.get("base_model"):
        from helpers.train.models import resolve_base_model

        resolve_base_model(model)
    if (file := found.get("benchmark_file")) and not Path(file).is_file():
        raise CourseError(f"benchmark_file={file!r} is not there", "name GSM8K's test.jsonl, or leave it out")
    return found


def parse_value(name: str, text: str) -> Any:
    """A value as its setting has it. A text setting keeps the text as typed, without the quotes around it."""
    kinds = {field.annotation for field in fields_named(name).values()}
    return value_of(text, not kinds & {int, float, bool})


def value_of(text: str, wants_text: bool) -> Any:
    """What a text says in TOML; as typed if that's nothing, or if it says no text where that is wanted."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # a TOMLDecodeError, or a number of thousands of digits
        return text
    return text if wants_text and not isinstance(value, str) else value


def profiles() -> dict[str, dict[str, Any]]:
    """The named sets of settings in helpers/runs/profiles.toml.

    Raises:
        CourseError: the file can't be read.
    """
    return read_toml(Path(__file__).with_name("profiles.toml"))


def read_profile(name: str) -> dict[str, Any]:
    """The settings of a named profile, or of a TOML file of the user's with a line `name = value` for each.

    Raises:
        CourseError: there is no such profile or file, or it can't be read.
    """
    sets = profiles()
    if name in sets:
        return dict(sets[name])
    if not name.lower().endswith(".toml"):
        raise CourseError(
            f"there is no profile {name!r}",
            f"profiles are {', '.join(sets)}, and files of your own that end in .toml",
        )
    found = read_toml(name, "it must be there, with a line such as  epochs = 2.0  for each setting")
    if tables := [key for key, value in found.items() if isinstance(value, dict)]:
        raise CourseError(
            f"{name}: [{tables[0]}] is a table",
            "a profile of your own is one list of lines, name = value, without a head",
        )
    return found


def _place(file: str) -> str:
    """A data file's absolute path, or the name of a data set."""
    folder = hub_parts(file)["name"] if file.startswith(HUB) else ""
    if "," in (folder or file):
        raise CourseError(
            f"{file!r} has a comma in its path, and commas separate the names of data files", "rename it"
        )
    if not folder:
        return str(Path(file).absolute())
    if Path(folder).is_absolute() or not Path(folder).is_dir():
        return file
    return f"{HUB}{Path(folder).absolute()}{file.removeprefix(HUB).removeprefix(folder)}"
