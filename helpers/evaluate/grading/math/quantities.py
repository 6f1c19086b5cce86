"""Reading a value from a short answer: numbers in digits and words, percent, scales, units, clock times."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from helpers.evaluate.grading.math.arithmetic import (
    CURRENCY,
    NUMBER,
    Number,
    rounds_to,
    same_number,
    scaled,
    value_of,
)
from helpers.evaluate.grading.math.cjk_numerals import with_digits
from helpers.evaluate.grading.math.number_words import number_words, part_of_one
from helpers.evaluate.grading.math.plain_text import plain
from helpers.evaluate.grading.math.units import UNITS, WORD, read_unit, unit_size

MAX_ANSWER = 500

_SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "万": 10**4,
    "亿": 10**8,
    "dozen": 12,
}

_SYMBOL_UNITS = ("N", "J", "W", "V", "A", "K", "C", "F", "Pa", "Hz", "mol", "Ω")

_HEDGE = re.compile(
    r"^(?:(?:about|approximately|approx\.?|roughly|around|exactly|only|just|simply|equal to|equals|a total of"
    r"|a|an|the|at least|at most|"
    r"there (?:are|is|were)|she has|he has|they have|it is|it's)\s+|[≈~=]\s*|大约|约|共|一共|总共|为|是|有)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number with what stands around it: percent sign, unit, decimals as written."""

    value: Number
    percent: bool = False
    unit: str = ""
    decimals: int | None = None


_EXPRESSION = re.compile(rf"(?:{NUMBER}|sqrt(?![A-Za-z])|pi(?![A-Za-z])|[-+*/^()!\s]|[{CURRENCY}])+%?")

_ALTERNATIVE = re.compile(r"^(?:\w+\s+)?(?:or|and|或|和)\s+[-$]?[\d\\]|^,\s*[-$]?\d|^\s*[±]")

_GROUPS = [  # thousands as they are set elsewhere: 1 000 000, 1'000'000, 1.234.567, 1.234,56
    (re.compile(r"(?<![\d.,/])\d{1,3}(?:[ '\u202f]\d{3})+(?![\d/]|\s*/)"), r"[ '\u202f]"),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,]\d)"), r"\."),
]


def tidy_answer(text: str) -> str:
    """An answer without the wrapping: bold, `$...$`, quotes, end punctuation, negative in words."""
    text = with_digits(re.sub(r"\*\*|__|`", "", plain(text[:MAX_ANSWER])).strip())
    whole = re.fullmatch(r"\$+\s*([^$]+?)\s*\$+[.\s]*", text)
    if whole:
        text = whole[1]
    elif re.fullmatch(r"\$[^$]+\$(?:[\s,;和或、]*(?:and|or)?\s*\$[^$\d][^$]*\$)+[.\s]*", text):
        text = text.replace("$", "")
    elif text.count("$") >= 2 and text.startswith("$"):
        inner = re.match(r"^\$+([^$]+)\$+(.*)$", text)
        text = inner[1] + " " + inner[2] if inner and not re.match(r"\s*[\d.]", inner[2]) else text
    elif text.endswith("$") and not text.startswith("$"):
        text = text[:-1]
    text = re.sub(r"^(?:negative|minus|负)\s*(?=[\d$(]|[a-z])", "-", text.strip(), flags=re.IGNORECASE)
    for pattern, separator in _GROUPS:
        text = pattern.sub(lambda m, separator=separator: re.sub(separator, "", m[0]), text)
    text = re.sub(
        r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d{1,2})(?!\d)",
        lambda m: m[1].replace(".", "") + "." + m[2],
        text,
    )
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", " * ", text)
    text = re.sub(r"(?<=\S)\s+(?:(?:square|cubic)\s+)?units?\.?$", "", text)
    text = re.sub(r"^(?:all real numbers|\\mathbb\s*\{?R\}?|ℝ)$", "(-oo, oo)", text.rstrip(" ."))
    return re.sub(r"[\s.。,;:!]+$", "", text.strip(" \"'"))


def read_quantity(text: str) -> Quantity | None:
    """The quantity that a tidied answer starts with: `$12.50 per hour`, `25%`, `3/4 cup`; None if it starts
    with none.

    Two numbers offered as one answer (`3 or 4`) are no quantity.
    """
    text = _HEDGE.sub("", text).strip()
    text = re.sub(r"^(?:negative|minus)\s*(?=[\d$(])", "-", text, flags=re.IGNORECASE)
    if text.startswith("-") and (words := number_words(text[1:])) is not None:
        return Quantity(Fraction(-words))
    words = number_words(text)
    if words is not None:
        return Quantity(Fraction(words))
    match = _EXPRESSION.match(text)
    if not match:
        return worded_quantity(text)
    expression, rest = match[0], text[match.end() :]
    # Give back a bracket that opens a remark: "12 (because ...)".
    while expression.count("(") > expression.count(")"):
        cut = expression.rindex("(")
        expression, rest = expression[:cut], expression[cut:] + rest
    expression = expression.rstrip()
    trimmed = expression.rstrip("+-*/^ ")
    if trimmed != expression and rest[:1].isalpha():
        rest = expression[len(trimmed) :] + rest
    expression = trimmed
    money = next((char for char in CURRENCY if char in expression), "")
    value = value_of(expression)
    if value is None:
        return None
    percent = expression.endswith("%")
    decimals = re.fullmatch(r"[-+$€£¥₹\s]*[\d,]*\.(\d+)\s*%?", expression)
    count = (
        len(decimals[1])
        if decimals
        else (0 if re.fullmatch(r"[-+$€£¥₹\s]*[\d,]+\s*%?", expression) else None)
    )
    return _with_rest(
        Quantity(scaled(value, 100) if percent else value, percent, money, count),
        rest,
        text[match.end() - 1].isspace(),
    )


def worded_quantity(text: str) -> Quantity | None:
    """`twelve apples`, `two thirds`."""
    match = re.match(r"[A-Za-z-]+(?:\s+[A-Za-z-]+){0,5}", text)
    if not match:
        return None
    part = part_of_one(re.split(r"[\s-]+", match[0]))
    if part is not None:
        return Quantity(part)
    words = match[0].split()
    for count in range(len(words), 0, -1):
        value = number_words(" ".join(words[:count]))
        if value is not None:
            rest = text[len(" ".join(words[:count])) :]
            if _ALTERNATIVE.match(rest.strip()) or re.match(r"\s*(?:or|and|of)\b", rest):
                return None
            return _with_rest(Quantity(Fraction(value)), rest)
    return None


def _with_rest(quantity: Quantity, rest: str, apart: bool = False) -> Quantity | None:
    """Read what follows a number: a scale, a unit, a noun, a remark.

    Args:
        apart: whether a space stands between the number and its rest.

    Returns:
        The number with its scale and unit; None if the rest makes it something else.
    """
    text = rest.strip()
    if not text:
        return quantity
    two_units = re.match(r"([A-Za-z]+)(\s*(?:,|and)*\s*\d.*)", text)
    if two_units and two_units[1].lower() in UNITS:
        return _compound(quantity, two_units[1].lower(), two_units[2])
    out_of = re.match(r"out of\s+(?:the\s+)?(\d+)\b|in\s+(\d+)[\s.]*$", text)
    if out_of and int(out_of[1] or out_of[2]) and isinstance(quantity.value, Fraction):
        return Quantity(quantity.value / int(out_of[1] or out_of[2]))
    if re.match(r"(?:to|more than|less than|fewer than|times)\s+[-$]?\d|(?:remainder|R)\s*\d|余\d", text):
        return None
    if re.match(r"\\(?:Omega|mu)", text):
        return quantity
    if _ALTERNATIVE.match(text) or re.match(r"[:/^*+±≈<>_\\\[⟦]|-\s*\d|\.\d|=\s*\d", text):
        return None
    word = WORD.match(text)
    if not word:
        return quantity if re.match(r"[,;.(\"')\]—–-]", text) else None
    return _with_word(quantity, text, word[0], apart)


def _with_word(quantity: Quantity, text: str, word: str, apart: bool) -> Quantity | None:
    """As `_with_rest`, for a rest that starts with a word."""
    name = word if word in ("m", "g", "l") else word.lower()
    if not name.isascii() and name[0] in _SCALES:
        word = name = text[0]
    after = text[len(word) :]
    if name in _SCALES:
        return _with_rest(
            Quantity(scaled(quantity.value, _SCALES[name]), quantity.percent, quantity.unit), after
        )
    if name in ("percent", "percentage", "pct"):
        return Quantity(quantity.value, True, quantity.unit, quantity.decimals)
    if _ALTERNATIVE.match(after.strip()) or re.match(r"\s*(?:or)\s+[-$]?\w*\s*(?:\d|$)", after):
        return None
    unit, length = read_unit(text)
    if unit in ("s", "h") and not apart:
        return None  # 3h: a variable
    if unit and not re.match(r"\s*(?:[*+=]|/\s*\d)", text[length:]):
        return Quantity(quantity.value, quantity.percent, quantity.unit or unit, quantity.decimals)
    if word in _SYMBOL_UNITS and apart and not after.strip(" ."):
        return quantity
    return _with_noun(quantity, name, after)


def _with_noun(quantity: Quantity, name: str, after: str) -> Quantity | None:
    """As `_with_rest`, for a rest that starts with a word that is no unit: a noun, or a variable."""
    square = re.match(r"\s*\^\s*\(?(\d)\)?", after)
    if square and len(name) > 1:
        unit = quantity.unit or f"{name}^{square[1]}"
        return Quantity(quantity.value, quantity.percent, unit, quantity.decimals)
    if len(name) == 1 and name.isascii() and name.isalpha() and not (name == "a" and after.startswith(" ")):
        return None  # 5x, 5 x: a variable
    if name in ("sin", "cos", "tan", "log", "ln", "exp", "mod") or re.match(r"\s*[=^*]", after):
        return None
    return quantity


def _compound(first: Quantity, unit: str, rest: str) -> Quantity | None:
    """`3 hours and 20 minutes` in the first unit; None where the units don't go together."""
    second = read_quantity(re.sub(r"^\s*(?:,|and)*\s*", "", rest))
    if (
        not second
        or second.unit not in UNITS
        or UNITS[second.unit][1] >= UNITS[unit][1]
        or UNITS[second.unit][0] != UNITS[unit][0]
        or isinstance(first.value, Decimal)
        or isinstance(second.value, Decimal)
    ):
        return None
    return Quantity(first.value + second.value * UNITS[second.unit][1] / UNITS[unit][1], first.percent, unit)


_CLOCK = re.compile(
    r"(\d{1,2})(?:[:.](\d\d))?\s*(a\.?\s?m\.?|p\.?\s?m\.?)(?![a-z])|(\d{1,2}):(\d\d)(?![\d:])", re.IGNORECASE
)


def clock_time(text: str) -> tuple[int, bool] | None:
    """Minutes after midnight of `3:45 p.m.`, `3 PM` or `15:45`, and whether it says which half of the day;
    None for no time.
    """
    match = _CLOCK.fullmatch(text.strip(" ."))
    if not match:
        return None
    hour, minute = int(match[1] or match[4]), int(match[2] or match[5] or 0)
    if hour > 23 or minute > 59 or (match[3] and not 1 <= hour <= 12):
        return None
    if match[3]:
        hour = hour % 12 + (12 if match[3].lower().startswith("p") else 0)
    return hour * 60 + minute, bool(match[3]) or hour > 12


def _long_expansion(quantity: Quantity) -> bool:
    """Whether a value can't be a rounded figure itself: a root, 10/3, or a decimal with 5 places or more."""
    if isinstance(quantity.value, Decimal) or (quantity.decimals or 0) >= 5:
        return True
    bottom = quantity.value.denominator
    while bottom % 2 == 0:
        bottom //= 2
    while bottom % 5 == 0:
        bottom //= 5
    return bottom != 1


def same_quantity(gold: Quantity, found: Quantity) -> bool:
    """Equal by value. Known units are converted; one side without a unit or percent sign takes the other's.

    A reference rounded to 2 places or more (3.33) takes the exact value (10/3, 3.33333). An exact reference
    takes a decimal that agrees to 6 places, three of them significant.
    """
    if gold.unit and found.unit and {gold.unit, found.unit} not in ({"£", "pound"}, {"£", "pounds"}):
        a, b = unit_size(gold.unit), unit_size(found.unit)
        if a and b:
            if a[0] != b[0]:
                return False
            gold = Quantity(
                scaled(gold.value, a[1] / b[1]), gold.percent, "", gold.decimals if a == b else None
            )
    values = [(gold.value, found.value)]
    if gold.percent != found.percent:
        hundredth = Fraction(1, 100)
        values.append(
            (scaled(gold.value, hundredth), found.value)
            if gold.percent
            else (gold.value, scaled(found.value, hundredth))
        )
    for a, b in values:
        if same_number(a, b):
            return True
        decimals = gold.decimals or 0
        if decimals >= 2 and _long_expansion(found) and isinstance(a, Fraction) and rounds_to(b, a, decimals):
            return True
        if (
            gold.decimals is None
            and _long_expansion(gold)
            and (found.decimals or 0) >= 6
            and isinstance(b, Fraction)
            and rounds_to(a, b, 6)
            and abs(Fraction(a) - b) * 200 <= abs(Fraction(a))
        ):
            return True
    return False
