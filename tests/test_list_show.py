"""`course list` and `course show`, on made-up runs."""

import errno
import json
import os
import re
from datetime import datetime

import pytest
from commands import assert_one_message, course, real_course
from runs_for_tests import begin_stage, finish_stage, make_run, make_text_run

from helpers.errors import DataError
from helpers.runs.failures import record_failure
from helpers.runs.info import find_runs, is_under_way
from helpers.runs.run import Run, open_run
from helpers.text import size_text

pytestmark = pytest.mark.usefixtures("folder")


def day(number: int) -> datetime:
    return datetime.fromisoformat(f"2026-11-{number:02}T10:00:00+00:00")


def listed(capsys) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(course(capsys, "list", "--json")[1])}


HEAD = '"format": 3, "name": "broken", "packages": {}, "created": "2026-11-20T10:00:00Z"'
DAMAGE = {
    "cut off": ('{"name": "x", "cre', "can't be read"),
    "not UTF-8": (b"\xff\xfe\x00", "can't be read"),
    "a list": ("[]", "is damaged"),
    "of an earlier version": ('{"created": "2026-11-20T10:00:00+00:00", "stages": {}}', "an earlier version"),
    "of the version before": ('{"format": 2, "name": "x", "stages": {}}', "an earlier version"),
    "of a later version": ('{"format": 4}', "another version"),
    "a stage of text": (f'{{{HEAD}, "stages": {{"train": "done"}}}}', "stages.train"),
    "settings in a list": (f'{{{HEAD}, "settings": []}}', "settings"),
}


def damage(run: Run, content: str | bytes) -> None:
    run.manifest_path.write_bytes(content if isinstance(content, bytes) else content.encode())


# course list


def test_no_runs(capsys, folder):
    status, out, _ = course(capsys, "list")
    assert status == 0 and len(out.splitlines()) == 1 and "`course run` makes one" in out
    assert course(capsys, "list", "--json")[1].strip() == "[]"
    assert not folder.exists()  # looking makes nothing


def test_list_newest_first(capsys):
    make_run("old", created=day(1))
    begin_stage(make_run("half", done=("split",), created=day(3)), "train")
    make_run("newest", created=day(2))
    status, out, _ = course(capsys, "list")
    lines = out.splitlines()
    assert status == 0 and [line.split()[0] for line in lines[2:]] == ["half", "newest", "old"]
    assert "1 of 6, train not finished" in lines[2] and "–" in lines[2]
    assert "newest (latest)" not in lines[2] and "newest (latest)" in lines[3]
    assert "2026-11-02 10:00" in lines[3] and "10.0%  50.0%" in lines[3] and lines[3].endswith("6 of 6")


def test_list_as_json(capsys):
    run = make_run("mine", right="yyyn")
    begin_stage(run, "export")  # merge and vllm are stale now
    row = listed(capsys)["mine"]
    assert row["latest"] and row["state"] == "unfinished" and row["test_accuracy"] == 0.75
    assert row["stages"]["export"] == "started" and row["stages"]["merge"] == row["stages"]["vllm"] == "stale"
    assert row["bytes"] == sum(path.lstat().st_size for path in run.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("case", DAMAGE)
def test_a_run_that_cant_be_used_is_shown_as_such(case, capsys):
    content, reason = DAMAGE[case]
    damage(make_run("broken", done=()), content)
    make_run("whole")
    status, out, _ = course(capsys, "list")
    line = next(line for line in out.splitlines() if line.startswith("broken"))
    assert status == 0 and reason in line and "6 of 6" in out
    assert {name: row["state"] for name, row in listed(capsys).items()} == {
        "broken": "damaged",
        "whole": "complete",
    }
    for arguments in (
        ["show", "broken"],
        ["run", "--like", "broken", "--dry-run"],
        ["run", "--resume", "--name", "broken"],
    ):
        status, _, err = course(capsys, *arguments)
        assert status == 1
        assert_one_message(err, reason, "course clean broken")


def test_a_manifest_that_is_gone(capsys):
    make_run("broken").manifest_path.unlink()
    assert "manifest.json is missing" in course(capsys, "list")[1]
    status, _, err = course(capsys, "show", "broken")
    assert status == 1
    assert_one_message(err, "manifest.json is missing", "course clean broken")


def test_other_folders_are_no_runs(folder):
    make_run("mine")
    (folder / "inspect").mkdir()
    (folder / "notes.txt").write_text("")
    (folder / "elsewhere").symlink_to(folder / "mine")
    assert [run.name for run in find_runs()] == ["mine"]


def test_a_run_under_way(capsys):
    run = make_run("busy", done=("split",))
    with run.in_use():
        assert listed(capsys)["busy"]["state"] == "under way"
        status, _, err = course(capsys, "clean", "busy", "--yes")
        assert status == 1
        assert_one_message(err, "busy", "under way")
    assert run.path.is_dir() and listed(capsys)["busy"]["state"] == "unfinished"


def test_a_lock_that_can_not_be_asked_for_does_not_count_as_free(monkeypatch):
    run = make_run("busy", done=("split",))
    assert not is_under_way(run.path)
    with run.in_use():
        assert is_under_way(run.path)
    assert not is_under_way(run.path)

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        is_under_way(run.path)


def test_sizes_are_short():
    sizes = [0, 999, 1000, 36_339_780, 999_600, 1_234_567_890, None]
    assert [size_text(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "36 MB", "1.0 MB", "1.2 GB", "–"]


def test_list_by_the_real_command():
    make_run("mine")
    result = real_course("list")
    assert result.returncode == 0 and "mine (latest)" in result.stdout and result.stderr == ""


# course show


def test_show(capsys):
    packages = {"tinker": "0.0.1", "nothing-such": "1"}
    make_run("mine", manifest={"packages": packages}, epochs=2, max_test=120)
    status, out, _ = course(capsys, "show")  # the default is latest
    assert status == 0 and out.startswith("run mine (latest): complete, made 2026-11-20 10:00 UTC")
    assert "Small-1B on stub" in out and "max_test" not in out  # 120 is the default
    assert "epochs = 2.0   (default 1.0)" in out
    assert re.search(r"tuned model, sampler +5/10 +50.0% +23.7% to 76.3%", out)
    assert re.search(r"merged model, vLLM +5/10", out)
    assert re.search(r"split/train.json +\d+.* kB", out)
    assert re.search(r"train +done +0:09 +train is done", out)
    assert "tinker 0.0.1   (now " in out and "nothing-such 1   (now not installed)" in out


FLAG = "WARNING: mean F1 gives 0.5 or more to 8 of 10 answers to other problems"


def test_measures_have_their_names_and_a_lenient_one_is_flagged(capsys):
    make_run("sums")
    make_text_run()
    out = course(capsys, "list")[1]
    assert re.search(r"sums .*  accuracy  +10.0%  +50.0%  ", out)
    assert re.search(r"texts .*  exact match  10.0%, mean F1 0.25  50.0%, mean F1 0.50  ", out)
    assert f"texts: {FLAG}" in out and "sums: WARNING" not in out
    row = listed(capsys)["texts"]
    assert (row["measure"], row["test_mean_f1"]) == ("exact match", 0.5) and FLAG in row["flag"]
    out = course(capsys, "show", "texts")[1]
    assert "exact match  95% interval    mean F1" in out and FLAG in out
    assert re.search(r"merged model, vLLM +5/10 +50.0%  23.7% to 76.3%  0.50", out)
    assert "mismatched answers, the references of other problems: exact match 0/10" in out
    out = course(capsys, "show", "sums")[1]
    assert "mean F1" not in out and "WARNING" not in out and "always answering '4'" in out
    assert "base model, asked in its strongest way on the test set: chat template\n" in out
    assert "chat template, 8 examples: not asked: there is no room" in out


def test_show_as_json(capsys):
    run = make_run("mine")
    run.file("train/metrics.jsonl").unlink()
    details = json.loads(course(capsys, "show", "mine", "--json")[1])
    assert details["changed"] == [] and details["stages"]["split"]["summary"] == "split is done"
    assert {"stage": "train", "path": "train/metrics.jsonl", "bytes": None} in details["artefacts"]
    assert details["data"][0]["path"] == "data/word_problems.json" and len(details["data"][0]["sha256"]) == 64
    assert [row["correct"] for row in details["scores"]] == [1, 5, 5, 5]
    assert "train/metrics.jsonl is missing" in details["problems"][0]


def test_show_what_stages_used(capsys):
    """A notebook that was run by hand leaves its settings with its stage only; one to come has none yet."""
    run = make_run("mine", done=("split",), max_tokens=64, kv_cache_gib=2)
    finish_stage(run, "train", rank=8)
    details = json.loads(course(capsys, "show", "--json")[1])
    assert details["changed"] == [{"name": "rank", "value": 8, "default": 32, "stages": ["train"]}]
    out = course(capsys, "show")[1]
    assert "  rank = 8   (default 32)" in out and "  kv_cache_gib = 2   (for a stage to come)" in out


def test_show_why_a_run_failed(capsys):
    run = make_run("mine", done=("split",))
    begin_stage(run, "train")
    record_failure(run, "train", DataError("row 3 has no output", "add one"))
    assert "  train failed: row 3 has no output\n  → add one\n" in course(capsys, "show")[1]
    begin_stage(open_run("mine"), "train")
    assert "train failed" not in course(capsys, "show")[1]


def test_show_how_the_data_were_read(capsys):
    run = make_run("mine", done=())
    source = {
        "name": "tickets.csv",
        "form": "CSV",
        "records": 48,
        "columns": {"instruction": "text", "output": "output"},
        "unused": ["id"],
    }
    finish_stage(run, "split", results={"sources": [source]})
    lines = [line.strip() for line in course(capsys, "show")[1].splitlines()]
    assert [line for line in lines if "tickets" in line or "←" in line or "used" in line] == [
        "tickets.csv: 48 records (CSV)",
        "instruction ← text",
        "not used: id",
    ]
    assert json.loads(course(capsys, "show", "--json")[1])["sources"] == [source | {"skipped": 0}]


@pytest.mark.parametrize("content", ["{", "[]", '{"test_size": 0}', '{"base_correct": "many"}'])
def test_show_without_usable_scores(content, capsys):
    run = make_run("mine")
    run.file("evaluate/model_evaluation.json").write_text(content)
    status, out, _ = course(capsys, "show")
    assert status == 0 and "merged model, vLLM" in out and "tuned model, sampler" not in out
    problem = (
        r"problem: evaluate/model_evaluation\.json is damaged: .*`course run --from evaluate --name mine`"
    )
    assert re.search(problem, out)


def test_show_near_names(capsys):
    make_run("word-problems")
    status, _, err = course(capsys, "show", "word-problem")
    assert status == 1
    assert_one_message(err, "'word-problem'", "did you mean word-problems?")
    assert "`course list` names them" in course(capsys, "show", "xyz")[2]
