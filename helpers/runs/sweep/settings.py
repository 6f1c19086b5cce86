"""The settings of a sweep: from a grid, or from a file; what is refused before it starts; and how long it would take."""

import contextlib
import itertools
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.runs.base_answers import check_base_run
from helpers.data.csv_files import read_table
from helpers.errors import CourseError, DataError
from helpers.runs.settings import OTHER_RUNS, check_parameters, notebook_parameters, parse_value, stage_values

if TYPE_CHECKING:
    from helpers.runs.sweep.sweep import Sweep


def grid(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination: `grid({"rank": [8, 32], "epochs": [1, 2]})` gives four settings. The last name changes fastest."""
    return [dict(zip(values, combination)) for combination in itertools.product(*values.values())]


def grid_values(texts: list[str]) -> dict[str, list[Any]]:
    """Names and values from `NAME=VALUE,VALUE`. A value with a comma in it goes in quotes, as in TOML.

    Raises:
        CourseError: a text has another form, or a name comes twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, sign, values = (part.strip() for part in text.partition("="))
        if not sign or not name or not all(value.strip() for value in values.split(",")):
            raise CourseError(
                f"--grid {text!r} is not NAME=VALUE,VALUE", "write for example --grid rank=8,32"
            )
        if name in found:
            raise CourseError(f"--grid names {name} twice", f"write all values after one --grid {name}=")
        try:
            found[name] = tomllib.loads(f"values = [{values}]")["values"]
        except tomllib.TOMLDecodeError:
            found[name] = [parse_value(value.strip()) for value in values.split(",")]
    return found


def read_settings(path: str | Path) -> list[dict[str, Any]]:
    """Settings from a file: a `.json` list of objects, or a `.csv` table with the names in its head. An empty cell sets nothing.

    Raises:
        DataError: the file can't be read or has another form; says the line or index.
    """
    path = Path(path)
    reader = {".json": _read_json, ".csv": _read_csv}.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: settings are read from .json and .csv files",
            "write a list of objects, or a table with a head",
        )
    try:
        rows = reader(path, path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} can't be read: {error}", "check the path, and that it is UTF-8 text"
        ) from error
    if not rows:
        raise DataError(f"{path} holds no settings", "one object or one line makes one run")
    return rows


def _read_json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno} is not JSON: {error.msg}", "mend it there") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds no list", 'write a list of objects, such as [{"rank": 8}, {"rank": 32}]'
        )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, index {index} is {row!r}, not an object", 'write it like {"rank": 8}')
    return rows


def _read_csv(path: Path, text: str) -> list[dict[str, Any]]:
    rows = [row for _, row in read_table(path, text)]
    return [{name: parse_value(cell.strip()) for name, cell in row.items()} for row in rows]


def setting_text(setting: dict[str, Any]) -> str:
    """`rank=8 learning_rate=0.001`."""
    return " ".join(f"{name}={value}" for name, value in setting.items())


# Checks


def check_settings(sweep: "Sweep") -> None:
    """Refuse what can't be run, or would be run twice.

    Raises:
        CourseError: there are no settings, a parameter is unknown or of the wrong type, or two settings are the same.
    """
    known = notebook_parameters()
    if not sweep.parameters:
        raise CourseError("a sweep needs settings", "give --grid or --settings")
    if other := [name for name in sweep.swept if name in OTHER_RUNS]:
        raise CourseError(
            f"{other[0]} names a run: it is nothing to compare",
            "leave it out; a sweep takes over what its runs share by itself",
        )
    seen: list[tuple[str, Any]] = []
    for name, parameters in sweep.parameters.items():
        with named(sweep, name):
            check_parameters(parameters, known)
            check_base_run(parameters, known)
        values = stage_values(parameters, known, sweep.until)
        if twin := next((other for other, theirs in seen if theirs == values), None):
            numbers = f"{_number(sweep, twin)} and {_number(sweep, name)}"
            raise CourseError(
                f"settings {numbers} are the same in the stages up to {sweep.until}: {_text(sweep, name)}",
                "leave one out; a repetition needs another seed, such as --grid seed=1,2",
            )
        seen.append((name, values))


@contextlib.contextmanager
def named(sweep: "Sweep", name: str) -> Iterator[None]:
    """Puts in front of an error's text which setting it is about."""
    try:
        yield
    except CourseError as error:
        error.what = f"setting {_number(sweep, name)} ({_text(sweep, name)}): {error.what}"
        raise


def _number(sweep: "Sweep", name: str) -> int:
    return list(sweep.parameters).index(name) + 1


def _text(sweep: "Sweep", name: str) -> str:
    return (
        setting_text(
            {key: sweep.parameters[name][key] for key in sweep.swept if key in sweep.parameters[name]}
        )
        or "nothing set"
    )


# Time and cost


def estimate_sweep(sweep: "Sweep") -> dict[str, Any]:
    """How much work a sweep is, with what its runs share counted once.

    Returns:
        `runs` (a dictionary a run: `run`, `parameters`, `seconds`, `split_from`, `base_from`), `seconds` and `seconds_apart` (of all,
        and of the same runs without sharing; None if no speed is known), `splits` and `base_asked` (how often each is done), `first`
        (the estimate of the first run, as `estimate` gives it) and `cost` (hosted: tokens and dollars of all runs).

    Raises:
        CourseError: the data or a number can't be used; says which setting.
    """
    from helpers.runs.estimate import count_parts, estimate
    from helpers.runs.sweep.sweep import base_key, leaders, split_key

    known = notebook_parameters()
    splits = leaders(sweep.parameters, lambda name: split_key(sweep, name))
    bases = leaders(sweep.parameters, lambda name: base_key(sweep, name))
    counts: list[tuple[Any, Any]] = []
    runs, shared, apart = [], [], []
    for name, parameters in sweep.parameters.items():
        values = stage_values(parameters, known, sweep.until)
        key = values["split"], values.get("train", {}).get("max_length")
        with named(sweep, name):
            counted = next((found for other, found in counts if other == key), None) or count_parts(
                values, None
            )
            alone = estimate(values, None, counted)
            if bases[name] not in (None, name):
                values["evaluate"] = values["evaluate"] | {"base_run": bases[name]}
            if splits[name] != name:
                del values["split"]
            own = estimate(values, None, counted)
        counts.append((key, counted))
        shared.append(own)
        apart.append(alone)
        of_others = {
            key: group[name] if group[name] != name else None
            for key, group in (("split_from", splits), ("base_from", bases))
        }
        runs.append(
            {"run": name, "parameters": sweep.setting(name), "seconds": _sum(own["seconds"])} | of_others
        )
    known_times = all(one["seconds"] is not None for one in shared)
    return {
        "sweep": sweep.name,
        "runs_dir": str(sweep.folder.parent),
        "until": sweep.until,
        "runs": runs,
        "splits": len(set(splits.values())),
        "base_asked": len(set(bases.values()) - {None}),
        "seconds": sum(_sum(one["seconds"]) for one in shared) if known_times else None,
        "seconds_apart": sum(_sum(one["seconds"]) for one in apart) if known_times else None,
        "first": apart[0],
        "cost": _total_cost([one["cost"] for one in shared]),
    }


def _sum(seconds: dict[str, int] | None) -> int | None:
    return None if seconds is None else sum(seconds.values())


def _total_cost(costs: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Tokens and dollars of all runs; None if any runs where nothing is known of costs."""
    if any(cost is None for cost in costs):
        return None
    total = {
        "tokens": {kind: sum(cost["tokens"][kind] for cost in costs) for kind in costs[0]["tokens"]},
        "missing": sorted({kind for cost in costs for kind in cost["missing"]}),
    }
    if not total["missing"]:
        total |= {"prices": costs[0]["prices"], "date": costs[0]["date"]} | {
            name: round(sum(cost[name] for cost in costs), 2) for name in ("dollars", "dollars_at_most")
        }
    return total
