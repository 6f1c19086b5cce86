"""`course clean`, on made-up runs: what is named goes, and nothing else."""

import os
import re
import time
from datetime import datetime

import pytest
from commands import assert_one_message, course, real_course, tree
from runs_for_tests import make_run

from helpers.runs.info import find_runs

pytestmark = pytest.mark.usefixtures("folder")
DAY = 86400


def day(number: int) -> datetime:
    return datetime.fromisoformat(f"2026-11-{number:02}T10:00:00+00:00")


def answer(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: text)


def test_clean_asks_first(capsys, monkeypatch, folder):
    make_run("one")
    make_run("two")
    answer(monkeypatch, "n")
    status, out, _ = course(capsys, "clean", "one")
    assert (
        status == 1
        and "nothing was deleted" in out
        and re.search(r"one +\d.*kB +6 of 6", out)
        and "two" not in out
    )
    assert (folder / "one").is_dir()
    answer(monkeypatch, "y")
    status, out, _ = course(capsys, "clean", "one")
    assert status == 0 and "deleted 1 folder" in out
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "two"]


def test_clean_without_a_terminal(folder):
    make_run("one")
    result = real_course("clean", "one")
    assert result.returncode == 2 and (folder / "one" / "manifest.json").is_file()
    assert_one_message(result.stderr, "no terminal", "--yes")
    result = real_course("clean", "one", "--yes")
    assert result.returncode == 0 and tree(folder) == []  # the link to it is gone, too


def test_clean_points_latest_elsewhere(capsys, folder):
    make_run("old", created=day(1))
    make_run("middle", created=day(2))
    make_run("newest", created=day(3))
    assert course(capsys, "clean", "latest", "--yes")[0] == 0
    assert os.readlink(folder / "latest") == "middle"
    assert course(capsys, "clean", "old", "--yes")[0] == 0
    assert os.readlink(folder / "latest") == "middle"  # it was not touched


def test_clean_by_age(capsys, folder):
    for name, days in (("old", 40), ("damaged", 40), ("newest", 1)):
        run = make_run(name)
        if name == "damaged":
            run.manifest_path.write_text("{")
        then = time.time() - days * DAY
        for path in [run.path, *run.path.rglob("*")]:
            os.utime(path, (then, then))
    status, out, _ = course(capsys, "clean", "--older-than", "30", "--yes")
    assert status == 0 and "left out: damaged can't be used" in out and not (folder / "old").exists()
    status, out, _ = course(capsys, "clean", "newest", "--older-than", "30", "--yes")
    assert status == 0 and "nothing to delete" in out
    assert course(capsys, "clean", "damaged", "--yes")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "newest"]


def test_clean_never_leaves_the_folder(capsys, folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("keep")
    run = make_run("mine")
    run.file("train/link").symlink_to(tmp_path / "outside")
    run.file("train/file").symlink_to(tmp_path / "outside" / "precious.txt")
    (folder / "elsewhere").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "manifest.json").write_text('{"created": "2020-01-01", "stages": {}}')
    for name in ("../outside", "elsewhere", str(tmp_path / "outside"), "..", ".", ""):
        status, _, err = course(capsys, "clean", name, "--yes")
        assert status == 1
        assert_one_message(err)
    assert course(capsys, "clean", "mine", "--older-than", "0", "--yes")[0] == 0
    assert tree(tmp_path) == [
        "outside",
        "outside/manifest.json",
        "outside/precious.txt",
        "runs",
        "runs/elsewhere",
    ]


def test_clean_all_or_none_for_a_wrong_name(capsys, folder):
    make_run("one")
    status, _, err = course(capsys, "clean", "one", "onne", "--yes")
    assert status == 1 and (folder / "one").is_dir()
    assert_one_message(err, "'onne'", "did you mean one?")


def test_an_interrupted_deletion_is_ended_by_the_next(capsys, folder, monkeypatch):
    make_run("one")
    make_run("two")

    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        assert course(capsys, "clean", "one", "--yes")[0] == 130
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "latest",
        "two",
    ]
    assert [run.name for run in find_runs()] == ["two"] and len(list(folder.glob(".deleting-one-*"))) == 1
    status, out, _ = course(capsys, "clean", "--yes")
    assert status == 0 and "rest of an interrupted deletion" in out
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "two"]


def test_what_cant_be_deleted_is_named(capsys, folder, monkeypatch):
    make_run("one")
    monkeypatch.setattr(
        "shutil.rmtree",
        lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied", f"{path}/train")),
    )
    status, _, err = course(capsys, "clean", "one", "--yes")
    assert status == 1
    assert_one_message(err, "Permission denied", "/train", "`course clean` again")
