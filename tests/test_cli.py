"""The `course` command around its runs: list, show, clean, run --dry-run, run --like, completion. No notebook is run here.

Runs are made up: a manifest and small files. The real command is used where its process matters (exit status, no terminal).
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tinker_cookbook.utils import cost_estimation

from helpers.course import cli
from helpers.course.completion import words
from helpers.files import read_json, write_json
from helpers.paths import ROOT
from helpers.runs import estimate, settings
from helpers.runs import run as runs
from helpers.runs.info import find_runs
from helpers.runs.run import STAGES, Run, new_run
from helpers.text import size_text

DAY = 86400
RESULTS = {
    "evaluate": {"base_accuracy": 0.01, "test_accuracy": 0.6},
    "merge": {"correct": 59, "total": 100},
    "vllm": {"correct": 58, "total": 100},
}
EVALUATION = {
    "test_size": 100,
    "base_correct": 1,
    "base_accuracy": 0.01,
    "base_accuracy_ci95": [0.0, 0.05],
    "base_by_category": {},
    "test_correct": 60,
    "test_accuracy": 0.6,
    "test_accuracy_ci95": [0.5, 0.69],
    "by_category": {},
    "gained": 59,
    "lost": 0,
    "p_value": 0.0,
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty runs folder beside a file that must never go."""
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(os, "fsync", lambda _: None)  # several seconds of this file otherwise
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious.txt").write_text("keep")
    return tmp_path / "runs"


def make_run(
    name: str, done: tuple[str, ...] = tuple(STAGES), created: str = "2026-11-20T10:00:00+00:00", **manifest
) -> Run:
    """A run that looks as the notebooks leave it, as far as a manifest tells."""
    run = new_run(name)
    for stage in done:
        work = run.begin(stage, {"data_files": "data/word_problems.json"} if stage == "split" else {})
        file = work.file("result.txt")
        file.write_text("x" * 1000)
        work.finish(f"{stage} is done", artefacts=[file], **RESULTS.get(stage, {}))
    if "evaluate" in done:
        write_json(run.file("evaluate/model_evaluation.json"), EVALUATION)
    run.update(created=created, **manifest)
    return run


def course(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the command, in this process."""
    try:
        status = cli.main(list(arguments))
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def real_course(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.course.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **options,
    )


def assert_one_message(stderr: str, *parts: str) -> None:
    assert (
        len(re.findall(r"^course: ", stderr, re.M)) == 1 and len(re.findall(r"^→ \S", stderr, re.M)) == 1
    ), stderr
    assert [part for part in parts if part not in stderr] == [], stderr


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


DAMAGE = {
    "cut off": ('{"name": "x", "cre', "can't be read"),
    "not UTF-8": (b"\xff\xfe\x00", "can't be read"),
    "a list": ("[]", "lists no stages"),
    "no stages": ('{"created": "2026-11-20T10:00:00+00:00"}', "lists no stages"),
    "no date": ('{"stages": {}}', "'created'"),
    "another date": ('{"created": "yesterday", "stages": {}}', "'created'"),
    "a stage of text": (
        '{"created": "2026-11-20T10:00:00+00:00", "stages": {"train": "done"}}',
        "stage 'train'",
    ),
    "a summary of numbers": (
        '{"created": "2026-11-20T10:00:00+00:00", "stages": {"train": {"status": "done", "summary": 3}}}',
        "'summary'",
    ),
    "artefacts of numbers": (
        '{"created": "2026-11-20T10:00:00+00:00", "stages": {"train": {"status": "done", "artefacts": [3]}}}',
        "'artefacts'",
    ),
    "parameters in a list": (
        '{"created": "2026-11-20T10:00:00+00:00", "stages": {}, "parameters": []}',
        "'parameters'",
    ),
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
    make_run("old", created="2026-11-01T10:00:00+00:00")
    make_run("half", done=("split",), created="2026-11-03T10:00:00+00:00").begin("train", {})
    make_run("newest", created="2026-11-02T10:00:00+00:00")
    status, out, _ = course(capsys, "list")
    lines = out.splitlines()
    assert status == 0 and [line.split()[0] for line in lines[2:]] == ["half", "newest", "old"]
    assert "1 of 6, train not finished" in lines[2] and "–" in lines[2]
    assert (
        "newest (latest)" in lines[3]
        and "2026-11-02 10:00" in lines[3]
        and "1.0%  60.0%" in lines[3]
        and lines[3].endswith("6 of 6")
    )


def test_list_as_json(capsys):
    run = make_run("mine")
    run.begin("export", {})  # merge and vllm are stale now
    [row] = json.loads(course(capsys, "list", "--json")[1])
    assert (
        row["name"] == "mine"
        and row["latest"]
        and row["state"] == "unfinished"
        and row["test_accuracy"] == 0.6
    )
    assert row["stages"]["export"] == "started" and row["stages"]["merge"] == row["stages"]["vllm"] == "stale"
    assert row["bytes"] == sum(path.lstat().st_size for path in run.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_shown_as_such(case, capsys):
    content, words_of_it = DAMAGE[case]
    damage(make_run("broken", done=()), content)
    make_run("whole")
    status, out, _ = course(capsys, "list")
    assert (
        status == 0
        and re.search(r"broken .*damaged: manifest.json ", out)
        and words_of_it in out
        and "6 of 6" in out
    )
    assert {row["name"]: row["state"] for row in json.loads(course(capsys, "list", "--json")[1])} == {
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
        assert_one_message(err, "broken", "damaged", words_of_it)


def test_a_manifest_that_is_gone(capsys):
    make_run("broken").manifest_path.unlink()
    assert "manifest.json is missing" in course(capsys, "list")[1]
    status, _, err = course(capsys, "show", "broken")
    assert status == 1
    assert_one_message(err, "damaged", "course clean broken")


def test_other_folders_are_no_runs(capsys, folder):
    make_run("mine")
    (folder / "inspect").mkdir()
    (folder / "notes.txt").write_text("")
    (folder / "elsewhere").symlink_to(folder / "mine")
    assert [run.name for run in find_runs()] == ["mine"]


def test_a_run_under_way(capsys):
    run = make_run("busy", done=("split",))
    with run.in_use():
        assert json.loads(course(capsys, "list", "--json")[1])[0]["state"] == "under way"
        status, _, err = course(capsys, "clean", "busy", "--yes")
        assert status == 1
        assert_one_message(err, "busy", "under way")
    assert run.path.is_dir() and json.loads(course(capsys, "list", "--json")[1])[0]["state"] == "unfinished"


def test_sizes_are_short():
    sizes = [0, 999, 1000, 36_339_780, 999_600, 1_234_567_890, None]
    assert [size_text(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "36 MB", "1.0 MB", "1.2 GB", "–"]


def test_list_by_the_real_command():
    make_run("mine")
    result = real_course("list")
    assert result.returncode == 0 and "mine (latest)" in result.stdout and result.stderr == ""


# course show


def test_show(capsys):
    make_run(
        "mine",
        parameters={"epochs": 2.0, "max_test": 120},
        packages={"tinker": "0.0.1", "nothing-such": "1"},
        base_model="/models/Small",
        backend={"kind": "stub"},
    )
    status, out, _ = course(capsys, "show")  # the default is latest
    assert status == 0 and out.startswith("run mine (latest): complete, made 2026-11-20 10:00 UTC")
    assert (
        "Small on stub" in out and "epochs = 2.0   (default 1.0)" in out and "max_test" not in out
    )  # 120 is the default
    assert re.search(r"tuned model, sampler +60/100 +60.0% +50.2% to 69.1%", out) and re.search(
        r"merged model, vLLM +58/100", out
    )
    assert re.search(r"split/result.txt +1.0 kB", out) and re.search(r"train +done +0:00 +train is done", out)
    assert "tinker 0.0.1   (now " in out and "nothing-such 1   (now not installed)" in out


def test_show_as_json(capsys):
    run = make_run("mine")
    run.file("train/result.txt").unlink()
    details = json.loads(course(capsys, "show", "mine", "--json")[1])
    assert details["parameters"] == {} and details["stages"]["split"]["summary"] == "split is done"
    assert {"stage": "train", "path": "train/result.txt", "bytes": None} in details["artefacts"]
    assert details["data"][0]["path"] == "data/word_problems.json" and len(details["data"][0]["sha256"]) == 64
    assert [row["correct"] for row in details["scores"]] == [1, 60, 59, 58]


def test_show_what_stages_recorded(capsys):
    """A notebook that was run by hand leaves its parameters with its stage only."""
    run = make_run("mine", done=("split",))
    run.begin("train", {"rank": 8, "epochs": 1.0}).finish("done")
    details = json.loads(course(capsys, "show", "--json")[1])
    assert details["parameters"] == {"rank": {"value": 8, "defaults": {"train": 32}}}


def test_show_how_the_data_were_read(capsys):
    run = make_run("mine", done=())
    source = {
        "name": "tickets.csv",
        "form": "CSV",
        "records": 48,
        "columns": {"instruction": "text", "output": "output"},
        "unused": ["id"],
    }
    run.begin("split", {}).finish("done", sources=[source])
    lines = [line.strip() for line in course(capsys, "show")[1].splitlines()]
    assert [line for line in lines if "tickets" in line or "←" in line or "used" in line] == [
        "tickets.csv: 48 records (CSV)",
        "instruction ← text",
        "not used: id",
    ]
    assert json.loads(course(capsys, "show", "--json")[1])["sources"] == [source]
    run.begin("split", {}).finish("done", sources=[{"name": "of another version"}])
    assert course(capsys, "show")[0] == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"test_size": 0}', '{"base_correct": "many"}'])
def test_show_without_usable_scores(content, capsys):
    run = make_run("mine")
    run.file("evaluate/model_evaluation.json").write_text(content)
    status, out, _ = course(capsys, "show")
    assert status == 0 and "merged model, vLLM" in out and "tuned model, sampler" not in out
    assert re.search(
        r"problem: evaluate/model_evaluation\.json (is damaged|can't be read): .*`course run --from evaluate --name mine`",
        out,
    )
    assert "model_evaluation.json" in json.loads(course(capsys, "show", "--json")[1])["problems"][0]


def test_show_near_names(capsys):
    make_run("word-problems")
    status, _, err = course(capsys, "show", "word-problem")
    assert status == 1
    assert_one_message(err, "'word-problem'", "did you mean word-problems?")
    assert "`course list` names them" in course(capsys, "show", "xyz")[2]


# course clean


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


def test_clean_mends_latest(capsys, folder):
    make_run("old", created="2026-11-01T10:00:00+00:00")
    make_run("middle", created="2026-11-02T10:00:00+00:00")
    make_run("newest", created="2026-11-03T10:00:00+00:00")
    assert course(capsys, "clean", "latest", "--yes")[0] == 0
    assert os.readlink(folder / "latest") == "middle"
    assert course(capsys, "clean", "old", "--yes")[0] == 0
    assert os.readlink(folder / "latest") == "middle"  # it was not touched


def test_clean_by_age(capsys, folder):
    for name, days in (("old", 40), ("damaged", 40), ("newest", 1)):
        run = make_run(name)
        if name == "damaged":
            damage(run, "{")
        then = time.time() - days * DAY
        for path in [run.path, *run.path.rglob("*")]:
            os.utime(path, (then, then))
    status, out, _ = course(capsys, "clean", "--older-than", "30", "--yes")
    assert status == 0 and "left out: damaged is damaged" in out and not (folder / "old").exists()
    status, out, _ = course(capsys, "clean", "newest", "--older-than", "30", "--yes")
    assert status == 0 and "nothing to delete" in out
    assert course(capsys, "clean", "damaged", "--yes")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "newest"]


def test_clean_never_leaves_the_folder(capsys, folder, tmp_path):
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["clean"],
        ["clean", "--older-than", "-1"],
        ["clean", "--older-than", "nan"],
        ["run", "--json"],
        ["run", "--like", "x", "--resume"],
        ["run", "--like", "x", "--from", "train"],
    ],
)
def test_wrong_usage(arguments, capsys, folder):
    status, _, err = course(capsys, *arguments)
    assert status == 2 and not folder.exists()
    assert_one_message(err)


@pytest.mark.parametrize(
    "arguments", [[], ["lst"], ["show", "a", "b"], ["clean", "--older-than", "soon"], ["completion", "fish"]]
)
def test_wrong_words(arguments, capsys):
    assert course(capsys, *arguments)[0] == 2


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


# course run --dry-run


def plan(capsys, *arguments: str) -> dict:
    status, out, err = course(capsys, "run", "--dry-run", "--json", *arguments)
    assert status == 0, err
    return json.loads(out)


@pytest.fixture
def small_data(tmp_path) -> Path:
    """40 records; each prompt has 40 characters, each answer 20."""
    rows = [
        {"instruction": f"{i:03} " + chr(97 + i % 26) * 4, "output": f"Final answer: {i:03}"}
        for i in range(40)
    ]
    path = tmp_path / "small.json"
    path.write_text(json.dumps(rows))
    return path


def test_dry_run_makes_nothing(capsys, folder, small_data):
    found = plan(
        capsys,
        "--name",
        "mine",
        "--data",
        str(small_data),
        "-p",
        "epochs=2",
        "-p",
        "batch_size=4",
        "--until",
        "evaluate",
    )
    assert not folder.exists()
    assert [row["notebook"] for row in found["stages"]] == ["01_split", "02_train", "03_evaluate"]
    assert found["stages"][1]["parameters"] == {"epochs": 2, "batch_size": 4}
    assert (
        found["data"]["records"],
        found["data"]["test"],
        found["data"]["validation"],
        found["data"]["train"],
    ) == (40, 8, 4, 28)
    assert found["work"]["train"]["steps"] == 14
    assert found["work"]["train"]["train"] == 2 * found["work"]["train"]["tokens_an_epoch"] > 0
    assert found["work"]["evaluate"]["written_at_most"] == (2 * 8 + 2 * 8 + 8 * 8) * 96
    assert found["backend"] == "stub" and found["cost"] is None and sum(found["seconds"].values()) > 20


def test_dry_run_as_text(capsys, folder, small_data):
    status, out, _ = course(capsys, "run", "--dry-run", "--data", str(small_data), "-p", "max_test=5")
    assert status == 0 and not folder.exists()
    assert "max_test = 5" in out and "40 records: 28 to train on, 4 to choose by, 5 to test on" in out
    assert "on the stub" in out and "an estimate" in out and "cost      none" in out


def test_dry_run_by_the_real_command(folder, small_data):
    result = real_course("run", "--dry-run", "--data", str(small_data))
    assert (
        result.returncode == 0 and "4 steps" in result.stdout and result.stderr == "" and not folder.exists()
    )


def test_tokens_without_a_tokenizer_are_estimated_and_it_says_so(capsys, small_data, monkeypatch, tmp_path):
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path / "empty"))
    status, out, _ = course(capsys, "run", "--dry-run", "--data", str(small_data))
    assert status == 0 and "estimated from characters" in out
    part = estimate.count_tokens(
        [{"instruction": "a" * 100, "input": "", "output": "b" * 50}], estimate.ByCharacters(), "guide"
    )
    characters = len(f"Instruction: {'a' * 100}\nResponse:"), len(f" {'b' * 50}\n\n")
    assert (part.prompts, part.answers) == tuple(
        -int(-length // estimate.CHARACTERS_PER_TOKEN) for length in characters
    )


def test_the_tokens_of_the_readme(capsys):
    """Notebook 02 counts 67,701 tokens an epoch and 113 steps."""
    if not (estimate.token_counter("", "guide")[1]).startswith("the tokenizer"):
        pytest.skip("the base model was not made yet")
    work = plan(capsys)["work"]["train"]
    assert (work["steps"], work["tokens_an_epoch"], work["train"]) == (113, 67701, 67701)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-p", "epoch=1"], ["'epoch'", "did you mean epochs?"]),
        (["-p", "epochs=0"], ["epochs=0", "above zero"]),
        (["-p", "eval_every=0"], ["eval_every=0"]),
        (["-p", "test_size=2.0"], ["test_size"]),
        (["--profile", "huge"], ["'huge'"]),
        (["--data", "nowhere.json"], ["nowhere.json", "does not exist"]),
        (["--backend", "cloud"], ["'cloud'", "'stub'"]),
        (["--name", "a/b"], ["'a/b'"]),
        (["--name", "taken"], ["'taken'", "another name"]),
        (["--from", "merge", "--name", "taken"], ["'export'"]),
    ],
)
def test_dry_run_refuses_what_a_run_would(arguments, parts, capsys, folder):
    make_run("taken", done=("split",))
    before = tree(folder)
    status, _, err = course(capsys, "run", "--dry-run", *arguments)
    assert status == 1 and tree(folder) == before
    assert_one_message(err, *parts)


def test_dry_run_in_a_folder_that_cant_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "file" / "runs"))
    status, _, err = course(capsys, "run", "--dry-run")
    assert status == 1
    assert_one_message(err, str(tmp_path / "file"), "COURSE_RUNS_DIR=")


def test_dry_run_of_a_run_to_go_on_with(capsys, small_data):
    from helpers.data.split import PARTS

    run = make_run("mine", done=("split",), parameters={"epochs": 3.0})
    for size, file in zip((12, 3, 4), PARTS.values()):
        write_json(run.file(f"split/{file}"), read_json(small_data)[:size])
    before = tree(run.path)
    found = plan(capsys, "--resume", "--until", "train", "-p", "batch_size=6")
    assert (
        not found["new"] and found["run"] == "mine" and [row["stage"] for row in found["stages"]] == ["train"]
    )
    assert (
        found["work"]["train"]["steps"] == 6 and found["data"]["records"] is None and tree(run.path) == before
    )


@pytest.fixture
def price_list(monkeypatch) -> Iterator[list[dict]]:
    """Stands for the list that Tinker publishes; an empty one is not found."""
    rows: list[dict] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if rows else 404)
            self.end_headers()
            self.wfile.write(json.dumps(rows).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(
            cost_estimation, "PRICING_URL", f"http://127.0.0.1:{server.server_port}/models.json"
        )
        monkeypatch.setattr(cost_estimation, "_pricing_fetched", False)
        monkeypatch.setattr(cost_estimation, "_pricing_entries", None)
        yield rows
        server.shutdown()


def test_what_would_go_wrong_is_said_before(capsys, small_data, tmp_path):
    def said(rows: list, *arguments: str) -> str:
        file = tmp_path / "own.json"
        file.write_text(json.dumps(rows))
        status, out, err = course(capsys, "run", "--dry-run", "--data", str(file), *arguments)
        assert status == 0, err
        return out

    words_of = [
        {
            "question": f"Who is number {n}?",
            "answer": f"The baker number {'abcdefghijklmnopqrst'[n]} {'called Bob ' * 20}",
        }
        for n in range(20)
    ]
    out = said(words_of, "-p", "max_tokens=24")
    assert re.search(
        r"the longest reference answer has \d+ tokens, and max_tokens=24 cuts answers off before: -p max_tokens=\d+",
        out,
    )
    assert "20 of 20 answers hold no number, and task=math" in out and "note: 2 steps teach little" in out
    out = said(words_of, "-p", "task=text", "-p", "epochs=10", "-p", "max_tokens=200", "-p", "max_test=2")
    assert "note:" not in out and "left out: 2 by max_test (0 takes all)" in out
    numbers = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(20)]  # a number, not text
    assert "hold no number" not in said(numbers)


@pytest.mark.parametrize(
    ("arguments", "words_of_it"),
    [
        (
            ["--resume", "-p", "epochs=3"],
            ["epochs=3 belongs to 02_train", "--from train", "course run --like mine -p epochs"],
        ),
        (["--from", "evaluate", "--data", "data/reviews.csv"], ["data_files=", "01_split", "--from split"]),
    ],
)
def test_a_setting_that_would_not_be_used_is_refused(arguments, words_of_it, capsys):
    run = make_run("mine", done=("split", "train"))
    run.begin("train", {"epochs": 1.0, "max_tokens": 96}).finish("done")
    status, _, err = course(capsys, "run", "--dry-run", "--name", "mine", *arguments)
    assert status == 2
    assert_one_message(err, *words_of_it)
    for name, value in (
        ("epochs", 1),
        ("max_tokens", 24),
        ("test_limit", 3),
        ("base_run", ""),
    ):  # as it was; for 03 too; for one to come
        cli._check_used({name: value}, run, ["evaluate"], settings.notebook_parameters())
    cli._check_used({"base_run": ""}, run, ["split"], settings.notebook_parameters())


def test_paths_of_the_user_reach_the_notebooks_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "rows").mkdir()
    options = cli._parser().parse_args(
        ["run", "-p", "base_model=models/mine", "--data", "hub:rows#test", "a.json"]
    )
    chosen = settings.chosen_parameters(options)
    assert (
        chosen["base_model"] == str(tmp_path / "models/mine")
        and chosen["data_files"] == f"hub:{tmp_path}/rows#test,{tmp_path}/a.json"
    )
    options = cli._parser().parse_args(["run", "-p", "base_model=Qwen/Qwen3-8B", "--data", "hub:a/b"])
    assert [settings.chosen_parameters(options)[name] for name in ("base_model", "data_files")] == [
        "Qwen/Qwen3-8B",
        "hub:a/b",
    ]


def test_hosted_cost_by_the_published_list(capsys, small_data, price_list):
    arguments = ["--backend", "hosted", "-p", "base_model=a/b", "--until", "train", "--data", str(small_data)]
    price_list += [
        {
            "tinker_id": "a/b:peft:131072",
            "prefill": "$9",
            "cached_prefill": "$9",
            "sample": "$9",
            "train": "$9",
        },
        {
            "tinker_id": "a/b",
            "prefill": "$100",
            "cached_prefill": "$1",
            "sample": "$10.5",
            "train": "$1,000",
            "note": "half price",
        },
    ]
    found = plan(capsys, *arguments)
    work, cost = found["work"]["train"], found["cost"]
    assert cost["dollars"] == pytest.approx(
        (work["train"] * 1000 + work["prefill"] * 100 + work["sample"] * 10.5) / 1e6, abs=1e-4
    )
    assert (
        f"by the prices of {date.today()} in http://127.0.0.1"
        in course(capsys, "run", "--dry-run", *arguments)[1]
    )


def test_hosted_cost_without_prices(capsys, small_data, price_list):
    status, out, _ = course(
        capsys, "run", "--dry-run", "--profile", "hosted", "--until", "export", "--data", str(small_data)
    )
    assert (
        status == 0 and "holds no price of Qwen/Qwen3-30B-A3B-Instruct-2507 for train, prefill, sample" in out
    )
    assert (
        "https://tinker-docs.thinkingmachines.ai/tinker/models/" in out
        and "dollars per million tokens" in out
    )
    assert "TINKER_API_KEY is not set" in out and "time      unknown" in out and "$" not in out


def test_hosted_cost_with_prices(capsys, small_data, monkeypatch):
    table = {"source": "s", "date": "2026-11-25", "a/b": {"train": 1000, "prefill": 100, "sample": 10.5}}
    monkeypatch.setattr(estimate, "read_toml", lambda path: table)
    found = plan(
        capsys, "--backend", "hosted", "-p", "base_model=a/b", "--until", "train", "--data", str(small_data)
    )
    work, cost = found["work"]["train"], found["cost"]
    assert found["model"] == "a/b" and cost["missing"] == []
    assert cost["dollars"] == pytest.approx(
        (work["train"] * 1000 + work["prefill"] * 100 + work["sample"] * 10.5) / 1e6, abs=1e-4
    )
    assert cost["dollars_at_most"] > cost["dollars"]
    status, out, _ = course(
        capsys, "run", "--dry-run", "--backend", "hosted", "-p", "base_model=a/b", "--data", str(small_data)
    )
    assert re.search(
        r"about \$\d+\.\d\d, at most \$\d+\.\d\d: an estimate, by the prices of 2026-11-25 in helpers/runs/prices.toml",
        out,
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('["a/b"]\ntrain = "dear"', ["train = 'dear'", "dollars per million"]),
        ('["a/b"]\ntrain = -1', ["train = -1"]),
        ('["a/b"]\nlearn = 1', ["learn = 1"]),
        ("train = 1", ["'train' is no section"]),
        ("[a/b]\n", ["can't be read"]),
    ],
)
def test_prices_that_are_none(text, parts, capsys, monkeypatch, tmp_path, small_data):
    file = tmp_path / "prices.toml"
    file.write_text(text)
    monkeypatch.setattr(estimate, "read_toml", lambda _: settings.read_toml(file))
    status, _, err = course(capsys, "run", "--dry-run", "--backend", "hosted", "--data", str(small_data))
    assert status == 1
    assert_one_message(err, *parts)


def test_prices_of_the_course_can_be_read():
    assert estimate.prices()["source"].startswith("https://")


def test_an_empty_section_of_prices_hides_nothing(monkeypatch, price_list):
    price_list.append(
        {"tinker_id": "a/b", "prefill": "$1", "cached_prefill": "$1", "sample": "$1", "train": "$1"}
    )
    monkeypatch.setattr(estimate, "read_toml", lambda path: {"source": "s", "a/b": {}})
    assert estimate.cost({"train": estimate.Work(train=10**6)}, "a/b")["dollars"] == 1


# course run --like


@pytest.fixture
def started(monkeypatch) -> list[Run]:
    """Runs whose stages would now run: no notebook is started."""
    found = []
    monkeypatch.setattr(cli, "run_stages", lambda run, stages, parameters, known: found.append(run) or 0)
    return found


def test_like_takes_the_parameters(capsys, started):
    old = make_run("old", parameters={"epochs": 2.0, "rank": 8})
    old.begin("evaluate", {"max_tokens": 64}).finish("done")  # set by hand, in the notebook
    status, out, _ = course(capsys, "run", "--like", "old", "--name", "again", "-p", "rank=16")
    assert status == 0 and started[0].name == "again" and "note:" not in out
    assert started[0].manifest["parameters"] == {"epochs": 2.0, "rank": 16, "max_tokens": 64}
    assert started[0].manifest["like"] == "old"


def test_like_points_out_what_changed(capsys, started, monkeypatch, tmp_path, small_data):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    old = make_run(
        "old",
        done=(),
        packages={**runs.package_versions(), "tinker": "0.0.1"},
        parameters={"data_files": "small.json", "gone": 1},
    )
    old.begin("split", {"data_files": "small.json"}).finish("done")
    small_data.write_text("[]")
    status, out, _ = course(capsys, "run", "--like", "latest", "--name", "again")
    assert (
        status == 0
        and "note: tinker was 0.0.1, is " in out
        and "note: data file small.json has changed" in out
    )
    assert "note: parameter gone=1 is left out" in out and out.count("note:") == 3
    small_data.unlink()
    assert "data file small.json is not there" in course(capsys, "run", "--like", "old", "--name", "more")[1]
    assert (
        "other data files: small.json then, other.json now"
        in course(capsys, "run", "--like", "old", "-p", "data_files=other.json")[1]
    )


def test_like_a_run_without_hashes(capsys, started):
    run = make_run("old", done=())
    run.begin("split", {"data_files": "data/word_problems.json"}).finish("done")
    manifest = run.manifest
    del manifest["stages"]["split"]["data"]
    run.update(stages=manifest["stages"])
    assert "kept no hash" in course(capsys, "run", "--like", "old")[1]


def test_like_a_run_of_another_backend(capsys, started):
    make_run("old", backend={"kind": "hosted"})
    assert "note: it ran on hosted, this one will on stub" in course(capsys, "run", "--like", "old")[1]


def test_like_in_a_dry_run(capsys, small_data, folder):
    make_run("old", parameters={"data_files": str(small_data), "epochs": 5.0})
    before = tree(folder)
    found = plan(capsys, "--like", "old", "--until", "train")
    assert (
        found["work"]["train"]["steps"] == 20
        and any("other data files" in note for note in found["notes"])
        and tree(folder) == before
    )


def test_stages_with_different_values_are_pointed_out():
    known = {"train": {"max_tokens": 96}, "evaluate": {"max_tokens": 96}}
    manifest = {
        "stages": {
            "train": {"parameters": {"max_tokens": 64}},
            "evaluate": {"parameters": {"max_tokens": 96}},
        }
    }
    parameters, notes = settings.run_parameters(manifest, known)
    assert parameters == {"max_tokens": 64} and len(notes) == 1 and "train 64, evaluate 96" in notes[0]


def test_two_at_once_in_one_run(capsys, started):
    run = make_run("mine", done=("split",))
    with run.in_use():
        status, _, err = course(capsys, "run", "--resume")
    assert status == 1 and not started
    assert_one_message(err, "mine", "under way")
    assert course(capsys, "run", "--resume")[0] == 0


# profiles of one's own


def test_a_profile_of_ones_own(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("rank = 4\nmax_tokens = 9  # few\ntask = 'math'\n")
    options = cli._parser().parse_args(["run", "--profile", str(file), "-p", "rank=2"])
    assert settings.chosen_parameters(options) == {"rank": 2, "max_tokens": 9, "task": "math"}
    for content, words_of_it in (
        ("rank 4", "line 1"),
        ("[quick]\nrank = 4", "[quick] is a table"),
        ("epoch = 4", "did you mean epochs?"),
    ):
        file.write_text(content)
        status, _, err = course(capsys, "run", "--dry-run", "--profile", str(file))
        assert status == 1
        assert_one_message(err, words_of_it)


# help and completion


def test_help_teaches(capsys):
    status, out, _ = course(capsys, "--help")
    assert status == 0 and "exit status:" in out and "130" in out
    for command in words(cli._parser(), [""]):
        out = course(capsys, command, "--help")[1]
        examples = re.findall(r"^  .*course .*$", out.partition("example")[2], re.M)
        assert examples, command
        for example in examples:
            line = example.replace('eval "$(', "").replace(')"', "").split("|")[0].split(">")[0].split("#")[0]
            cli._parser().parse_args(line.split()[1:])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            [""],
            [
                "run",
                "sweep",
                "list",
                "show",
                "report",
                "clean",
                "check",
                "stub",
                "serve",
                "lab",
                "completion",
            ],
        ),
        (["c"], ["clean", "check", "completion"]),
        (["run", "--re"], ["--resume"]),
        (["run", "--profile", ""], ["quick", "small", "full", "hosted"]),
        (["run", "--profile", "=", "f"], ["full"]),
        (["run", "--from", "e"], ["evaluate", "export"]),
        (["run", "-p", "max_t"], ["max_test=", "max_tokens=", "max_train="]),
        (["run", "-p", "epochs", "=", ""], []),
        (["run", "-p", "task", "=", ""], ["math", "classification", "extraction", "text"]),
        (["run", "-p", "task", "=", "ex"], ["extraction"]),
        (["run", "-p", "task", "="], ["math", "classification", "extraction", "text"]),
        (["run", "-p", "task=ex"], ["task=extraction"]),
        (["sweep", "--grid", "dtype", "=", "f"], ["float32", "float16"]),
        (["run", "--profile=f"], ["--profile=full"]),
        (["run", "--name", "=", "x", "-p", "task", "=", "te"], ["text"]),
        (["run", "-p", "seed=1", "--fr"], ["--from"]),
        (["run", "--resume", "--name", "m"], ["mine"]),
        (["run", "--data", "a.json", "b"], []),
        (["run", ""], []),
        (["show", ""], ["latest", "mine"]),
        (["show", "--"], ["--help", "--json"]),
        (["clean", "mine", "--older-than", ""], []),
        (["clean", "mine", ""], ["latest", "mine"]),
        (["stub", "st"], ["status", "stop"]),
        (["completion", "z"], ["zsh"]),
        (["report", "mine", ""], ["latest", "mine"]),
        (["report", "--o"], ["--output", "--open"]),
        (["serve", "--l"], ["--learners"]),
        (["lab", "03"], ["03_evaluate"]),
    ],
)
def test_words(typed, expected):
    make_run("mine", done=())
    assert words(cli._parser(), typed) == expected


def test_words_without_any_run():
    assert words(cli._parser(), ["show", ""]) == ["latest"]


def test_the_script_in_bash(folder):
    make_run("mine", done=())
    script = f"""
course() {{ {sys.executable} -m helpers.course.cli "$@"; }}
eval "$(course completion bash)"
try() {{ COMP_WORDS=(course "$@"); COMP_CWORD=$#; _course course; echo "${{COMPREPLY[*]}}"; }}
try run --lik
try show mi
try run -p epo
try run -p task = te
complete -p course
"""
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines() == [
        "--like",
        "mine",
        "epochs=",
        "text",
        "complete -o default -F _course course",
    ], result.stderr


def test_the_script_for_zsh(capsys):
    assert course(capsys, "completion", "zsh")[1].startswith("#compdef course\n")
