"""The notebooks of Parts 2 and 3, which stand on a run of Part 1: what each can be told.

    choose_lessons(3, ["steps=4"])      # {"10_reinforcement_learning": {"steps": 4}, "11_preferences": {}}

Their settings are the values of their parameters cells, and nowhere else.
"""

import ast
import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.errors import CourseError
from helpers.paths import NOTEBOOKS
from helpers.runs.run import Run
from helpers.runs.stages import LESSONS

PLACES = ("run_name", "folder_name")  # where a lesson reads and writes: the run decides


def defaults_of_lesson(lesson: str) -> dict[str, Any]:
    """The names and values of a lesson's parameters cell."""
    cells = json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    [cell] = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assignments = [node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assignments}


def choose_lessons(part: int, assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The lessons of a part, each with those of the settings that it takes.

    Args:
        assignments: `NAME=VALUE`, as after `-p`.

    Raises:
        CourseError: no lesson of the part takes such a setting, or a value is of another type.
    """
    defaults = {lesson: defaults_of_lesson(lesson) for lesson in LESSONS[part]}
    names = {name for own in defaults.values() for name in own if name not in PLACES}
    chosen: dict[str, dict[str, Any]] = {lesson: {} for lesson in defaults}
    for text in assignments:
        name, sign, value = (piece.strip() for piece in text.partition("="))
        if not sign or name not in names:
            near = difflib.get_close_matches(name, names)
            fix = f"did you mean {' or '.join(near)}?" if near else f"settings are {', '.join(sorted(names))}"
            raise CourseError(f"-p {text!r} is no setting of part {part}", fix)
        for lesson, own in defaults.items():
            if name in own:
                chosen[lesson][name] = _parsed(name, value, own[name])
    return chosen


def _parsed(name: str, text: str, default: Any) -> Any:
    """A value of the default's type.

    Raises:
        CourseError: it is of another type.
    """
    kind = type(default)
    if kind is str:
        return text
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise CourseError(f"setting {name} can't be {text}", f"the default is {json.dumps(default)}")
    return value


def placed(run: Run, lesson: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with the run that the lesson reads, a folder in it for what the lesson makes, and the
    run's backend unless another is chosen.
    """
    places = {"run_name": run.name, "folder_name": str(Path(run.name) / lesson)}
    if used := run.manifest.backend:
        places["backend_name"] = used.name
    names = defaults_of_lesson(lesson)
    return {name: value for name, value in places.items() if name in names} | settings
