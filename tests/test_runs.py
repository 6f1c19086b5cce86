"""The run folder: settings, manifest and stages, as the notebooks and `course` use them."""

import json
import subprocess
import sys
from datetime import date

import pytest

from helpers.errors import CourseError, DataError, RunError
from helpers.paths import ROOT
from helpers.runs.failures import record_failure
from helpers.runs.lessons import defaults_of_lesson
from helpers.runs.manifest import FORMAT, Manifest
from helpers.runs.run import new_run, open_run
from helpers.runs.settings import SETTINGS, SplitSettings, TrainSettings, check_settings, choices, settings_of
from helpers.runs.stage import open_stage
from helpers.runs.stages import STAGES, built_on


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def split_results() -> dict:
    return {
        "task": {"name": "math"},
        "sources": [],
        "leaks": 0,
        "records": 10,
        "sizes": {"train": 6, "validation": 2, "test": 2},
        "seed": 42,
        "stratified_by": None,
        "unseen_templates": [],
        "duplicates": {"exact_groups": 0, "near_groups": 0, "records": 0},
        "left_out": {},
        "notes": [],
    }


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_cells_and_settings_are_the_same(stage):
    cell = defaults_of_lesson(STAGES[stage].notebook)
    assert cell.pop("run_name") == ("new" if stage == "split" else "latest")
    defaults = SETTINGS[stage]().model_dump()
    assert cell == defaults
    assert {name: type(value) for name, value in cell.items()} == {
        name: type(value) for name, value in defaults.items()
    }


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_says_what_it_is(stage):
    assert all(field.description for field in SETTINGS[stage].model_fields.values())


@pytest.mark.parametrize(
    "chosen, words",
    [
        ({"rnk": 8}, "there is no setting 'rnk'.*did you mean rank"),
        ({"run_name": "x"}, "--name"),
        ({"rank": 0}, "setting rank can't be 0.*greater than or equal to 1.*default is 32"),
        ({"rank": True}, "setting rank can't be true"),
        ({"rank": "8"}, "setting rank can't be 8"),
        ({"epochs": float("inf")}, "setting epochs can't be Infinity"),
        ({"task": "poetry"}, "'math', 'classification', 'extraction', 'calls' or 'text'"),
        ({"backend_name": "nope"}, "auto, stub, hosted, or the URL"),
        ({"batch_sizes": "1,x"}, "whole numbers above zero"),
        ({"epochs": date(2026, 1, 1)}, "2026-01-01.*valid number"),
        ({"base_model": "a\0b"}, "no text in UTF-8"),
        ({"batch_sizes": [1, 0]}, "whole numbers above zero"),
        ({"seed": 2**32}, "setting seed can't be 4294967296"),
        ({"test_size": 1.0}, "less than 1"),
    ],
)
def test_settings_that_no_notebook_would_take_are_refused(chosen, words):
    with pytest.raises(CourseError, match=f"(?s){words}"):
        check_settings(chosen)


def test_settings_are_made_of_the_right_type():
    checked = check_settings({"epochs": 2, "batch_sizes": 4, "instruction": 7, "rank": 8})
    assert checked == {"epochs": 2.0, "batch_sizes": "4", "instruction": "7", "rank": 8}
    assert isinstance(checked["epochs"], float)
    assert check_settings({"batch_sizes": [1, 4], "skip_bad": True}) == {
        "batch_sizes": "1,4",
        "skip_bad": True,
    }
    with pytest.raises(DataError, match="FIELD=COLUMN"):
        check_settings({"columns": "label"})


def test_settings_of_a_stage_are_its_own():
    settings = settings_of("train", {"rank": 8, "subset": 3})
    assert settings.changed == {"rank": 8} and settings.learning_rate == 1e-3
    assert (
        choices("task") == ("math", "classification", "extraction", "calls", "text") and choices("rank") == ()
    )


def test_a_stage_records_every_setting_and_what_it_used(capsys):
    stage = open_stage("split", "new", SplitSettings(max_test=2).model_dump() | {"other": "global"})
    assert "max_test                2  (not the default)" in capsys.readouterr().out
    entry = open_run().manifest.stages.split
    assert entry.status == "started" and entry.settings == SplitSettings(max_test=2)
    assert [row.path for row in entry.data] == ["data/word_problems.json"] and len(entry.data[0].sha256) == 64
    stage.save("train.json", [{"instruction": "1 + 1", "input": "", "output": "2"}])
    stage.finish("6 train", ["train.json"], **split_results())
    entry = open_run().stage("split")
    assert entry.summary == "6 train" and entry.artefacts == ["split/train.json"] and entry.seconds >= 0
    assert open_run().manifest.seed == 42
    assert stage.examples("train")[0]["output"] == "2" and stage.task.name == "math"


def test_a_missing_setting_an_unknown_result_and_a_missing_file_are_refused():
    with pytest.raises(CourseError, match="does not set max_test"):
        parameters = SplitSettings().model_dump()
        del parameters["max_test"]
        open_stage("split", "new", parameters)
    stage = open_stage("split", "new", SplitSettings().model_dump())
    with pytest.raises(RunError, match=r"did not write nothing\.json"):
        stage.finish("done", ["nothing.json"], **split_results())
    with pytest.raises(ValueError, match="surprise"):
        stage.finish("done", **split_results(), surprise=1)
    assert open_run().manifest.stages.split.status == "started"


def test_what_was_built_on_a_stage_becomes_stale():
    assert built_on("train") == {"evaluate", "export", "merge", "vllm"}
    with pytest.raises(RunError, match="no finished 'split' stage"):
        open_stage("train", new_run().name, TrainSettings().model_dump())
    open_stage("split", "latest", SplitSettings().model_dump()).finish("done", **split_results())
    train = open_stage("train", "latest", TrainSettings().model_dump())
    results = {"first_nll": 1.0, "last_nll": 0.1, "steps": 1, "tokens_an_epoch": 9, "best_step": 1}
    train.finish("done", **results)
    open_stage("split", "latest", SplitSettings().model_dump())
    assert open_run().manifest.stages.train.status == "stale"


def test_why_a_stage_failed_is_kept_in_its_own_fields_until_it_is_begun_again():
    open_stage("split", "new", SplitSettings().model_dump())
    record_failure(open_run(), "split", DataError("row 3 has no output", "add one"))
    failure = open_run().manifest.failure
    assert (failure.stage, failure.kind, failure.what, failure.fix) == (
        "split",
        "DataError",
        "row 3 has no output",
        "add one",
    )
    record_failure(open_run(), "11_preferences", DataError("no pairs", "make some"))
    manifest = open_run().manifest
    assert [manifest.failure_of(name) for name in ("split", "train")] == [failure, None]
    assert manifest.failures == [failure, manifest.failure_of("11_preferences")]
    open_stage("split", "latest", SplitSettings().model_dump())
    assert open_run().manifest.failure is None


CELLS = """
from IPython.core.interactiveshell import InteractiveShell
from helpers.runs import open_stage
from helpers.runs.settings import SplitSettings
shell = InteractiveShell.instance()
shell.user_ns["parameters"] = SplitSettings().model_dump()
shell.run_cell("from helpers.runs import open_stage; stage = open_stage('split', 'new', parameters)")
shell.run_cell("1 / 0")
"""


def test_a_cell_that_fails_says_so_in_the_manifest(tmp_path):
    result = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True, cwd=ROOT)
    failure = open_run().manifest.failure
    assert failure.kind == "ZeroDivisionError" and failure.what == "ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in result.stdout  # and the reader of the notebook sees it as ever


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "manifest.json can't be read"),
        ('{"name": "x", "stages": {}}', "made by an earlier version of the course"),
        (f'{{"format": {FORMAT + 1}}}', "made by another version of the course"),
        (f'{{"format": {FORMAT}, "name": "x"}}', "damaged: created: Field required"),
    ],
)
def test_manifests_that_cant_be_used_are_refused_in_one_line(text, words):
    run = new_run("mine")
    run.manifest_path.write_text(text)
    with pytest.raises(RunError, match=words) as caught:
        open_run("mine")
    assert "\n" not in caught.value.what and "course clean mine" in caught.value.fix


def test_a_field_that_the_manifest_does_not_know_is_named():
    run = new_run("mine")
    found = json.loads(run.manifest_path.read_text())
    run.manifest_path.write_text(json.dumps(found | {"colour": "red"}))
    with pytest.raises(RunError, match="colour"):
        open_run("mine")


def test_a_manifest_comes_back_as_it_was(tmp_path):
    open_stage("split", "new", SplitSettings().model_dump()).finish("done", **split_results())
    manifest = open_run().manifest
    manifest.write(tmp_path / "copy.json")
    assert Manifest.read(tmp_path / "copy.json") == manifest
