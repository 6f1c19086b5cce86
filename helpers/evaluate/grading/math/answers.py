"""Judging a final answer against a reference: the same text, or the same value."""

import re

from helpers.evaluate.grading.math.conclusion import conclusion, value_of_sentence
from helpers.evaluate.grading.math.equality import looks_symbolic, same_answer
from helpers.evaluate.grading.math.final_answer import final_answer, marked_answers, prepare
from helpers.evaluate.grading.math.plain_text import CJK
from helpers.evaluate.grading.math.quantities import MAX_ANSWER, clock_time, read_quantity, tidy_answer
from helpers.evaluate.grading.math.structures import structure
from helpers.evaluate.grading.math.wording import choice, normalise, sentences, stated_by
from helpers.evaluate.grading.verdict import Verdict


def check_answer(model_output: str, expected_output: str) -> Verdict:
    """Whether the answer is the reference, up to case, spaces, Unicode form and end punctuation.

    An empty answer is never right, not even where the reference is empty.
    """
    found, expected = normalise(model_output), normalise(expected_output)
    if not found:
        return Verdict(False, "the answer is empty", None, expected or None)
    passed = found == expected
    return Verdict(
        passed,
        "the same text" if passed else "another text than the reference",
        found[:MAX_ANSWER],
        expected[:MAX_ANSWER],
    )


def check_final_answer(model_output: str, expected_output: str) -> Verdict:
    """Whether the final answer of a free text has the value of the reference's final answer.

    Args:
        model_output: what the model wrote; its last announced answer counts.
        expected_output: the reference: a bare answer (`12`), or a worked solution that ends with one.
    """
    reference = _reference(expected_output or "")
    if not reference.strip(" .*_$"):
        return Verdict(False, "the reference holds no answer", final_answer(model_output), None)
    prepared = prepare(model_output or "")
    marked = marked_answers(prepared)
    found = marked[-1] if marked else conclusion(prepared)
    same_text = normalise(model_output) == normalise(expected_output)
    if not marked and _is_words(reference):
        found = _text_without_mark(prepared, reference)
    if same_text and normalise(model_output):
        return Verdict(True, "the same text", (found or reference)[:MAX_ANSWER], reference[:MAX_ANSWER])
    if found is None:
        return Verdict(False, "the text gives no final answer", None, reference[:MAX_ANSWER])
    passed, why = same_answer(reference[:MAX_ANSWER], found[:MAX_ANSWER])
    if not passed and marked:
        for other in _other_readings(reference, marked):
            if same_answer(reference[:MAX_ANSWER], other[:MAX_ANSWER])[0]:
                passed, why, found = True, "the same value", other
    return Verdict(passed, why, found[:MAX_ANSWER], reference[:MAX_ANSWER])


def _other_readings(reference: str, marked: list[str]) -> list[str]:
    """What a marked answer may also say: the value of a whole sentence after the mark, or the last of
    several, for a list.
    """
    readings = []
    if (
        re.match(r"[A-Za-z](?![.):])", marked[-1])
        and len(marked[-1].split()) >= 5
        and read_quantity(tidy_answer(reference))
    ):
        readings.append(value_of_sentence(marked[-1], alone=False) or "")
    wanted = structure(tidy_answer(reference.replace("$", "")))
    if wanted and wanted[0] in ("list", "set") and len(marked) >= len(wanted[1]):
        readings.append(", ".join(marked[-len(wanted[1]) :]))
    return [reading for reading in readings if reading]


def _reference(text: str) -> str:
    """The answer of a reference: marked, or the whole of a bare one, or what its last sentence concludes."""
    prepared = prepare(text)
    marked = marked_answers(prepared)
    if marked:
        return marked[-1]
    bare = prepared.strip()
    sentence = (len(bare.split()) >= 4 and re.search(r"[.!。]$", bare)) or (
        len(bare) > 60 and not looks_symbolic(tidy_answer(bare))
    )
    if (
        "\n" in bare
        or ("=" in bare and re.search(r"[A-Za-z]{3,}", re.sub(r"\\[a-zA-Z]+", "", bare)))
        or sentence
    ):
        return conclusion(prepared) or bare
    return bare


def _is_words(reference: str) -> bool:
    return (
        bool(
            re.search(
                rf"[A-Za-z]{{2,}}|[{CJK}]|^\W*[A-J]\W*$",
                re.sub(r"(?<=\d)\W*\b(?:and|or)\b", "", reference),
            )
        )
        and read_quantity(tidy_answer(reference)) is None
        and clock_time(reference) is None
        and "\\" not in reference
    )


_STATED_CHOICE = re.compile(
    r"(?:option|choice|选项)\s*\(?([A-J])\)?(?![A-Za-z])"
    r"|(?<![A-Za-z])\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|answer|best|true)|"
    r"\b(?:is|be|选|选择|为)\s*:?\s*\**\(?([A-J])\)?\**\s*[.。]*$|选择?\s*([A-J])(?![A-Za-z])",
    re.MULTILINE,
)


def _text_without_mark(text: str, reference: str) -> str | None:
    """Where the reference is words or a letter and no mark announces the answer: the last line, or a yes or
    no.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if normalise(reference) in ("yes", "no", "true", "false"):
        return _yes_or_no(" ".join(lines[-3:]).lower())
    if re.fullmatch(r"\(?[A-J]\)?", reference.strip()) and not choice(lines[-1]):
        stated = [
            next(filter(None, match.groups())) for match in _STATED_CHOICE.finditer("\n".join(lines[-3:]))
        ]
        return stated[-1] if stated else None
    last = sentences(lines[-1])[-1]
    return (last if stated_by(reference, last) else lines[-1])[:MAX_ANSWER]


def _yes_or_no(text: str) -> str | None:
    """The one of yes, no, true and false that a text says; `not true` is false, and `no remainder` says
    nothing.
    """
    found = set()
    for match in re.finditer(
        r"\b(not\s+)?(yes|true|false)\b|(?:^|[,;.:]\s*|\bso\s+|\bis\s+)(no)\b(?=\W*$|[,.;!])", text
    ):
        word = match[2] or match[3]
        found.add({"true": "false", "false": "true"}.get(word, word) if match[1] else word)
    return found.pop() if len(found) == 1 else None
