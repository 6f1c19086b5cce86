"""A sweep at work: what is shared, what fails, what is gone on with. Its notebooks are done at once."""

import csv
import json
import os
import re
import shutil

import pytest
from commands import assert_one_message, course
from runs_for_tests import begin_stage, finish_stage, make_run
from sweeps_for_tests import data_of, finish, sweep_of_two

from helpers.errors import RunError
from helpers.files import read_json
from helpers.runs.failures import record_failure
from helpers.runs.run import Run
from helpers.runs.sweep import collect, grid, open_sweep, plan_sweep, run_sweep

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_what_is_shared_is_done_once(jobs, folder, small_data, notebooks):
    sweep = plan_sweep("s", grid({"rank": [8, 16], "max_test": [4, 6]}), data_of(small_data))
    rows = run_sweep(sweep, jobs, say=lambda _: None)
    assert [row["status"] for row in rows] == ["done"] * 4
    assert sorted(call for call in notebooks.calls if call[1] == "split") == [
        ("s-01", "split", ""),
        ("s-02", "split", ""),
    ]
    assert sorted(call for call in notebooks.calls if call[1] == "evaluate") == [
        ("s-01", "evaluate", ""),
        ("s-02", "evaluate", ""),
        ("s-03", "evaluate", "s-01"),
        ("s-04", "evaluate", "s-02"),
    ]
    assert [(row["split_from"], row["base_from"]) for row in rows] == [
        (None, None),
        (None, None),
        ("s-01", "s-01"),
        ("s-02", "s-02"),
    ]
    assert (folder / "s-03/split/by.txt").read_text() == "s-01"
    assert (folder / "s-03/train/by.txt").read_text() == "s-03"
    assert Run(folder / "s-03").stage("split").shared_from == "s-01"


def test_one_after_the_other_each_is_finished_before_the_next(folder, small_data, notebooks):
    sweep = plan_sweep("s", grid({"rank": [4, 8, 16]}), data_of(small_data))
    run_sweep(sweep, say=lambda _: None, latest=False)
    assert [name for name, until, _ in notebooks.calls if until == "evaluate"] == ["s-01", "s-02", "s-03"]
    assert not (folder / "latest").exists()
    assert len(notebooks.calls) == 4  # and the split; no run needed a second start


def test_latest_and_the_table(capsys, folder, small_data, notebooks):
    make_run("before", done=())
    arguments = ["sweep", "--name", "s", "--data", small_data, "--grid", "rank=2,16,8", "--jobs", "2"]
    status, out, err = course(capsys, *arguments)
    assert status == 0 and os.readlink(folder / "latest") == "s-02" and err == ""
    assert re.search(
        r"s-02 +16  16/20  80% \[58%, 92%\] +0.001  5/10  50% \[24%, 76%\] +0:18  done, best by validation",
        out,
    )
    assert (
        "best by validation: s-02 (rank=16)" in out
        and "Intervals that overlap with its own: 1 of 2." in out
        and "test score that is too high" in out
    )
    assert (
        "[3/3] s-03  rank=8  train    0:09  train is done" in out
        and "3 of 3 done after" in out
        and "time      about" in out
    )
    table = list(csv.DictReader((folder / "s/results.csv").open()))
    assert [
        (row["run"], row["rank"], row["best"], row["validation_correct"], row["test_accuracy"])
        for row in table
    ] == [("s-01", "2", "", "2", "0.5"), ("s-02", "16", "yes", "16", "0.5"), ("s-03", "8", "", "8", "0.5")]
    assert (
        float(table[1]["validation_low"]) == pytest.approx(0.584, abs=1e-3)
        and table[1]["base_from"] == "s-01"
    )
    assert course(capsys, "show", "s")[1].strip() in out


def test_as_json(capsys, small_data, notebooks):
    status, out, err = course(
        capsys, "sweep", "--name", "s", "--data", small_data, "--grid", "rank=2,16", "--json"
    )
    found = json.loads(out)
    assert (
        status == 0
        and found["best"] == "s-02"
        and found["runs"][1]["validation"]["correct"] == 16
        and "[2/2] s-02" in err
    )
    assert json.loads(course(capsys, "show", "s", "--json")[1]) == found


def test_a_sweep_that_only_splits_has_no_best(capsys, folder, small_data, notebooks):
    make_run("before", done=())
    status, out, _ = course(
        capsys, "sweep", "--name", "s", "--data", small_data, "--grid", "seed=1,2", "--until", "split"
    )
    assert (
        status == 0
        and "best" not in out
        and os.readlink(folder / "latest") == "before"
        and len(notebooks.calls) == 2
    )


def test_failures_are_kept_apart_and_done_again(capsys, folder, small_data, notebooks):
    notebooks.broken = {"s-02": "train"}
    arguments = ["sweep", "--name", "s", "--data", small_data, "--grid", "rank=2,16,8"]
    status, out, err = course(capsys, *arguments)
    assert status == 1 and "not done: 1 of 3 runs. To do them:  course sweep --resume --name s" in err
    assert (
        "s-02 failed: train: it broke" in out
        and f"log: {folder / 's-02' / 'course.log'}" in out
        and "FAILED: it broke" in out
    )
    assert "best by validation: s-03" in out and os.readlink(folder / "latest") == "s-03"
    assert [row["status"] for row in csv.DictReader((folder / "s/results.csv").open())] == [
        "done",
        "failed",
        "done",
    ]
    notebooks.broken, notebooks.calls = {}, []
    status, out, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 0 and err == "" and "best by validation: s-02" in out and "done before: 2" in out
    assert notebooks.calls == [("s-02", "evaluate", "s-01")]
    notebooks.calls = []
    assert (
        course(capsys, *arguments, "--resume")[0] == 0 and notebooks.calls == []  # no change
    )


@pytest.mark.parametrize(("stage", "asked"), [("split", "s-02"), ("train", "s-02"), ("evaluate", "s-02")])
def test_another_run_does_it_if_the_first_fails(stage, asked, small_data, notebooks):
    notebooks.broken = {"s-01": stage}
    rows = run_sweep(plan_sweep("s", grid({"rank": [2, 16, 8]}), data_of(small_data)), 2, say=lambda _: None)
    assert [row["status"] for row in rows] == ["failed", "done", "done"]
    assert [row["base_from"] for row in rows] == [None, None, asked]


def test_all_fail(capsys, folder, small_data, notebooks):
    notebooks.broken = {"s-01": "split", "s-02": "split"}
    status, out, _ = course(capsys, "sweep", "--name", "s", "--data", small_data, "--grid", "rank=2,16")
    assert status == 1 and "no run has a validation score yet" in out and not (folder / "latest").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grid", "rank=2,8"],
        ["--grid", "rank=2,16", "-p", "epochs=2"],
        ["--grid", "rank=2,16,8"],
        ["--grid", "rank=2,16", "--until", "train"],
    ],
)
def test_resume_refuses_other_settings(arguments, capsys, small_data, notebooks):
    sweep_of_two(capsys, small_data)
    status, _, err = course(capsys, "sweep", "--name", "s", "--data", small_data, *arguments, "--resume")
    assert status == 1
    assert_one_message(err, "other settings", "another --name")
    status, _, err = course(capsys, "sweep", "--name", "s", "--resume", "-p", "epochs=2")
    assert status == 2 and "leave out all settings" in err


def test_a_run_that_was_changed_by_hand(capsys, small_data, notebooks, folder):
    sweep_of_two(capsys, small_data)
    finish_stage(Run(folder / "s-02"), "train", rank=4)
    assert "s-02 changed: rank is 4 there, 16 in the sweep" in course(capsys, "show", "s")[1]
    status, _, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 1
    assert_one_message(err, "s-02", "rank is 4 there", "course clean s-02")
    course(capsys, "clean", "s-02", "--yes")
    assert course(capsys, "sweep", "--name", "s", "--resume")[0] == 0


def test_a_run_whose_answers_came_from_one_that_is_gone(capsys, small_data, notebooks, folder, monkeypatch):
    """It asks the base model itself when it is evaluated again, and goes on to notebook 04 without them."""
    sweep_of_two(capsys, small_data)
    course(capsys, "clean", "s-01", "--yes")
    with monkeypatch.context() as patch:
        patch.setattr("helpers.course.run.run_stages", lambda run, stages, settings: 130)
        assert course(capsys, "run", "--resume", "--name", "s-02", "--until", "export")[0] == 130
        status, _, err = course(capsys, "run", "--from", "evaluate", "--name", "s-02")
        assert status == 1 and "'s-01'" in err
    notebooks.broken = {"s-01": "train"}
    begin_stage(Run(folder / "s-02"), "evaluate")
    rows = run_sweep(open_sweep("s"), say=lambda _: None)
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert notebooks.calls[-1] == ("s-02", "evaluate", "")


def test_a_base_run_of_the_user_is_left_alone(small_data, notebooks):
    make_run("mine")
    common = data_of(small_data) | {"base_run": "mine"}
    run_sweep(plan_sweep("s", grid({"rank": [2, 16]}), common), say=lambda _: None)
    assert [base for _, _, base in notebooks.calls] == [None] * 3
    assert [row["base_from"] for row in collect(open_sweep("s"))] == ["mine", "mine"]


def test_two_at_once_on_one_sweep(capsys, small_data, notebooks, folder):
    notebooks.broken = {"s-01": "split", "s-02": "split"}
    sweep_of_two(capsys, small_data)
    with Run(folder / "s").in_use():
        status, _, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 1
    assert_one_message(err, "under way")


def test_data_that_changed_before_a_split_is_taken_over(capsys, small_data, notebooks, folder):
    sweep_of_two(capsys, small_data)
    shutil.rmtree(folder / "s-02")
    small_data.write_text(json.dumps(read_json(small_data)[:30]))
    status, _, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 1
    assert_one_message(err, "changed since run s-01 was split", small_data.name)


def test_a_failed_run_that_was_ended_by_hand_is_done(capsys, small_data, notebooks, folder):
    notebooks.broken = {"s-02": "evaluate"}
    sweep_of_two(capsys, small_data)
    finish(Run(folder / "s-02"), "evaluate", rank=16, base_run="s-01")
    assert [row["status"] for row in collect(open_sweep("s"))] == ["done", "done"]


def test_a_failure_after_the_sweeps_last_stage_is_none_of_it(capsys, small_data, notebooks, folder):
    sweep_of_two(capsys, small_data)
    record_failure(Run(folder / "s-02"), "merge", RunError("no room"))
    assert [row["status"] for row in collect(open_sweep("s"))] == ["done", "done"]
    record_failure(Run(folder / "s-02"), "train", RunError("no room"))
    assert [row["status"] for row in collect(open_sweep("s"))] == ["done", "failed"]
