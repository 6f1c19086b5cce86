"""The settings of a sweep: from a grid or a file, what is refused, how long it takes. Nothing is run."""

import json
import re

import pytest
from commands import assert_one_message, course, tree
from runs_for_tests import make_run

from helpers.errors import CourseError
from helpers.runs.sweep.grid import grid, grid_values, read_settings

pytestmark = pytest.mark.usefixtures("folder")


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
        "batch_sizes=1,2",
    ]
    assert grid_values(texts) == {
        "rank": [8, 32],
        "learning_rate": [1e-3, 3e-4],
        "prompt_format": ["guide", "qwen3_instruct"],
        "data_files": ["a.json,b.json", "c.json"],
        "batch_sizes": ["1", "2"],
    }


@pytest.mark.parametrize(
    "texts", [["rank"], ["rank="], ["=8"], ["rank=8,,16"], ["rank=8,"], ["rank=8", "rank=16"]]
)
def test_a_grid_that_is_none(texts):
    with pytest.raises(CourseError, match=r"rank|=8"):
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
        ("s.csv", "rank,epochs\n8\n", ["line 2", "1 cells", "has 2"]),
        ("s.csv", "rank,rank\n8,9\n", ["line 1", "column 1 has the name 'rank'"]),
        ("s.csv", "", ["no settings"]),
        ("s.csv", "rank,\n8,9\n", ["line 1", "column 2 has no name"]),
        ("s.csv", "rank\n", ["no settings"]),
        ("s.csv", b"rank\n\xff\n", ["can't be read"]),
        ("s.yaml", "- rank: 8", [".json and .csv"]),
        ("nowhere.csv", None, ["does not exist"]),
    ],
)
def test_settings_files_that_cant_be_used(name, text, parts, capsys, tmp_path, folder):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    status, _, err = course(capsys, "sweep", "--name", "s", "--settings", str(tmp_path / name))
    assert status == 1 and not folder.exists()
    assert_one_message(err, name, *parts)


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["--grid", "ranks=8,16"], 1, ["'ranks'", "did you mean rank?", "setting 1 (ranks=8)"]),
        (["--grid", "rank=8,many"], 1, ["setting 2 (rank=many)", "integer"]),
        (["--grid", "epochs=1,0"], 1, ["setting 2 (epochs=0)", "greater than 0"]),
        (["--grid", "test_size=0.2,2.0"], 1, ["setting 2", "test_size"]),
        (["--grid", "rank=8,8"], 1, ["1 and 2 are the same", "seed"]),
        (["--grid", "parity_prompts=8,16"], 1, ["the same in the stages up to evaluate"]),
        (["--grid", "base_run=a,b"], 1, ["names a run"]),
        (["--grid", "rank=8,16", "-p", "base_run=nowhere"], 1, ["'nowhere'"]),
        (["--grid", "rank=8,16", "-p", "epoch=1"], 1, ["'epoch'", "did you mean epochs?"]),
        (["--grid", "rank=8,16", "--backend", "cloud"], 1, ["cloud"]),
        (["--grid", "rank=8,16", "-p", "rank=4"], 2, ["rank is set by -p and by --grid"]),
        (["--grid", "rank=8,16", "--settings", "x.csv"], 2, ["--grid or from --settings"]),
        ([], 2, ["--grid or from --settings"]),
        (["--grid", "rank=8,16", "--jobs", "0"], 2, ["--jobs 0"]),
        (["--grid", "rank=8,16", "--resume"], 1, ["no sweep 's'"]),
    ],
)
def test_refused_before_anything_starts(arguments, status, parts, capsys, folder, small_data, notebooks):
    found, _, err = course(capsys, "sweep", "--name", "s", "--data", small_data, *arguments)
    assert found == status and not folder.exists() and notebooks.calls == []
    assert_one_message(err, *parts)


def test_the_default_is_the_same_as_the_default_written_out(tmp_path, capsys, folder, small_data):
    (tmp_path / "s.csv").write_text("rank,epochs\n,2\n32,2\n")
    status, _, err = course(
        capsys, "sweep", "--name", "s", "--settings", str(tmp_path / "s.csv"), "--data", small_data
    )
    assert status == 1 and "1 and 2 are the same" in err


@pytest.mark.parametrize(("taken", "name"), [("s", "s"), ("s-02", "s"), (None, "a/b"), (None, "latest")])
def test_names_that_are_taken(taken, name, capsys, folder, small_data, notebooks):
    if taken:
        make_run(taken, done=())
    before = tree(folder)
    status, _, err = course(capsys, "sweep", "--name", name, "--grid", "rank=8,16", "--data", small_data)
    assert status == 1 and tree(folder) == before and notebooks.calls == []
    assert_one_message(err, repr(taken or name))


def test_dry_run(capsys, folder, small_data):
    grids = ["--grid", "rank=8,16", "--grid", "max_test=4,6", "--dry-run"]
    arguments = ["sweep", "--name", "s", "--data", small_data, *grids]
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


def test_cost_of_a_sweep_on_hosted_tinker(capsys, folder, small_data, monkeypatch):
    monkeypatch.setattr(
        "helpers.runs.prices.read_toml",
        lambda path: {"source": "s", "a/b": {"train": 1000, "prefill": 100, "sample": 10}},
    )
    hosted = ["--backend", "hosted", "-p", "base_model=a/b", "-p", "prompt_format=guide"]
    hosted += ["-p", "learning_rate=1e-3", "--dry-run", "--json"]
    arguments = ["sweep", "--name", "s", "--data", small_data, *hosted]
    one = json.loads(course(capsys, *arguments, "--grid", "rank=8")[1])
    two = json.loads(course(capsys, *arguments, "--grid", "rank=8,16")[1])
    assert two["cost"]["tokens"]["train"] == 2 * one["cost"]["tokens"]["train"]
    assert (
        one["cost"]["tokens"]["prefill"]
        < two["cost"]["tokens"]["prefill"]
        < 2 * one["cost"]["tokens"]["prefill"]
    )  # the base model once
    assert one["cost"]["dollars"] < two["cost"]["dollars"] and two["seconds"] is None
