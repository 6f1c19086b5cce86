"""Other people's data in a run: what the manifest keeps of it, and what `course run` refuses before it
starts.
"""

import pytest
from commands import assert_one_message, course, real_course, tree
from runs_for_tests import finish_stage, make_run
from test_dry_run import plan
from test_own_data import data_set  # noqa: F401

from helpers.data.hub import HubData
from helpers.files import read_json, read_jsonl, write_json
from helpers.paths import ROOT
from helpers.runs.run import Run, data_fingerprints


def test_the_manifest_knows_what_was_in_a_data_set(data_set, capsys, monkeypatch, folder):  # noqa: F811
    name = f"hub:{data_set}"
    [row] = data_fingerprints(name)
    assert row.path == name and row.bytes > 100 and len(row.sha256) == 64 and row.revision is None
    run = make_run("mine", done=(), data_files=name, task="classification")
    finish_stage(run, "split", data_files=name, task="classification")
    assert run.manifest.stages.split.data == [row]
    assert plan(capsys, "--like", "mine")["notes"] == []
    monkeypatch.setattr("helpers.data.hub.load_hub", lambda _: HubData([], "train", "0123abc", 5, "f" * 64))
    assert any(
        f"data set {name} has changed" in note and "0123abc" in note
        for note in plan(capsys, "--like", "mine")["notes"]
    )


# the command


def test_dry_run_shows_columns_and_task(capsys, folder):
    arguments = [
        "--data",
        str(ROOT / "data/reviews.csv"),
        "--columns",
        "input=评价原文,output=情绪",
        "-p",
        "task=classification",
        "-p",
        "instruction=评价是好评还是差评？",
    ]
    found = plan(capsys, *arguments)
    assert found["data"]["task"] == "classification" and found["data"]["labels"] == {"差评": 24, "好评": 24}
    assert found["data"]["sources"][0]["columns"] == {"input": "评价原文", "output": "情绪"}
    out = course(capsys, "run", "--dry-run", *arguments)[1]
    assert "input       ← 评价原文" in out and "not used: 编号" in out and "separated by semicolons" in out
    assert "names the reference's label and no other; 2 labels" in out and not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--columns", "output=情绪"], ["columns", "instruction=text,output=label"]),
        (["--columns", "instruction=text,output=情绪"], ["'text'", "编号"]),
        (["-p", "task=sorting"], ["sorting", "'classification'"]),
        (
            ["-p", "task=extraction", "--columns", "instruction=评价原文,output=情绪"],
            ["can't be scored as extraction"],
        ),
    ],
)
def test_a_run_is_refused_before_it_starts(arguments, parts, capsys, folder):
    status, _, err = course(capsys, "run", "--dry-run", "--data", str(ROOT / "data/reviews.csv"), *arguments)
    assert status == 1 and tree(folder) == []
    assert_one_message(err, *parts)


def test_a_run_without_its_bad_records(small_data, folder):
    """Through the real notebook: what the terminal, the manifest and the split folder say."""
    rows = read_json(small_data)
    rows[0]["source"] = "a book"
    write_json(small_data, [*rows, {"instruction": "\x1b]0;no answer"}, *rows[:2]])
    arguments = ["--name", "mine", "--until", "split", "--data", small_data, "--skip-bad"]
    result = real_course("run", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"note: {small_data}: not used: source\n" in result.stdout
    assert f"note: {small_data}: 1 row left out: see split/skipped.jsonl" in result.stdout
    assert "note: 2 of 42 records ask exactly what an earlier one asks" in result.stdout
    split = Run(folder / "mine").stage("split")
    assert split.settings.skip_bad and split.results.sources[0].skipped == 1
    assert "split/skipped.jsonl" in split.artefacts
    [skipped] = read_jsonl(folder / "mine/split/skipped.jsonl")
    assert (skipped["row"], skipped["reason"]) == ("index 40", "field 'output' is missing")
    assert skipped["record"] == {"instruction": "\x1b]0;no answer"}
