"""A sweep over a notebook of Part 2 or 3: how long it takes, and what its runs measured.

Each run is a copy of a trained run, on which the notebook then stands. What a notebook measures is its own
affair: it saves scores under names of its own, and these are the columns.
"""

import re
from collections.abc import Collection
from typing import Any

from helpers.errors import RunError
from helpers.runs.lesson_scores import LessonScore, read_scores, score_rows
from helpers.runs.lessons import says_of_itself
from helpers.runs.manifest import Manifest
from helpers.runs.run import Run
from helpers.runs.settings import written
from helpers.runs.sweep.plan import Sweep
from helpers.text import clock, plural, table
from helpers.train.backend import choose_backend

RUNS_A_TABLE = 4  # side by side in a terminal


def estimate_lesson(sweep: Sweep) -> dict[str, Any]:
    """About how much work it is, by what the notebook says of itself.

    Returns:
        `runs` (`run`, `settings`, `seconds`), `seconds` of all (None where the time is not known), `time` and
        `cost` (the notebook's words for one run with its defaults; no cost on the stub).
    """
    lesson, backend = sweep.lesson, sweep.original().manifest.backend
    time, cost = (says_of_itself(lesson, row) for row in ("Time", "Cost"))
    used = backend.name if backend else "auto"
    kinds = {choose_backend(own.get("backend_name", used))[0] for own in sweep.settings.values()}
    minutes = re.match(r"about (\d+) minutes", time)
    each = 60 * int(minutes[1]) if minutes and kinds == {"stub"} else None
    rows = [{"run": name, "settings": sweep.setting(name), "seconds": each} for name in sweep.settings]
    return {
        "sweep": sweep.name,
        "runs_dir": str(sweep.folder.parent),
        "lesson": lesson,
        "like": sweep.like,
        "runs": rows,
        "seconds": each and each * len(rows),
        "time": time,
        "cost": "" if kinds == {"stub"} else cost,
    }


def lesson_plan_text(plan: dict[str, Any]) -> str:
    """What a sweep would be. Args: plan: from `estimate_lesson`."""
    swept = list(plan["runs"][0]["settings"])
    rows = [["run", *swept]]
    rows += [[row["run"], *(written(row["settings"][name]) for name in swept)] for row in plan["runs"]]
    count = plural(len(plan["runs"]), "run")
    return "\n".join(
        [
            f"sweep {plan['sweep']}: {count} of {plan['lesson']}, each on a copy of {plan['like']}, in "
            f"{plan['runs_dir']}",
            "",
            table(rows),
            "",
            lesson_time_line(plan),
            f"cost      a run with the defaults: {plan['cost']}"
            if plan["cost"]
            else "cost      none: the stub works on this machine",
        ]
    )


def lesson_time_line(plan: dict[str, Any], done: list[str] | tuple[str, ...] = ()) -> str:
    """About how long it takes.

    Args:
        plan: from `estimate_lesson`.
        done: names of runs that are done already.
    """
    own = f"a run with the notebook's defaults takes {plan['time'] or 'an unknown time'}"
    if plan["seconds"] is None:
        return f"time      unknown: {own}"
    left = sum(row["seconds"] for row in plan["runs"] if row["run"] not in done)
    return f"time      about {clock(left)} (min:s), one run after the other: {own}"


def lesson_row(sweep: Sweep, run: Run, manifest: Manifest) -> dict[str, Any]:
    """What a run measured, for `collect`: `scores`, empty before the notebook is done, and `seconds`.

    Raises:
        RunError: the scores of a notebook that is done are damaged, or not there.
    """
    if not manifest.lesson_is_done(sweep.lesson):
        return {"scores": {}}
    found = read_scores(run, sweep.lesson)
    if not found:
        raise RunError(
            f"{sweep.lesson} is done and saved no scores", f"run notebooks/{sweep.lesson}.ipynb again"
        )
    return {
        "scores": {name: score.model_dump(exclude_none=True) for name, score in found.items()},
        "seconds": manifest.lessons[sweep.lesson].seconds,
    }


def lesson_table(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """Settings and scores, a column a run: there are many scores, and their names are long."""
    tables = []
    for first in range(0, len(rows), RUNS_A_TABLE):
        some = rows[first : first + RUNS_A_TABLE]
        lines = [["run", *(row["run"] for row in some)]]
        lines += [[name, *(written(row["settings"][name]) for row in some)] for name in sweep.swept]
        lines += score_rows([scores_of(row) for row in some])
        lines.append(["time", *(clock(row["seconds"]) for row in some)])
        lines.append(["status", *(row["status"] for row in some)])
        tables.append(table(lines))
    return "\n\n".join(tables)


def lesson_advice(rows: list[dict[str, Any]]) -> list[str]:
    """What to make of the table."""
    if not any(row["scores"] for row in rows):
        return ["no run has a score yet"]
    return [
        "Brackets hold 95% intervals. The best of several runs looks better than it is, by chance: run the "
        "one that you choose again with another seed."
    ]


def scores_of(row: dict[str, Any]) -> dict[str, LessonScore]:
    """The scores of a row of `collect`."""
    return {name: LessonScore.model_validate(score) for name, score in row["scores"].items()}


def lesson_cells(rows: list[dict[str, Any]], taken: Collection[str]) -> list[dict[str, Any]]:
    """The scores of each row for results.csv: one plain value a cell.

    Args:
        taken: columns that hold something else. A score of that name gets " (score)" behind it.
    """
    lines: list[dict[str, Any]] = [{} for _ in rows]
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        head = name
        while {head, f"{head}, low", f"{head}, high"} & {*taken, *lines[0]}:
            head += " (score)"
        for line, row in zip(lines, rows, strict=True):
            score = row["scores"].get(name, {})
            low, high = score.get("ci95") or (None, None)
            line |= {head: score.get("value"), f"{head}, low": low, f"{head}, high": high}
    return lines
