"""The value of the concluding sentence, where no mark announces an answer."""

import re

from helpers.evaluate.grading.math.arithmetic import CURRENCY, NUMBER
from helpers.evaluate.grading.math.cjk_numerals import with_digits
from helpers.evaluate.grading.math.number_words import NUMBER_WORDS
from helpers.evaluate.grading.math.plain_text import CJK
from helpers.evaluate.grading.math.quantities import read_quantity, tidy_answer
from helpers.evaluate.grading.math.units import unit_at
from helpers.evaluate.grading.math.wording import sentences

_MATHS = re.compile(r"\$\$?\s*([^$\n]{1,300}?)\s*\$\$?|\\\((.{1,300}?)\\\)", re.DOTALL)

JOINT = re.compile(r"\s*(?:,?\s*(?:and|or)\s+|[,和或、]\s*)")


def formula_at(text: str, place: int) -> re.Match | None:
    """The formula that starts there in `$...$` or `\\(...\\)`; dollars of money (`$5 and $7`) open none."""
    match = _MATHS.match(text, place)
    if not match:
        return None
    content = match[1] or match[2]
    if match[1] and (
        re.search(r"(?<![\\A-Za-z{])\b(?!cm|km)[a-z]{2,}\s", content)
        or re.match(r"\d", text[match.end() : match.end() + 1])
    ):
        return None
    return match


_UNSURE = re.compile(
    r"\b(?:not sure|unsure|do(?:n't| not) know|can(?:not|'t| not) (?:be )?(?:determine|say|tell|"
    r"answer|solve)\w*|no idea|unable|not enough)"
    r"|不知道|不确定|无法",
    re.IGNORECASE,
)

_DANGLES = re.compile(
    r"(?:(?<!\*)[-+*/=^(,:]|\\times|\\cdot|×|÷|\b(?:is|are|the|of|and|or|to|has|have|a|get|equals))\s*$"
)

_VALUE = re.compile(
    rf"[-−]?\s?[{CURRENCY}]?[-−]?(?<![A-Za-z\d_^])(?:\d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}}(?!\d)"
    rf"|\d+,\d{{1,2}}(?![\d,])|\\[dt]?frac\{{\d+\}}\{{\d+\}}|\d+ \d+/\d+|{NUMBER}(?:\s*/\s*\d+(?!\d"
    r"|\.\d))?)(?:\s*\\?%)?(?:\s*(?:[*·]\s*)?(?:π|pi\b|√\s*\d+|sqrt\(\d+\)))?"
    rf"|(?<![\w)])-?(?:π|√\s*\d+)"
)

_BRACKETED = re.compile(r"(?<![\w)])[(\[{][^()\[\]{}]{1,80},[^()\[\]{}]{1,80}[)\]}](?=[\s.。,]*$)")

_GIVEN = re.compile(
    r"\b(?:in|for|after|within|over|during|per|every|with|each of|out of|all|of (?:the|these|those|his|her"
    r"|their)|[a-z]{3,}s of)\s+(?:the\s+|all\s+|about\s+|only\s+)?$",
    re.IGNORECASE,
)


def conclusion(text: str) -> str | None:
    """The value of the concluding sentence, for a text without any mark; None if it concludes nothing."""
    fence = re.search(r"```\w*\n(.{1,200}?)\n?```\s*$", text, re.DOTALL)
    if fence and "\n" not in fence[1].strip():
        return fence[1].strip()
    lines = [line for line in text.strip().split("\n") if line.strip()]
    if not lines:
        return None
    last = sentences(lines[-1].strip()[-2000:])[-1].strip()
    last = re.sub(r"\*\*\s*$", "", last) if last.count("**") == 1 else last
    if _UNSURE.search(last) or _DANGLES.search(last):
        return None
    if re.search(r"[?？]\s*$", last) or last.count("{") > last.count("}"):
        return None
    if re.match(r"(?:step|步骤)\s*\d", last, re.IGNORECASE) and not re.search(
        r"[=≈]|\b(?:is|are|has|have|gives|total)\b", last
    ):
        return None
    bare = last.strip(" *_")
    words = re.search(
        rf"[A-Za-z]{{2,}}|[{CJK}]{{2,}}",
        re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?|\b(?:and|or|sqrt)\b", "", bare),
    )
    if len(bare) <= 60 and not words and (len(lines) == 1 or not re.search(r"=", bare)):
        return bare
    if len(lines) == 1 and len(bare) <= 60 and _reads_whole(bare):
        return bare
    return value_of_sentence(last, alone=len(lines) == 1)


def value_of_sentence(last: str, alone: bool) -> str | None:
    """The last value in a sentence: a formula, bold text, right side, tuple, or number with its unit."""
    bold = re.findall(r"\*\*([^*\n]{1,80})\*\*", last)
    if bold and re.search(r"\d", bold[-1]) and not bold[-1].strip().endswith(":"):
        return bold[-1]
    plain_text, formulas = _formulas(last)
    if formulas and not re.search(r"\d", plain_text[formulas[-1][0] :]):
        joined = _assignments_at_end(last)
        if len(joined) > 1:
            return ", ".join(joined)
        content = formulas[-1][1]
        return _right_side(content)
    if _negated(plain_text):
        return None
    if "=" in plain_text:
        return _right_side(plain_text)
    if listed := re.search(
        rf"\b(?:are|were|be)\s+([{CURRENCY}]?-?{NUMBER}(?:,\s*[{CURRENCY}]?-?{NUMBER})*,?\s+and\s+[{CURRENCY}"
        rf"]?-?{NUMBER})\W*$",
        plain_text,
    ):
        return listed[1]
    if bracketed := _BRACKETED.search(plain_text):
        return bracketed[0]
    return _number_of_sentence(plain_text, alone)


Place = tuple[int, int, str]  # where a value starts and ends in a text, and the value


def _number_of_sentence(text: str, alone: bool) -> str | None:
    """The number that a sentence concludes, with its unit; a single amount of money before all others."""
    items = _values_in(text)
    if not items and alone:  # "小明一共有十二个苹果", but not "一个"
        text = with_digits(text)
        items = [item for item in _values_in(text) if item[2] != "1"]
    if not items and not alone:
        return None
    money = [item for item in items if item[2].strip(" -−")[:1] in tuple(CURRENCY)]
    if len(money) == 1:  # "she pays $64 for 16 glasses"
        return re.sub(r"^[-−]\s", "", money[0][2])
    if (spelled := _spelled(text, items, alone)) is not None:
        return spelled
    if not items or re.search(r"\d\s*[-+*/×÷]\s*\d+\s*\.?$", text.replace("/", "|")):
        return None
    return _with_unit(text, *_found_not_given(text, items))


def _values_in(text: str) -> list[Place]:
    return [
        (m.end() - len(m[0].lstrip()), m.end(), m[0].strip())
        for m in _VALUE.finditer(text)
        if m[0].strip(" -−")
    ]


_SPELLED = re.compile(
    r"\b(?:(?:negative|minus)\s+)?(?:"
    + "|".join(word for word in NUMBER_WORDS if word not in ("zero", "one"))
    + r")\b",
    re.IGNORECASE,
)


def _spelled(text: str, items: list[Place], alone: bool) -> str | None:
    """The last number word, where a short text has no digits, or where it follows them as in `the total is
    twelve`.
    """
    words = list(_SPELLED.finditer(text))
    if not words:
        return None
    start, said = words[-1].start(), words[-1][0]
    if not items:
        return said if alone and len(text) < 200 else None
    announced = re.search(r"\b(?:is|are|total|equals|be)\s+(?:of\s+)?$", text[:start])
    return said if start > items[-1][1] and announced else None


def _found_not_given(text: str, items: list[Place]) -> Place:
    """The last value that is not a given one: in "180 miles in 3 hours" the number after `in` is given, not
    found.
    """
    if len(items) == 1:
        return items[0]
    for item in reversed(items):
        before = text[max(0, item[0] - 200) : item[0]]
        given = _GIVEN.search(before) or re.search(
            r"\d.*\sto (?!\d)[a-z]+\b(?:(?!\b(?:is|are)\b).)*$", before
        )
        if not given:
            return item
    return items[-1]


def _assignments_at_end(text: str) -> list[str]:
    """`x=2`, `x=3` of a sentence that ends in `$x=2$ or $x=3$`."""
    found, place, last_end = [], 0, -1
    while place < len(text):
        match = formula_at(text, place) if text[place] in "$\\" else None
        if not match:
            place += 1
            continue
        content = (match[1] or match[2]).strip()
        joint = JOINT.fullmatch(text[last_end:place]) if found else None
        assigns = re.match(r"[a-zA-Z]\s*=[^=]+$", content)
        found = [*found, content] if joint and assigns else [content] if assigns else []
        place = last_end = match.end()
    return found


def _formulas(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text with each formula of a digit or a command blanked out, and (place, content) of those."""
    kept, found, place = [], [], 0
    while place < len(text):
        match = formula_at(text, place) if text[place] in "$\\" else None
        if match:
            content = match[1] or match[2]
            if re.search(r"\d|\\[a-zA-Z]", content):
                found.append((place, content.strip()))
            kept.append(" " * (match.end() - place))
            place = match.end()
        else:
            kept.append(text[place])
            place += 1
    return "".join(kept), found


def _right_side(text: str) -> str | None:
    """What follows the last `=`; the whole where the left side still has its unknown in it (`3x = 12`)."""
    assignments = re.findall(r"(?<![\w^\\])([a-zA-Z])\s*=\s*(-?[^\s,;=]+)", text)
    if len(assignments) > 1 and len(re.findall(r"(?<![<>!])=", text)) == len(assignments):
        return ", ".join(f"{name} = {value.rstrip('.')}" for name, value in assignments)
    sides = re.split(r"(?<![<>!\\])=", text)
    side = sides[-1].strip()
    if not re.search(r"\d|\\|[a-z]", side):
        return None
    if len(sides) == 2 and re.search(r"\d\s*[a-z]\s*$", sides[0]):
        return f"{sides[0].split()[-1]} = {side}"
    return side


def _negated(text: str) -> bool:
    return bool(
        re.search(
            r"\b(?:not|cannot be|never|(?:more|less|fewer|greater|larger"
            rf"|smaller) than)\s+(?:be\s+)?(?:equal to\s+)?[{CURRENCY}]?{NUMBER}\W*$",
            text,
        )
    )


def _with_unit(text: str, start: int, end: int, value: str) -> str:
    """A number in a sentence with what makes it another one: its unit, the larger unit before it, or the
    range that it ends.
    """
    before, after = text[:start], text[end:]
    if reach := re.search(rf"\bbetween\s+({NUMBER})\s*\w*\s+and\s*$", before):
        return f"between {reach[1]} and {value}"
    if reach := re.search(rf"({NUMBER})\s*(?:to|–|-|到)\s*$", before):
        return f"{reach[1]} to {value}"
    if clock := re.search(r"\b(\d{1,2}:)$", before):
        late = re.match(r"\s*[ap]\.?m\.?(?![a-z])", after, re.IGNORECASE)
        return clock[1] + value + (late[0] if late else "")
    if clock := re.match(r":\d\d\b(?:\s*[ap]\.?m\.?)?|\s*[ap]\.?m\.?(?![a-z])", after, re.IGNORECASE):
        return value + clock[0]
    length = unit_at(after)
    value += after[:length]
    if larger := re.search(
        rf"({NUMBER}\s*(?:hours?|hrs?|days?|minutes?|feet|foot|kg|km|小时|分钟))[\s,]*(?:and\s+)?$", before
    ):
        return f"{larger[1]} {value}"
    return re.sub(r"^[-−]\s", "", value.strip())


def _reads_whole(text: str) -> bool:
    """Whether a short text starts with its value: `2 hours`, `negative 5`, `two hundred and five`, but no
    sentence.
    """
    return "=" not in text and len(text.split()) <= 6 and read_quantity(tidy_answer(text)) is not None
