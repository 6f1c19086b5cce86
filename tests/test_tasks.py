"""Tasks other than maths: their graders, and what notebook 01 finds out about the data. Real runs of two are
in test_readme.py.
"""

import json
import re

import pytest

from helpers.data.split import Split, split_data
from helpers.errors import DataError
from helpers.evaluate.evaluation import score_outputs
from helpers.evaluate.grading import check_answer, check_calls, check_fields, check_label
from helpers.evaluate.paired import measures_text
from helpers.evaluate.score import Score
from helpers.evaluate.tasks import TASKS, Task, choose_task, reference_of

SPAM, MOODS, STARS = ["spam", "ham"], ["满意", "不满意", "垃圾邮件"], ["1", "2", "3", "-1", "1.5"]
COMPLAINTS = ["tech_support", "billing", "not urgent", "urgent", "C", "C++"]


# classification


@pytest.mark.parametrize(
    ("output", "label", "labels"),
    [
        ("spam", "spam", SPAM),
        (" **SPAM**.", "spam", SPAM),
        ("'Spam'", "spam", SPAM),
        ("ｓｐａｍ", "spam", SPAM),
        ("Label: spam", "spam", SPAM),
        ("label:\n spam", "spam", SPAM),
        ('{"label": "spam"}', "spam", SPAM),
        ("It speaks of ham sandwiches.\nCategory: spam", "spam", SPAM),
        ("spam\nspam\nspam", "spam", SPAM),
        ("ham, not spam", "ham", SPAM),
        ("Label: spam", "Label: spam", ["Label: spam", "Label: ham"]),
        ("It's not spam but ham.", "ham", SPAM),
        ("It can be spam", "spam", SPAM),
        ("It's an important mail, so ham", "ham", SPAM),
        ("<think>spam or ham?</think>ham", "ham", SPAM),
        ("Tech Support", "tech_support", COMPLAINTS),
        ("tech-support!", "tech_support", COMPLAINTS),
        ("This is not urgent.", "not urgent", COMPLAINTS),
        ("Urgent", "urgent", COMPLAINTS),
        ("It is C++.", "C++", COMPLAINTS),
        ("满意。", "满意", MOODS),
        ("“不满意”", "不满意", MOODS),
        ("类别：不满意", "不满意", MOODS),
        ("答案是满意！", "满意", MOODS),
        ("我觉得应该是满意的", "满意", MOODS),
        ("３", "3", STARS),
        ("3 stars", "3", STARS),
        ("-1", "-1", STARS),
        ("1.5", "1.5", STARS),
    ],
)
def test_an_answer_that_names_its_label(output, label, labels):
    verdict = check_label(output, label, labels)
    assert verdict and verdict.found == label and verdict.why
    assert not any(check_label(output, other, labels) for other in labels if other != label)


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        ("", SPAM),
        ("   ", SPAM),
        ("!", SPAM),
        ("not spam", SPAM),
        ("This isn’t spam", SPAM),
        ("I would not say that it is spam", SPAM),
        ("It cannot be spam", SPAM),
        ("I can't say that it is ham", SPAM),
        ("spam? No.", SPAM),
        ("neither spam nor ham", SPAM),
        ("spam or ham", SPAM),
        ("Label: spam, ham", SPAM),
        ("spam\nham", SPAM),
        ("hamster", SPAM),
        ("non-spam", SPAM),
        ("anti-spam", SPAM),
        ("spam_filter", SPAM),
        ("unwanted mail", SPAM),
        ("不是满意", MOODS),
        ("不是垃圾邮件", MOODS),
        ("满意和不满意", MOODS),
        ("还行", MOODS),
        ("3.5", STARS),
        ("13", STARS),
        ("2,5", STARS),
        ("-3", STARS),
    ],
)
def test_an_answer_that_names_no_label_or_several(output, labels):
    for label in labels:
        verdict = check_label(output, label, labels)
        assert not verdict and verdict.found is None and verdict.why


def test_a_reference_that_names_no_label_is_never_met():
    assert not check_label("spam", "eggs", SPAM) and "reference" in check_label("spam", "eggs", SPAM).why


# extraction

BOB = '{"name": "Bob", "age": 3, "born": "2024-01-05"}'


@pytest.mark.parametrize(
    ("output", "reference"),
    [
        (BOB, BOB),
        ('{"born": "2024-01-05", "age": 3.0, "name": "bob"}', BOB),
        (f"Here it is:\n```json\n{BOB}\n```\nDone.", BOB),
        (f"The fields are {BOB}. I hope this helps!", BOB),
        ("name: Bob\nage: 3\nborn: 2024-01-05", BOB),
        ("Sure, here are the fields:\n- **Name**: Bob\n- Age: ３\n- Born: 2024-01-05.", BOB),
        ("姓名：张三\n年龄：３", '{"姓名": "张三", "年龄": 3}'),
        ('{"price": "1,200.50"}', "price: 1200.5"),
        ('{"at": "10:30"}', "at: 10:30"),
        ('{"a": null, "b": "x", "c": ""}', '{"b": "x"}'),
        ('{"a": {"b": [1, "2"]}}', '{"a": {"b": ["1", 2]}}'),
        ('[{"a": 1}, {"a": 2}]', '[{"a": 1}, {"a": 2}]'),
        ('{"ok": true, "zero": -0}', '{"zero": 0.0, "ok": "True"}'),
        ("note: two\nlines\nname: Bob", '{"note": "two lines", "name": "Bob"}'),
        ('{"text": "a {brace} inside"}', "text: a {brace} inside"),
    ],
)
def test_the_same_fields(output, reference):
    assert check_fields(output, reference), check_fields(output, reference).why


@pytest.mark.parametrize(
    ("output", "reference", "why"),
    [
        ("", BOB, "empty"),
        ("I can't tell.", BOB, "no fields"),
        ('{"name": "Bob", "age": 3', BOB, "no fields"),
        ('{"name": "Bob", "age": 3}', BOB, "'born' is missing"),
        (BOB[:-1] + ', "city": "Rome"}', BOB, "'city' is too much"),
        (BOB.replace("3", "30"), BOB, "'age' is '30', not '3'"),
        (BOB.replace("-01-05", "-1-5"), BOB, "'born'"),
        (BOB.replace("2024-01-05", "2018"), BOB, "'born'"),
        (f"{BOB} or {BOB.replace('Bob', 'Tom')}", BOB, "no fields"),
        ('{"a": 1, "a": 2}', '{"a": 2}', "no fields"),
        ("a: 1\na: 2", '{"a": 2}', "no fields"),
        ('{"code": 7}', '{"code": "007"}', "'code'"),
        ('{"length": 3}', '{"length": "3 m"}', "'length'"),
        ('{"items": ["b", "a"]}', '{"items": ["a", "b"]}', "'items.0'"),
        ('{"a": 1}', "no fields here", "reference"),
    ],
)
def test_other_fields(output, reference, why):
    verdict = check_fields(output, reference)
    assert not verdict and why in verdict.why, verdict.why


@pytest.mark.parametrize(
    "text",
    ["{" * 5000, "[" * 5000, '{"a":' * 3000, ": " * 5000, "a: " * 5000, "\0", '{"a": NaN}', '{"a": 1e999}'],
)
def test_hostile_texts_end_in_a_verdict(text):
    for grader in (check_fields, check_calls, check_answer, lambda *pair: check_label(*pair, SPAM)):
        assert grader(text, BOB).passed in (True, False)


# tool calls

CALL = '{"name": "look_up", "arguments": {"order": 7, "full": true}}'
FUNCTION = {"name": "look_up", "arguments": '{"full": true, "order": 7.0}'}
OPENAI = json.dumps([{"id": "c", "type": "function", "function": FUNCTION}])


@pytest.mark.parametrize(
    "text", ['{"function": "a"}', '[{"function": [1]}]', "[1]", f'{{"function": {CALL}, "x": 1}}']
)
def test_what_is_no_call_is_no_call(text):
    assert check_calls(text, CALL).why == "the answer holds no tool call that can be read"


@pytest.mark.parametrize(
    ("output", "reference", "right"),
    [
        (CALL, CALL, True),
        (OPENAI, CALL, True),
        ('{"parameters": {"full": true, "order": 7}, "name": "look_up"}', CALL, True),
        (f"<think>Hm, {{}}.</think>\n<tool_call>\n{CALL}\n</tool_call>", CALL, True),
        (f"```json\n{CALL}\n```", CALL, True),
        (
            f'[{CALL}, {{"name": "b", "arguments": {{}}}}]',
            f'[{{"name": "b", "arguments": {{}}}}, {CALL}]',
            True,
        ),
        ("It is on its way", "It is on its way.", True),
        (CALL.replace("7", '"7"'), CALL, "other arguments"),
        (CALL.replace("true", "1"), CALL, "other arguments"),
        (CALL.replace("look", "Look"), CALL, "calls Look_up, not look_up"),
        (f"[{CALL}, {CALL}]", CALL, "calls look_up, look_up, not look_up"),
        (f"I call {CALL}", CALL, "no tool call"),
        ('{"name": "look_up", "arguments": {"order": 7, "order": 7, "full": true}}', CALL, "no tool call"),
        (CALL[:-1] + ', "parameters": {}}', CALL, "no tool call"),
        (CALL[:-1] + ', "mood": 1}', CALL, "no tool call"),
        ("", CALL, "no tool call"),
        (CALL, "It is on its way.", "the reference is text"),
        ("No.", "It is on its way.", "another text"),
    ],
)
def test_tool_calls_are_compared_by_name_and_arguments(output, reference, right):
    verdict = choose_task("calls", [{"instruction": "?", "output": reference}])[0].grader(output, reference)
    assert verdict.passed is (right is True) and (right is True or right in verdict.why), verdict.why


# text


LOOKALIKES = [
    f"Dear customer, your parcel number {n} has left our house in {n} Mill Road." for n in range(10, 18)
]


@pytest.mark.parametrize(
    ("output", "reference", "right"),
    [
        (" the Red bike is\nfast", "The red bike is fast.", True),
        ("我喜欢红色", "我喜欢红色。", True),
        ("the red bike is not fast", "the red bike is fast", False),
        ("red bike", "the red bike", False),
        ("bike red the", "the red bike", False),
        (LOOKALIKES[0], LOOKALIKES[1], False),
        ("", "the red bike", False),
    ],
)
def test_a_text_is_right_if_it_matches_exactly(output, reference, right):
    assert Task("text").grader(output, reference).passed == right


# the task of a run


def rows(outputs: list[str], **more) -> list[dict]:
    return [
        {"instruction": f"question {number} " + chr(97 + number % 26) * 5, "input": "", "output": text} | more
        for number, text in enumerate(outputs)
    ]


@pytest.mark.parametrize("name", TASKS)
def test_floor_and_ceiling(name):
    outputs = {
        "math": "Final answer: 4",
        "classification": "Spam",
        "extraction": BOB,
        "calls": CALL,
        "text": "the red bike",
    }[name]
    task, records = choose_task(
        name, rows([outputs] * 10 + (["ham"] * 10 if name == "classification" else []))
    )
    assert str(task).startswith(f"task {name}: an answer is right if ")
    for record in records:
        assert task.grader(record["output"], reference_of(record)) and not task.grader(
            "", reference_of(record)
        )
    assert Task(**json.loads(json.dumps(task.settings))) == task, "the manifest gives the task back"


@pytest.mark.parametrize(
    ("name", "outputs", "parts"),
    [
        ("maths", ["1"] * 20, ["'maths'", "classification"]),
        ("classification", ["spam"] * 20, ["nothing to classify"]),
        ("classification", [f"text {n}" for n in range(20)], ["20 different outputs", "task=text"]),
        ("classification", ["Spam", "spam"] * 10, ["'Spam'", "rename"]),
    ],
)
def test_records_that_are_not_of_the_task(name, outputs, parts):
    with pytest.raises(DataError) as caught:
        choose_task(name, rows(outputs))
    assert [part for part in parts if part not in str(caught.value)] == [] and "→" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "output", "more"),
    [("math", "Final answer: 12", {"answer": "13"}), ("extraction", "I don't know", {})],
)
def test_a_test_set_that_could_never_be_scored_stops_notebook_01(name, output, more):
    task, records = choose_task(name, rows([output] * 20, **more))
    with pytest.raises(DataError, match=f"can't be scored as {name}"):
        task.check(split_data(records))


def test_labels_are_stratified_and_noted():
    outputs = ["spam"] * 60 + ["ham"] * 12 + ["eggs"]
    task, records = choose_task("classification", rows(outputs))
    assert list(task.labels) == ["spam", "ham", "eggs"] and records[0]["category"] == "spam"
    split = split_data(records)
    assert sum(row["output"] == "ham" for row in split.test) in (2, 3)
    notes = task.check(split)
    assert any("occur once" in note and "eggs" in note for note in notes)
    assert any(note.startswith("unbalanced") and "'spam'" in note for note in notes)


def test_a_category_of_the_data_stays():
    _, records = choose_task("classification", rows(["spam", "ham"] * 10, category="mail"))
    assert {record["category"] for record in records} == {"mail"}


def test_a_label_missing_in_the_test_part_is_noted():
    task, records = choose_task("classification", rows(["spam", "ham"] * 10))
    spam, ham = records[::2], records[1::2]
    notes = task.check(Split(spam + ham[:8], ham[8:], spam[8:]))
    assert [note for note in notes if "missing in test: ham" in note]


def test_a_question_with_two_answers_is_noted():
    records = rows(["spam", "ham"] * 10)
    records[1]["instruction"] = records[0]["instruction"].upper()
    task, records = choose_task("classification", records)
    notes = task.check(split_data(records))
    assert [note for note in notes if "1 question with different answers" in note]


def test_labels_under_another_task_are_pointed_out():
    task, records = choose_task("math", rows(["spam", "ham"] * 10))
    assert "task=classification" in task.check(split_data(records))[0]
    task, records = choose_task("math", rows(["Final answer: 4", "Final answer: 5"] * 10))
    assert task.check(split_data(records)) == []


def test_the_reference_of_a_text_is_its_output():
    """`answer` is what a final answer is compared with; a text has none."""
    _, records = choose_task("text", rows(["the red bike"] * 10, answer="bike"))
    assert {reference_of(record) for record in records} == {"the red bike"}


# measures


def samples(task: Task, pairs: list[tuple[str, str]]) -> list[dict]:
    return [
        {"output": output, "expected": expected, "score": bool(task.grader(output, expected))}
        for output, expected in pairs
    ]


def test_measures_of_a_classification():
    task = Task("classification", {"spam": 6, "ham": 4, "eggs": 1})
    pairs = [("spam", "spam"), ("spam", "spam"), ("spam", "ham"), ("Ham.", "ham"), ("who knows", "ham")]
    found = task.measures(samples(task, pairs))
    assert found["by_label"] == {"spam": {"correct": 2, "total": 2}, "ham": {"correct": 1, "total": 3}}
    assert found["confusion"]["ham"] == {"spam": 1, "ham": 1, "(none)": 1}
    assert found["macro_f1"] == pytest.approx(
        (4 / 5 + 2 / 4) / 2
    )  # spam: P 2/3, R 1; ham: P 1, R 1/3; eggs are not tested
    base = task.measures(samples(task, [("", expected) for _, expected in pairs]))
    assert json.loads(json.dumps(found)) == found
    text = measures_text(task, base, found, 5)
    assert "macro f1" in text and "ham: 0 → 1 of 3" in text and "(none) 1" in text


def test_measures_of_an_extraction():
    task = Task("extraction")
    pairs = [
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}'),
        ('{"a": 1}', '{"a": 1, "b": 3}'),
        ("nothing", '{"a": 1}'),
    ]
    found = task.measures(samples(task, pairs))
    assert found == pytest.approx({"field_precision": 2 / 3, "field_recall": 2 / 5, "field_f1": 4 / 8})


def test_measures_of_texts_and_of_maths():
    task = Task("text")
    assert task.measures(samples(task, [("red bike", "red bike"), ("blue", "red bike")])) == {"mean_f1": 0.5}
    assert Task().measures([{"output": "4", "expected": "4", "score": True}]) == {}
    assert measures_text(Task(), {}, {}, 1) == ""


def test_the_headline_of_lookalikes_is_exact_match_and_mean_f1():
    """Once such a run was reported as 0% → 88%, with no right answer: F1 over a threshold."""
    rows = [{"instruction": f"parcel {n}", "output": text} for n, text in enumerate(LOOKALIKES)]
    said = score_outputs(rows, LOOKALIKES[1:] + LOOKALIKES[:1], Task("text").grader)
    headline = Task("text").headline(said)
    assert headline.score == Score(0, 8) and headline.mean_f1
    assert headline.mean_f1.value > 0.7
    assert re.fullmatch(
        r"exact match 0/8 = 0\.0%, 95% interval 0\.0% to 32\.4%; mean F1 0\.8\d, 95% interval .*",
        str(headline),
    )
    right = score_outputs(rows[:1], LOOKALIKES[:1], Task().grader)
    assert (
        str(Task().headline(right)).startswith("accuracy 1/1 = 100.0%") and not Task().headline(right).mean_f1
    )
