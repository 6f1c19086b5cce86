"""Other people's data: tables, columns under other names, data sets of the hub."""

import json
import pickle
import time
from pathlib import Path

import pytest

from helpers.data import find_duplicates, load_data
from helpers.data.hub import hub_parts, load_hub
from helpers.errors import DataError
from helpers.runs.chosen import choose


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# tables


@pytest.mark.parametrize(
    ("name", "content", "delimiter"),
    [
        ("a.csv", 'text,label\n"a, ""b""\nc",x\n\nd,y\n', "commas"),
        ("a.csv", '\ufefftext;label\r\n"a, ""b""\nc";x\r\nd;y\r\n', "semicolons"),
        ("a.csv", 'text\tlabel\n"a, ""b""\nc"\tx\nd\ty', "tabs"),
        ("a.TSV", 'text\tlabel\n"a, ""b""\nc"\tx\nd\ty\n', "tabs"),
    ],
)
def test_tables(tmp_path, name, content, delimiter):
    if name.endswith("TSV"):
        content = content.replace(",", ";")
    data = load_data(write(tmp_path / name, content))
    assert [(row["instruction"].replace(";", ","), row["output"]) for row in data.records] == [
        ('a, "b"\nc', "x"),
        ("d", "y"),
    ]
    assert (
        delimiter in data.sources[0].form
        and "instruction ← text" in str(data)
        and "output      ← label" in str(data)
    )


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("text\nx\n", ["one column only", "'text'"]),
        ("text,label\nx\n", ["row 1 (line 2)", "1 cells", "2 columns"]),
        ('text,label\n"a\nb",x\nc,d,e\n', ["row 2 (line 4)", "3 cells"]),
        ('text,label\nx,y\n"z,y\n', ["line 3", "double quote"]),
        ("text,text\nx,y\n", ["line 1", "column 1", "'text'"]),
        ("text,\nx,y\n", ["line 1", "column 2 has no name"]),
        ("text,label\n", ["no row"]),
        ("text,label\nx,y\nz,\n", ["row 2 (line 3)", "'label'", "empty"]),
        (b"text,label\n\xb2\xe2,x\n", ["not UTF-8", "iconv"]),
    ],
)
def test_a_table_that_cant_be_used_says_where(tmp_path, content, parts):
    with pytest.raises(DataError) as caught:
        load_data(write(tmp_path / "a.csv", content))
    assert [part for part in ("a.csv", "→", *parts) if part not in str(caught.value)] == [], caught.value


def test_a_table_in_a_known_form_keeps_its_fields(tmp_path):
    content = (
        "instruction,input,output,answer,category,unseen\nWhat?,,It is 4.,4,sums,\nWhen?,now,It is "
        "5.,5,,true\n"
    )
    first, second = load_data(write(tmp_path / "a.csv", content)).records
    assert first == {
        "instruction": "What?",
        "input": "",
        "output": "It is 4.",
        "answer": "4",
        "category": "sums",
    }
    assert second["unseen"] is True and second["input"] == "now" and "category" not in second


# columns


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Text", "Label"], {"instruction": "Text", "output": "Label"}),
        (["prompt", "completion", "score"], {"instruction": "prompt", "output": "completion"}),
        (
            ["id", "question", "input", "response", "category"],
            {
                "instruction": "question",
                "input": "input",
                "output": "response",
                "category": "category",
                "id": "id",
            },
        ),
        (["input", "output"], {"instruction": "input", "output": "output"}),
        (["instruction", "context", "response"], {"instruction": "instruction", "output": "response"}),
        (["text", "category"], {"instruction": "text", "output": "category"}),
        (["内容", "类别"], {"instruction": "内容", "output": "类别"}),
    ],
)
def test_obvious_names(tmp_path, names, expected):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({name: f"some {name}" for name in names}))
    [source] = load_data(str(path)).sources
    assert source.columns == expected and source.unused == [
        name for name in names if name not in expected.values()
    ]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["prompt", "text", "label"], ["'prompt' and 'text'", "question", "instruction=prompt,output=label"]),
        (["text", "label", "answer"], ["'label' and 'answer'", "instruction=text,output=label"]),
        (["a", "b"], ["no column", "'a', 'b'", "--columns", "columns ="]),
        (["text"], ["no column", "answer", "instruction=text,output=COLUMN"]),
    ],
)
def test_names_that_are_not_obvious(tmp_path, names, parts):
    with pytest.raises(DataError) as caught:
        load_data(write(tmp_path / "a.json", json.dumps([dict.fromkeys(names, "x")])))
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


ROWS = [
    {"mail": "Hi", "who": "Ann", "fields": {"n": 1}, "stars": 3, "good": True},
    {"mail": "Ho", "fields": {"n": 2}, "stars": 4.5, "good": False},
]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]


@pytest.mark.parametrize(
    ("columns", "instruction", "expected"),
    [
        ("instruction=mail,output=stars", "", [("Hi", "", "3"), ("Ho", "", "4.5")]),
        (
            "input=mail, output=fields",
            "Read it.",
            [("Read it.", "Hi", '{"n": 1}'), ("Read it.", "Ho", '{"n": 2}')],
        ),
        ("instruction=mail,input=who,output=good", "", [("Hi", "Ann", "true"), ("Ho", "", "false")]),
    ],
)
def test_named_columns(tmp_path, columns, instruction, expected):
    records = load_data(write(tmp_path / "a.json", json.dumps(ROWS)), columns, instruction).records
    assert [(row["instruction"], row["input"], row["output"]) for row in records] == expected


@pytest.mark.parametrize(
    ("columns", "instruction", "parts"),
    [
        ("instruction=male,output=stars", "", ["'male'", "did you mean 'mail'?"]),
        ("instruction=mail", "", ["columns", "instruction=text,output=label"]),
        ("output=stars", "", ["columns"]),
        ("question=mail,output=stars", "", ["'question=mail'", "fields are instruction, input, output"]),
        ('"input=mail,output=stars', "", ["no list separated by commas", "double quote"]),
        ("instruction=mail,output=stars,output=who", "", ["'output'", "twice"]),
        ("instruction=mail,output=stars", "Rate it.", ["both", "input=mail"]),
        ("input=mail,output=stars", "", ["no instruction"]),
        ("instruction=mail,output=who", "", ["a.json, index 1", "'who'", "empty"]),
        ("instruction=fields,output=stars", "", ["a.json, index 0", "'fields'", "instruction"]),
    ],
)
def test_columns_that_cant_be_had(tmp_path, columns, instruction, parts):
    with pytest.raises(DataError) as caught:
        load_data(write(tmp_path / "a.json", json.dumps(ROWS)), columns, instruction)
    assert [part for part in ("→", *parts) if part not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize("talk", [TALK, SHAREGPT, json.dumps(TALK)])
@pytest.mark.parametrize("columns", ["instruction=mail,output=chosen", "instruction=chosen,output=mail"])
def test_a_conversation_is_no_text(tmp_path, talk, columns):
    """Sets of preferences have lists of messages as `chosen`, and as JSON text they would spoil a model."""
    file = write(tmp_path / "a.json", json.dumps([{"mail": "Hi", "chosen": talk}]))
    with pytest.raises(
        DataError, match=r"index 0: column 'chosen' holds a conversation(.|\n)*messages=chosen"
    ):
        load_data(file, columns)
    assert load_data(file, "messages=chosen").records[0]["output"] == "Ho"


@pytest.mark.parametrize("talk", [TALK[1], [{"role": "Expert", "content": "Ho"}]])
def test_what_a_conversation_might_be_is_no_text_either(tmp_path, talk):
    file = write(tmp_path / "a.json", json.dumps([{"mail": "Hi", "chosen": talk}]))
    with pytest.raises(DataError, match="column 'chosen' holds a conversation"):
        load_data(file, "instruction=mail,output=chosen")


def test_a_list_of_other_objects_is_an_answer(tmp_path):
    file = write(tmp_path / "a.json", json.dumps([{"mail": "Hi", "calls": [{"role": 3}, {"n": 1}]}]))
    assert load_data(file, "instruction=mail,output=calls").records[0]["output"] == '[{"role": 3}, {"n": 1}]'


def test_a_comma_in_the_name_of_a_column(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"a, b": "x", "c": "y"}]))
    assert load_data(path, '"instruction=a, b",output=c').sources[0].columns == {
        "instruction": "a, b",
        "output": "c",
    }


def test_short_inputs_below_one_long_instruction_are_no_repeats():
    long = (
        "Say of each of the following mails whether it asks about a bill, about a broken thing, or about "
        "something else than these two: "
    )
    records = [{"instruction": long * 3, "input": text} for text in ("a bill", "a thing", "a bill")]
    assert [group.indices for group in find_duplicates(records)] == [(0, 2)]


# the hub, by the real library; a folder stands for a data set


@pytest.fixture
def data_set(tmp_path, monkeypatch) -> Path:
    """A folder of Parquet files with 12 rows, class numbers and a row without a class."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "reviews"
    folder.mkdir()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split, labels in (("train", [0, 1] * 6), ("test", [1, -1])):
        rows = {"text": [f"{split} {number}" for number in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            str(folder / f"{split}-00000-of-00001.parquet")
        )
    load_hub.cache_clear()
    return folder


def test_a_data_set_with_classes(data_set):
    data = load_data(f"hub:{data_set}")
    assert len(data.records) == 12 and data.records[1] == {
        "input": "",
        "instruction": "train 1",
        "output": "good",
    }
    assert "data set, split train" in str(data)
    assert len(load_data(f"hub:{data_set}#train[:50%]").records) == 6


@pytest.mark.parametrize("name", ["with a space", "with: signs@home", "with #"])
def test_a_folder_of_any_name(data_set, name, monkeypatch):
    folder = data_set.rename(data_set.with_name(name))
    monkeypatch.chdir(folder.parent)
    for place in (f"hub:{folder}", f"hub:{folder}#train", choose(data=[f"hub:{name}#train"])["data_files"]):
        load_hub.cache_clear()
        assert len(load_data(place).records) == 12
    with pytest.raises(DataError, match="there is no folder /nowhere/at all"):
        load_data("hub:/nowhere/at all")


def test_a_row_without_a_class(data_set):
    with pytest.raises(DataError, match=r"row 1: column 'label': the output is empty"):
        load_data(f"hub:{data_set}#test")


@pytest.mark.parametrize(
    ("more", "parts"), [("#dev", ["dev", "train", "test"]), (":french", ["french", "configuration"])]
)
def test_a_part_of_a_data_set_that_is_not_there(data_set, more, parts):
    with pytest.raises(DataError) as caught:
        load_data(f"hub:{data_set}{more}")
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


def test_code_in_a_data_set_is_not_run(data_set, tmp_path):
    """Neither a script of its own nor a pickle."""
    marker = tmp_path / "was_here"
    (data_set / "reviews.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        load_data(f"hub:{data_set}")

    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    other = tmp_path / "pickled"
    other.mkdir()
    for name in ("train.pkl", "train.pickle"):
        (other / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        load_data(f"hub:{other}")
    assert not marker.exists()


def test_the_parts_of_a_name():
    assert hub_parts("hub:a/b:c@d#e") == {"name": "a/b", "config": "c", "revision": "d", "split": "e"}
    assert hub_parts("hub:a/b#train") == {"name": "a/b", "config": None, "revision": None, "split": "train"}
    for text in ("hub:", "hub:a b", "hub::c"):
        with pytest.raises(DataError, match="OWNER/NAME"):
            hub_parts(text)


def test_a_hub_that_cant_be_reached_is_said_soon(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.invalid")
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    load_hub.cache_clear()
    started = time.monotonic()
    with pytest.raises(DataError, match="hub:no-owner/no-such-data") as caught:
        load_data("hub:no-owner/no-such-data")
    assert "can't be reached" in caught.value.fix and "go online" in caught.value.fix
    assert time.monotonic() - started < 15
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE, (
        "one failed try must not switch the hub off for what comes later"
    )
