"""`course sweep`: settings, sharing, failures, results. Runs are made up, but for one real sweep of a toy model through a Dask cluster."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub import Server
from test_cli import assert_one_message, course, folder, make_run, small_data, tree  # noqa: F401  (fixtures)

from helpers import plots
from helpers.course import cli
from helpers.errors import CourseError, RunError
from helpers.evaluate.grading import check_final_answer
from helpers.files import read_json, read_jsonl, write_json, write_jsonl
from helpers.paths import ROOT
from helpers.runs.base_answers import asked_of_base, taken_over
from helpers.runs.info import find_runs
from helpers.runs.run import Run, new_run
from helpers.runs.settings import notebook_parameters, stage_values
from helpers.runs.sweep import sweep as sweeps
from helpers.runs.sweep.results import best_row, collect, csv_text, results_text
from helpers.runs.sweep.settings import grid, grid_values, read_settings
from helpers.runs.sweep.sweep import failure_of, open_sweep, plan_sweep, run_sweep


@pytest.fixture
def data(small_data) -> dict:  # noqa: F811
    return {"data_files": str(small_data)}


class Notebooks:
    """Stands in for `course run`: stages that are done at once, and note what they were told."""

    def __init__(self):
        self.calls: list[tuple[str, str, str]] = []
        self.broken: dict[str, str] = {}  # run: the stage in which it fails

    def __call__(self, run: Run, until: str, base_run: str | None, environment: dict) -> int:
        self.calls.append((run.name, until, base_run))
        (run.path / "failed.json").unlink(missing_ok=True)
        run.update(
            parameters=run.manifest["parameters"] | ({} if base_run is None else {"base_run": base_run})
        )
        values = stage_values(run.manifest["parameters"], notebook_parameters(), until)
        for stage, own in values.items():
            if run.manifest["stages"].get(stage, {}).get("status") == "done":
                continue
            work = run.begin(stage, {name: value for name, value in own.items() if name != "run_name"})
            if self.broken.get(run.name) == stage:
                write_json(
                    run.file("failed.json"),
                    {"stage": stage, "message": "it broke", "log": "course.log", "time": "2999"},
                )
                return 1
            finish(run, work, stage, own)
        return 0


def finish(run: Run, work, stage: str, own: dict) -> None:
    """What a notebook leaves, as far as a sweep reads it. More rank is better, up to 16."""
    file = write_json(work.file("made.json"), {"by": run.name})
    results = {}
    if stage == "train":
        right = min(own["rank"], 16)
        write_json(
            work.file("best_checkpoint.json"),
            {"step": 9, "accuracy": right / 20, "loss": own["learning_rate"], "correct": right, "total": 20},
        )
    if stage == "evaluate":
        results = {"base_asked": {"all": "the same"}}
        write_json(
            work.file("model_evaluation.json"),
            {"base_correct": 1, "test_correct": 5, "test_size": 10, "base_from": own["base_run"] or None},
        )
    work.finish(f"{stage} is done", artefacts=[file], **results)


@pytest.fixture
def notebooks(monkeypatch) -> Notebooks:
    made = Notebooks()
    monkeypatch.setattr(sweeps, "_course_run", made)
    monkeypatch.setattr("helpers.runs.sweep.progress.POLL_SECONDS", 0.01)
    return made


# settings


def test_a_grid_is_every_combination():
    assert grid({"rank": [8, 32], "epochs": [1, 2]}) == [
        {"rank": 8, "epochs": 1},
        {"rank": 8, "epochs": 2},
        {"rank": 32, "epochs": 1},
        {"rank": 32, "epochs": 2},
    ]


def test_values_of_a_grid():
    texts = [
        "rank=8, 32",
        "learning_rate=1e-3,3e-4",
        "prompt_format=guide,qwen3_instruct",
        'data_files="a.json,b.json","c.json"',
        "x=True,false",
    ]
    assert grid_values(texts) == {
        "rank": [8, 32],
        "learning_rate": [1e-3, 3e-4],
        "prompt_format": ["guide", "qwen3_instruct"],
        "data_files": ["a.json,b.json", "c.json"],
        "x": [True, False],
    }


@pytest.mark.parametrize(
    "texts", [["rank"], ["rank="], ["=8"], ["rank=8,,16"], ["rank=8,"], ["rank=8", "rank=16"]]
)
def test_a_grid_that_is_none(texts):
    with pytest.raises(CourseError, match="rank|=8"):
        grid_values(texts)


def test_settings_from_files(tmp_path):
    table, listed = tmp_path / "s.csv", tmp_path / "s.json"
    table.write_text('rank,learning_rate,data_files\n8,1e-3,\n\n16,,"a.json,b.json"\n', encoding="utf-8-sig")
    assert read_settings(table) == [
        {"rank": 8, "learning_rate": 1e-3},
        {"rank": 16, "data_files": "a.json,b.json"},
    ]
    listed.write_text('[{"rank": 8}, {}]')
    assert read_settings(listed) == [{"rank": 8}, {}]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("s.json", '[{"rank": 8},\n {"rank": }]', ["line 2", "not JSON"]),
        ("s.json", '{"rank": 8}', ["no list"]),
        ("s.json", '[{"rank": 8}, 8]', ["index 1"]),
        ("s.json", "[]", ["no settings"]),
        ("s.csv", "rank,epochs\n8\n", ["line 2", "1 cells", "has 2 columns"]),
        ("s.csv", "rank,rank\n8,9\n", ["line 1", "'rank' of another one"]),
        ("s.csv", "", ["no settings"]),
        ("s.csv", "rank,\n8,9\n", ["line 1", "column 2 has no name"]),
        ("s.csv", "rank\n", ["no settings"]),
        ("s.csv", b"rank\n\xff\n", ["can't be read"]),
        ("s.yaml", "- rank: 8", [".json and .csv"]),
        ("nowhere.csv", None, ["can't be read"]),
    ],
)
def test_settings_files_that_cant_be_used(name, text, parts, capsys, tmp_path, folder):  # noqa: F811
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    status, _, err = course(capsys, "sweep", "--name", "s", "--settings", str(tmp_path / name))
    assert status == 1 and not folder.exists()
    assert_one_message(err, name, *parts)


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["--grid", "ranks=8,16"], 1, ["'ranks'", "did you mean rank?", "setting 1 (ranks=8)"]),
        (["--grid", "rank=8,many"], 1, ["setting 2 (rank=many)", "a whole number"]),
        (["--grid", "epochs=1,0"], 1, ["setting 2 (epochs=0)", "above zero"]),
        (["--grid", "test_size=0.2,2.0"], 1, ["setting 2", "test_size"]),
        (["--grid", "rank=8,8"], 1, ["1 and 2 are the same", "seed"]),
        (["--grid", "parity_prompts=8,16"], 1, ["the same in the stages up to evaluate"]),
        (["--grid", "base_run=a,b"], 1, ["names a run"]),
        (["--grid", "rank=8,16", "-p", "base_run=nowhere"], 1, ["'nowhere'"]),
        (["--grid", "rank=8,16", "-p", "epoch=1"], 1, ["'epoch'", "did you mean epochs?"]),
        (["--grid", "rank=8,16", "--backend", "cloud"], 1, ["'cloud'"]),
        (["--grid", "rank=8,16", "-p", "rank=4"], 2, ["rank is set by -p and by --grid"]),
        (["--grid", "rank=8,16", "--settings", "x.csv"], 2, ["--grid or from --settings"]),
        ([], 2, ["--grid or from --settings"]),
        (["--grid", "rank=8,16", "--jobs", "0"], 2, ["--jobs 0"]),
        (["--grid", "rank=8,16", "--jobs", "2", "--dask", "tcp://127.0.0.1:1"], 2, ["with --dask"]),
        (["--grid", "rank=8,16", "--resume"], 1, ["no sweep 's'"]),
    ],
)
def test_refused_before_anything_starts(arguments, status, parts, capsys, folder, data, notebooks):  # noqa: F811
    found, _, err = course(capsys, "sweep", "--name", "s", "--data", data["data_files"], *arguments)
    assert found == status and not folder.exists() and notebooks.calls == []
    assert_one_message(err, *parts)


def test_the_default_is_the_same_as_the_default_written_out(tmp_path, capsys, folder, data):  # noqa: F811
    (tmp_path / "s.csv").write_text("rank,epochs\n,2\n32,2\n")
    status, _, err = course(
        capsys, "sweep", "--name", "s", "--settings", str(tmp_path / "s.csv"), "--data", data["data_files"]
    )
    assert status == 1 and "1 and 2 are the same" in err


@pytest.mark.parametrize(("taken", "name"), [("s", "s"), ("s-02", "s"), (None, "a/b"), (None, "latest")])
def test_names_that_are_taken(taken, name, capsys, folder, data, notebooks):  # noqa: F811
    if taken:
        make_run(taken, done=())
    before = tree(folder)
    status, _, err = course(
        capsys, "sweep", "--name", name, "--grid", "rank=8,16", "--data", data["data_files"]
    )
    assert status == 1 and tree(folder) == before and notebooks.calls == []
    assert_one_message(err, repr(taken or name))


def test_dry_run(capsys, folder, data):  # noqa: F811
    arguments = [
        "sweep",
        "--name",
        "s",
        "--data",
        data["data_files"],
        "--grid",
        "rank=8,16",
        "--grid",
        "max_test=4,6",
        "--dry-run",
    ]
    plan = json.loads(course(capsys, *arguments, "--json")[1])
    assert [(row["run"], row["split_from"], row["base_from"]) for row in plan["runs"]] == [
        ("s-01", None, None),
        ("s-02", None, None),
        ("s-03", "s-01", "s-01"),
        ("s-04", "s-02", "s-02"),
    ]
    assert (plan["splits"], plan["base_asked"], plan["until"]) == (2, 2, "evaluate")
    assert plan["seconds"] == sum(row["seconds"] for row in plan["runs"]) < plan["seconds_apart"]
    status, out, _ = course(capsys, *arguments)
    assert status == 0 and not folder.exists()
    assert (
        "4 runs until evaluate" in out
        and "2 splits for 4 runs; the base model is asked 2 times" in out
        and "an estimate" in out
    )
    assert re.search(r"s-04 +16 +6 +\d:\d\d", out)


def test_cost_of_a_sweep_on_hosted_tinker(capsys, folder, data, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "helpers.runs.estimate.read_toml",
        lambda path: {"source": "s", "a/b": {"train": 1000, "prefill": 100, "sample": 10}},
    )
    arguments = [
        "sweep",
        "--name",
        "s",
        "--data",
        data["data_files"],
        "--backend",
        "hosted",
        "-p",
        "base_model=a/b",
        "--dry-run",
        "--json",
    ]
    one = json.loads(course(capsys, *arguments, "--grid", "rank=8")[1])
    two = json.loads(course(capsys, *arguments, "--grid", "rank=8,16")[1])
    assert two["cost"]["tokens"]["train"] == 2 * one["cost"]["tokens"]["train"]
    assert (
        one["cost"]["tokens"]["prefill"]
        < two["cost"]["tokens"]["prefill"]
        < 2 * one["cost"]["tokens"]["prefill"]
    )  # the base model once
    assert one["cost"]["dollars"] < two["cost"]["dollars"] and two["seconds"] is None


# running


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_what_is_shared_is_done_once(jobs, folder, data, notebooks):  # noqa: F811
    sweep = plan_sweep("s", grid({"rank": [8, 16], "max_test": [4, 6]}), data)
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
    assert read_json(folder / "s-03/split/made.json") == {"by": "s-01"} and read_json(
        folder / "s-03/train/made.json"
    ) == {"by": "s-03"}
    assert Run(folder / "s-03").manifest["stages"]["split"]["shared_from"] == "s-01"


def test_one_after_the_other_each_is_finished_before_the_next(folder, data, notebooks):  # noqa: F811
    run_sweep(plan_sweep("s", grid({"rank": [4, 8, 16]}), data), say=lambda _: None)
    assert [name for name, until, _ in notebooks.calls if until == "evaluate"] == ["s-01", "s-02", "s-03"]
    assert len(notebooks.calls) == 4  # and the split; no run needed a second start


def test_latest_and_the_table(capsys, folder, data, notebooks):  # noqa: F811
    make_run("before", done=())
    arguments = ["sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16,8", "--jobs", "2"]
    status, out, err = course(capsys, *arguments)
    assert status == 0 and os.readlink(folder / "latest") == "s-02" and err == ""
    assert re.search(
        r"s-02 +16  16/20  80% \[58%, 92%\]  0.001  5/10  50% \[24%, 76%\]  0:00  done, best by validation",
        out,
    )
    assert (
        "best by validation: s-02 (rank=16)" in out
        and "Intervals that overlap with its own: 1 of 2." in out
        and "test score that is too high" in out
    )
    assert (
        "[3/3] s-03  rank=8  train    0:00  train is done" in out
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
    assert (folder / "s/metric.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "s/report.html").read_text()
    assert all(f"s-0{number}" in page for number in (1, 2, 3)) and "rank" in page
    assert course(capsys, "show", "s")[1].strip() in out


def test_the_report_of_a_sweep(capsys, folder, data, notebooks):  # noqa: F811
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    path = folder / "s/report.html"
    path.unlink()
    status, out, _ = course(capsys, "report", "s")
    page = path.read_text()
    assert status == 0 and out.splitlines()[-1] == str(path) and "2 runs compared" in page and "s-02" in page
    assert "base_run" not in page  # which names a run, and makes no difference
    assert "stage export was not run" not in page + out  # a sweep ends early: nothing is missing
    make_run("other", done=("split",))
    status, out, _ = course(capsys, "report", "other", "s", "--json")
    found = json.loads(out)
    assert (
        status == 0
        and found["path"] == str(folder / "comparison.html")
        and [row["name"] for row in found["runs"]] == ["other", "s-01", "s-02"]
    )
    assert "run other: stage train was not run: notebooks/02_train.ipynb does it" in found["problems"]
    shutil.rmtree(folder / "s-01"), shutil.rmtree(folder / "s-02")
    status, _, err = course(capsys, "report", "s")
    assert status == 1
    assert_one_message(err, "no run of sweep s was begun", "`course sweep --resume --name s`")


def test_as_json(capsys, data, notebooks):
    status, out, err = course(
        capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16", "--json"
    )
    found = json.loads(out)
    assert (
        status == 0
        and found["best"] == "s-02"
        and found["runs"][1]["validation"]["correct"] == 16
        and "[2/2] s-02" in err
    )
    assert json.loads(course(capsys, "show", "s", "--json")[1]) == found


def test_a_sweep_that_only_splits_has_no_best(capsys, folder, data, notebooks):  # noqa: F811
    make_run("before", done=())
    status, out, _ = course(
        capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "seed=1,2", "--until", "split"
    )
    assert (
        status == 0
        and "best" not in out
        and os.readlink(folder / "latest") == "before"
        and len(notebooks.calls) == 2
    )


def test_failures_are_kept_apart_and_done_again(capsys, folder, data, notebooks):  # noqa: F811
    notebooks.broken = {"s-02": "train"}
    arguments = ["sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16,8"]
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
        course(capsys, *arguments, "--resume")[0] == 0 and notebooks.calls == []
    )  # the same settings again are no change


@pytest.mark.parametrize(("stage", "asked"), [("split", "s-02"), ("train", "s-02"), ("evaluate", "s-02")])
def test_another_run_does_it_if_the_first_fails(stage, asked, data, notebooks):
    notebooks.broken = {"s-01": stage}
    rows = run_sweep(plan_sweep("s", grid({"rank": [2, 16, 8]}), data), 2, say=lambda _: None)
    assert [row["status"] for row in rows] == ["failed", "done", "done"]
    assert [row["base_from"] for row in rows] == [None, None, asked]


def test_all_fail(capsys, folder, data, notebooks):  # noqa: F811
    notebooks.broken = {"s-01": "split", "s-02": "split"}
    status, out, _ = course(
        capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16"
    )
    assert (
        status == 1
        and "no run has a validation score yet" in out
        and not (folder / "s/metric.png").exists()
        and not (folder / "latest").exists()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grid", "rank=2,8"],
        ["--grid", "rank=2,16", "-p", "epochs=2"],
        ["--grid", "rank=2,16,8"],
        ["--grid", "rank=2,16", "--until", "train"],
    ],
)
def test_resume_refuses_other_settings(arguments, capsys, data, notebooks):
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    status, _, err = course(
        capsys, "sweep", "--name", "s", "--data", data["data_files"], *arguments, "--resume"
    )
    assert status == 1
    assert_one_message(err, "other settings", "another --name")
    status, _, err = course(capsys, "sweep", "--name", "s", "--resume", "-p", "epochs=2")
    assert status == 2 and "leave out all settings" in err


def test_a_run_that_was_changed_by_hand(capsys, data, notebooks, folder):  # noqa: F811
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    run = Run(folder / "s-02")
    run.update(parameters=run.manifest["parameters"] | {"rank": 4})
    run.begin("train", {"rank": 4, "learning_rate": 1e-3}).finish("again")
    assert "s-02 changed: rank is 4 there, 16 in the sweep" in course(capsys, "show", "s")[1]
    status, _, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 1
    assert_one_message(err, "s-02", "rank is 4 there", "course clean s-02")
    course(capsys, "clean", "s-02", "--yes")
    assert course(capsys, "sweep", "--name", "s", "--resume")[0] == 0


def test_a_run_whose_answers_came_from_one_that_is_gone(capsys, data, notebooks, folder, monkeypatch):  # noqa: F811
    """It asks the base model itself when it is evaluated again, and goes on to notebook 04 without them."""
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    course(capsys, "clean", "s-01", "--yes")
    with monkeypatch.context() as patch:
        patch.setattr(cli, "run_stages", lambda run, stages, parameters, known: 0)
        assert course(capsys, "run", "--resume", "--name", "s-02", "--until", "export")[0] == 0
        status, _, err = course(capsys, "run", "--from", "evaluate", "--name", "s-02")
        assert status == 1 and "'s-01'" in err
    notebooks.broken = {"s-01": "train"}
    Run(folder / "s-02").begin("evaluate", {})
    rows = run_sweep(open_sweep("s"), say=lambda _: None)
    assert [row["status"] for row in rows] == ["failed", "done"] and notebooks.calls[-1] == (
        "s-02",
        "evaluate",
        "",
    )


def test_a_base_run_of_the_user_is_left_alone(data, notebooks):
    base_run("mine", max_tokens=96)
    run_sweep(plan_sweep("s", grid({"rank": [2, 16]}), data | {"base_run": "mine"}), say=lambda _: None)
    assert [base for _, _, base in notebooks.calls] == [None] * 3
    assert [row["base_from"] for row in collect(open_sweep("s"))] == ["mine", "mine"]


def test_two_at_once_on_one_sweep(capsys, data, notebooks, folder):  # noqa: F811
    notebooks.broken = {"s-01": "split", "s-02": "split"}
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    with Run(folder / "s").in_use():
        status, _, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 1
    assert_one_message(err, "under way")


def test_data_that_changed_before_a_split_is_taken_over(capsys, data, notebooks, small_data, folder):  # noqa: F811
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    shutil.rmtree(folder / "s-02")
    small_data.write_text(json.dumps(read_json(small_data)[:30]))
    status, _, err = course(capsys, "sweep", "--name", "s", "--resume")
    assert status == 1
    assert_one_message(err, "changed since run s-01 was split", small_data.name)


SLOW = """
import sys, time
from helpers.runs.run import open_run
run = open_run(sys.argv[sys.argv.index("--name") + 1])
print("[1/1] 01_split …", flush=True)
if "fails" in run.manifest["parameters"]["data_files"]:
    print("[1/1] 01_split      0:00  FAILED\\nDataError: small.json, index 3: no output\\n→ mend it")
    sys.exit(1)
try:
    with run.in_use():
        run.begin("split", {})
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def real_sweep(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    """The command in a process of its own, with a script in the place of `course run`."""
    (tmp_path / "slow.py").write_text(SLOW)
    code = (
        f"import sys\nfrom helpers import cli, sweep\nsweep.COURSE = (sys.executable, {str(tmp_path / 'slow.py')!r})\n"
        f"sys.exit(cli.main(['sweep', '--name', 's', *{arguments!r}]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(("jobs", "number"), [("1", signal.SIGINT), ("2", signal.SIGTERM)])
def test_ctrl_c_ends_the_runs_and_keeps_what_is_done(jobs, number, tmp_path, folder, small_data):  # noqa: F811
    process = real_sweep(tmp_path, "--data", str(small_data), "--grid", "seed=1,2,3", "--jobs", jobs)
    deadline = time.monotonic() + 30
    while sum(run.state == "under way" for run in find_runs()) < int(jobs):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (
        process.returncode == 130
        and "course: interrupted" in err
        and "course sweep --resume --name s" in err
        and "Traceback" not in err
    )
    assert [run.state for run in find_runs()] == ["unfinished"] * 3 and not list(folder.glob("*/failed.json"))
    assert {row["status"] for row in csv.DictReader((folder / "s/results.csv").open())} == {
        "unfinished",
        "not started",
    }


def test_what_a_failed_process_said(tmp_path, folder, small_data):  # noqa: F811
    data = small_data.rename(tmp_path / "fails.json")
    process = real_sweep(tmp_path, "--data", str(data), "--grid", "seed=1,2", "--until", "split")
    out, err = process.communicate(timeout=30)
    assert (
        process.returncode == 1
        and out.count("split    FAILED: DataError: small.json, index 3: no output") == 2
    )
    found = read_json(folder / "s-01/failed.json")
    assert found["stage"] == "split" and (folder / "s-01" / found["log"]).read_text().endswith("→ mend it\n")


@pytest.mark.parametrize(
    ("text", "status", "stage", "message"),
    [
        ("course: run s-01 is under way\n→ wait\n", 1, None, "run s-01 is under way"),
        (
            "[2/3] 02_train      0:18  FAILED\n\x1b[31mAssertionError\x1b[39m: the loss did not fall\n",
            1,
            "train",
            "AssertionError: the loss did not fall",
        ),
        (
            "[1/3] 01_split    0:01  3 train\n[2/3] 02_train …\n",
            -9,
            None,
            "the process was ended by signal 9",
        ),
        ("", 2, None, "exit status 2"),
    ],
)
def test_why_a_run_failed(text, status, stage, message, tmp_path):
    (tmp_path / "course.log").write_text(text)
    found = failure_of(tmp_path / "course.log", status)
    assert (found["stage"], found["message"]) == (stage, message)


def test_a_failed_run_that_was_ended_by_hand_is_done(capsys, data, notebooks, folder):  # noqa: F811
    notebooks.broken = {"s-02": "evaluate"}
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    run = Run(folder / "s-02")
    write_json(
        run.file("failed.json"), read_json(run.file("failed.json")) | {"time": "2026-01-01T00:00:00+00:00"}
    )
    notebooks.broken = {}
    finish(run, run.begin("evaluate", {}), "evaluate", {"base_run": ""})
    assert [row["status"] for row in collect(open_sweep("s"))] == ["done", "done"]


# results


def rows_with(sweep, *scores: tuple[int, float]) -> list[dict]:
    """Made-up rows: right answers of 20, and loss."""
    empty = collect(sweep)
    return [
        row
        | {
            "status": "done",
            "validation": {
                "correct": c,
                "total": 20,
                "accuracy": c / 20,
                "ci95": [max(0, c / 20 - 0.1), c / 20 + 0.1],
            },
            "validation_loss": loss,
        }
        for row, (c, loss) in zip(empty, scores)
    ]


def test_the_best_is_chosen_by_validation(data):
    sweep = plan_sweep("s", grid({"rank": [2, 4, 8]}), data)
    rows = rows_with(sweep, (5, 0.3), (12, 0.9), (12, 0.5))
    rows[0]["test"] = {
        "correct": 9,
        "total": 10,
        "accuracy": 0.9,
        "ci95": [0.6, 0.98],
    }  # the best on the test set is not the best
    assert best_row(sweep, rows)["run"] == "s-03"
    assert "Intervals that overlap with its own: 1 of 2" in results_text(sweep, rows)
    rows[2]["status"] = "failed"
    assert best_row(sweep, rows)["run"] == "s-02"
    by_loss = plan_sweep("t", grid({"rank": [2, 4, 8]}), data | {"best_metric": "loss"})
    assert best_row(by_loss, rows_with(by_loss, (5, 0.3), (12, 0.9), (12, 0.5)))["run"] == "t-01"
    assert best_row(sweep, collect(sweep)) is None


def test_other_validation_problems_are_pointed_out(data):
    sweep = plan_sweep("s", grid({"seed": [1, 2]}), data)
    assert "not all split alike" in results_text(sweep, rows_with(sweep, (5, 0.3), (6, 0.3)))
    alike = plan_sweep("t", grid({"rank": [1, 2]}), data)
    assert "not all split alike" not in results_text(alike, rows_with(alike, (5, 0.3), (6, 0.3)))


def test_texts_with_commas_in_the_csv(data):
    sweep = plan_sweep("s", grid({"unseen_templates": ["ages,change", "ages"]}), data)
    assert [
        row["unseen_templates"] for row in csv.DictReader(csv_text(sweep, collect(sweep)).splitlines())
    ] == ["ages,change", "ages"]


def test_the_plot(data):
    sweep = plan_sweep(
        "s", grid({"rank": [2, 16], "learning_rate": [1e-3, 3e-4], "prompt_format": ["guide", "x"]}), data
    )
    figure = plots.sweep_panels(
        rows_with(sweep, *((n, 1.0) for n in range(8))), list(sweep.swept), "s-08", left_out=1
    )
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "rank, width of the LoRA factors",
        "learning_rate, of the first step",
        "prompt_format",
    ]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["0.0003", "0.001"]
    assert all(
        len(axes.containers) == 4 for axes in figure.axes
    )  # a kind of point for each combination of the others
    assert "right answers" in figure.axes[0].get_ylabel() and "1 not finished" in figure._suptitle.get_text()


# the folder among the others


def test_list_clean_and_completion(capsys, data, notebooks, folder):  # noqa: F811
    make_run("other", done=())
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    status, out, _ = course(capsys, "list")
    assert (
        status == 0
        and "sweep s: `course show s`" in out
        and "damaged" not in out
        and {run.name for run in find_runs()} == {"other", "s-01", "s-02"}
    )
    assert "split     done, as in s-01" in course(capsys, "show", "s-02")[1]
    parser = cli._parser()
    from helpers.course.completion import words

    assert words(parser, ["sweep", "--name", ""]) == ["s"] and words(parser, ["sweep", "--grid", "ran"]) == [
        "rank="
    ]
    assert "s" in words(parser, ["clean", ""]) and "s" in words(parser, ["show", ""])
    for arguments, said in (
        (["run", "--name", "s"], "a sweep named 's' exists"),
        (["run", "--like", "s"], "s is a sweep, not a run"),
    ):
        assert said in course(capsys, *arguments)[2]
    status, out, _ = course(capsys, "clean", "s", "--yes")
    assert status == 0 and "table and plot of a sweep" in out and "deleted 3 folders" in out
    assert (
        sorted(path.name for path in folder.iterdir()) == ["latest", "other"]
        and os.readlink(folder / "latest") == "other"
    )


def test_a_damaged_sweep(capsys, data, notebooks, folder):  # noqa: F811
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    for text in ("{", "[]", '{"until": "never", "swept": [], "runs": {"s-01": {}}}'):
        (folder / "s/sweep.json").write_text(text)
        status, _, err = course(capsys, "show", "s")
        assert status == 1 and "sweep.json is damaged" in err
    assert course(capsys, "list")[0] == 0
    assert course(capsys, "clean", "s", "--yes")[0] == 0 and not (folder / "s").exists()


def test_a_damaged_run_of_a_sweep(capsys, data, notebooks, folder):  # noqa: F811
    course(capsys, "sweep", "--name", "s", "--data", data["data_files"], "--grid", "rank=2,16")
    (folder / "s-01/train/best_checkpoint.json").write_text("{")
    (folder / "s-02/manifest.json").write_text("[]")
    out = course(capsys, "show", "s")[1]
    assert (
        re.search(r"s-01 damaged: .*best_checkpoint.json is damaged", out)
        and "s-02 damaged: manifest.json lists no stages" in out
    )


# answers of the base model


class Letters:
    """A tokenizer of one token a letter, as far as prompts need it."""

    def decode(self, tokens: list) -> str:
        return "".join(tokens)


class Format:
    tokenizer, name = Letters(), "guide"

    def prompt_tokens(self, example: dict) -> list:
        return list(example["instruction"])


TEST_SET = [
    {
        "instruction": f"What is {n} + {n}?",
        "input": "",
        "output": f"Final answer: {2 * n}",
        "answer": str(2 * n),
    }
    for n in range(3)
]
ASKED = {"max_tokens": 64, "temperature": 0.0, "seed": 42, "max_in_flight": 64}
BACKEND = type("Backend", (), {"kind": "stub", "url": "http://127.0.0.1:1"})()


def base_run(name: str, test_set: list[dict] = TEST_SET, **parameters) -> Run:
    """A run that asked the base model; it got the first one right, and the file says that it got none."""
    run = new_run(name)
    run.update(base_model="small")
    for stage in ("split", "train"):
        run.begin(stage, {}).finish("done")
    write_json(run.file("split/test_set.json"), test_set)
    stage = run.begin("evaluate", {})
    samples = [
        {
            "index": i,
            "prompt": row["instruction"],
            "output": "Final answer: 0",
            "score": False,
            "stop_reason": "stop",
            "tokens": 9,
            "mean_logprob": -1,
        }
        for i, row in enumerate(test_set)
    ]
    write_jsonl(stage.file("base_samples.jsonl"), samples)
    stage.finish("done", base_asked=asked_of_base(run, BACKEND, "guide", ASKED | parameters))
    return run


def test_answers_are_taken_over_and_graded_again(tmp_path):
    run = base_run("one")
    found = taken_over(
        "one",
        asked_of_base(run, BACKEND, "guide", ASKED | {"max_in_flight": 8, "seed": 7}),
        TEST_SET,
        Format(),
        check_final_answer,
        tmp_path / "s.jsonl",
    )
    assert (found["correct"], found["total"], found["tokens"], found["from_run"]) == (1, 3, 0, "one")
    [first, *_] = read_jsonl(tmp_path / "s.jsonl")
    assert first["score"] and first["output"] == "Final answer: 0" and first["tokens"] == 9


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"max_tokens": 32}, "max_tokens 32 there, 64 here"),
        ({"temperature": 0.7}, "temperature 0.7 there, 0.0 here"),
        ({"test_set": TEST_SET[:2]}, "another test set"),
        ({"other": {"base_model": "large"}}, "base_model 'large' there"),
        ({"other": {"backend": "hosted"}}, "backend 'hosted' there, 'stub' here"),
        ({"other": {"prompt_format": "qwen3_instruct"}}, "prompt_format"),
        ({"other": None}, "kept no note"),
        ({"status": "stale"}, "no finished 'evaluate' stage"),
        ({"prompts": "What was"}, "does not answer the 3 prompts"),
    ],
)
def test_answers_to_something_else_are_refused(there, words, tmp_path):
    mine = asked_of_base(base_run("mine"), BACKEND, "guide", ASKED)
    run = base_run(
        "one",
        there.get("test_set", TEST_SET),
        **{name: there[name] for name in ("max_tokens", "temperature") if name in there},
    )
    stages = run.manifest["stages"]
    if "other" in there:
        stages["evaluate"]["results"] = (
            {"base_asked": stages["evaluate"]["results"]["base_asked"] | there["other"]}
            if there["other"]
            else {}
        )
    stages["evaluate"]["status"] = there.get("status", "done")
    run.update(stages=stages)
    if "prompts" in there:
        path = run.file("evaluate/base_samples.jsonl")
        path.write_text(path.read_text().replace("What is", there["prompts"]))
    with pytest.raises(RunError, match=words) as error:
        taken_over("one", mine, TEST_SET, Format(), check_final_answer, tmp_path / "s.jsonl")
    assert "→" in str(error.value) and not (tmp_path / "s.jsonl").exists()


def test_course_run_refuses_a_base_run_before_it_starts(capsys, folder):  # noqa: F811
    base_run("one", max_tokens=32)
    before = tree(folder)
    for arguments, words in (
        (["-p", "base_run=one"], "max_tokens 32 there, 96 here"),
        (["-p", "base_run=two"], "'two'"),
    ):
        status, _, err = course(capsys, "run", "--dry-run", *arguments)
        assert status == 1 and tree(folder) == before
        assert_one_message(err, words)


def test_a_run_like_one_of_a_sweep_asks_the_base_model_itself():
    from helpers.runs.settings import run_parameters

    manifest = {
        "parameters": {"rank": 8, "base_run": "s-01"},
        "stages": {"evaluate": {"parameters": {"base_run": "s-01"}}},
    }
    assert run_parameters(manifest, notebook_parameters()) == ({"rank": 8}, [])


# for real


@pytest.fixture(scope="module")
def toy(toy_model, tmp_path_factory):
    """A stub with the toy model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "OMP_NUM_THREADS", "1"
        )  # two threads for so little work would mostly wait for each other
        server = Server(toy_model, tmp_path_factory.mktemp("stub"))
    yield server
    server.stop()


def test_a_sweep_on_a_dask_cluster_of_two_workers(toy, folder, tmp_path):  # noqa: F811
    """Two settings until evaluate, by the real command, through two worker processes; then what they shared, against doing it alone."""
    from distributed import LocalCluster
    from distributed.diagnostics.plugin import SchedulerPlugin

    from helpers.data.split import PARTS, load_json_files, split_data
    from helpers.evaluate.evaluation import evaluate_model
    from helpers.train.models import load_tokenizer

    took: set[str] = set()

    class Watcher(SchedulerPlugin):
        def transition(self, key, start, finish, *args, worker=None, **kwargs):
            if finish == "memory":
                took.add(worker)

    settings = {
        "max_train": 32,
        "max_validation": 2,
        "max_test": 4,
        "max_tokens": 8,
        "epochs": 3.0,
        "eval_every": 99,
        "subset": 1,
        "sampled_problems": 1,
        "samples_each": 1,
        "learning_rate": 0.1,
        "base_model": toy.model,
    }
    arguments = [word for name, value in settings.items() for word in ("-p", f"{name}={value}")]
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        cluster.scheduler.add_plugin(Watcher())
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "helpers.course.cli",
                "sweep",
                "--name",
                "s",
                "--grid",
                "rank=4,8",
                *arguments,
                "--backend",
                toy.url,
                "--dask",
                cluster.scheduler_address,
                "--json",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    logs = "".join(path.read_text()[-1500:] for path in folder.glob("s-*/course.log"))
    assert result.returncode == 0, result.stderr[-3000:] + logs
    first, second = json.loads(result.stdout)["runs"]
    assert len(took) == 2  # both workers
    assert (second["split_from"], second["base_from"], first["split_from"], first["base_from"]) == (
        "s-01",
        "s-01",
        None,
        None,
    )
    assert first["validation_loss"] != second["validation_loss"]
    one, two = Run(folder / "s-01"), Run(folder / "s-02")
    assert {name: entry["status"] for name, entry in two.manifest["stages"].items()} == dict.fromkeys(
        ("split", "train", "evaluate"), "done"
    )
    assert (
        "not asked here: 4 answers taken over from run s-01"
        in two.file("notebooks/03_evaluate.ipynb").read_text()
    )
    assert "Tuned model: 100%" in two.file("notebooks/03_evaluate.ipynb").read_text()

    split = split_data(
        load_json_files(ROOT / "data" / "word_problems.json"),
        0.2,
        0.1,
        42,
        max_train=32,
        max_validation=2,
        max_test=4,
    )
    for part, file in PARTS.items():
        assert (
            read_json(two.file(f"split/{file}"))
            == getattr(split, part)
            == read_json(one.file(f"split/{file}"))
        )
    sampler = toy.connect().create_sampling_client(base_model=toy.model).result()
    alone = evaluate_model(sampler, split.test, load_tokenizer(toy.model), max_tokens=8)
    for run in (one, two):
        assert [sample["output"] for sample in read_jsonl(run.file("evaluate/base_samples.jsonl"))] == [
            sample["output"] for sample in alone["samples"]
        ]
    assert (
        read_json(one.file("evaluate/model_evaluation.json"))["base_accuracy"]
        == read_json(two.file("evaluate/model_evaluation.json"))["base_accuracy"]
    )
