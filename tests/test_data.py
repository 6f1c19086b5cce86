"""The word problems, the loader, the duplicate search and the split."""

import importlib.util
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from helpers.data.split import (
    PARTS,
    count_leaks,
    data_paths,
    find_duplicates,
    load_json_files,
    load_part,
    load_s1k,
    save_split,
    split_data,
)
from helpers.errors import DataError, RunError

DATA = Path(__file__).resolve().parent.parent / "data"
UNSEEN = {"saving_up", "empty_seats", "handed_out", "filling_a_tank"}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_word_problems", DATA / "make_word_problems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problems():
    return load_json_files(DATA / "word_problems.json")


def plain(count, **more):
    """Records that share no three words."""
    return [
        {"instruction": f"say w{i}a w{i}b w{i}c", "input": "", "output": f"w{i}", **more}
        for i in range(count)
    ]


# --- the word problems ------------------------------------------------------------------------------------------------


def test_the_script_makes_the_committed_bytes(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "OUT", tmp_path / "again.json")
    monkeypatch.setattr(sys, "argv", ["make_word_problems.py"])
    assert maker.main() == 0
    assert (tmp_path / "again.json").read_bytes() == (DATA / "word_problems.json").read_bytes()


def test_check_passes_on_the_committed_file():
    done = subprocess.run(
        [sys.executable, DATA / "make_word_problems.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all steps hold" in done.stdout


def test_the_other_script_makes_the_committed_bytes():
    done = subprocess.run(
        [sys.executable, DATA / "make_reviews_and_bookings.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "edit, complaint",
    [
        (lambda r: r["steps"][0].update(value="999"), "is not 999"),
        (lambda r: r.update(answer="998"), "the last step is not the answer"),
        (lambda r: r.update(output=r["output"] + "!"), "the output is not its steps"),
        (lambda r: r["steps"][0].update(expression="1001 + 1"), "a number that is not given"),
    ],
)
def test_check_finds_a_damaged_record(maker, problems, edit, complaint, tmp_path):
    damaged = json.loads(json.dumps(problems))
    edit(damaged[5])
    path = tmp_path / "word_problems.json"
    path.write_text(json.dumps(damaged), encoding="utf-8")
    found = maker.check(path)
    assert any(complaint in line and "record 5" in line for line in found), found
    assert any("is not what make_word_problems.py makes" in line for line in found)


@pytest.mark.parametrize("expression, value", [("4 * 6", 24), ("30 / 5", 6), ("(2 + 3) * 4 - 1", 19)])
def test_evaluate(maker, expression, value):
    assert maker.evaluate(expression) == value


@pytest.mark.parametrize("expression", ["7 / 2", "1 / 0", "__import__('os')", "2 ** 9", "1.5 + 1", "x + 1"])
def test_evaluate_refuses(maker, expression):
    with pytest.raises(ValueError):
        maker.evaluate(expression)


def test_every_step_holds_by_an_independent_reading_of_the_output(problems):
    for record in problems:
        *lines, last = record["output"].split("\n")
        assert 1 <= len(lines) <= 3
        for number, line in enumerate(lines, start=1):
            step = re.fullmatch(rf"Step {number}: [A-Za-z ]+: (\d+) ([-+*/]) (\d+) = (\d+)", line)
            a, sign, b, result = step.groups()
            a, b, result = int(a), int(b), int(result)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign] == result > 0, record
        assert last == f"Final answer: {result}" and record["answer"] == str(result)


def test_size_templates_and_categories(problems, maker):
    assert len(problems) >= 1000
    assert len({(r["instruction"], r["input"]) for r in problems}) == len(problems)
    templates = {(r["template"], r["category"]) for r in problems}
    assert len(templates) == len(maker.TEMPLATES) >= 20
    assert len({r["category"] for r in problems}) >= 5
    assert {r["template"] for r in problems if r["unseen"]} == UNSEEN
    assert any(r["input"] for r in problems) and any(not r["input"] for r in problems)


def test_text_reads_well(problems):
    for record in problems:
        text = f"{record['instruction']} {record['input']}".strip()
        assert "  " not in text and text[-1] in ".?" and "\n" not in text
        assert not re.search(r"\b1 (?!pack of)\w+s\b", text), text
        assert "\n\n" not in record["output"] and "Instruction:" not in record["output"]


def test_no_problem_is_another_one_renamed(problems):
    seen = Counter(
        (r["template"], tuple(sorted(re.findall(r"\d+", r["instruction"] + r["input"])))) for r in problems
    )
    assert max(seen.values()) == 1
    assert find_duplicates(problems) == []


def test_the_data_card_tells_the_counts(problems):
    card = (DATA / "README.md").read_text(encoding="utf-8")
    counts = Counter((r["category"], r["template"], r["unseen"]) for r in problems)
    for (category, template, unseen), count in counts.items():
        assert f"| {category} | `{template}` | {count} | {'yes' if unseen else ''} |" in card
    assert f"{len(problems):,} problems" in card


# --- the loader -------------------------------------------------------------------------------------------------------

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
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {"role": "assistant", "content": "Ho"},
                ],
                "category": "talk",
            },
            {"instruction": "Be brief.\nHi", "input": "", "output": "Ho", "category": "talk"},
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


@pytest.mark.parametrize(
    "name, text, parts",
    [
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
        ("a.json", '[{"messages": "hi"}]', ["index 0", "'messages' must be a list"]),
        (
            "a.json",
            json.dumps([{"messages": [{"role": r, "content": "x"} for r in ("user", "assistant") * 2]}]),
            ["index 0", "roles", "one user message"],
        ),
        (
            "a.json",
            json.dumps(
                [{"messages": [{"role": "user", "content": {}}, {"role": "assistant", "content": "x"}]}]
            ),
            ["index 0, message 0", "'content' is an object"],
        ),
        (
            "latin.json",
            b'[{"instruction": "caf\xe9", "output": "x"}]',
            ["latin.json", "not UTF-8", "byte 21"],
        ),
    ],
)
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


def test_s1k_offline_is_a_data_error(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="can't fetch simplescaling/s1K.*Couldn't reach") as caught:
        load_s1k()
    assert "word_problems.json" in str(caught.value) and "long story" not in str(caught.value)


def test_s1k_rows_become_records(monkeypatch):
    import datasets

    rows = [{"question": "Q", "solution": "12", "attempt": "It is 12.", "cot_type": "math", "cot": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    assert load_s1k() == [
        {"instruction": "Q", "input": "", "output": "It is 12.", "answer": "12", "category": "math"}
    ]


# --- duplicates -------------------------------------------------------------------------------------------------------

LONG = "A farmer walks along the old road to the market with 7 baskets of red apples and 3 baskets of green pears today"


def questions(*texts):
    return [{"instruction": text, "input": "", "output": "x"} for text in texts]


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["What is 2 + 2?", "what  is 2 + 2?"], [("exact", (0, 1))]),
        (["What is 2 + 2?", "What is 2 - 2?"], []),
        ([LONG, "other words entirely", LONG + "."], [("near", (0, 2))]),
        ([LONG, LONG.replace("7", "8")], []),
        ([LONG, LONG.replace("today", "now"), LONG], [("near", (0, 1, 2))]),
        (["小明有3个苹果", "小明有3个苹果"], [("exact", (0, 1))]),
        (
            [
                "小明有3个苹果,小红有5个梨,他们一共有多少个水果呢",
                "小明有3个苹果，小红有5个梨，他们一共有多少个水果呢",
            ],
            [("near", (0, 1))],
        ),
        (["a", "b", ""], []),
    ],
)
def test_find_duplicates(texts, expected):
    assert find_duplicates(questions(*texts)) == expected


def test_the_input_counts_as_part_of_the_question():
    assert find_duplicates([{**GUIDE, "input": "1"}, {**GUIDE, "input": "2"}]) == []


@given(
    st.lists(
        st.lists(st.sampled_from("abcde"), min_size=1, max_size=14).map(" ".join), min_size=2, max_size=12
    ),
    st.sampled_from([0.6, 0.8, 0.9, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_the_quick_search_finds_what_comparing_all_pairs_finds(texts, threshold):
    def runs(text):
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    together = {i: {i} for i in range(len(texts))}
    for i in range(len(texts)):
        for j in range(i):
            a, b = runs(texts[i]), runs(texts[j])
            if len(a & b) / len(a | b) >= threshold and together[i] is not together[j]:
                together[j] |= together[i]
                for k in together[i]:
                    together[k] = together[j]
    expected = sorted({tuple(sorted(group)) for group in together.values() if len(group) > 1})
    assert [group.indices for group in find_duplicates(questions(*texts), threshold)] == expected


def test_ten_thousand_records_take_seconds():
    rng = random.Random(0)
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    records = questions(*(" ".join(rng.choices(words, k=30)) for _ in range(10_000)))
    records[9_999] = dict(records[17])
    start = time.monotonic()
    assert find_duplicates(records) == [("exact", (17, 9_999))]
    assert time.monotonic() - start < 20


# --- the split --------------------------------------------------------------------------------------------------------


def test_without_categories_it_is_the_guides_split():
    records = plain(100)
    _, test = train_test_split(records, test_size=0.2, random_state=42)
    split = split_data(records, test_size=0.2, seed=42)
    assert split.test == test
    assert split.report["sizes"] == {"train": 72, "validation": 8, "test": 20}
    assert split.report["stratified_by"] is None and split.report["notes"] == []


def test_the_word_problems_split(problems):
    split = split_data(problems)
    assert split.report["sizes"] == {"train": 898, "validation": 100, "test": 250}
    assert {r["template"] for r in split.test} >= UNSEEN == set(split.report["unseen_templates"])
    assert not UNSEEN & {r["template"] for r in split.train + split.validation}
    assert count_leaks(split) == 0
    shares = {part: Counter(r["category"] for r in getattr(split, part) if not r["unseen"]) for part in PARTS}
    for category in shares["train"]:
        assert abs(shares["train"][category] / 898 - shares["validation"][category] / 100) < 0.02


def test_caps_keep_the_shares_and_are_reported(problems):
    split = split_data(problems, max_train=300, max_validation=40, max_test=120)
    assert split.report["sizes"] == {"train": 300, "validation": 40, "test": 120}
    assert split.report["left_out"] == {"train": 598, "validation": 60, "test": 130}
    whole = split_data(problems)
    assert all(record in whole.test for record in split.test)
    assert 25 <= sum(r["unseen"] for r in split.test) <= 32
    assert {r["template"] for r in split.test} >= UNSEEN


def test_templates_can_be_held_out_by_name(problems):
    split = split_data(problems, unseen_templates=["ages", "scores"])
    assert not {"ages", "scores"} & {r["template"] for r in split.train + split.validation}
    assert sum(r["template"] == "ages" for r in split.test) == 44


def test_when_unseen_records_fill_the_test_part_it_says_so():
    held = [{**record, "instruction": f"tell me {record['output']}x"} for record in plain(15, unseen=True)]
    records = plain(20, template="a") + held
    split = split_data(records)
    assert split.report["sizes"]["test"] == 16
    assert "unseen records fill the test part" in split.report["notes"][0]


def test_duplicates_stay_on_one_side():
    records = plain(40)
    records += [
        {**records[3]},
        {**records[3], "instruction": records[3]["instruction"].upper()},
        {**records[9]},
    ]
    for seed in range(20):
        split = split_data(records, seed=seed)
        assert count_leaks(split) == 0
        assert split.report["duplicates"] == {"exact_groups": 2, "near_groups": 0, "records": 5}
        assert sum(split.report["sizes"].values()) == 43


def test_count_leaks_sees_a_leak():
    split = split_data(plain(30))
    split.test.append({**split.train[0]})
    split.validation.append({**split.train[0]})
    split.train.append({**split.train[1]})
    assert count_leaks(split) == 1


@pytest.mark.parametrize(
    "categories",
    [
        ["a"] * 29 + ["b"],
        ["a"] * 28 + ["b", "c"],
        [str(i) for i in range(30)],
        [str(i // 2) for i in range(30)],
    ],
)
def test_rare_categories_fall_back_with_a_note(categories):
    records = [{**record, "category": category} for record, category in zip(plain(30), categories)]
    split = split_data(records)
    assert sum(split.report["sizes"].values()) == 30
    assert split.report["notes"], "what could not be stratified is said"


@pytest.mark.parametrize(
    "records, arguments, parts",
    [
        (1, {}, ["1 record can't be split"]),
        (9, {}, ["9 records can't be split", "at least 10"]),
        (0, {}, ["0 records"]),
        (30, {"test_size": 0}, ["test_size is 0"]),
        (30, {"test_size": 1.0}, ["test_size is 1.0"]),
        (30, {"test_size": "0.2"}, ["test_size is '0.2'"]),
        (30, {"validation_size": -0.1}, ["validation_size is -0.1"]),
        (30, {"max_test": -1}, ["max_test is -1"]),
        (30, {"max_train": 2.5}, ["max_train is 2.5"]),
        (30, {"seed": -1}, ["seed is -1"]),
        (30, {"seed": "42"}, ["seed is '42'"]),
        (30, {"unseen_templates": ["ghost"]}, ["'ghost'"]),
    ],
)
def test_what_cannot_be_split_says_why(records, arguments, parts):
    with pytest.raises(DataError) as caught:
        split_data(plain(records), **arguments)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_ten_copies_are_not_ten_records():
    with pytest.raises(DataError, match="only 1 different"):
        split_data([dict(GUIDE) for _ in range(12)])


@given(
    count=st.integers(10, 60),
    seed=st.integers(0, 2**32 - 1),
    test_size=st.floats(0.01, 0.99),
    validation_size=st.floats(0.01, 0.99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_split_is_a_partition_and_repeats(count, seed, test_size, validation_size, data):
    records = plain(count)
    for record in records:
        category = data.draw(st.sampled_from([None, "a", "b", "c"]))
        if category:
            record["category"] = category
    records += [dict(records[i]) for i in data.draw(st.lists(st.integers(0, count - 1), max_size=5))]
    first = split_data(records, test_size, validation_size, seed)
    again = split_data(records, test_size, validation_size, seed)
    assert first == again
    assert first.train and first.validation and first.test
    everything = [json.dumps(r, sort_keys=True) for part in PARTS for r in getattr(first, part)]
    assert Counter(everything) == Counter(json.dumps(r, sort_keys=True) for r in records)
    assert count_leaks(first) == 0


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saved_parts_come_back_and_are_written_as_the_guide_has_it(tmp_path):
    records = [
        {
            "instruction": f"小明有{i}个苹果,又买了2个。一共有几个?",
            "input": "",
            "output": f"最终答案: {i + 2}",
        }
        for i in range(30)
    ]
    split = split_data(records)
    paths = save_split(split, tmp_path)
    assert [path.name for path in paths] == ["train.json", "validation.json", "test_set.json"]
    text = paths[2].read_text(encoding="utf-8")
    assert "小明有" in text and "\\u" not in text
    assert text == json.dumps(split.test, ensure_ascii=False, indent=2) + "\n"
    assert [load_part(path) for path in paths] == [split.train, split.validation, split.test]


def test_the_same_seed_writes_the_same_files(problems, tmp_path):
    for name in ("a", "b"):
        save_split(split_data(problems, max_test=120), tmp_path / name)
    for file in PARTS.values():
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_missing_or_wrong_part_is_named(tmp_path):
    with pytest.raises(RunError, match="train.json does not exist"):
        load_part(tmp_path / "train.json")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match="train.json does not hold"):
        load_part(tmp_path / "train.json")
