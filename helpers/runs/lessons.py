"""The notebooks of Parts 2 and 3, which stand on a run of Part 1: what each can be told.

    choose_lessons(LESSONS[3], ["steps=4"])     # {"10_reinforcement_learning": {"steps": 4}, …}
    check_lesson("10_reinforcement_learning", {"steps": "4"})     # {"steps": 4}

Their settings are the values of their parameters cells, and nowhere else.
"""

import ast
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.errors import CourseError
from helpers.paths import NOTEBOOKS
from helpers.runs.chosen import value_of
from helpers.runs.run import Run
from helpers.runs.stages import lessons_by_number

PLACES = ("run_name", "folder_name")  # where a lesson reads and writes: the run decides


def defaults_of_lesson(lesson: str) -> dict[str, Any]:
    """The names and values of a lesson's parameters cell."""
    [cell] = [cell for cell in _cells(lesson) if "parameters" in cell["metadata"].get("tags", ())]
    assignments = [node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assignments}


def choose_lessons(lessons: Sequence[str], assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Lessons, each with those of the settings that it takes.

    Args:
        assignments: `NAME=VALUE`, as after `-p`.

    Raises:
        CourseError: none of the lessons takes such a setting, or a value is of another type.
    """
    chosen: dict[str, dict[str, Any]] = {lesson: {} for lesson in lessons}
    for text in assignments:
        name, sign, value = (piece.strip() for piece in text.partition("="))
        takers = [lesson for lesson in lessons if sign and name in _settable(lesson)]
        if not takers:
            raise _no_setting(f"-p {text!r}", name, lessons)
        for lesson in takers:
            chosen[lesson] |= check_lesson(lesson, {name: value})
    return chosen


def check_lesson(lesson: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a lesson, each of the type that its default has.

    Args:
        chosen: values, or their text, by name.

    Raises:
        CourseError: the lesson takes no such setting, or a value is of another type.
    """
    defaults = _settable(lesson)
    if unknown := next((name for name in chosen if name not in defaults), None):
        raise _no_setting(repr(unknown), unknown, [lesson])
    return {name: _typed(name, value, defaults[name]) for name, value in chosen.items()}


def _settable(lesson: str) -> dict[str, Any]:
    return {name: value for name, value in defaults_of_lesson(lesson).items() if name not in PLACES}


def settings_had(lesson: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a lesson that was run: those chosen, else today's defaults if the notebook is there."""
    there = lesson in lessons_by_number().values()
    return {**(_settable(lesson) if there else {}), **chosen}


def _no_setting(what: str, name: str, lessons: Sequence[str]) -> CourseError:
    names = sorted({own for lesson in lessons for own in _settable(lesson)})
    near = difflib.get_close_matches(name, names)
    fix = f"did you mean {' or '.join(near)}?" if near else f"settings are {', '.join(names)}"
    return CourseError(f"{what} is no setting of {', '.join(lessons)}", fix)


def _typed(name: str, given: Any, default: Any) -> Any:
    """A value of the default's type.

    Raises:
        CourseError: it is of another type.
    """
    kind, value = type(default), given
    if kind is str and type(given) in (int, float):
        return str(given)
    if isinstance(given, str):
        value = value_of(given, wants_text=kind is str)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise CourseError(f"setting {name} can't be {given}", f"the default is {json.dumps(default)}")
    return value


def says_of_itself(lesson: str, row: str) -> str:
    """What a lesson's first cell says under `Needs`, `Makes`, `Time` or `Cost`; empty if nothing."""
    cells = _cells(lesson)
    found = re.search(rf"(?m)^\| \*\*{row}\*\* \| (.*) \|$", "".join(cells[0]["source"]))
    return found[1] if found else ""


def saves_scores(lesson: str) -> bool:
    """Whether a cell of the lesson calls `save_scores`."""
    return any("save_scores(" in "".join(cell["source"]) for cell in _cells(lesson))


def _cells(lesson: str) -> list[dict[str, Any]]:
    return json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]


def placed(run: Run, lesson: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with the run that the lesson reads, a folder in it for what the lesson makes, and the
    run's backend unless another is chosen.
    """
    places = {"run_name": run.name, "folder_name": str(Path(run.name) / lesson)}
    if used := run.manifest.backend:
        places["backend_name"] = used.name
    names = defaults_of_lesson(lesson)
    return {name: value for name, value in places.items() if name in names} | settings
