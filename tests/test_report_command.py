"""`course report`: where the page goes, what is said of it, and what is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from commands import course
from runs_for_tests import make_run

from helpers.runs.report import command
from helpers.runs.sweep import grid, plan_sweep


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "runs"


@pytest.fixture
def short_pages(monkeypatch) -> None:
    monkeypatch.setattr(command, "report_page", lambda run: (f"page of {run.name}", []))
    monkeypatch.setattr(command, "comparison_page", lambda runs: (" ".join(run.name for run in runs), []))


def test_gaps_are_told(capsys, folder):
    run = make_run("mine", done=("split", "train"))
    status, out, _ = course(capsys, "report")
    assert status == 0 and out.count("note: stage ") == 4
    assert out.splitlines()[-1] == str(run.file("report.html"))
    run.file("train/metrics.jsonl").unlink()
    status, out, _ = course(capsys, "report", "mine", "--json")
    told = json.loads(out)
    assert status == 0 and told["path"] == str(folder / "mine" / "report.html")
    assert any(words.startswith("train/metrics.jsonl is missing") for words in told["problems"])


def test_scores_as_json(capsys):
    make_run("mine")
    [run] = json.loads(course(capsys, "report", "--json")[1])["runs"]
    assert run["name"] == "mine" and run["state"] == "complete"
    assert [row["model"] for row in run["scores"]][:2] == ["base model", "tuned model, sampler"]
    assert run["scores"][1]["correct"] == 5 and run["scores"][1]["ci95"] == pytest.approx(
        [0.237, 0.763], abs=1e-3
    )


@pytest.mark.usefixtures("short_pages")
def test_where_the_page_goes(capsys, folder, tmp_path):
    make_run("old", done=())
    make_run("newest", done=())
    newest, compared, chosen = (
        folder / "newest/report.html",
        folder / "comparison.html",
        tmp_path / "a/b.html",
    )
    assert course(capsys, "report") == (0, f"{newest}\n", "") and newest.read_text() == "page of newest"
    assert (
        course(capsys, "report", "old", "newest")[1] == f"{compared}\n"
        and compared.read_text() == "old newest"
    )
    assert course(capsys, "report", "old", "--output", str(chosen))[0] == 0
    assert chosen.read_text() == "page of old"


@pytest.mark.usefixtures("short_pages")
def test_a_sweep_stands_for_those_of_its_runs_that_were_begun(capsys, folder):
    sweep = plan_sweep("ranks", grid({"rank": [4, 8, 16]}), {})
    sweep.save()
    status, _, err = course(capsys, "report", "ranks")
    assert status == 1 and "no run of sweep ranks was begun" in err
    names = list(sweep.settings)
    make_run(names[0], done=())
    make_run(names[2], done=())
    assert course(capsys, "report", "ranks") == (0, f"{folder / 'ranks/report.html'}\n", "")
    assert (folder / "ranks/report.html").read_text() == f"{names[0]} {names[2]}"


@pytest.mark.usefixtures("short_pages")
def test_opening_it(capsys, folder, monkeypatch):
    make_run("mine", done=())
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    assert course(capsys, "report", "--open")[0] == 0 and opened == [(folder / "mine/report.html").as_uri()]
    status, _, err = course(capsys, "report", "--open")
    assert status == 1 and "no browser could be started; the page is written" in err


@pytest.mark.usefixtures("short_pages")
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["one", "latest"], 2, "named twice"),
        (["two"], 1, "there is no run 'two'"),
        (["--output", "report.txt"], 2, "must end in .html"),
        (["--output", "/proc/no/report.html"], 1, "can't write /proc/no/report.html"),
    ],
)
def test_what_is_refused(arguments, status, words, capsys):
    make_run("one", done=())
    got, _, err = course(capsys, "report", *arguments)
    assert got == status and words in err and len(re.findall(r"^→ \S", err, re.M)) == 1


def test_a_run_that_is_gone(capsys):
    shutil.rmtree(make_run("one", done=()).path)
    status, _, err = course(capsys, "report")
    assert status == 1 and "there is no run" in err
