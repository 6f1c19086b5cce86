"""Whether two short answers are the same: by value, as sets, tuples and intervals, as expressions, as
choices, as text.
"""

import re
import unicodedata
from fractions import Fraction

from helpers.evaluate.grading.math.arithmetic import CURRENCY, NUMBER, same_number, value_of
from helpers.evaluate.grading.math.plain_text import CJK, plain, tidy_unicode
from helpers.evaluate.grading.math.quantities import (
    Quantity,
    clock_time,
    read_quantity,
    same_quantity,
    tidy_answer,
    worded_quantity,
)
from helpers.evaluate.grading.math.structures import structure
from helpers.evaluate.grading.math.symbolic import symbolic_equal
from helpers.evaluate.grading.math.wording import choice, normalise, sentences, stated_by, text_forms


def _squeeze(text: str) -> str:
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # but "1 1/2" is not "11/2"
    return re.sub(r"\^\((\w)\)", r"^\1", text)


def _same_parts(gold: tuple[str, list[str]], found: tuple[str, list[str]], depth: int) -> bool:
    (gold_kind, gold_parts), (found_kind, found_parts) = gold, found
    free = {"set", "list"}
    if not (gold_kind == found_kind or {gold_kind, found_kind} <= free or "list" in (gold_kind, found_kind)):
        return False
    if len(gold_parts) > 30 or len(found_parts) > 30:
        return False
    if gold_kind in free and found_kind in free:
        return all(any(_same(a, b, depth) for b in found_parts) for a in gold_parts) and all(
            any(_same(a, b, depth) for a in gold_parts) for b in found_parts
        )
    if len(gold_parts) != len(found_parts):
        return False
    return all(_same(a, b, depth) for a, b in zip(gold_parts, found_parts, strict=True))


def looks_symbolic(text: str) -> bool:
    """Mathematics rather than words: what math-verify should be asked about."""
    without = re.sub(
        r"\\[a-zA-Z]+|\{[bpv]?(?:matrix|array|cases)\}|\b(?:sqrt|pi|oo|sin|cos|tan|log|ln|exp|mod|begin|end"
        r"|[pbv]?matrix)\b",
        "",
        text,
    )
    return bool(re.search(r"[\d\\=+*/^<>-]|^\W*\w\W*$", text)) and not re.search(
        rf"[^\W\d_]{{3,}}|[{CJK}]", without
    )


_BASE = re.compile(r"(\w+)_[({]?(\d+)[)}]?")  # 1011_2


def _same(gold: str, found: str, depth: int = 0) -> bool:
    """Whether two tidied answers are the same value, structure, expression or text."""
    if _squeeze(gold) == _squeeze(found):
        return True
    if depth > 3:
        return False
    left, right = _BASE.fullmatch(gold), _BASE.fullmatch(found)
    if left and right:
        return left.groups() == right.groups()
    if left or right:
        return (left[1] if left else gold) == (right[1] if right else found)
    if ("±" in gold) != ("±" in found) and not (structure(gold) and structure(found)):
        return False
    early, late = clock_time(gold), clock_time(found)
    if early and late:
        both_sure = early[1] and late[1]
        return early[0] == late[0] if both_sure else early[0] % 720 == late[0] % 720
    a, b = read_quantity(gold), read_quantity(found)
    if a and b:
        return same_quantity(a, b)
    one, two = structure(gold), structure(found)
    if one and two:
        return _same_parts(one, two, depth + 1)
    if (one and one[0] == "set" and len(one[1]) == 1 and b) or (
        two and two[0] == "set" and len(two[1]) == 1 and a
    ):
        return _same((one[1][0] if one else gold), (two[1][0] if two else found), depth + 1)
    return False


def _number_in(text: str) -> Quantity | None:
    """The number that a sentence gives: after its last `=`, else its only number."""
    if re.search(r"\b(?:or|not|between|either)\b|或|不", text):
        return None
    text = sentences(text)[0] if sentences(text) else text
    if "=" in text:
        return read_quantity(re.split(r"(?<![<>!])=", text)[-1].strip())
    numbers = {
        match[0]
        for match in re.finditer(rf"(?<![A-Za-z\d_.])-?[{CURRENCY}]?-?{NUMBER}(?:\s*/\s*\d+)?%?", text)
    }
    if (
        re.search(rf"{NUMBER}\s*[*^+/:-]\s*\d", re.sub(r"\d\s*/\s*\d", "", text))
        or (structure(text) and len(numbers) > 1)
        or re.search(
            r"\b(?:half|twice|double|triple)\b|\d\s*(?:(?:to|(?:more|less|fewer) than)\s+\d|remainder)"
            r"|\b(?:more|less|fewer|greater|larger|smaller) than\s",
            text,
        )
    ):
        return None
    if len(numbers) == 1:
        place = text.index(next(iter(numbers)))
        return read_quantity(text[place:])
    return worded_quantity(text) if not numbers else None


Outcome = tuple[bool, str]  # whether the two are the same, and why


def same_answer(gold: str, found: str) -> Outcome:
    """Whether `found` says what `gold` says, and why (not). Both are short, cut out of their texts."""
    if outcome := _as_choices(gold, found):
        return outcome
    gold_tidy, found_tidy = tidy_answer(gold), tidy_answer(found)
    return (
        _as_they_stand(gold_tidy, found_tidy)
        or _as_quantities(read_quantity(gold_tidy), gold_tidy, found, found_tidy)
        or _as_right_sides(gold_tidy, found_tidy)
        or _as_expressions(gold, found, gold_tidy, found_tidy)
        or _as_words(gold, found, gold_tidy)
        or (False, "another answer than the reference")
    )


def _as_choices(gold: str, found: str) -> Outcome | None:
    if not re.fullmatch(r"\(?[A-Ja-j]\)?\.?|[A-J]{2,6}|[A-J](?:\s*,\s*[A-J]){1,5}", gold.strip()):
        return None
    wanted = choice(gold.strip().upper()) or gold.strip("(). ").upper()
    letter = choice(found) or (found.strip(" ().").upper() if len(found.strip(" ().")) == 1 else None)
    if not letter:
        return None
    return letter == wanted, f"choice {letter} {'is' if letter == wanted else 'is not'} {wanted}"


def _as_they_stand(gold: str, found: str) -> Outcome | None:
    """Of two tidied answers."""
    if not found:
        return False, "the answer is empty"
    if _same(gold, found):
        return True, "the same value"
    if all(map(clock_time, (gold, found))) or all(map(_BASE.fullmatch, (gold, found))):
        return False, "another value than the reference"
    if normalise(gold) == normalise(found) and (not looks_symbolic(gold) or len(gold) > 2):
        return True, "the same text"
    return None


def _as_quantities(quantity: Quantity | None, gold: str, found: str, found_tidy: str) -> Outcome | None:
    """By the number in an answer, where the reference is one number.

    Args:
        quantity: of the reference; None if that is no number.
        gold: the tidied reference.
    """
    if not quantity:
        return None
    if re.search(r"\d\s*[a-z](?![a-z])[^=]*=", found_tidy):
        return False, "an equation that is not solved for its unknown"
    if found.rstrip(" .*_$").endswith("!"):  # "12!" is joy as a rule, a factorial where that fits
        value = value_of(plain(found.rstrip(" .*_$")))
        if value is not None and same_number(value, quantity.value):
            return True, "the same value"
    if "±" in found_tidy and "±" not in gold:
        return False, "two values, and the reference has one"
    direct = read_quantity(found_tidy)
    comma = re.fullmatch(r"(-?\d+),(\d{1,2}|\d{4,})(\s*[A-Za-z%]*)", found_tidy)
    if comma and (quantity.decimals or Fraction(quantity.value).denominator > 1):
        direct = read_quantity(f"{comma[1]}.{comma[2]}{comma[3]}")  # 3,5 as it is written in German
    other = direct or _number_in(found_tidy)
    if not other:
        return None
    passed = same_quantity(quantity, other)
    return passed, "the same value" if passed else "another value than the reference"


def _as_right_sides(gold: str, found: str) -> Outcome | None:
    """`x = 4` against `4`. Two sides with different names are no match."""
    sides = [re.sub(r"^[a-zA-Z](?:\([a-z]\))?\s*=\s*", "", side) for side in (gold, found)]
    if sides == [gold, found] or (sides[0] != gold and sides[1] != found and gold[0] != found[0]):
        return None
    return (True, "the same value") if _same(sides[0], sides[1]) else None


def _as_words(gold: str, found: str, gold_tidy: str) -> Outcome | None:
    if read_quantity(gold_tidy):
        return None
    if text_forms(gold) & text_forms(found) and not looks_symbolic(gold_tidy):
        gold_whole = re.sub(r"^(?:the|an|a)\s+", "", normalise(gold).strip("\"'$ "))
        if gold_whole in text_forms(found):
            return True, "the same text"
    return (True, "the sentence says the same") if stated_by(gold, found) else None


def _as_expressions(gold: str, found: str, gold_tidy: str, found_tidy: str) -> Outcome | None:
    if not (looks_symbolic(gold_tidy) and looks_symbolic(found_tidy)):
        return None
    if any(
        re.fullmatch(r"[\d\s+*/^().,!-]+", side)
        and side.count("^") + side.count("**") > 1
        and value_of(side) is None
        for side in (gold_tidy, found_tidy)
    ):
        return False, "the number is too large to evaluate"
    if (
        structure(gold_tidy)
        and structure(found_tidy)
        and _all_numbers(gold_tidy)
        and _all_numbers(found_tidy)
    ):
        return False, "other elements than the reference"
    equal = symbolic_equal(_for_math_verify(gold), _for_math_verify(found))
    if equal is None:
        return False, "the expressions could not be compared in the time allowed"
    return equal, "equal expressions" if equal else "another expression than the reference"


def _all_numbers(text: str) -> bool:
    found = structure(text)
    return bool(found) and all(read_quantity(part) or part.strip("+- ") == "oo" for part in found[1])


def _for_math_verify(text: str) -> str:
    text = unicodedata.normalize("NFKC", tidy_unicode(text)) if not text.isascii() else text
    text = re.sub(r"\*\*|^\s*\\[(\[]|\\[)\]]\s*$", "", text.strip())
    text = re.sub(
        r"\\left\s*\[\s*\\begin\{array\}\{[^{}]*\}(.*?)\\end\{array\}\s*\\right\s*\]",
        r"\\begin{pmatrix}\1\\end{pmatrix}",
        text,
    )
    text = re.sub(r"\\mathrm\s*\{([^{}]*)\}", r"\1", text).replace("~", " ")
    text = re.sub(r"\\text\w*\{\s*(?:square|cubic)?\s*units?\s*\}", "", text)
    return re.sub(r"[\s.。,;:]+$", "", text.strip("$ "))
