"""Units of measure: which word is one, what it measures, and how large it is."""

import re
from fractions import Fraction

from helpers.evaluate.grading.math.plain_text import CJK

# unit: (what it measures, how many base units). Only units where a conversion is beyond doubt.
UNITS: dict[str, tuple[str, Fraction]] = {}

for _kind, _table in {
    "length": {
        "mm millimeter millimetre 毫米": "1/1000",
        "cm centimeter centimetre 厘米": "1/100",
        "m meter metre 米": "1",
        "km kilometer kilometre 千米 公里": "1000",
    },
    "imperial length": {"inch inches": "1", "ft foot feet": "12", "yard yd": "36", "mile mi": "63360"},
    "mass": {"mg milligram": "1/1000", "g gram 克": "1", "kg kilogram 千克 公斤": "1000", "吨": "1000000"},
    "imperial mass": {"oz ounce": "1", "lb lbs pound": "16"},
    "time": {
        "second sec s 秒 秒钟": "1",
        "minute min 分钟": "60",
        "hour hr h 小时": "3600",
        "day 天": "86400",
        "week": "604800",
    },
    "calendar": {"month 个月": "1", "year yr 年": "12"},
    "volume": {"ml milliliter millilitre 毫升": "1/1000", "l liter litre 升": "1"},
    "imperial volume": {"cup": "1", "pint": "2", "quart": "4", "gallon": "16"},
    "dollars": {"cent": "1/100", "dollar usd $": "1"},
    "yuan": {"¥ 元 yuan rmb": "1", "角": "1/10"},
    "euros": {"€ euro eur": "1"},
    "pounds sterling": {"£": "1"},
}.items():
    for _names, _factor in _table.items():
        for _name in _names.split():
            UNITS[_name] = (_kind, Fraction(_factor))
            if len(_name) > 2 and _name.isascii() and not _name.endswith(("s", "inches", "feet")):
                UNITS[_name + "s"] = UNITS[_name]

_SHORT = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "mps": "m/s"}

_SQUARE = {"square": 2, "sq": 2, "cubic": 3, "平方": 2, "立方": 3}

WORD = re.compile(rf"[A-Za-zΩ]+|[{CJK}]+")


def read_unit(rest: str) -> tuple[str, int]:
    """The unit that a text starts with (`km/h`, `cm^2`, `square meters`, `miles per hour`), and its length;
    ("", 0) if none.
    """
    short = re.match(r"(mph|kph|kmh|mps)\b", rest)
    if short:
        return _SHORT[short[1]], short.end()
    power, place = 1, 0
    word = re.match(r"(square|sq\.?|cubic)\s+|(平方|立方)", rest, re.IGNORECASE)
    if word:
        power, place = _SQUARE[(word[1] or word[2]).lower().rstrip(".")], word.end()
    name = WORD.match(rest, place)
    unit = _known(name[0]) if name else None
    if name is None or unit is None:
        return "", 0
    place = name.start() + (len(name[0]) if name[0].isascii() else len(unit))
    square = re.match(r"\s*\^\s*\(?(\d)\)?", rest[place:]) if power == 1 else None
    if square:
        power, place = int(square[1]), place + square.end()
    per = re.match(r"\s*/\s*|\s+per\s+(?:an?\s+)?", rest[place:])
    if per:
        below = WORD.match(rest, place + per.end())
        bottom = _known(below[0]) if below else None
        if below and bottom:
            under = re.match(r"\s*\^\s*\(?(\d)\)?", rest[below.end() :])
            bottom += f"^{under[1]}" if under else ""
            end = below.end() + (under.end() if under else 0)
            return f"{unit}{f'^{power}' if power > 1 else ''}/{bottom}", end
    return unit + (f"^{power}" if power > 1 else ""), place


def unit_at(text: str) -> int:
    """Length of the unit that follows a number at the start of a text, the space before it included; 0 for
    none.
    """
    space = len(text) - len(text.lstrip())
    scale = re.match(r"(?:thousand|million|billion|trillion|dozen|万|亿)s?\b\s*|[万亿]", text[space:])
    length = read_unit(text[space + (scale.end() if scale else 0) :])[1]
    percent = re.match(r"percent\b", text[space:])
    if percent:
        return space + percent.end()
    return space + (scale.end() if scale else 0) + length if scale or length else 0


def _known(name: str) -> str | None:
    """The unit that a word is; for Chinese, the one that it starts with."""
    forms = (
        (name, name.lower())
        if name.isascii()
        else [name[:length] for length in range(min(3, len(name)), 0, -1)]
    )
    return next((form for form in forms if form in UNITS), None)


def unit_size(unit: str) -> tuple[str, Fraction] | None:
    """What a unit measures, and how many base units it is; None for one without a known size."""
    above, _, below = unit.partition("/")
    kinds, size = [], Fraction(1)
    for side, sign in ((above, 1), (below, -1)):
        if side:
            name, _, power = side.partition("^")
            if name not in UNITS:
                return None
            kind, factor = UNITS[name]
            kinds.append(f"{kind}^{int(power or 1) * sign}")
            size *= factor ** (int(power or 1) * sign)
    return " ".join(kinds), size
