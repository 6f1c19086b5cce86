"""Final answers: finding them in free text, reading their value, and comparing by value.

What counts as the final answer: the last of `\\boxed{...}`, `#### ...`, `Final answer: ...`, `the answer is ...`,
`答案是...`; without any of them, the value of the concluding sentence. Thinking in a `<think>` block does not count.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from helpers.arithmetic import CURRENCY, NUMBER, Number, plain, rounds_to, same_number, tidy_unicode, value_of
from helpers.symbolic import symbolic_equal

MAX_TEXT = 20_000
MAX_ANSWER = 500


@dataclass(frozen=True)
class Verdict:
    """What a grader found. `if verdict:` is `if verdict.passed:`.

    Attributes:
        passed: the judgement.
        why: one sentence on it.
        found: the answer read from the model's text; None if there was none.
        expected: the answer read from the reference; None if there was none.
        evidence: lists that back the judgement (equations, missing steps, ...), by name.
    """

    passed: bool
    why: str
    found: str | None = None
    expected: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed


# ---------------------------------------------------------------------------------------------------------------------
# Text


def normalise(text: str | None) -> str:
    """NFKC, casefold, one space between words, no punctuation at the end. Powers stay powers: `x²` is not `x2`."""
    text = " ".join(tidy_unicode(text or "").casefold().split())
    return text.rstrip(" .。!,;:?、") or text


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


# ---------------------------------------------------------------------------------------------------------------------
# Finding the final answer

_MARKER = re.compile(
    r"(?:^|(?<=[\s*_#\"(>.,;:!?]))(?:final[ \t]+|correct[ \t]+)?(?:answer|ans)\b[ \t]*(?:\*\*|__)?[ \t]*"
    r"(?:(?:to|of|for)[ \t][^\n.:：?]{1,100}?[ \t])?"
    r"(?P<verb>(?:is|are|was|would be|will be|should be|must be|equals)\b|[:=])"
    r"|\b(?:correct|right)[ \t]+(?:option|choice)[ \t]+is\b[ \t]*:?"
    r"|(?:最终|最后)?(?:答案|结果|答)(?:应该|应|就)?(?P<zh>[是为:])"
    r"|故选[:]?|(?<=[,。;\s])选(?=\s*[A-H]\b)"
    r"|^[ \t#*_]*(?:final[ \t]+|the[ \t]+)*(?:answer|最终答案|答案)[ \t#*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(?P<payload>[^\n]*)|####[ \t]*(?P<inline>[^#\n]+)", re.MULTILINE)
_NEXT_PROBLEM = re.compile(
    r"\n[ \t]*[#*]*[ \t]*(?:Instruction|Question|Problem|Human|User|问题|题目)\b[ \t]*\d*[ \t]*\**[ \t]*[:：]",
    re.IGNORECASE,
)
_THINK_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_FILLER = re.compile(
    r"(?:that |indeed |therefore |thus |so |now |also )*(?:correct|right|wrong|incorrect|"
    r"reasonable|consistent|verified|valid|as follows|below|above|"
    r"given|found|obtained|clear|let'?s|let me|we |i |to |in the|confirmed|accurate|sensible|plausible)(?:\b|(?<=\s))",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:not|n't|neither|never|不是|并非)(?:\b|(?=[^a-z]))", re.IGNORECASE)
_UNSURE = re.compile(
    r"\b(?:not sure|unsure|do(?:n't| not) know|can(?:not|'t| not) (?:be )?(?:determine|say|tell|"
    r"answer|solve)\w*|no idea|unable|not enough)"
    r"|不知道|不确定|无法",
    re.IGNORECASE,
)


def _group(text: str, start: int) -> str | None:
    """The content of the brace group that opens at `start`; None if it never closes."""
    depth = 0
    for place in range(start, min(len(text), start + MAX_ANSWER * 4)):
        char = text[place]
        if char == "{" and text[place - 1] != "\\":
            depth += 1
        elif char == "}" and text[place - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start + 1 : place]
    return None


def _boxed(text: str) -> list[tuple[int, str]]:
    """(position, content) of each `\\boxed{...}`; boxes joined by `and`, `or` or a comma are one answer."""
    found: list[tuple[int, str]] = []
    last_end = -1
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|(\w))", text):
        content = match[1] or _group(text, match.end() - 1)
        if content is None or not content.strip():
            continue
        between = text[last_end : match.start()] if last_end >= 0 else None
        if (
            between is not None
            and len(between) <= 30
            and re.fullmatch(r"[\s$]*(?:,|and|or|和|或)[\s$]*(?:and\s+|or\s+)?(?:\$?[a-z]\s*=\s*)?[\s$]*", between)
        ):
            found[-1] = (found[-1][0], f"{found[-1][1]}, {content}")
        else:
            found.append((match.start(), content))
        last_end = match.end() + len(content) + 1 if not match[1] else match.end()
    return found


def _after_marker(text: str, place: int) -> str:
    """What stands after "the answer is": the rest of the line, or a displayed formula, or the next line."""
    rest = text[place : place + 4 * MAX_ANSWER]
    rest = re.sub(r"^(?:[\s:*_]|that\s|probably\s|therefore\s)+", "", rest, flags=re.IGNORECASE)
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if rest.startswith(opening) and closing in rest[2:]:
            return rest[2 : rest.index(closing, 2)].strip()
    return rest.split("\n", 1)[0].strip()[:MAX_ANSWER]


def _prepare(text: str) -> str:
    """The part of a text where its answer stands: after thinking, before an invented next problem, at most the end."""
    ends = list(_THINK_END.finditer(text))
    if ends and text[ends[-1].end() :].strip():
        text = text[ends[-1].end() :]
    elif not ends and re.search(r"<think(?:ing)?>", text, re.IGNORECASE):
        return ""
    for cut in _NEXT_PROBLEM.finditer(text):
        if _marked(text[max(0, cut.start() - MAX_TEXT) : cut.start()]):
            text = text[: cut.start()]
        break
    return text[-MAX_TEXT:]


def _marked(text: str) -> list[str]:
    """The answers that markers announce, in the order of the text."""
    found = _boxed(text)
    found += [(m.start(), (m["payload"] or m["inline"] or "").strip()) for m in _HASHES.finditer(text)]
    for match in _MARKER.finditer(text.translate(_WIDE)):
        payload = _after_marker(text, match.end())
        if payload and not _NOT.match(payload) and "\\boxed" not in payload and not payload.startswith("####"):
            if not (_FILLER.match(payload) and not re.match(r"(?:i|we|right)\W*$", payload, re.IGNORECASE)):
                found.append((match.start(), payload))
    return [payload for _, payload in sorted(found, key=lambda item: item[0]) if payload.strip(" .*_$")]


_WIDE = str.maketrans({"：": ":", "，": ",", "；": ";", "！": "!", "？": "?", "\u00a0": " ", "\u3000": " ", "＝": "="})


def _sentences(line: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", line) if part.strip()]


def _conclusion(text: str) -> str | None:
    """The value of the concluding sentence, for a text without any marker; None if it concludes nothing."""
    lines = [line for line in text.strip().split("\n") if line.strip()]
    if not lines:
        return None
    last = _sentences(lines[-1].strip()[-2000:])[-1].strip()
    last = re.sub(r"\*\*\s*$", "", last) if last.count("**") == 1 else last
    if _UNSURE.search(last) or re.search(
        r"(?:(?<!\*)[-+*/=^(,:]|\\times|\\cdot|×|÷|\b(?:is|are|the|of|and|or|to|has|have|a|get|equals))\s*$", last
    ):
        return None
    if re.search(r"[?？]\s*$", last) or last.count("{") > last.count("}"):
        return None
    bare = last.strip(" *_")
    words = re.search(
        r"[A-Za-z]{3,}|[\u4e00-\u9fff]{2,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?|\b(?:and|or)\b", "", bare)
    )
    if len(lines) == 1 and len(bare) <= 60 and (not words or _reads_whole(bare)):
        return bare
    formulas = [one or two for one, two in re.findall(r"(?<!\\)\$([^$\n]{1,200})\$|\\\((.{1,200}?)\\\)", last)]
    if formulas and re.search(r"\\[a-z]|\^", formulas[-1]) and "**" not in last:
        return re.split(r"(?<![<>!])=", formulas[-1])[-1].strip()
    bold = re.findall(r"\*\*([^*\n]{1,80})\*\*", last)
    if bold and re.search(r"\d", bold[-1]) and not bold[-1].strip().endswith(":"):
        return bold[-1]
    if "=" in last:
        side = re.split(r"(?<![<>!])=", last)[-1]
        return side.strip() if re.search(r"\d|\\", side) else None
    numbers = re.findall(
        rf"[-−]?\s?[{CURRENCY}]?[-−]?(?:\\frac\{{\d+\}}\{{\d+\}}|{NUMBER}(?:\s*/\s*\d+)?)(?:\s*\\?%)?", last
    )
    signed = [re.sub(r"^[-−]\s", "", n) for n in numbers]
    money = [number for number in signed if number.strip(" -−")[:1] in tuple(CURRENCY)]
    if len(money) == 1:  # "she pays $64 for 16 glasses"
        return money[0].strip()
    if signed and not re.search(r"\d\s*[-+*/×÷]\s*\d+\s*\.?$", last.replace("/", "|")):
        return signed[-1].strip()
    words = re.search(r"\b(?:" + "|".join(_NUMBER_WORDS) + r")\b", last, re.IGNORECASE)
    return words[0] if words and len(lines) == 1 and len(last) < 200 else None


def _reads_whole(text: str) -> bool:
    """Whether a short text starts with its value: `2 hours`, `negative 5`, `two hundred and five`, but no sentence."""
    return "=" not in text and len(text.split()) <= 6 and read_quantity(_tidy_answer(text)) is not None


def final_answer(text: str | None) -> str | None:
    """The final answer that a text gives, as it stands there; None if it gives none."""
    prepared = _prepare(text or "")
    marked = _marked(prepared)
    return marked[-1] if marked else _conclusion(prepared)


# ---------------------------------------------------------------------------------------------------------------------
# Reading a value

_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen "
        "eighteen nineteen".split()
    )
}
_NUMBER_WORDS |= {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_NUMBER_WORDS |= {"hundred": 100, "thousand": 1000, "million": 10**6}
_HAN = {
    "零": 0,
    "〇": 0,
    "一": 1,
    "二": 2,
    "两": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
    "十": 10,
    "百": 100,
    "千": 1000,
    "万": 10000,
}

_SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "万": 10**4,
    "亿": 10**8,
}

# unit: (what it measures, how many base units). Only units where a conversion is beyond doubt.
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _kind, _table in {
    "length": {
        "mm millimeter millimeters millimetre millimetres 毫米": "1/1000",
        "cm centimeter centimeters centimetre centimetres 厘米": "1/100",
        "m meter meters metre metres 米": "1",
        "km kilometer kilometers kilometre kilometres 千米 公里": "1000",
    },
    "imperial length": {"inch inches": "1", "ft foot feet": "12", "yard yards yd": "36", "mile miles": "63360"},
    "mass": {"mg milligram milligrams": "1/1000", "g gram grams 克": "1", "kg kilogram kilograms 千克 公斤": "1000"},
    "time": {
        "second seconds sec secs 秒": "1",
        "minute minutes min mins 分钟": "60",
        "hour hours hr hrs 小时": "3600",
        "day days 天": "86400",
        "week weeks": "604800",
    },
    "volume": {
        "ml milliliter milliliters millilitre millilitres 毫升": "1/1000",
        "l liter liters litre litres 升": "1",
    },
    "dollars": {"cent cents": "1/100", "dollar dollars usd $": "1"},
    "yuan": {"¥ 元 yuan rmb": "1", "角": "1/10"},
    "euros": {"€ euro euros eur": "1"},
    "pounds": {"£": "1"},
}.items():
    for _names, _factor in _table.items():
        _UNITS |= {name: (_kind, Fraction(_factor)) for name in _names.split()}
_BASE_OF_KIND = {"dollars", "yuan", "euros", "pounds"}

_HEDGE = re.compile(
    r"^(?:(?:about|approximately|approx\.?|roughly|around|exactly|"
    r"only|just|simply|equal to|equals|a total of|a|an|the|at least|at most|"
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


def _number_words(text: str) -> int | None:
    """`twenty-five`, `three hundred`, `十二` as a number."""
    words = re.sub(r"\band\b|-", " ", text.lower()).split()
    if 0 < len(words) <= 8 and all(word in _NUMBER_WORDS for word in words):
        total = part = 0
        for word in words:
            value = _NUMBER_WORDS[word]
            if value >= 100:
                part = max(part, 1) * value
                total, part = (total + part, 0) if value >= 1000 else (total, part)
            else:
                part += value
        return total + part
    if 0 < len(text) <= 8 and all(char in _HAN for char in text):
        total = part = 0
        for char in text:
            value = _HAN[char]
            total, part = (total + max(part, 1) * value, 0) if value >= 10 else (total, value)
        return total + part
    return None


_EXPRESSION = re.compile(rf"(?:{NUMBER}|sqrt(?![A-Za-z])|pi(?![A-Za-z])|[-+*/^()!\s]|[{CURRENCY}])+%?")
_WORD = re.compile(r"[A-Za-z]+|[\u4e00-\u9fff]+")
_ALTERNATIVE = re.compile(r"^(?:\w+\s+)?(?:or|and|或|和)\s+[-$]?[\d\\]|^,\s*[-$]?\d|^\s*[±]")


def _tidy_answer(text: str) -> str:
    """An answer without the wrapping: bold, `$...$`, quotes, end punctuation, negative in words."""
    text = plain(text[:MAX_ANSWER])
    text = re.sub(r"\*\*|__|`", "", text).strip()
    if (
        text.count("$") >= 2
        and text.startswith("$")
        and not re.match(r"\$\s*\d[\d,.]*\s*\$?$", text[:-1] if text.endswith(".") else text)
    ):
        inner = re.match(r"^\$+([^$]+)\$+(.*)$", text)
        text = inner[1] + " " + inner[2] if inner and not re.match(r"\s*[\d.]", inner[2]) else text
    if re.match(r"^\$[^$]*\d[^$]*\$[.\s]*$", text) or (text.endswith("$") and not text.startswith("$")):
        text = text.rstrip(" .")[:-1] if text.rstrip(" .").endswith("$") else text
    text = re.sub(r"^(?:negative|minus|负)\s*(?=[\d$(])", "-", text.strip(), flags=re.IGNORECASE)
    return re.sub(r"[\s.。,;:!]+$", "", text.strip(" \"'"))


def read_quantity(text: str) -> Quantity | None:
    """The quantity that a tidied answer starts with: `$12.50 per hour`, `25%`, `3/4 cup`; None if it starts with none.

    Two numbers offered as one answer (`3 or 4`) are no quantity.
    """
    text = _HEDGE.sub("", text).strip()
    text = re.sub(r"^(?:negative|minus|负)\s*(?=[\d$(])", "-", text, flags=re.IGNORECASE)
    words = _number_words(text)
    if words is not None:
        return Quantity(Fraction(words))
    match = _EXPRESSION.match(text)
    if not match:
        return _worded_quantity(text)
    expression, rest = match[0], text[match.end() :]
    # Give back a bracket that opens a remark: "12 (because ...)".
    while expression.count("(") > expression.count(")"):
        cut = expression.rindex("(")
        expression, rest = expression[:cut], expression[cut:] + rest
    expression = expression.rstrip()
    trimmed = expression.rstrip("+-*/^ ")
    attached = bool(rest) and text[: len(text) - len(rest)][-1:].isspace() is False
    if trimmed != expression and rest[:1].isalpha():
        rest = expression[len(trimmed) :] + rest
    expression = trimmed
    money = next((char for char in CURRENCY if char in expression), "")
    value = value_of(expression)
    if value is None:
        return None
    percent = expression.endswith("%")
    decimals = re.fullmatch(r"[-+$€£¥₹\s]*[\d,]*\.(\d+)\s*%?", expression)
    count = len(decimals[1]) if decimals else (0 if re.fullmatch(r"[-+$€£¥₹\s]*[\d,]+\s*%?", expression) else None)
    return _with_rest(Quantity(value * 100 if percent else value, percent, money, count), rest, attached)


def _worded_quantity(text: str) -> Quantity | None:
    """`twelve apples`, `十二个`."""
    match = re.match(r"[A-Za-z-]+(?:\s+[A-Za-z-]+){0,5}|[零〇一二两三四五六七八九十百千万]+", text)
    if not match:
        return None
    words = match[0].split() if match[0].isascii() else [match[0]]
    for count in range(len(words), 0, -1):
        value = _number_words(" ".join(words[:count]))
        if value is not None:
            rest = text[len(" ".join(words[:count])) :]
            return (
                None
                if _ALTERNATIVE.match(rest.strip()) or re.match(r"\s*(?:or|and|of)\b", rest)
                else _with_rest(Quantity(Fraction(value)), rest, False)
            )
    return None


def _with_rest(quantity: Quantity, rest: str, attached: bool) -> Quantity | None:
    """Read what follows a number: a scale, a unit, a noun, a remark; None if it makes the number something else."""
    rest_stripped = rest.strip()
    if not rest_stripped:
        return quantity
    two_units = re.match(r"([A-Za-z]+)(\s*(?:,|and)*\s*\d.*)", rest_stripped)
    if two_units and two_units[1].lower() in _UNITS:
        return _compound(quantity, two_units[1].lower(), two_units[2])
    if _ALTERNATIVE.match(rest_stripped) or re.match(r"[:/^*+±≈<>_\\\[⟦]|-\s*\d|\.\d|=\s*\d", rest_stripped):
        return None
    word = _WORD.match(rest_stripped)
    if not word:
        return quantity if re.match(r"[,;.(\"')\]—–-]", rest_stripped) else None
    name = word[0] if word[0] in ("m", "g", "l") else word[0].lower()
    after = rest_stripped[word.end() :]
    if name in _SCALES:
        return _with_rest(Quantity(quantity.value * _SCALES[name], quantity.percent, quantity.unit), after, False)
    if name in ("percent", "percentage", "pct"):
        return Quantity(quantity.value, True, quantity.unit, quantity.decimals)
    if _ALTERNATIVE.match(after.strip()) or re.match(r"\s*(?:or)\s+[-$]?\w*\s*(?:\d|$)", after):
        return None
    square = re.match(r"\s*\^\s*\(?(\d)\)?", after)
    if square:
        return Quantity(quantity.value, quantity.percent, quantity.unit or f"{name}^{square[1]}", quantity.decimals)
    if name in _UNITS and not re.match(r"\s*(?:/|per\b)", after):
        return Quantity(quantity.value, quantity.percent, quantity.unit or name, quantity.decimals)
    if len(name) == 1 and name.isascii() and name.isalpha() and not (name == "a" and after.startswith(" ")):
        return None  # 5x, 5 x: a variable
    if name in ("sin", "cos", "tan", "log", "ln", "exp", "mod") or re.match(r"\s*[=^*]", after):
        return None
    return Quantity(quantity.value, quantity.percent, quantity.unit, quantity.decimals)


def _compound(first: Quantity, unit: str, rest: str) -> Quantity | None:
    """`3 hours and 20 minutes` in the first unit; None where the units don't go together."""
    second = read_quantity(re.sub(r"^\s*(?:,|and)*\s*", "", rest))
    if (
        not second
        or second.unit not in _UNITS
        or _UNITS[second.unit][1] >= _UNITS[unit][1]
        or _UNITS[second.unit][0] != _UNITS[unit][0]
        or isinstance(first.value, float)
    ):
        return None
    return Quantity(first.value + second.value * _UNITS[second.unit][1] / _UNITS[unit][1], first.percent, unit)


def _long_expansion(quantity: Quantity) -> bool:
    """Whether a value can't be a rounded figure itself: a root, 10/3, or a decimal with 5 places or more."""
    if isinstance(quantity.value, float) or (quantity.decimals or 0) >= 5:
        return True
    bottom = quantity.value.denominator
    while bottom % 2 == 0:
        bottom //= 2
    while bottom % 5 == 0:
        bottom //= 5
    return bottom != 1


def same_quantity(gold: Quantity, found: Quantity) -> bool:
    """Equal by value. Known units are converted; one side without a unit or percent sign takes the other's.

    A reference rounded to 2 places or more (3.33) takes the exact value (10/3, 3.33333). An exact reference takes a
    decimal that agrees to 6 places.
    """
    if gold.unit and found.unit:
        a, b = _UNITS.get(gold.unit), _UNITS.get(found.unit)
        if a and b:
            if a[0] != b[0]:
                return False
            gold = Quantity(gold.value * a[1] / b[1], gold.percent, "", gold.decimals if a == b else None)
    elif found.unit in ("cent", "cents") and gold.unit != "$" and not gold.unit:
        pass  # "How many cents?" 50, and the answer "50 cents"
    values = [(gold.value, found.value)]
    if gold.percent != found.percent:
        values.append((gold.value / 100, found.value) if gold.percent else (gold.value, found.value / 100))
    for a, b in values:
        if same_number(a, b):
            return True
        if (
            (gold.decimals or 0) >= 2
            and _long_expansion(found)
            and isinstance(a, Fraction)
            and rounds_to(b, a, gold.decimals)
        ):
            return True
        if (
            gold.decimals is None
            and _long_expansion(gold)
            and (found.decimals or 0) >= 6
            and isinstance(b, Fraction)
            and rounds_to(a, b, 6)
        ):
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Comparing answers

_OPEN, _CLOSE = "([⟦{", ")]⟧}"


def _parts(text: str) -> list[str] | None:
    """Split at commas (and `and`, `or`) outside brackets; None if that gives one part. `1,234` stays whole."""
    text = (
        re.sub(rf"(?<![\d.])\d{{1,3}}(?:,\d{{3}})+(?![\d,])", lambda m: m[0].replace(",", ""), text)
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


def _structure(text: str) -> tuple[str, list[str]] | None:
    """(`set`, `list`, or the two brackets, parts) of a set, list, tuple or interval; None for anything else."""
    text = re.sub(r"^[a-zA-Z]\s*(?:∈|\\in)\s*", "", text)
    match = re.fullmatch(r"([(\[⟦{])(.*)([)\]⟧}])", text)
    if match and _closes_at_end(text):
        parts = _parts(match[2]) or ([match[2].strip()] if match[1] in "⟦{" else None)
        if parts:
            return ("set" if match[1] in "⟦{" else match[1] + match[3]), parts
    if "±" in text and text.count("±") == 1:
        return "list", [text.replace("±", "+"), text.replace("±", "-")]
    parts = _parts(text)
    if parts:
        return "list", [re.sub(r"^[a-zA-Z]\s*=\s*", "", part) if _one_variable(parts) else part for part in parts]
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
    return len(gold_parts) == len(found_parts) and all(_same(a, b, depth) for a, b in zip(gold_parts, found_parts))


def _looks_symbolic(text: str) -> bool:
    """Mathematics rather than words: what math-verify should be asked about."""
    without = re.sub(r"\\[a-zA-Z]+|\b(?:sqrt|pi|oo|sin|cos|tan|log|ln|exp|mod|begin|end|[pbv]?matrix)\b", "", text)
    return bool(re.search(r"[\d\\=+*/^<>-]|^\W*\w\W*$", text)) and not re.search(
        r"[A-Za-z]{3,}|[\u4e00-\u9fff]", without
    )


def _same(gold: str, found: str, depth: int = 0) -> bool:
    """Whether two tidied answers are the same value, structure, expression or text."""
    if _squeeze(gold) == _squeeze(found):
        return True
    if depth > 3:
        return False
    a, b = read_quantity(gold), read_quantity(found)
    if a and b:
        return same_quantity(a, b)
    one, two = _structure(gold), _structure(found)
    if one and two:
        return _same_parts(one, two, depth + 1)
    if (one and one[0] == "set" and len(one[1]) == 1 and b) or (two and two[0] == "set" and len(two[1]) == 1 and a):
        return _same((one[1][0] if one else gold), (two[1][0] if two else found), depth + 1)
    bases = [re.fullmatch(r"(\w+)_[({]?(\d+)[)}]?", side) for side in (gold, found)]
    if bases[0] and not bases[1] or bases[1] and not bases[0]:
        return (bases[0][1] if bases[0] else gold) == (bases[1][1] if bases[1] else found)
    return False


def _number_in(text: str) -> Quantity | None:
    """The number that a sentence gives: after its last `=`, else its only number."""
    if re.search(r"\b(?:or|not|between|either)\b|或|不", text):
        return None
    text = _sentences(text)[0] if _sentences(text) else text
    if "=" in text:
        return read_quantity(re.split(r"(?<![<>!])=", text)[-1].strip())
    numbers = {match[0] for match in re.finditer(rf"(?<![\w.])-?[{CURRENCY}]?-?{NUMBER}(?:\s*/\s*\d+)?%?", text)}
    if (
        re.search(rf"{NUMBER}\s*[*^+/:-]\s*\d", re.sub(r"\d\s*/\s*\d", "", text))
        or _structure(text)
        and len(numbers) > 1
    ):
        return None
    if len(numbers) == 1:
        place = text.index(next(iter(numbers)))
        return read_quantity(text[place:])
    return _worded_quantity(text) if not numbers else None


def _text_forms(text: str) -> set[str]:
    """The answer as text: whole, its first sentence, its first clause; articles dropped."""
    text = re.sub(r"\*\*|__|`", "", text).strip()
    forms = [
        text,
        *_sentences(text)[:1],
        re.split(r"[,;:(—]|\s(?:because|since|as|so|which|where|for)\s|[，。；：（]", text)[0],
    ]
    return {re.sub(r"^(?:the|an|a)\s+", "", normalise(form).strip("\"'$ ")) for form in forms if form.strip()}


_CHOICE = re.compile(
    r"^[\s*_$]*(?:option|choice|选项)?[\s*_]*[(\[{]?\s*(?:\\text\w*\{\s*\(?)?([A-J])(?:\)?\})?\s*(?:[)\]}.:,*]|$)"
)


def _choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: `B`, `(B)`, `B.`, `**B) 12 cm**`, `option B`."""
    text = text.translate(_WIDE)
    match = _CHOICE.match(text) or re.match(r"^[\s*_]*(?:option|choice|选项)[\s*_(]*([A-Ja-j])\b", text, re.IGNORECASE)
    if match:
        return match[1].upper()
    word = re.match(r"^[\s*_$(]*([B-HJ])\b(?!\s*[=^+*/'])", text)
    return word[1] if word else None


def _same_answer(gold: str, found: str) -> tuple[bool, str]:
    if re.fullmatch(r"\(?[A-Ja-j]\)?\.?", gold.strip()):
        letter = _choice(found) or (found.strip(" ().").upper() if len(found.strip(" ().")) == 1 else None)
        if letter:
            passed = letter == gold.strip("(). ").upper()
            return passed, f"choice {letter} {'is' if passed else 'is not'} {gold.strip()}"
    gold_tidy, found_tidy = _tidy_answer(gold), _tidy_answer(found)
    if not found_tidy:
        return False, "the answer is empty"
    if _same(gold_tidy, found_tidy):
        return True, "the same value"
    if normalise(gold_tidy) == normalise(found_tidy) and (not _looks_symbolic(gold_tidy) or len(gold_tidy) > 2):
        return True, "the same text"
    quantity, direct = read_quantity(gold_tidy), read_quantity(found_tidy)
    if quantity and re.search(r"\d\s*[a-z](?![a-z])[^=]*=", found_tidy):
        return False, "an equation that is not solved for its unknown"
    if found.rstrip(" .*_$").endswith("!"):  # "12!" is joy as a rule, a factorial where that fits
        value = value_of(plain(found.rstrip(" .*_$")))
        if value is not None and quantity and same_number(value, quantity.value):
            return True, "the same value"
    if quantity:
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
    if _looks_symbolic(gold_tidy) and _looks_symbolic(found_tidy):
        if any(
            re.fullmatch(r"[\d\s+*/^().,!-]+", side)
            and side.count("^") + side.count("**") > 1
            and value_of(side) is None
            for side in (gold_tidy, found_tidy)
        ):
            return False, "the number is too large to evaluate"
        if _structure(gold_tidy) and _structure(found_tidy) and _all_numbers(gold_tidy) and _all_numbers(found_tidy):
            return False, "other elements than the reference"
        equal = symbolic_equal(_for_math_verify(gold), _for_math_verify(found))
        if equal is None:
            return False, "the expressions could not be compared in the time allowed"
        return equal, "equal expressions" if equal else "another expression than the reference"
    if not quantity and _text_forms(gold) & _text_forms(found) and not _looks_symbolic(gold_tidy):
        gold_whole = re.sub(r"^(?:the|an|a)\s+", "", normalise(gold).strip("\"'$ "))
        if gold_whole in _text_forms(found):
            return True, "the same text"
    return False, "another answer than the reference"


def _all_numbers(text: str) -> bool:
    structure = _structure(text)
    return bool(structure) and all(read_quantity(part) or part.strip("+- ") == "oo" for part in structure[1])


def _for_math_verify(text: str) -> str:
    text = unicodedata.normalize("NFKC", tidy_unicode(text)) if not text.isascii() else text
    text = re.sub(r"\*\*|^\s*\\[(\[]|\\[)\]]\s*$", "", text.strip())
    return re.sub(r"[\s.。,;:]+$", "", text.strip("$ "))


def check_final_answer(model_output: str, expected_output: str) -> Verdict:
    """Whether the final answer of a free text has the value of the reference's final answer.

    Args:
        model_output: what the model wrote; its last announced answer counts.
        expected_output: the reference: a bare answer (`12`), or a worked solution that ends with one.
    """
    reference = final_answer(expected_output) or (expected_output or "").strip()
    if not reference.strip(" .*_$"):
        return Verdict(False, "the reference holds no answer", final_answer(model_output), None)
    prepared = _prepare(model_output or "")
    marked = _marked(prepared)
    found = marked[-1] if marked else _conclusion(prepared)
    same_text = normalise(model_output) == normalise(expected_output)
    if (
        not marked
        and re.search(r"[A-Za-z]{2,}|[\u4e00-\u9fff]|^\W*[A-J]\W*$", reference)
        and not _numeric(reference)
        and "\\" not in reference
    ):
        found = _text_without_marker(prepared, reference)
    if found is None and not same_text:
        return Verdict(False, "the text gives no final answer", None, reference[:MAX_ANSWER])
    if same_text and normalise(model_output):
        return Verdict(True, "the same text", (found or reference)[:MAX_ANSWER], reference[:MAX_ANSWER])
    passed, why = _same_answer(reference[:MAX_ANSWER], found[:MAX_ANSWER])
    return Verdict(passed, why, found[:MAX_ANSWER], reference[:MAX_ANSWER])


def _numeric(reference: str) -> bool:
    return read_quantity(_tidy_answer(reference)) is not None


def _text_without_marker(text: str, reference: str) -> str | None:
    """Where the reference is words or a letter and no marker announces the answer: the last line, or a yes or no."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if normalise(reference) in ("yes", "no", "true", "false"):
        words = set(re.findall(r"\b(?:yes|no|true|false)\b", " ".join(lines).lower()))
        return words.pop() if len(words) == 1 else None
    if re.fullmatch(r"\(?[A-J]\)?", reference.strip()) and not _choice(lines[-1]):
        return None
    return lines[-1][:MAX_ANSWER]
