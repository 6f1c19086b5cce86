"""The equations that a text states, and whether each is right."""

import re
import unicodedata
from collections.abc import Set
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from helpers.evaluate.grading.answer_text import short_runs
from helpers.evaluate.grading.math.arithmetic import (
    CURRENCY,
    NUMBER,
    Number,
    evaluate,
    rounds_to,
    same_number,
    scaled,
)
from helpers.evaluate.grading.math.final_answer import MAX_TEXT
from helpers.evaluate.grading.math.plain_text import CJK, plain

MAX_EQUATIONS = 300


@dataclass(frozen=True)
class Equation:
    """A chain of sides that a text states to be equal, with the value of each.

    Attributes:
        text: as in the text, shortened.
        values: one a side.
        parts: the values of all numbers and partial results in it.
        right: whether all sides are equal (a decimal may be a rounded value).
    """

    text: str
    values: tuple[Number, ...]
    parts: tuple[Number, ...]
    right: bool


# A word before a number or after it is a noun or a unit ("5 apples + 7 apples"); `x` between numbers
# multiplies.
_NOUN = re.compile(rf"[A-Za-z{CJK}][A-Za-z{CJK}'_-]*\.?")

_ARITHMETIC = rf"{NUMBER}|(?<![A-Za-z])(?:sqrt|pi)(?![A-Za-z])|\*\*|[-+*/^()%!{CURRENCY}]"

_CLAUSE = re.compile(
    rf"(?<=[A-Za-z{CJK}]):|:\s|[;?]|[,.]\s|[,.]$|,(?=[{CJK}])|(?<=[{CJK}]),"
    r"|\b(?:is|are|so|then|therefore|thus|hence|and|have|has|get|costs?|because|since|as)\s"
)

_END_OF_VALUE = re.compile(
    rf"[;?。，；]|[,.](?:\s|$)|,(?=[{CJK}])|:\s|\b(?:and|so|which|because|since|then|per|each|for|left|in"
    r"|of)\b"
)


def _side(text: str, where: str, known: dict[str, Number] | None = None) -> str | None:
    """The arithmetic of one side of an equation: the text's end for a first side, its start for a last one.

    Args:
        known: values of unknowns that the text finds, put in their place.
    """
    if where == "first":
        text = _CLAUSE.split(text)[-1]
        text = re.sub(r"^\s*\(?[a-z\d]{1,2}\)\s+(?=[\d(-])|^\s*\d+\.\s+(?=[\d(-])", "", text)
    elif where == "last":
        text = _END_OF_VALUE.split(text)[0]
    for name, value in (known or {}).items():
        alone = rf"(?<![A-Za-z\d])(?<!\d )(-?){name}\b"
        text = re.sub(rf"(?<=\d)\s*{name}\b", f" * ({value})", re.sub(alone, rf"\g<1>({value})", text))
    if where == "first" and re.search(
        r"(?<![A-Za-z])[A-Za-z]\w?\s*(?:_\s*[({]?\w+[)}]?|\([^()]{1,20}\))\s*$", text
    ):
        return None  # S_3 or f(0): a name, no value
    tokens = [token for token in re.split(rf"({_ARITHMETIC})", text) if token.strip()]
    kept: list[str] = []
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        if re.fullmatch(_ARITHMETIC, token):
            if (
                re.match(r"[\d.]", token)
                and kept
                and kept[-1] == " "
                and any(re.match(r"[\d.)]", piece) for piece in kept)
            ):
                if where != "first":
                    break  # "60 cups for 3 people": the value is 60
                kept = []  # "for 20 chickens 3 * 20": the arithmetic is 3 * 20
            kept.append(token)
            continue
        words = token.split()
        if any(not _NOUN.fullmatch(word) for word in words):
            return None
        if where == "first" and not any(re.match(r"[\d.]", piece) for piece in kept):
            if re.search(r"(?:^|\s)[b-zB-HJ-Z]\s*$", token) and following in ("+", "-", "*", "/", "^", "**"):
                return None  # x + 66
            kept = []  # "Total cost 5 + 7": words before the arithmetic
        elif (
            len(token.strip()) == 1
            and re.match(r"[a-zA-Z]$", token.strip())
            and token.strip() not in ("m", "g", "l", "L", "h", "s")
        ):
            return None  # a variable: 5x
        elif kept and kept[-1] in "+-*/^(" and where != "first":
            return None
        else:
            kept.append(" ")
    side = re.sub(r"\(\s*\)", " ", " ".join(kept))
    return re.sub(r"\s+", " ", side).strip() or None


def _nouns(text: str) -> set[str]:
    return {word.lower().rstrip("s.") for word in re.findall(r"[A-Za-z]{2,}", text)} - {"sqrt", "pi", "step"}


# The head of an item that follows others in its line: "(2) ", "2. ", "b) ", "Step 2: ", "第二步：".
_ITEM = (
    r"(?<=[\w)%.;,。；，]\s)(?:\((?:\d{1,2}|[a-z])\)\s+(?=[\w($\\])|(?:\d{1,2}[.)]|[a-z]\))\s+(?=[\w($\\])"
    r"|(?:Step|STEP|step)\s*\d{1,2}\s*[:.]\s)|(?:步骤|第)[\d一二三四五六七八九十]{1,3}步?[:：]"
)

_BREAK = re.compile(
    rf"\n|\||[①-⑳]|{_ITEM}"
    r"|\s+and\s+(?=[A-Za-z]\w*\s*=)|(?<=[a-z\d)%][.;])\s+(?=[A-Z\d$(])|[。；]|\\\\"
    r"|(?<=[a-z\d)]),\s+(?=[\d(a-zA-Z$])|\\\]|\\\)(?=[\s,.;])"
)

_WORDS_FOR_SIGNS = {r"plus|added to": "+", r"minus": "-", r"times|multiplied by": "*", r"divided by": "/"}

_REMAINDER = re.compile(
    r"(\d{1,18})\s*[/÷]\s*(\d{1,18})\s*=\s*(\d{1,18})[^\d=.]{0,20}(?:remainder|\br\b|\bR|余|\.{3,}"
    r"|…+)(?:\s+of)?\s*(\d{1,18})"
)


# What stands beside the arithmetic: "(clips)", "（元/个）", "(cm^2)", but not "(x)" or "(pi)".
_REMARK = re.compile(
    rf"[（(\[]\s*(?!(?:pi|sqrt)\b)(?:[A-Za-z]{{2,}}|m\b|[{CJK}])(?:[A-Za-z\s{CJK}.,!'/²³-]|\^\d){{0,60}}[)）\]]"
    r"(?P<next>\s*(?=\d))?|\ufe0f"
)


def _in_signs(text: str) -> str:
    """A solution with signs for words, without units that look like arithmetic, one equation a line."""
    text = re.sub(r"<<[^<>\n]{0,200}>>", "", short_runs(text[-MAX_TEXT:]))
    text = re.sub(r"\\(?:begin|end)\{[^{}]{0,40}\}|\\(?:qquad|quad|tag\{[^{}]*\})", " ", text)
    text = re.sub(r"(?:\\\\|\n)[\s&]{0,20}=(?!=)", " = ", text)
    text = "".join(" " if unicodedata.category(char) == "So" else char for char in text)  # ✓ and the like
    text = _REMARK.sub(lambda remark: " " if remark["next"] is None else "\n", text)
    for words, sign in _WORDS_FOR_SIGNS.items():
        text = re.sub(rf"(?<=[\d%])\s+(?:{words})\s+(?=[{CURRENCY}]?\d)", f" {sign} ", text)
    text = re.sub(rf"(\d%|\d\s*/\s*\d+\)*)\s+of\s+(?=[{CURRENCY}(]?\d)", r"\1 * ", text)
    return re.sub(
        rf"([-+*/]\s*[{CURRENCY}]?{NUMBER})\s+(?:is|equals|gives|makes)\s+(?=[{CURRENCY}]?\d)", r"\1 = ", text
    )


def _plain_line(line: str) -> str:
    line = re.sub(r"\*\*(?=\D|$)|(?<!\d)\*\*|`", " ", line)
    line = re.sub(
        r"\$\$|\\[()\[\]]|(?<![\d(+*/=-])\s?\$(?=\s|\\|$)|\$(?![\d.])", " ", line.replace("\\$", "$")
    )
    for sign in ("\\implies", "\\Rightarrow", "⇒", "→"):
        line = line.replace(sign, ";")
    line = plain(line.replace("&", " "))
    line = re.sub(r"\b([A-Za-z]{2,}|m)\s*\^\s*\(?[23]\)?", r"\1", line)  # 12 cm^2
    line = re.sub(r"(?<=[\w)])\s*/\s*(?!sqrt|pi\b)[A-Za-z]{2,}", " ", line)  # $2/egg
    line = re.sub(
        r"(?<=[\d)])\s*[xX]\s*(?=[\d($]|\.\d)|(?<=\d)\s*[xX]\s+(?=[\d($]|\.\d)|(?<=[a-z])\s+x\s+(?=[\d($])",
        " * ",
        line.replace("\\", " "),
    )
    line = re.sub(r"^[\s>]*[-*•]\s+(?:\[[ xX]\]\s)?(?=\S)|^[\s>]+", "", line)
    return re.sub(
        r"^\s*(?:step|步骤|第)?\s*\d+\s*步?\s*(?:\.(?!\d)|[:)、])\s*(?=\S)", "", line, flags=re.IGNORECASE
    )


def equations(text: str) -> list[Equation]:
    """The equations that a text states, in its order.

    An equation with an unknown counts where the text gives that unknown one value: `0.75x = 19.50` with `x =
    26`.
    """
    lines = []
    for line in _BREAK.split(_in_signs(text)):
        if ("=" in line or "≈" in line or "\\approx" in line) and len(line) <= 800:
            lines += _plain_line(line).split("; ")
        if len(lines) >= MAX_EQUATIONS:
            break
    known = _unknowns(lines)
    return [equation for line in lines for equation in _chain(line, known)][:MAX_EQUATIONS]


def _unknowns(lines: list[str]) -> dict[str, Number]:
    """Unknowns to which a text gives one single value."""
    values: dict[str, set[Number]] = {}
    for line in lines:
        for name, value in re.findall(
            rf"(?<![A-Za-z\d)/*+^-])(?<![/*+^-] )\b([a-zA-Z])\s*=\s*[{CURRENCY}]?\s*(-?{NUMBER}"
            r"(?:\s*/\s*\d+)?)\s*(?=$|[.,;]|[A-Za-z])",
            line,
        ):
            result = evaluate(value)
            if result and name not in "ie":  # 2i: the imaginary unit
                values.setdefault(name, set()).add(result[0])
    return {name: found.pop() for name, found in values.items() if len(found) == 1}


def _chain(line: str, known: dict[str, Number]) -> list[Equation]:
    if re.search(r"[<>≠]|!=", line):
        return []
    if division := _REMAINDER.search(line):
        top, bottom, whole, rest = (Fraction(number) for number in division.groups())
        return [
            Equation(
                division[0][:200],
                (whole,),
                (top, bottom, whole, rest),
                bool(bottom) and top == bottom * whole + rest and rest < bottom,
            )
        ]
    pieces = re.split(r"(==?|≈)", line)
    sides, signs = _split_middles(pieces[::2], pieces[1::2])
    read: list[tuple[str, Number, list[Number], str] | None] = []
    for place, side in enumerate(sides):
        where = (
            "first"
            if place == 0 or not signs[place - 1]
            else "last"
            if place == len(sides) - 1 or not signs[place]
            else "middle"
        )
        arithmetic = _side(side, where)
        if arithmetic is None and known:
            arithmetic = _side(side, where, known)
        result = evaluate(arithmetic) if arithmetic else None
        read.append((arithmetic, *result, side) if arithmetic and result else None)
    found, run = [], []
    for place, item in enumerate([*read, None]):
        if item is not None and (not run or signs[place - 1]):
            run.append((item, signs[place - 1] if place and run else ""))
            continue
        run = _without_conversion(run)
        if len(run) >= 2 and _says_something(run):
            found.append(_judge(run))
        run = [(item, "")] if item is not None else []
    return found


def _split_middles(sides: list[str], signs: list[str]) -> tuple[list[str], list[str]]:
    """`5 + 7 = 12 and 12 * 2 = 24`: its middle side ends one equation and starts another. An empty sign parts
    them.
    """
    split_sides, split_signs = sides[:1], []
    for place, side in enumerate(sides[1:], start=1):
        split_signs.append(signs[place - 1])
        ends = re.match(
            rf"\s*[{CURRENCY}]?\s*-?{NUMBER}(?![,.]?\d)%?\s*[^-+*/^=\d(]*[A-Za-z{CJK},][^-+*/^=\d(]*"
            rf"(?=[{CURRENCY}(]?\d)",
            side,
        )
        if ends and place < len(sides) - 1:
            split_sides += [side[: ends.end()], side[ends.end() :]]
            split_signs.append("")
        else:
            split_sides.append(side)
    return split_sides, split_signs


def _without_conversion(run: list) -> list:
    """The sides without a first one that only names what is computed: `Cost of 3 pens = 3 * 2 = 6`, `3 hours
    = 3 * 60 = 180 minutes`.
    """
    if len(run) < 2:
        return run
    (first, _), (second, _), (last, _) = run[0], run[1], run[-1]
    if _computes(first[0]) or not _computes(second[0]) or same_number(first[1], second[1]):
        return run
    labelled = re.search(rf"[A-Za-z{CJK}]{{2,}}[^\d]*\d", _CLAUSE.split(first[3])[-1])
    nouns = _nouns(first[3])
    counted = nouns and not labelled and holds(first[1], set(second[2][:-1]))  # 4 quarters = 4 * 0.25
    if labelled or counted or (nouns and _nouns(last[3]) and not nouns & _nouns(last[3])):
        return [(second, ""), *run[2:]]
    return run


def _computes(arithmetic: str) -> bool:
    return bool(re.search(r"[\d)%]\s*[-+*/^!]|sqrt|%|\d\s*\(", arithmetic))


def _says_something(run: list) -> bool:
    """`1 foot = 12 inches` converts units: it is no arithmetic. One side at least must compute, or the nouns
    agree.
    """
    if any(_computes(item[0]) for item, _ in run):
        return True
    first, last = _nouns(run[0][0][3]), _nouns(run[-1][0][3])
    return not (first or last)


def _judge(run: list) -> Equation:
    right = True
    for (left, _), (item, sign) in pairwise(run):
        a, b = left[1], item[1]
        if ("cent" in left[3]) != ("cent" in item[3]) and "$" in left[3] + item[3]:  # 100 cents = $1
            hundredth = Fraction(1, 100)
            a, b = (scaled(a, hundredth), b) if "cent" in left[3] else (a, scaled(b, hundredth))
        right &= _equal_sides(a, b, left[0], item[0], sign == "≈")
    parts = [value for item, _ in run for value in item[2]]
    text = " = ".join(item[0] for item, _ in run)
    return Equation(text[:200], tuple(item[1] for item, _ in run), tuple(parts), right)


def _equal_sides(a: Number, b: Number, left: str, right: str, about: bool) -> bool:
    if same_number(a, b):
        return True
    decimals = re.fullmatch(r"[-+$€£¥\s]*[\d,]+\.(\d+)\s*(%?)", right) or (
        re.fullmatch(r"[-+$€£¥\s]*[\d,]+()\s*(%?)", right) if about else None
    )
    if decimals:
        places = len(decimals[1]) + (2 if decimals[2] else 0)
        if isinstance(b, Fraction) and rounds_to(a, b, places):
            return True
    percent = ("%" in right) != ("%" in left)  # "0.25 * 100 = 25%", "20 / 80 * 100 = 25%"
    if percent and (same_number(a, scaled(b, 100)) or same_number(scaled(a, 100), b)):
        return True
    return about and b != 0 and abs(Fraction(a) / Fraction(b) - 1) < Fraction(1, 100)


def holds(value: Number, values: Set[Number]) -> bool:
    """Whether a value is among others. Only roots and the decimals near them need a comparison one by one."""
    return value in values or any(
        same_number(value, other)
        for other in values
        if isinstance(value, Decimal) or isinstance(other, Decimal)
    )
