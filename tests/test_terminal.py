"""What stands in data, settings and manifests is shown on a terminal, and never obeyed by it."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from commands import course
from hypothesis import given
from hypothesis import strategies as st
from papermill.exceptions import PapermillExecutionError
from runs_for_tests import begin_stage, make_run

from helpers.course import execute
from helpers.course.execute import ProgressLine, run_notebook
from helpers.data.records import Source
from helpers.errors import CourseError, DataError
from helpers.files import read_json, write_json
from helpers.runs.failures import record_failure
from helpers.runs.sweep.progress import Watch
from helpers.text import printable, table, without_colours

pytestmark = pytest.mark.usefixtures("folder")

EVIL = "\x1b]0;owned\x07\x9b2J\u202e\x08\x7f"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_shown(*texts: str) -> None:
    whole = "".join(texts)
    assert "owned" in whole and OBEYED.search(whole) is None, ascii(whole)


@given(st.text())
def test_json_stays_json_of_the_same_value(text):
    assert json.loads(printable(json.dumps({"a": text}, ensure_ascii=False))) == {"a": text}
    assert OBEYED.search(printable(text)) is None


def test_lines_colours_and_other_languages():
    assert printable("a\tb\r\n评价 שלום\u200f") == "a\tb\n评价 שלום\u200f"
    assert printable("half \ud83d") == "half \\ud83d"
    assert without_colours("\x1b[0;31mError\x1b[0m") == "Error"


def test_one_line_each(capsys):
    assert_shown(str(CourseError(EVIL, EVIL)))
    assert_shown(CourseError(EVIL)._render_traceback_()[0])
    assert_shown(table([["name"], [EVIL]]))
    assert_shown(str(Source(EVIL, "CSV", 1, {"output": EVIL}, [EVIL])))
    line = ProgressLine("[1/1]")
    line.end(EVIL)
    assert_shown(capsys.readouterr().out)


def test_data_and_settings(capsys, tmp_path, small_data):
    rows = [{"ask": f"w{n} v{n}?", EVIL: n, "tell": f"{EVIL}{n % 2}", "category": EVIL} for n in range(40)]
    write_json(small_data, rows)
    arguments = ["run", "--dry-run", "--data", small_data, "--columns", "instruction=ask,output=tell"]
    assert_shown(*course(capsys, *arguments, "-p", f"{EVIL}=1")[1:])
    for more in ([], ["--json"]):
        status, out, err = course(capsys, *arguments, "-p", "task=text", "-p", f"export_name={EVIL}", *more)
        assert status == 0, err
        assert_shown(out, err)
    assert_shown(*course(capsys, "run", "--dry-run", "--data", f"{EVIL}.json")[1:])
    write_json(small_data, [{EVIL: 1}])
    assert_shown(*course(capsys, "run", "--dry-run", "--data", small_data)[1:])


def test_runs_and_their_failures(capsys):
    run = make_run("mine", done=("split",))
    begin_stage(run, "train")
    record_failure(run, "train", DataError(EVIL, EVIL))
    run.update(settings={"export_name": EVIL}, base_model=EVIL)
    assert_shown(course(capsys, "show")[1])
    sweep: Any = SimpleNamespace(
        settings={"mine": {}},
        text=lambda _: EVIL,
        run=lambda _: run,
        is_done=lambda _: False,
        failure=lambda manifest: manifest.failure,
        lesson="",
    )
    with Watch(sweep, print) as watch:
        watch._seen.clear()
        watch._report()
    assert_shown(capsys.readouterr().out)
    write_json(run.manifest_path, read_json(run.manifest_path) | {EVIL: 1})
    assert_shown(*course(capsys, "show", "mine")[1:])


def test_a_notebook_that_fails(capsys, monkeypatch, tmp_path):
    run = make_run("mine", done=())
    source = f"\x1b[0;31mValueError\x1b[0m: {EVIL}"

    def fail(*_: Any) -> None:
        raise PapermillExecutionError(1, 1, "", "ValueError", EVIL, ["cell 3", source])

    monkeypatch.setattr(execute, "execute", fail)
    assert run_notebook(run, "split", {}, "[1/6]", tmp_path) == 1
    out, err = capsys.readouterr()
    assert_shown(out, err)
    assert err.count("owned") == 2, "in the traceback, and as the cause"
