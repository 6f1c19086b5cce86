"""The duplicate search, the split into three parts, and its files."""

import json
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from helpers.data import find_duplicates, load_json_files, load_part, split_data
from helpers.data.split import PARTS
from helpers.errors import DataError, RunError
from helpers.paths import ROOT

DATA = ROOT / "data"
GUIDE = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
UNSEEN = {"saving_up", "empty_seats", "handed_out", "filling_a_tank"}


@pytest.fixture(scope="module")
def problems():
    return load_json_files(DATA / "word_problems.json")


def plain(count, **more):
    """Records that share no three words."""
    return [
        {"instruction": f"say w{i}a w{i}b w{i}c", "input": "", "output": f"w{i}", **more}
        for i in range(count)
    ]


# --- duplicates

LONG = (
    "A farmer walks along the old road to the market with 7 baskets of red apples and 3 baskets of green "
    "pears today"
)


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


# --- the split


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
    assert split.count_leaks() == 0
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
        assert split.count_leaks() == 0
        assert split.report["duplicates"] == {"exact_groups": 2, "near_groups": 0, "records": 5}
        assert sum(split.report["sizes"].values()) == 43


def test_count_leaks_sees_a_leak():
    split = split_data(plain(30))
    split.test.append({**split.train[0]})
    split.validation.append({**split.train[0]})
    split.train.append({**split.train[1]})
    assert split.count_leaks() == 1


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
    records = [
        {**record, "category": category} for record, category in zip(plain(30), categories, strict=True)
    ]
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
    assert first.count_leaks() == 0


# --- saving


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
    names = split.save(tmp_path)
    assert names == ["train.json", "validation.json", "test_set.json"]
    paths = [tmp_path / name for name in names]
    text = paths[2].read_text(encoding="utf-8")
    assert "小明有" in text and "\\u" not in text
    assert text == json.dumps(split.test, ensure_ascii=False, indent=2) + "\n"
    assert [load_part(path) for path in paths] == [split.train, split.validation, split.test]


def test_the_same_seed_writes_the_same_files(problems, tmp_path):
    for name in ("a", "b"):
        split_data(problems, max_test=120).save(tmp_path / name)
    for file in PARTS.values():
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_missing_or_wrong_part_is_named(tmp_path):
    with pytest.raises(RunError, match=r"train.json does not exist"):
        load_part(tmp_path / "train.json")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match=r"train.json does not hold"):
        load_part(tmp_path / "train.json")
