"""The loader: files in each known form become records, and what can't be used is named."""

import json
from pathlib import Path

import pytest

from helpers.data import load_json_files
from helpers.data.records import data_paths
from helpers.errors import DataError
from helpers.paths import ROOT

DATA = ROOT / "data"


GUIDE = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


@pytest.mark.parametrize(
    "row, expected",
    [
        (GUIDE, GUIDE),
        ({"instruction": "Hi", "output": "Ho"}, {"instruction": "Hi", "input": "", "output": "Ho"}),
        (
            {"instruction": "Hi", "input": None, "output": "Ho", "answer": 7, "other": 1},
            {"instruction": "Hi", "input": "", "output": "Ho", "answer": "7"},
        ),
        (
            {
                "question": "Q",
                "attempt": "So it is 5.",
                "solution": "Thus $\\boxed{5}$.",
                "thinking_trajectories": ["hm"],
                "cot_type": "math",
            },
            {"instruction": "Q", "input": "", "output": "So it is 5.", "answer": "5", "category": "math"},
        ),
        (
            {"question": "Q", "solution": "128", "attempt": ""},
            {"instruction": "Q", "input": "", "output": "128", "answer": "128"},
        ),
        (
            {"question": "Q", "solution": "long\nproof", "deepseek_attempt": "D", "gemini_attempt": "G"},
            {"instruction": "Q", "input": "", "output": "D"},
        ),
        (
            {"question": "Q", "answer": "2 * 600 = 1200\n#### 1,200"},
            {"instruction": "Q", "input": "", "output": "2 * 600 = 1200\n#### 1,200", "answer": "1200"},
        ),
        ({"question": "Q", "answer": "yes"}, {"instruction": "Q", "input": "", "output": "yes"}),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            {"instruction": "Hi", "input": "", "output": "Ho"},
        ),
    ],
)
def test_each_form_of_record(row, expected, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row]), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    assert load_json_files([tmp_path / "a.json", tmp_path / "b.jsonl"]) == [expected, expected]


def test_forms_may_mix_and_a_byte_order_mark_is_read(tmp_path):
    rows = [GUIDE, {"question": "Q", "answer": "#### 4"}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    assert [record["output"] for record in load_json_files(tmp_path / "a.json")] == ["3", "#### 4"]


def record_with(**fields):
    return json.dumps([GUIDE, {**GUIDE, **fields}])


CANNOT_BE_LOADED = [
    ("missing.json", None, ["missing.json", "does not exist"]),
    ("folder.json", "DIR", ["folder.json", "is a folder"]),
    ("empty.json", "", ["empty.json", "is empty"]),
    ("blank.jsonl", "\n \n", ["blank.jsonl", "is empty"]),
    ("data.csv", "a,b", ["data.csv", "neither .json nor .jsonl"]),
    ("bad.json", '[\n {"instruction": "a",}\n]', ["bad.json", "not JSON", "line 2, column"]),
    ("lines.json", '{"a": 1}\n{"a": 2}', ["lines.json", "line 2, column 1", "rename the file to .jsonl"]),
    ("bad.jsonl", json.dumps(GUIDE) + "\n{oops}\n", ["bad.jsonl, line 2", "column 2"]),
    ("deep.json", "[" * 200_000, ["deep.json", "nested too deeply"]),
    ("object.json", json.dumps(GUIDE), ["object.json", "an object, not a list"]),
    ("none.json", "[]", ["none.json", "empty list"]),
    ("texts.json", '["a", "b"]', ["texts.json, index 0", "is text, not an object"]),
    ("null.jsonl", json.dumps(GUIDE) + "\nnull\n", ["null.jsonl, line 2", "is null"]),
    ("a.json", '[{"instruction": "a"}]', ["index 0", "'output' is missing"]),
    ("a.json", record_with(output=[3]), ["a.json, index 1", "'output' is a list"]),
    ("a.json", record_with(output=" "), ["index 1", "'output' is empty"]),
    ("a.json", record_with(instruction=""), ["index 1", "'instruction' is empty"]),
    ("a.json", record_with(input=["x"]), ["index 1", "'input' is a list"]),
    (
        "a.json",
        record_with(answer=True),
        ["index 1", "'answer' is true or false", "text or a number, or left out"],
    ),
    ("a.json", record_with(category=5), ["index 1", "'category' is a number"]),
    ("a.json", record_with(unseen="yes"), ["index 1", "'unseen' is text"]),
    (
        "a.json",
        '[{"prompt": "a", "completion": "b"}]',
        ["index 0", "no known form", "'prompt', 'completion'"],
    ),
    ("a.json", '[{"question": "a"}]', ["index 0", "'answer' is missing"]),
    (
        "a.json",
        '[{"question": "a", "attempt": "", "solution": null}]',
        ["index 0", "none of attempt", "solution"],
    ),
    ("a.json", '[{"messages": "hi"}]', ["index 0", "'messages' is text, not a list"]),
    (
        "a.json",
        json.dumps([{"messages": [{"role": "user", "content": {}}, {"role": "assistant", "content": "x"}]}]),
        ["index 0: message 0", "'content' is an object"],
    ),
    (
        "latin.json",
        b'[{"instruction": "caf\xe9", "output": "x"}]',
        ["latin.json", "not UTF-8", "byte 21"],
    ),
]


@pytest.mark.parametrize("name, text, parts", CANNOT_BE_LOADED)
def test_what_cannot_be_loaded_says_where_and_why(name, text, parts, tmp_path):
    path = tmp_path / name
    if text == "DIR":
        path.mkdir()
    elif isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_json_files([path])
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "→" in message, "every error names a next step"


def test_no_path_is_an_error():
    with pytest.raises(DataError, match="no data file"):
        load_json_files([])


def test_data_paths_are_relative_to_the_root_unless_absolute():
    assert data_paths("a.json, /b/c.jsonl,", Path("/project")) == [
        Path("/project/a.json"),
        Path("/b/c.jsonl"),
    ]
