"""The readers of data, strictly: what is read, what is refused by name, and all faulty rows at once."""

import json
import re
from pathlib import Path

import pytest

from helpers.data import find_duplicates, load_data, load_json_files, split_data
from helpers.data.forms import normalise_record
from helpers.errors import DataError
from helpers.evaluate import choose_task
from helpers.evaluate.benchmark_files import local_records
from helpers.files import parse_json, read_text, read_toml
from helpers.runs.sweep.grid import read_settings

GUIDE = {"instruction": "Add.", "output": "3"}


def write(path: Path, content: str | bytes | list) -> Path:
    text = json.dumps(content) if isinstance(content, list) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"question": "q", "answer": "#### 1", "image": "a.png"}, ["'image'", "into the text"]),
        ({"question": "q", "answer": "#### 1", "history": [["q", "a"]]}, ["'history'", "no place for it"]),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, ["'2'", "none of the 2 choices"]),
        ({"question": "q", "choices": ["x", "y"], "answer": True}, ["'true'", "none of the 2"]),
        ({"question": "q", "choices": ["x", "x"], "answer": "x"}, ["could be several"]),
        ({"question": "q", "choices": "x or y", "answer": 0}, ["no list", "list of at least two"]),
        ({"question": "q", "choices": ["x", None], "answer": 0}, ["two or more texts"]),
        ({"question": "q", "A": "x", "answer": "A"}, ["two or more texts"]),
        ({"question": "q", "choices": ["x", "y"]}, ["'answer' is missing"]),
    ],
)
def test_what_a_record_holds_beside_text_is_refused_by_name(row, parts):
    with pytest.raises(DataError) as caught:
        normalise_record(row)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    ("row", "instruction", "output"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "q\nA. x\nB. y", "B"),
        ({"question": "q", "choices": ["1", "2"], "answer": 0}, "q\nA. 1\nB. 2", "A"),
        ({"question": "q", "choices": ["x", "y"], "answer": "y"}, "q\nA. x\nB. y", "B"),
        ({"question": "q", "choices": ["x", "y"], "answer": "A"}, "q\nA. x\nB. y", "A"),
        (
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            "q\n1. x\n2. y",
            "2",
        ),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "x"}, "q\nA. x\nB. y", "A"),
        ({"question": "q", "A": "x", "B": "y", "C": "z", "answer": "C"}, "q\nA. x\nB. y\nC. z", "C"),
    ],
)
def test_forms_that_people_have(row, instruction, output):
    record = normalise_record(row)
    assert (record["instruction"], record["output"]) == (instruction, output)


@pytest.mark.parametrize(
    ("answer", "number"),
    [("#### (3,4)", "(3,4)"), ("#### 1,2,3", "1,2,3"), ("#### $1,234,567.50", "$1234567.50")],
)
def test_only_commas_of_thousands_go(answer, number):
    assert normalise_record({"question": "q", "answer": answer})["answer"] == number


def test_every_row_counts_for_what_is_used(tmp_path):
    rows = [GUIDE] * 5 + [GUIDE | {"system": "s", "stars": 3}, {"question": "q", "answer": "a", "stars": 1}]
    [source] = load_data(str(write(tmp_path / "a.json", rows))).sources
    assert source.unused == ["stars"] and source.form == "JSON, guide or Alpaca and GSM8K"
    assert source.columns["instruction"] == "instruction or question" and source.columns["system"] == "system"


def test_fields_that_go_nowhere_are_named(tmp_path, capsys):
    rows = [GUIDE | {"id": 3, "source": "\x1b[1m"}, GUIDE | {"history": [], "images": None, "stars": 1}]
    path = write(tmp_path / "a.json", rows)
    plain = write(tmp_path / "b.json", [GUIDE])
    assert load_json_files([path, plain])[0] == GUIDE | {"input": "", "id": 3}
    assert capsys.readouterr().out == f"{path}: not used: source, stars\n"
    assert load_data(str(path)).sources[0].unused == ["source", "stars"]


def test_a_picture_is_left_out_only_by_a_user_who_names_the_columns(tmp_path):
    path = str(write(tmp_path / "a.json", [{"prompt": "p", "completion": "c", "image": "a.png"}]))
    with pytest.raises(DataError, match="'image' is filled"):
        load_data(path)
    assert load_data(path, "instruction=prompt,output=completion").sources[0].unused == ["image"]


NUMBER = "1" * 5000
NOT_STRICT = [
    ('{"output": "1", "output": "2"}', "'output' occurs twice"),
    ('{"a": {"x": 1, "x": 1}}', "'x' occurs twice"),
    (f'{{"n": {NUMBER}}}', "5,000 digits"),
    (f'{{"n": -{NUMBER}}}', "digits"),
    ('{"n": 1e999}', "1e999 is too large"),
    ('{"n": NaN}', "NaN"),
    ('{"n": [-Infinity]}', "-Infinity"),
    ('{"t": "cut \\ud83d"}', "\\ud83d"),
    ('{"cut \\udc00": 1}', "\\udc00"),
    ('{"n": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
    ('{"n": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
]


@pytest.mark.parametrize(("text", "words"), NOT_STRICT)
def test_unclear_json_is_refused_everywhere_with_its_place(text, words, tmp_path):
    good = json.dumps(GUIDE)
    places = {
        "a.jsonl": (f"{good}\n{text}\n", "line 2"),
        "a.JSON": (f"[{good}, {text}]", "index 1"),
    }
    for name, (content, place) in places.items():
        path = write(tmp_path / name, content)
        for read in (load_json_files, lambda path: load_data(str(path))):
            with pytest.raises(DataError, match=re.escape(f"{name}, {place}")) as caught:
                read(path)
            assert words in caught.value.what
    for read in (lambda path: local_records("gsm8k", path), read_settings):
        with pytest.raises(DataError, match=r"b\.json"):
            read(write(tmp_path / "b.json", text))
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "text", [f"epochs = {NUMBER}", "a = " + "[" * 100_000, "a = 1\na = 2", "a = \ud7ff\0"]
)
def test_toml_that_cant_be_read_is_named(text, tmp_path):
    with pytest.raises(Exception, match=r"own\.toml.*(can't be read|is no text)") as caught:
        read_toml(write(tmp_path / "own.toml", text))
    assert "CourseError" in str(type(caught.value))


def test_emoji_and_surrogate_pairs_are_fine():
    assert parse_json('"\\ud83d\\ude00 \U0001f600"') == "\U0001f600 \U0001f600"


TABLE = "text,label\nGrüße,b\n"


@pytest.mark.parametrize(
    "content",
    [
        *(TABLE.encode(name) for name in ("utf-8-sig", "utf-16", "utf-32")),
        b"\xfe\xff" + TABLE.encode("utf-16-be"),
        "sep=;\n" + TABLE.replace(",", ";"),
        "SEP=,\r\n" + TABLE,
        '"sep=|"\n' + TABLE.replace(",", "|"),
        "sep=\t\n" + TABLE.replace(",", "\t"),
        TABLE.replace(",", "|"),
    ],
)
def test_tables_as_programs_save_them(content, tmp_path):
    [record] = load_data(str(write(tmp_path / "a.csv", content))).records
    assert (record["instruction"], record["output"]) == ("Grüße", "b")


def test_cells_may_be_long_and_lines_keep_their_numbers(tmp_path):
    long = "x " * 300_000
    path = write(tmp_path / "a.csv", f'sep=;\ntext;label\n"{long}";b\n')
    assert load_data(str(path)).records[0]["instruction"] == long
    write(path, "sep=;\ntext;label\na;b\nc\n")
    with pytest.raises(DataError, match=r"(?s)row 2 \(line 4\): 1 cells.*semicolon"):
        load_data(str(path))
    write(path, '"' + "x" * 300_000)  # a header that never ends
    with pytest.raises(DataError, match="double quote"):
        load_data(str(path))
    assert read_settings(write(path, "sep=;\nrank;epochs\n8;1\n")) == [{"rank": 8, "epochs": 1}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TABLE.encode("utf-16-le"), "UTF-16LE without a byte order mark"),
        (TABLE.encode("utf-16-be"), "UTF-16BE without a byte order mark"),
        (TABLE.encode("utf-16")[:-1], "not UTF-16"),
        (TABLE.encode("cp1252"), "CP1252"),
        (TABLE.encode() + b"\0", "byte 21 is 0"),
        (b"PK\x03\x04 and so on", "Excel workbook"),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"PAR1", ".parquet"),
    ],
)
def test_a_file_that_is_no_text_says_what_it_is(content, words, tmp_path):
    path = write(tmp_path / "a.csv", content)
    for read in (read_text, lambda path: load_data(str(path)), read_settings):
        with pytest.raises(DataError, match=r"a\.csv") as caught:
            read(path)
        assert words in str(caught.value)


def test_a_list_in_a_jsonl_file_and_lines_in_a_json_file(tmp_path):
    with pytest.raises(DataError, match=r"rename it to \.json"):
        load_data(str(write(tmp_path / "a.jsonl", json.dumps([GUIDE], indent=1))))
    with pytest.raises(DataError, match=r"rename the file to \.jsonl"):
        load_data(str(write(tmp_path / "a.json", f"{json.dumps(GUIDE)}\n" * 2)))


@pytest.mark.parametrize(
    "sign", ["\u200b", "\u00ad", "\ufeff", "\u200f", "\u2060", "\u200d", "\ufe0f", "\u2066"]
)
def test_signs_that_show_nothing_make_no_other_question(sign):
    question = "Is the old mill far?"
    records = [
        {"instruction": text, "input": ""} for text in (question, question.replace("mill", f"mi{sign}ll"))
    ]
    assert [tuple(group) for group in find_duplicates(records)] == [("exact", (0, 1))]


# all faulty rows at once


@pytest.fixture
def faulty(tmp_path) -> Path:
    rows: list = [{"question": f"What is w{n} plus {n}?", "answer": f"#### {n}"} for n in range(600)]
    for place in range(0, 600, 6):
        rows[place] = {"question": "What?", "answer": ""}
    rows[7] = ["no object"]
    lines = [json.dumps(row) for row in rows]
    lines[8] = lines[8][:-1]
    return write(tmp_path / "own.jsonl", "\n".join(lines))


def test_all_faulty_rows_are_one_error_by_reason(faulty):
    with pytest.raises(DataError) as caught:
        load_data(str(faulty))
    lines = caught.value.what.split("\n")
    assert lines[0] == "102 of 600 records can't be used:"
    assert (
        lines[1]
        == f"  {faulty}, line 1, line 7, line 13, line 19, line 25 and 95 more: field 'answer' is empty"
    )
    assert "line 8: the record is a list" in lines[2] and "line 9: not JSON" in lines[3] and len(lines) == 4
    assert "--skip-bad" in caught.value.fix and "skip_bad=True" in caught.value.fix


def test_bad_rows_can_be_left_out_and_are_kept(faulty, tmp_path):
    data = load_data(str(faulty), skip_bad=True)
    assert len(data.records) == 498 and data.sources[0].skipped == 102
    assert "left out, since they can't be used: 102" in str(data)
    assert data.save_skipped(tmp_path) == ["skipped.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len(rows) == 102 and rows[0] == {
        "source": str(faulty),
        "row": "line 1",
        "reason": "field 'answer' is empty",
        "record": {"question": "What?", "answer": ""},
    }
    whole = load_data("data/word_problems.json", skip_bad=True)
    assert whole.save_skipped(tmp_path) == [] and not (tmp_path / "skipped.jsonl").exists()
    with pytest.raises(DataError, match="2 of 2 records"):
        load_data(str(write(tmp_path / "a.json", ["a", "b"])), skip_bad=True)


def test_rows_of_every_source_are_named(tmp_path):
    table = write(tmp_path / "a.csv", "question,answer\nq,#### 1\nq\n")
    lines = write(tmp_path / "b.jsonl", '{"question": "q", "answer": ""}\n{"question": "q", "answer": NaN}\n')
    with pytest.raises(DataError) as caught:
        load_data(f"{table},{lines}")
    assert [
        f"{table}, row 2 (line 3): 1 cells" in caught.value.what,
        f"{lines}, line 2: NaN" in caught.value.what,
    ]
    skipped = load_data(f"{table},{lines}", skip_bad=True).skipped
    assert (skipped[0].where, skipped[0].record) == ("row 2 (line 3)", ["q"])


def test_repeats_and_contradictions_are_counted():
    records = [
        {"instruction": f"Which is w{n} of v{n}?", "input": "", "output": f"#### {n}"} for n in range(40)
    ]
    again = [records[n] | {"instruction": f"which is\u200b  w{n} of v{n}?"} for n in range(10)]
    records += [*again, records[3] | {"output": "#### 99"}]
    task, rows = choose_task("math", records)
    split = split_data(rows, max_test=2, max_validation=2)
    assert "11 of 51 records ask exactly what an earlier one asks" in split.report["notes"][0]
    assert "1 question with different answers" in task.check(split)[0]
    assert split_data(records[:40]).report["notes"] == []
