"""The graders against a table graded by hand, laws that must hold for any text, and bounds on time."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from grading_cases import EXACT_ANSWERS, FINAL_ANSWERS
from grading_cases_languages import EAST_ASIAN, SHARED_WORDS
from grading_cases_models import MODELS_ANSWERS
from grading_cases_notation import ENDS, FIELDS, LABELS, NEAR_NUMBERS, NOTATION, STEPS_BESIDE_REMARKS
from grading_cases_steps import COMPLETE, STEPS
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.evaluate.grading import (
    check_answer,
    check_completeness,
    check_fields,
    check_final_answer,
    check_label,
    check_reasoning_steps,
    final_answer,
    label_in,
    text_f1,
)
from helpers.evaluate.grading.math.cjk_numerals import with_digits

WAYS_TO_SAY = [
    "{}",
    "Final answer: {}",
    "The answer is {}.",
    "#### {}",
    "So \\boxed{{{}}}.",
    "**Answer:** {}",
    "答案是{}。",
    "Step 1: 1 + 1 = 2\nFinal answer: {}",
]


def ids(cases):
    return [f"{number}: {why}" for number, (*_, why) in enumerate(cases)]


ANSWERS = [*FINAL_ANSWERS, *MODELS_ANSWERS, *NOTATION, *EAST_ASIAN, *NEAR_NUMBERS]
ALL_STEPS, ALL_ENDS = [*STEPS, *STEPS_BESIDE_REMARKS], [*COMPLETE, *ENDS]


def test_the_table_is_large_and_balanced():
    verdicts = [row[2] for row in (*ANSWERS, *EXACT_ANSWERS, *ALL_STEPS, *ALL_ENDS)]
    assert len(verdicts) >= 150 and 0.3 < sum(verdicts) / len(verdicts) < 0.7


@pytest.mark.parametrize("output, reference, right, why", ANSWERS, ids=ids(ANSWERS))
def test_final_answer(output, reference, right, why):
    start = time.monotonic()
    verdict = check_final_answer(output, reference)
    assert bool(verdict) is right, f"{why}: {verdict}"
    assert (
        verdict.why and time.monotonic() - start < 15
    )  # the first comparison of expressions starts a process


@pytest.mark.parametrize("output, reference, right, why", EXACT_ANSWERS, ids=ids(EXACT_ANSWERS))
def test_exact_answer(output, reference, right, why):
    assert bool(check_answer(output, reference)) is right, why


@pytest.mark.parametrize("output, reference, right, why", ALL_STEPS, ids=ids(ALL_STEPS))
def test_reasoning_steps(output, reference, right, why):
    verdict = check_reasoning_steps(output, reference)
    assert bool(verdict) is right, f"{why}: {verdict}"


@pytest.mark.parametrize("output, stop_reason, right, why", ALL_ENDS, ids=ids(ALL_ENDS))
def test_completeness(output, stop_reason, right, why):
    verdict = check_completeness(output, stop_reason)
    assert bool(verdict) is right, f"{why}: {verdict}"


@pytest.mark.parametrize("output, labels, named", LABELS)
def test_labels_of_one_letter(output, labels, named):
    assert label_in(output, list(labels)) == named
    assert [label for label in labels if check_label(output, label, list(labels))] == [named] * (
        named is not None
    )


@pytest.mark.parametrize("output, reference, right", FIELDS)
def test_references_without_fields(output, reference, right):
    verdict = check_fields(output, reference)
    assert bool(verdict) is right and verdict.why


@pytest.mark.parametrize("text, reference, f1", SHARED_WORDS)
def test_words_of_languages_with_and_without_spaces(text, reference, f1):
    assert text_f1(text, reference) == pytest.approx(f1)


def test_evidence_names_the_faulty_steps():
    reference = "5 + 7 = 12\n12 * 3 = 36\n36 - 6 = 30\nFinal answer: 30"
    verdict = check_reasoning_steps("5 + 7 = 13\nThat makes 36.\nFinal answer: 13", reference)
    assert verdict.evidence["wrong"] == ["5 + 7 = 13"]
    assert verdict.evidence["missing"] == ["36 - 6 = 30"]
    assert verdict.evidence["unsupported"] == ["12 * 3 = 36"]


@given(st.integers(-(10**9), 10**9), st.sampled_from(WAYS_TO_SAY), st.sampled_from(WAYS_TO_SAY))
def test_a_number_is_itself_however_it_is_said(number, said, reference):
    assert check_final_answer(said.format(number), reference.format(number))
    assert check_final_answer(said.format(f"{number:,}"), reference.format(number))


@given(st.integers(1, 10**12 - 1))
def test_a_number_in_chinese_characters_is_itself(number):
    assert with_digits(in_characters(number)) == str(number)


def in_characters(number: int) -> str:
    """Built from the right, in groups of four, unlike the reader."""
    groups = []
    for size in ("", "万", "亿"):
        number, group = divmod(number, 10_000)
        digits = f"{group:04d}" if number else str(group)
        units = ("千", "百", "十", "")[-len(digits) :]
        text = "".join(
            "零" if d == "0" else "零一二三四五六七八九"[int(d)] + u
            for d, u in zip(digits, units, strict=True)
        )
        groups.append(re.sub("零+", "零", text).rstrip("零") + size if group else "零")
        if not number:
            break
    return re.sub("零+", "零", "".join(reversed(groups))).rstrip("零")


@given(st.integers(0, 10**9), st.data(), st.sampled_from(WAYS_TO_SAY))
def test_a_changed_digit_fails(number, data, said):
    digits = list(str(number))
    place = data.draw(st.integers(0, len(digits) - 1))
    digits[place] = data.draw(st.sampled_from([d for d in "123456789" if d != digits[place]]))
    assert not check_final_answer(said.format("".join(digits)), str(number))


@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_fraction_equals_its_multiples_and_no_neighbour(top, bottom):
    assert check_final_answer(f"\\frac{{{3 * top}}}{{{3 * bottom}}}", f"{top}/{bottom}")
    assert not check_final_answer(f"{top + 1}/{bottom}", f"{top}/{bottom}")


@given(st.text(min_size=1, max_size=200).filter(lambda text: any(char.isalnum() for char in text)))
def test_a_reference_graded_against_itself_passes(text):
    assert check_final_answer(text, text)
    assert check_answer(text, text)


@settings(max_examples=300)
@given(
    st.text(
        alphabet=st.sampled_from("0123456789+-*/^=(){}[]\\$%.,:# \nabx是答案frac boxed sqrt"), max_size=120
    ),
    st.sampled_from(["12", "", "B", "x+1", "a"]),
)
def test_no_text_raises(text, reference):
    assert check_final_answer(text, "12").passed in (True, False)
    assert check_answer(text, reference).passed in (True, False)
    assert check_reasoning_steps(text, text).passed in (True, False)
    assert check_completeness(text).passed in (True, False)


@pytest.mark.parametrize("kilobytes", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_a_flood_of_100_kb_takes_a_second_and_200_mb_at_most(kilobytes):
    """And one of 20 kB a fifth of a second."""
    script = Path(__file__).parent / "grading_floods.py"
    run = [sys.executable, script, str(kilobytes)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    *faults, calls = done.stdout.splitlines() or [""]
    assert not faults and int(calls) > 400, (faults, done.stderr[-2000:])


def test_a_comparison_that_takes_too_long_is_no_match_and_the_next_one_works():
    assert not check_final_answer("\\boxed{9^{9^{9^9}} + x}", "x + 3")
    assert check_final_answer("\\boxed{(x+1)^2}", "x^2+2x+1")


def test_threads_can_grade():
    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(bool(check_final_answer("\\boxed{x(x+1)}", "x^2+x"))))
        for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert verdicts == [True] * 4


def test_ten_thousand_outputs_take_less_than_a_minute():
    outputs = [
        f"Step 1: {n} + 7 = {n + 7}\nStep 2: {n + 7} * 3 = {3 * n + 21}\nFinal answer: {3 * n + 21}"
        for n in range(10_000)
    ]
    start = time.monotonic()
    assert (
        sum(bool(check_final_answer(output, str(3 * n + 21))) for n, output in enumerate(outputs)) == 10_000
    )
    assert time.monotonic() - start < 60


def test_final_answer_is_as_written():
    assert final_answer("The answer is **1,200 dollars**.").strip("*.") == "1,200 dollars"
    assert final_answer("I don't know") is None
