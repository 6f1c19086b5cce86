"""Other people's data in a run: what the manifest keeps of it, and what `course run` refuses before it
starts.
"""

import re

import pytest
from test_cli import assert_one_message, course, folder, make_run, plan, tree  # noqa: F401  (folder keeps runs apart)
from test_own_data import data_set  # noqa: F401

from helpers.data.hub import HubData
from helpers.errors import CourseError
from helpers.paths import ROOT
from helpers.runs import settings
from helpers.runs.run import data_fingerprints


def test_the_manifest_knows_what_was_in_a_data_set(data_set, capsys, monkeypatch):  # noqa: F811
    name = f"hub:{data_set}"
    [row] = data_fingerprints(name)
    assert row["path"] == name and row["bytes"] > 100 and len(row["sha256"]) == 64 and row["revision"] is None
    run = make_run("mine", done=())
    run.begin("split", {"data_files": name, "task": "classification"}).finish("done")
    assert run.manifest["stages"]["split"]["data"] == [row]
    assert plan(capsys, "--like", "mine")["notes"] == []
    monkeypatch.setattr("helpers.data.hub.load_hub", lambda _: HubData([], "train", "0123abc", 5, "f" * 64))
    assert any(
        f"data set {name} has changed" in note and "0123abc" in note
        for note in plan(capsys, "--like", "mine")["notes"]
    )


# the command


def test_dry_run_shows_columns_and_task(capsys, folder):  # noqa: F811
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
        (["-p", "task=sorting"], ["task='sorting'", "'classification'"]),
        (
            ["-p", "task=extraction", "--columns", "instruction=评价原文,output=情绪"],
            ["can't be scored as extraction"],
        ),
    ],
)
def test_a_run_is_refused_before_it_starts(arguments, parts, capsys, folder):  # noqa: F811
    status, _, err = course(capsys, "run", "--dry-run", "--data", str(ROOT / "data/reviews.csv"), *arguments)
    assert status == 1 and tree(folder) == []
    assert_one_message(err, *parts)


# values of parameters

KNOWN = settings.notebook_parameters()
NUMBERS = {
    name for defaults in KNOWN.values() for name, value in defaults.items() if type(value) in (int, float)
}


def test_every_number_has_a_rule_and_every_default_keeps_it():
    assert [name for name in sorted(NUMBERS) if name not in settings.RULES] == []
    names = {name for defaults in KNOWN.values() for name in defaults}
    assert [name for name in settings.RULES if name not in names] == [], "a rule for a parameter that is gone"
    for defaults in KNOWN.values():
        settings.check_parameters(
            {name: value for name, value in defaults.items() if name != "run_name"}, KNOWN
        )


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("task", ["", "Math", "maths"], ["classification"]),
        ("text_threshold", [0.0, 1.5, -1.0], [1.0]),
        ("test_size", [0.0, 1.0, 2, -0.1, float("nan")], [0.5]),
        ("validation_size", [0, 1], [0.01]),
        ("epochs", [0, -1.0, float("inf"), float("nan")], [0.1, 3]),
        ("learning_rate", [0.0, -1e-3], [1e-5]),
        ("rank", [0, -8], [1]),
        ("batch_size", [0], [1]),
        ("max_train", [-1], [0]),
        ("patience", [-1], [0]),
        ("eval_every", [0], [1]),
        ("seed", [-1, 2**32], [0]),
        ("temperature", [-0.1, float("inf")], [0.0, 1.5]),
        ("samples_each", [0], [1]),
        ("best_metric", ["f1"], ["loss"]),
        ("dtype", ["float64", "fp32"], ["bfloat16"]),
        ("backend_name", ["cloud", "ftp://x"], ["stub", "http://127.0.0.1:8765"]),
        ("gpu_memory_utilization", [0.0, 1.1], [1.0]),
        ("batch_sizes", ["", "1,,2", "0", "1,x"], ["1, 4"]),
        ("executor", ["dask"], ["ray"]),
        ("max_length", [1], [2]),
        ("columns", ["text", "output=a"], ["instruction=a,output=b"]),
    ],
)
def test_impossible_values(name, wrong, right):
    for value in right:
        settings.check_parameters({name: value}, KNOWN)
    for value in wrong:
        with pytest.raises(CourseError) as caught:
            settings.check_parameters({name: value}, KNOWN)
        assert re.search(rf"\b{name}\b", str(caught.value)) and "→" in str(caught.value)
