"""Mistakes and accidents: one clear message, an exit status that is not zero, and nothing half-written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from commands import assert_one_message, course, real_course
from nbformat.v4 import new_code_cell, new_notebook
from runs_for_tests import make_run

from helpers.course.execute import run_notebook
from helpers.paths import ROOT
from helpers.runs.run import Run

pytestmark = pytest.mark.usefixtures("folder")


def assert_nothing_half_written(folder: Path) -> None:
    left_over = [
        str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or ".making" in path.name
    ]
    assert left_over == []
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)


# test_data.py has what else can be wrong with data.


def test_bad_data_is_refused_before_a_run_is_made(tmp_path, folder, capsys):
    good = {"instruction": "2 + 2 = ?", "input": "", "output": "Final answer: 4"}
    (tmp_path / "data.json").write_text(json.dumps([good, {"instruction": "a"}]))
    words = ["--name", "mine", "--until", "split", "--data", tmp_path / "data.json"]
    status, _, err = course(capsys, "run", *words)
    assert status == 1 and not folder.exists()
    assert_one_message(err, "data.json", "index 1", "'output'")
    assert "--resume" not in err, "there is nothing to go on with"


def test_a_file_in_place_of_a_stage_folder(capsys):
    run = make_run("blocked", done=("split",))
    run.file("train").write_text("")
    result = real_course("run", "--resume", "--until", "train", "--name", run.name)
    assert result.returncode == 1
    assert_one_message(result.stderr, str(run.file("train")))
    failure = run.manifest.failure
    assert failure and (failure.stage, failure.kind) == ("train", "RunError")
    assert f"course: {failure.what}\n→ {failure.fix}\n" in result.stderr
    [again] = re.findall(r"put right, .*?:  course (.*)", result.stderr)
    assert again == "run --resume --name blocked --until train"
    run.file("train").unlink()
    assert course(capsys, *again.split(), "--dry-run")[0] == 0


def test_merge_before_export_in_the_notebook(tmp_path):
    import papermill

    run = make_run("order", done=("split", "train"))
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            ROOT / "notebooks" / "05_merge.ipynb",
            tmp_path / "out.ipynb",
            parameters={"run_name": run.name},
            cwd=ROOT / "notebooks",
            kernel_name="python3",
            progress_bar=False,
        )
    assert caught.value.ename == "RunError"
    assert "'export'" in caught.value.evalue and "04_export.ipynb first" in caught.value.evalue
    assert not run.file("merge").exists() and run.manifest.stages.merge is None


# What a notebook does not say itself


def end_of(cell: str, tmp_path: Path) -> tuple[int, Run]:
    """Exit status of a stage whose notebook has this cell, and its run."""
    run = make_run("mine", done=("split",))
    cells = [new_code_cell(""), new_code_cell(cell)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "02_train.ipynb")
    return run_notebook(run, "train", {}, "[1/1]", tmp_path), run


@pytest.mark.parametrize(
    ("cell", "kind", "what", "fix"),
    [
        ("1 / 0", "ZeroDivisionError", "ZeroDivisionError: division by zero", ""),
        ("raise SystemExit(3)", "SystemExit", "SystemExit: 3", ""),
        (
            "from helpers.errors import DataError; raise DataError('two\\nlines', 'fix')",
            "DataError",
            "two\nlines",
            "fix",
        ),
        ("pass", "RunError", "02_train ran to its end without finishing its stage", "stage.finish"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "RunError",
            "the Python process of 02_train ended in mid-work: killed, or out of memory",
            "close other programs",
        ),
    ],
)
def test_a_notebook_that_ends_without_a_word(cell, kind, what, fix, tmp_path, capsys):
    """The manifest says why all the same; a traceback is shown for what is nobody's mistake."""
    status, run = end_of(cell, tmp_path)
    out, err = capsys.readouterr()
    failure = run.manifest.failure
    assert status == 1 and "FAILED" in out and f"course: {what}\n" in err
    assert failure and (failure.stage, failure.kind, failure.what) == ("train", kind, what)
    assert fix in failure.fix and ("Traceback" in err) == (kind == "ZeroDivisionError")


# Folders that can't be written


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "runs"


def a_file(folder: Path) -> Path:
    (folder / "runs").write_text("")
    return folder / "runs"


def not_on_a_disk(_: Path) -> Path:
    return Path("/proc/no-such-folder/runs")


def no_permission(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("permissions don't stop root")
    (folder / "runs").mkdir(mode=0o555)
    return folder / "runs"


@pytest.mark.parametrize("make", [below_a_file, a_file, not_on_a_disk, no_permission])
def test_a_runs_folder_that_cant_be_written(make, capsys, monkeypatch, tmp_path):
    target = make(tmp_path)
    monkeypatch.setenv("COURSE_RUNS_DIR", str(target))
    status, _, err = course(capsys, "run", "--until", "split")
    assert status == 1
    assert_one_message(err, str(target), "COURSE_RUNS_DIR=")
    assert_nothing_half_written(tmp_path)


def test_latest_is_a_folder(capsys, monkeypatch, tmp_path):
    (tmp_path / "latest").mkdir()
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    status, _, err = course(capsys, "run", "--until", "split")
    assert status == 1
    assert_one_message(err, str(tmp_path / "latest"), "out of the way")
    assert_nothing_half_written(tmp_path)


FULL_DISK = """
import resource, sys
from helpers.errors import RunError
from helpers.files import append_jsonl, write_json
write_json(sys.argv[1] + "/train.json", ["good"])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # files of this process can't grow past 1,000 bytes
for name, write in (("train.json", write_json), ("metrics.jsonl", append_jsonl)):
    try:
        write(f"{sys.argv[1]}/{name}", {"long": "x" * 5000})
    except RunError as error:
        print(error)
"""


def test_a_full_disk_keeps_what_was_there(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    for name in ("train.json", "metrics.jsonl"):
        assert re.search(f"{name}: File too large\n→ ", result.stdout), result.stdout + result.stderr
    assert json.loads((tmp_path / "train.json").read_text()) == ["good"]
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"]
