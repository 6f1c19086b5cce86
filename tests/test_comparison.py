"""The page that compares runs, read by an HTML parser."""

import os
from pathlib import Path

import pytest
from html_page import Page
from runs_for_tests import begin_stage, make_run

from helpers.errors import DataError
from helpers.files import write_jsonl
from helpers.runs.info import look_at
from helpers.runs.manifest import LessonEntry, now
from helpers.runs.report.comparison import holm, write_comparison
from helpers.runs.report.comparison_tables import compare_settings


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "runs"


def test_two_runs(folder):
    first, second = make_run("first", rank=4), make_run("second", right="ynyyyyyynn", rank=16)
    with second.edit() as manifest:
        manifest.packages["torch"] = "0.0.1"
        manifest.stages.split.data[0].sha256 = "f" * 64
        manifest.stages.train.work_seconds = {"training": 61.0}
    page = Page(write_comparison([first, second], folder / "comparison.html"))
    for row in (
        ["run", "rank"],
        ["first", "4"],
        ["second", "16"],
        [
            "second",
            "2026-11-20 10:00",
            "6 of 6",
            "accuracy",
            "10.0% (1.8% to 40.4%)",
            "70.0% (39.7% to 89.2%)",
        ],
        ["second to first", "+20.0", "3", "1", "4", "2", "0.625", "0.625"],  # p: 2 × (1 + 4) / 2⁴
        ["second", "tuned model, sampler", "accuracy", "7/10", "70.0%", "39.7% to 89.2%"],
        ["first", "vLLM to merged model", "2e-05", "0.0005", "yes"],
        ["first", "8", "2.000", "0.222", "0/6", "2/6"],
        ["second", *["0:09"] * 6, "0:54"],
        ["first", "0:00", "104"],
        ["second", "1:01", "104"],
        ["second", "f" * 12],
        ["second", "0.0.1"],
    ):
        assert row in page.rows, row
    assert "second to first: 3 gained (only second is right)" in page.text
    assert "first to first" not in page.text and "not all scored on the same" not in page.text
    assert "missing, stale or damaged" not in page.text
    assert page.figures == 4


def test_runs_that_are_the_same_but_for_chance(folder):
    runs = [make_run("first"), make_run("second")]
    page = Page(write_comparison(runs, folder / "c.html"))
    assert "No setting differs." in page.text and "All versions are the same: " in page.text
    assert "All runs read the same data files: the SHA-256 hashes are equal." in page.text


def test_other_test_problems_are_not_paired(folder):
    one, short = make_run("one"), make_run("short", right="yyn")
    two, bare = make_run("two"), make_run("bare", done=("split", "train"))
    page = Page(write_comparison([one, short, two, bare], folder / "c.html"))
    for words in (
        "not all scored on the same test problems",
        "one, two: 10 problems",
        "short: 3 problems, 3 of them in the first set",
        "two to one",
        "run bare: stage evaluate was not run",
        "for want of a usable evaluate/samples.jsonl: bare",
        "Without a score: bare",
    ):
        assert words in page.text, words
    assert "short to" not in page.text
    write_jsonl(two.file("evaluate/samples.jsonl"), [{"index": 0}])
    page = Page(write_comparison([one, short, two, bare], folder / "c.html"))
    assert "run two: evaluate/samples.jsonl, line 1, is damaged" in page.text
    assert "So there is no pair" in page.text


def test_a_stage_that_no_run_came_to_is_no_gap(folder):
    runs = [make_run(name, done=("split", "train")) for name in ("one", "two")]
    page = Page(write_comparison(runs, folder / "c.html"))
    assert "missing, stale or damaged" not in page.text and "No run has a score." in page.text
    begin_stage(runs[1], "evaluate")
    page = Page(write_comparison(runs, folder / "c.html"))
    assert "2 things are missing, stale or damaged in these runs" in page.text
    assert "run one: stage evaluate was not run" in page.text


def test_files_of_stale_stages_are_not_compared(folder):
    runs = [make_run(name) for name in ("one", "two", "three")]
    begin_stage(runs[2], "train")
    page = Page(write_comparison(runs, folder / "c.html"))
    assert "two to one" in page.text and "three to one" not in page.text
    assert ["three", "merged model to trained model", "–", "–", "not checked"] in page.rows


def test_settings_that_differ():
    both = ("split", "train")
    made = (("a", 4, both), ("b", 8, both), ("c", 4, ("split",)))
    runs = [look_at(make_run(name, done=done, rank=rank).path) for name, rank, done in made]
    different, same = compare_settings(runs)
    assert different == {"rank": ["4", "8", "–"]}
    assert same["data_files"] == "data/word_problems.json"
    assert same["base model"] == "Small-1B" and same["backend"] == "stub"


def test_a_setting_that_differs_in_one_stage_only():
    a, b = make_run("a", done=("split",)), make_run("b", done=("split",))
    begin_stage(a, "train", max_tokens=24)
    begin_stage(a, "evaluate", max_tokens=24)
    begin_stage(b, "train", max_tokens=24)
    begin_stage(b, "evaluate", max_tokens=48)
    different, same = compare_settings([look_at(a.path), look_at(b.path)])
    assert different == {"max_tokens (evaluate)": ["24", "48"]}
    assert same["max_tokens (train)"] == "24"


def test_what_a_lesson_was_not_told_it_had_by_default():
    """Also where a run is older than a notebook's name."""
    runs = [make_run("a", done=()), make_run("b", done=())]
    for run, told in zip(runs, ({}, {"steps": 4}), strict=True):
        entry = LessonEntry(status="done", started=now(), settings=told)
        run.update(lessons={"11_preferences": entry, "11_older": entry})
    different, same = compare_settings([look_at(run.path) for run in runs])
    assert different == {"steps (11_preferences)": ["8", "4"]}
    assert (same["steps (11_older)"], same["dpo_beta"]) == ("4", "0.5")
    assert "run_name" not in same


def test_holm_allows_for_several_tests():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_one_run_makes_no_comparison(folder):
    with pytest.raises(DataError, match="1 runs make no comparison"):
        write_comparison([make_run("one")], folder / "c.html")
