"""Whether two short answers are the same: by value, as sets, tuples and intervals, as expressions, as choices, as text."""

import re
import unicodedata

from helpers.evaluate.grading.math.arithmetic import (
    CURRENCY,
    NUMBER,
    plain,
    same_number,
    tidy_unicode,
    value_of,
)
from helpers.evaluate.grading.math.quantities import (
    Quantity,
    clock_time,
    read_quantity,
    same_quantity,
    tidy_answer,
    worded_quantity,
)
from helpers.evaluate.grading.math.symbolic import symbolic_equal

WIDE = str.maketrans(
    {
        "：": ":",
        "，": ",",
        "；": ";",
        "！": "!",
        "？": "?",
        "\u00a0": " ",
        "\u3000": " ",
        "＝": "=",
        "（": "(",
        "）": ")",
    }
)
_OPEN, _CLOSE = "([⟦{", ")]⟧}"


def normalise(text: str | None) -> str:
    """NFKC, casefold, one space between words, no punctuation at the end. Powers stay powers: `x²` is not `x2`."""
    text = " ".join(tidy_unicode(text or "").casefold().split())
    return text.rstrip(" .。!,;:?、") or text


def sentences(line: str) -> list[str]:
    """A line's sentences; a full stop between digits or after `i.e.` ends none."""
    return [part for part in _SENTENCES.split(line) if part.strip()]


_SENTENCES = re.compile(
    r"(?<!\bi\.e\.)(?<!\be\.g\.)(?<!\bvs\.)(?<!\b[DM]r\.)(?<!\bMrs\.)(?<!\bSt\.)(?<!\bapprox\.)"
    r"(?:(?<=[.!?])|(?<=[.!?]\$)|(?<=[.!?]\$\$))\s+|(?<=[。！？])"
)


# ---------------------------------------------------------------------------------------------------------------------
# Structures


def _parts(text: str) -> list[str] | None:
    """Split at commas (and `and`, `or`) outside brackets; None if that gives one part. `1,234` stays whole."""
    text = (
        re.sub(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text)
        if " " not in text
        else re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d])", lambda m: m[0].replace(",", ""), text)
    )
    text = re.sub(r"\s*,?\s+(?:and|or)\s+|\s*[和或]\s*|、|;", ",", text)
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in _OPEN) - (char in _CLOSE)
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    parts.append(current.strip())
    return parts if len(parts) > 1 and all(parts) else None


def structure(text: str) -> tuple[str, list[str]] | None:
    """(`set`, `list`, or the two brackets, parts) of a set, list, tuple or interval; None for anything else."""
    text = re.sub(r"^[a-zA-Z]\s*(?:∈|\\in)\s*", "", text)
    text = re.sub(r"^⟨(.*)⟩$", r"(\1)", text)
    match = re.fullmatch(r"([(\[⟦{])(.*)([)\]⟧}])", text)
    if match and _closes_at_end(text):
        parts = _parts(match[2]) or ([match[2].strip()] if match[1] in "⟦{" else None)
        if parts:
            return ("set" if match[1] in "⟦{" else match[1] + match[3]), parts
    if text.count("±") == 1:
        return "list", [text.replace("±", "+"), text.replace("±", "-")]
    numbered = re.split(r"\s*[;,]?\s*\(\d\)\s*", text)
    if len(numbered) > 2 and not numbered[0] and text.startswith("(1)") and all(numbered[1:]):
        return "list", [part.strip(" ;,") for part in numbered[1:]]
    parts = _parts(text)
    if parts:
        return "list", [
            re.sub(r"^[a-zA-Z]\s*=\s*", "", part) if _one_variable(parts) else part for part in parts
        ]
    return None


def _one_variable(parts: list[str]) -> bool:
    names = {match[1] for part in parts if (match := re.match(r"([a-zA-Z])\s*=", part))}
    return len(names) == 1


def _closes_at_end(text: str) -> bool:
    depth = 0
    for place, char in enumerate(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth == 0:
            return place == len(text) - 1
    return False


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
    return len(gold_parts) == len(found_parts) and all(
        _same(a, b, depth) for a, b in zip(gold_parts, found_parts)
    )


def looks_symbolic(text: str) -> bool:
    """Mathematics rather than words: what math-verify should be asked about."""
    without = re.sub(
        r"\\[a-zA-Z]+|\{[bpv]?(?:matrix|array|cases)\}|\b(?:sqrt|pi|oo|sin|cos|tan|log|ln|exp|mod|begin|end|[pbv]?matrix)\b",
        "",
        text,
    )
    return bool(re.search(r"[\d\\=+*/^<>-]|^\W*\w\W*$", text)) and not re.search(
        r"[^\W\d_]{3,}|[\u4e00-\u9fff]", without
    )


_BASE = re.compile(r"(\w+)_[({]?(\d+)[)}]?")  # 1011_2


def _same(gold: str, found: str, depth: int = 0) -> bool:
    """Whether two tidied answers are the same value, structure, expression or text."""
    if _squeeze(gold) == _squeeze(found):
        return True
    if depth > 3:
        return False
    bases = [_BASE.fullmatch(side) for side in (gold, found)]
    if bases[0] and bases[1]:
        return bases[0].groups() == bases[1].groups()
    if bases[0] or bases[1]:
        return (bases[0][1] if bases[0] else gold) == (bases[1][1] if bases[1] else found)
    if ("±" in gold) != ("±" in found) and not (structure(gold) and structure(found)):
        return False
    times = clock_time(gold), clock_time(found)
    if all(times):
        (one, sure), (two, certain) = times
        return one == two if sure and certain else one % 720 == two % 720
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


# ---------------------------------------------------------------------------------------------------------------------
# Words and choices


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
            r"\b(?:half|twice|double|triple)\b|\d\s*(?:(?:to|(?:more|less|fewer) than)\s+\d|remainder)|\b(?:more|less|fewer|greater|larger|smaller) than\s",
            text,
        )
    ):
        return None
    if len(numbers) == 1:
        place = text.index(next(iter(numbers)))
        return read_quantity(text[place:])
    return worded_quantity(text) if not numbers else None


def text_forms(text: str) -> set[str]:
    """The answer as text: whole, its first sentence, its first clause; articles dropped. A list stays whole."""
    text = re.sub(r"\*\*|__|`", "", text).strip()
    forms = [text, *sentences(text)[:1]]
    if not re.match(
        r"[\w' ]+(?:[,，、][\w' ]+)*(?:[,，]?\s+(?:and|or)\s+|[,，、和或])\s*[A-Z\u4e00-\u9fff]\w*(?: [A-Z]\w*)*[\s.。]*$",
        text,
    ):
        forms.append(re.split(r"[,;:(—]|\s(?:because|since|as|so|which|where|for)\s|[，。；：（]", text)[0])
    return {re.sub(r"^(?:the|an|a)\s+", "", normalise(form).strip("\"'$ ")) for form in forms if form.strip()}


_CHOICE = re.compile(
    r"^[\s*_$]*(?:option|choice|选项)?[\s*_]*[(\[{]?\s*(?:\\text\w*\{\s*\(?)?([A-J])(?:\)?\})?\s*(?:[)\]}.:,*]|选项|项|$)"
)
_CHOICES = re.compile(
    r"^[\s*_$(]*((?:\(?[A-J]\)?\s*(?:,|and|or|&|、|和|与|或)?\s*){2,6})(?![A-Za-z])[\s.)*_$]*$"
)


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: `B`, `(B)`, `B.`, `**B) 12 cm**`, `option B`; `A, C` and `AC` give `AC`."""
    text = text.translate(WIDE)
    several = _CHOICES.match(re.sub(r"\\text\w*\{([^{}]*)\}", r"\1", text))
    if several:
        letters = re.findall(r"[A-J](?![a-z])", several[1])
        if len(letters) > 1:
            return "".join(sorted(set(letters)))
    match = _CHOICE.match(text) or re.match(
        r"^[\s*_]*(?:option|choice|选项)[\s*_(]*([A-Ja-j])\b", text, re.IGNORECASE
    )
    if match:
        return match[1].upper()
    word = re.match(r"^[\s*_$(]*([B-HJ])\b(?!\s*[=^+*/'])", text)
    return word[1] if word else None


# ---------------------------------------------------------------------------------------------------------------------
# The whole comparison


def same_answer(gold: str, found: str) -> tuple[bool, str]:
    """Whether `found` says what `gold` says, and why (not). Both are short answers, cut out of their texts."""
    if re.fullmatch(r"\(?[A-Ja-j]\)?\.?|[A-J]{2,6}|[A-J](?:\s*,\s*[A-J]){1,5}", gold.strip()):
        wanted = choice(gold.strip().upper()) or gold.strip("(). ").upper()
        letter = choice(found) or (found.strip(" ().").upper() if len(found.strip(" ().")) == 1 else None)
        if letter:
            return letter == wanted, f"choice {letter} {'is' if letter == wanted else 'is not'} {wanted}"
    gold_tidy, found_tidy = tidy_answer(gold), tidy_answer(found)
    if not found_tidy:
        return False, "the answer is empty"
    if _same(gold_tidy, found_tidy):
        return True, "the same value"
    if all(map(clock_time, (gold_tidy, found_tidy))) or all(map(_BASE.fullmatch, (gold_tidy, found_tidy))):
        return False, "another value than the reference"
    if normalise(gold_tidy) == normalise(found_tidy) and (
        not looks_symbolic(gold_tidy) or len(gold_tidy) > 2
    ):
        return True, "the same text"
    quantity, direct = read_quantity(gold_tidy), read_quantity(found_tidy)
    if quantity and re.search(r"\d\s*[a-z](?![a-z])[^=]*=", found_tidy):
        return False, "an equation that is not solved for its unknown"
    if found.rstrip(" .*_$").endswith("!"):  # "12!" is joy as a rule, a factorial where that fits
        value = value_of(plain(found.rstrip(" .*_$")))
        if value is not None and quantity and same_number(value, quantity.value):
            return True, "the same value"
    if quantity:
        if "±" in found_tidy and "±" not in gold_tidy:
            return False, "two values, and the reference has one"
        comma = re.fullmatch(r"(-?\d+),(\d{1,2}|\d{4,})(\s*[A-Za-z%]*)", found_tidy)
        if comma and (quantity.decimals or quantity.value % 1):
            direct = read_quantity(f"{comma[1]}.{comma[2]}{comma[3]}")  # 3,5 as it is written in German
        other = direct or _number_in(found_tidy)
        if other:
            passed = same_quantity(quantity, other)
            return passed, "the same value" if passed else "another value than the reference"
    sides = [re.sub(r"^[a-zA-Z](?:\([a-z]\))?\s*=\s*", "", side) for side in (gold_tidy, found_tidy)]
    if sides != [gold_tidy, found_tidy] and not (
        sides[0] != gold_tidy and sides[1] != found_tidy and gold_tidy[0] != found_tidy[0]
    ):
        if _same(*sides):
            return True, "the same value"
    if looks_symbolic(gold_tidy) and looks_symbolic(found_tidy):
        return _same_expression(gold, found, gold_tidy, found_tidy)
    if not quantity and text_forms(gold) & text_forms(found) and not looks_symbolic(gold_tidy):
        gold_whole = re.sub(r"^(?:the|an|a)\s+", "", normalise(gold).strip("\"'$ "))
        if gold_whole in text_forms(found):
            return True, "the same text"
    if not quantity and stated_by(gold, found):
        return True, "the sentence says the same"
    return False, "another answer than the reference"


def _same_expression(gold: str, found: str, gold_tidy: str, found_tidy: str) -> tuple[bool, str]:
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


def stated_by(gold: str, sentence: str) -> bool:
    """Whether a sentence's subject or predicate is the reference, a name or a word: `Therefore, Eve is faster` says `Eve`."""
    name = normalise(gold)
    if not re.fullmatch(r"[\w' -]{2,40}", name) or len(name.split()) > 3 or re.search(r"\d", name):
        return False
    text = re.sub(
        r"^(?:therefore|thus|hence|so|finally|in conclusion|所以|因此)[\s,，]*", "", normalise(sentence)
    )
    if re.search(r"\b(?:not|never|neither|cannot)\b|n't\b|不", text):
        return False
    name = re.escape(re.sub(r"^(?:the|an|a)\s+", "", name))
    subject = rf"(?:the )?{name} (?:is|was|has|had|will|can|gets|got|wins|won|runs|ran|earns|made|makes|needs|should|did|does)\b"
    predicate = rf".*\b(?:is|be|was|are|on|called|named)\s+(?:an? |the )?{name}"
    return bool(re.match(subject, text) or re.fullmatch(predicate, text))


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
