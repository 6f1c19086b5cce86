"""Sweeps over a notebook of Part 2 or 3: copies of one trained run, compared by the scores that it saves."""

import csv
import json
import re
import sys
from dataclasses import replace

import pytest
from commands import assert_one_message, course, tree
from html_page import Page
from runs_for_tests import make_run

from helpers.errors import CourseError, RunError
from helpers.evaluate.paired import WinRate
from helpers.evaluate.score import Score
from helpers.files import read_json
from helpers.paths import runs_dir
from helpers.runs import open_run, save_scores
from helpers.runs.lesson_scores import read_scores
from helpers.runs.lessons import saves_scores, says_of_itself
from helpers.runs.stages import lessons_by_number
from helpers.runs.sweep.plan import Sweep, open_sweep
from helpers.runs.sweep.results import collect, csv_text, write_results
from helpers.runs.sweep.run import course_run

pytestmark = pytest.mark.usefixtures("folder")
RL = "10_reinforcement_learning"
SWEEP = ("sweep", "--name", "rl", "--lesson", "10")
GRID = ("--grid", "group_size=4,8", "--grid", "kl=0,0.02", "-p", "steps=6")


@pytest.fixture
def base(folder):
    return make_run("mine", done=("split", "train"), rank=16)


def test_each_run_is_a_copy_with_its_own_settings(capsys, base, notebooks, folder, monkeypatch):
    monkeypatch.setattr("helpers.runs.sweep.run.write_results", write_results)
    (folder / "mine/train/by.txt").write_text("mine")
    status, out, err = course(capsys, *SWEEP, *GRID)
    assert (status, err) == (0, "")
    wanted = [(4, 0.0), (4, 0.02), (8, 0.0), (8, 0.02)]
    assert notebooks.calls == [  # and no stage
        (f"rl-0{n}", RL, {"steps": 6, "group_size": size, "kl": kl}) for n, (size, kl) in enumerate(wanted, 1)
    ]
    copy = open_run("rl-02")
    assert copy.file("train/by.txt").read_text() == "mine" and copy.stage("train").shared_from == "mine"
    theirs, own = base.manifest, copy.manifest
    assert (own.base_model, own.backend, own.settings) == (theirs.base_model, theirs.backend, {"rank": 16})
    assert (own.like, own.sweep) == ("mine", "rl") and open_run("latest").name == "mine"

    assert "sweep rl: 4 runs of 10_reinforcement_learning, each on a copy of mine" in out
    assert "time      about 40:00 (min:s), one run after the other" in out
    assert f"[4/4] rl-04  group_size=8 kl=0.02  {RL}  1:03" in out and "4 of 4 done after" in out
    assert re.search(r"after right +4/100 4% \[2%, 10%\] +4/100 4% \[2%, 10%\] +8/100 8% \[4%, 15%\]", out)
    assert re.search(r"\nafter KL +0.0625 +0.0625 +0.125 +0.125\n", out) and "with another seed" in out
    assert course(capsys, "show", "rl")[1].strip() in out
    lines = [*csv.DictReader((folder / "rl/results.csv").open())]
    assert [(row["run"], row["kl"], row["after right"], row["after KL, low"]) for row in lines[2:]] == [
        ("rl-03", "0.0", "0.08", ""),
        ("rl-04", "0.02", "0.08", ""),
    ]
    page = Page(folder / "rl/report.html")
    for row in (
        ["rl-03", "8", "0.0"],
        ["score", "rl-01", "rl-02", "rl-03", "rl-04"],
        ["after KL", "0.0625", "0.0625", "0.125", "0.125"],
    ):
        assert row in page.rows, row
    assert "No run has a score." not in page.text


def test_failures_are_done_again_on_the_same_copy(capsys, base, notebooks, folder):
    """Also where the run that was copied is gone by then."""
    notebooks.broken = {"rl-01": RL}
    status, out, err = course(capsys, *SWEEP, "--grid", "group_size=4,8", "--jobs", 2)
    assert (
        status == 1
        and "not done: 1 of 2 runs" in err
        and "rl-01 failed: 10_reinforcement_learning: it broke" in out
    )
    assert f"log: {folder}/rl-01/course.log" in out and open_run("rl-01").manifest.failure is None
    course(capsys, "clean", "rl-01", "--yes")
    course(capsys, "clean", "mine", "--yes")
    notebooks.broken, notebooks.calls = {}, []
    assert course(capsys, *SWEEP[:3], "--resume", "--json")[0] == 0
    assert notebooks.calls == [("rl-01", RL, {"group_size": 4})]
    for like in ((), ("--like", "latest"), ("--like", "mine")):
        assert course(capsys, *SWEEP, "--grid", "group_size=4,8", *like, "--resume")[0] == 0
    assert open_run("rl-01").stage("train").settings.rank == 16  # as in rl-02
    found = json.loads(course(capsys, "show", "rl", "--json")[1])
    assert found["best"] is None and found["runs"][0]["scores"]["after right"]["correct"] == 4

    notebooks.calls = []
    for other in (["--grid", "group_size=4,8,2"], ["--grid", "group_size=4,8", "-p", "steps=6"]):
        assert_one_message(course(capsys, *SWEEP, *other, "--resume")[2], "other settings")
    with (run := open_run("rl-02")).edit() as manifest:
        manifest.lessons[RL].settings = {}  # the default, 8: no change
    assert course(capsys, *SWEEP[:3], "--resume")[0] == 0
    with run.edit() as manifest:
        manifest.lessons[RL].settings = {"group_size": 2}
    assert_one_message(
        course(capsys, *SWEEP[:3], "--resume")[2], "rl-02", "group_size is 2 there, 8 in the sweep"
    )
    for there, here, said in (  # a parameter that the notebook has no longer
        ({"old": 3}, {}, "old is 3 there, not set in the sweep"),
        ({}, {"old": 3}, "old is not set there, 3 in the sweep"),
    ):
        sweep = replace(open_sweep("rl"), swept=("group_size", "old"))
        sweep.settings["rl-02"] |= here
        with run.edit() as manifest:
            manifest.lessons[RL].settings = there
        assert collect(sweep)[1]["message"] == said
    run.file(f"{RL}/scores.json").write_text("{}")
    assert_one_message(course(capsys, *SWEEP[:3], "--resume")[2], "rl-02", "saved no scores")
    assert notebooks.calls == []


def test_a_damaged_copy_is_named_and_made_again_from_another(capsys, base, notebooks):
    course(capsys, *SWEEP, "--grid", "group_size=4,8")
    course(capsys, "clean", "mine", "--yes")
    open_run("rl-01").manifest_path.write_text("{")
    resume = (*SWEEP[:3], "--resume")
    assert_one_message(course(capsys, *resume)[2], "run rl-01 is damaged", "made again: course clean rl-01")
    course(capsys, "clean", "rl-01", "--yes")
    assert course(capsys, *resume)[0] == 0 and open_run("rl-01").stage("train").settings.rank == 16


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["--grid", "group_sise=4,8"], 1, ["setting 1", "group_sise", "did you mean group_size?"]),
        (["--grid", "dpo_beta=0.1,0.5"], 1, ["'dpo_beta' is no setting of 10_reinforcement_learning"]),
        (["--grid", "group_size=4", "-p", "epochs=2"], 1, ["'epochs=2'", "10_reinforcement_learning"]),
        (["--grid", "group_size=4,many"], 1, ["setting 2", "group_size can't be many", "default is 8"]),
        (["--grid", "folder_name=a,b"], 1, ["'folder_name'"]),
        (["--grid", "group_size=8,8"], 1, ["1 and 2 are the same in 10_reinforcement_learning"]),
        (["--grid", "backend_name=stub,cloud"], 1, ["setting 2", "'cloud'"]),
        (["--grid", "kl=0,1", "-p", "kl=2"], 2, ["kl is set by -p and by --grid"]),
        (["--grid", "kl=0,1", "--like", "none"], 1, ["no run 'none'"]),
        (["--grid", "kl=0,1", "--like", "split-only"], 1, ["no finished 'train' stage"]),
        (["--grid", "kl=0,1", "--until", "train"], 2, ["notebook 10", "--until"]),
        (["--grid", "kl=0,1", "--profile", "small"], 2, ["notebook 10", "--profile"]),
        (["--grid", "problems=4", "--lesson", "07"], 1, ["saves no scores", "10, 11"]),
        (["--grid", "kl=0,1", "--lesson", "01"], 2, ["invalid choice: '01'"]),
        ([], 2, ["--grid or from --settings"]),
    ],
)
def test_refused_before_anything_starts(arguments, status, parts, capsys, base, notebooks, folder):
    make_run("split-only", done=("split",))
    before = tree(folder)
    found, _, err = course(capsys, *SWEEP, "--like", "mine", *arguments)
    assert found == status and tree(folder) == before and [part for part in parts if part not in err] == []
    assert "Traceback" not in err
    _, _, err = course(capsys, "sweep", "--name", "s", "--grid", "rank=4,8", "--like", "mine")
    assert "--like goes with --lesson" in err


@pytest.mark.parametrize("lesson", [*filter(saves_scores, lessons_by_number().values())])
def test_a_lesson_says_how_many_minutes_it_takes(lesson):
    assert re.match(r"about \d+ minutes", says_of_itself(lesson, "Time"))


def test_a_plan_says_what_the_notebook_says_of_itself(capsys, base, notebooks, tmp_path):
    (tmp_path / "s.csv").write_text("dpo_beta,steps\n0.1,\n,4\n")
    file = ("--settings", tmp_path / "s.csv", "--dry-run")
    status, out, _ = course(capsys, "sweep", "--name", "p", "--lesson", "11", *file, "--backend", "hosted")
    assert status == 0 and re.search(r"p-02 +0.5 +4\n", out)  # the default where the cell is empty
    assert "time      unknown" in out and "hosted, it depends on the queue" in out
    assert "hosted, about 30,000 trained tokens" in out
    plan = json.loads(course(capsys, "sweep", "--name", "p", "--lesson", "11", *file, "--json")[1])
    assert (plan["like"], plan["seconds"], plan["cost"]) == ("mine", 600, "")


def test_scores_of_any_kind(base):
    won = WinRate(wins=6, ties=0, losses=4)
    scores = {
        "before": {"T=1": {"right": Score(1, 4), "sense": 0.25}},
        "won": won,
        "change": {"difference": 0.5, "ci95": [0.25, 0.75]},
    }
    path = save_scores(base.file("lesson"), scores)
    assert read_json(path)["before T=1 right"].keys() == {"value", "ci95", "correct", "total"}
    found = read_scores(base, "lesson")
    assert {name: str(score) for name, score in found.items()} == {
        "before T=1 right": "1/4 25% [5%, 70%]",
        "before T=1 sense": "0.25",
        "won": "0.6 [0.313, 0.832]",
        "change": "0.5 [0.25, 0.75]",
    }
    assert read_scores(base, "none") == {}
    path.write_text('{"right": {"value": "high"}}')
    with pytest.raises(RunError, match=r"lesson/scores.json is damaged: right value"):
        read_scores(base, "lesson")


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        ({"KL": float("nan")}, "the score 'KL' is nan"),
        ({"won": {"T=1": True}}, "the score 'won T=1' is True"),
        ({"KL": "0.1"}, "the score 'KL' is '0.1'"),
        ({"change": {"difference": float("nan"), "ci95": [0.1, 0.2]}}, "the score 'change' is nan"),
        ({"change": {"difference": 0.1, "ci95": [0.1, float("inf")]}}, "the score 'change' is inf"),
        ({"a b": 1, "a": {"b": 2}}, "two scores are called 'a b'"),
    ],
)
def test_what_is_no_score_is_refused(scores, fault, tmp_path):
    with pytest.raises(CourseError, match=re.escape(fault)):
        save_scores(tmp_path, scores)
    assert not [*tmp_path.iterdir()]


def test_each_score_has_a_column_of_its_own():
    """Also one that is called as a setting, as another column, or as the end of another's interval."""
    scores = {
        "kl": {"value": 1.0},
        "seconds": {"value": 2.0},
        "won": {"value": 3.0},
        "won, low": {"value": 4.0},
    }
    sweep = Sweep(runs_dir() / "rl", "train", ("kl",), {"rl-01": {"kl": 0.5}}, RL)
    [row] = csv.DictReader(csv_text(sweep, [collect(sweep)[0] | {"scores": scores}]).splitlines())
    shown = {name: value for name, value in row.items() if value and not name.startswith(("run", "status"))}
    assert shown == {
        "kl": "0.5",
        "kl (score)": "1.0",
        "seconds (score)": "2.0",
        "won": "3.0",
        "won, low (score)": "4.0",
    }


def test_what_a_worker_starts(capsys, base, monkeypatch):
    """`course` reads the settings back as they were; if it ends without a word, the manifest says so."""
    prints = "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(2)"
    monkeypatch.setattr("helpers.runs.sweep.run.COURSE", (sys.executable, "-c", prints))
    given = {"group_size": 4, "kl": 0.02, "sft_learning_rate": 1e-05, "loss_fn": "ppo", "base_model": ""}
    assert course_run(base, RL, given, {}) == 2
    failure = base.manifest.lessons[RL].failure
    assert failure and failure.what == "its process ended with exit status 2"
    asked = []
    monkeypatch.setattr("helpers.course.lessons.run_lesson", lambda *what: asked.append(what[1:3]) or 1)
    assert course(capsys, *json.loads(base.file("course.log").read_text()))[0] == 1
    assert asked == [(RL, given)]
