"""Numbers in Chinese, Japanese and Korean: `三分之二`, `百分之二十五`, `3万5千`, `十二点五`, `스물다섯`.

Their grammar is closed: digits, six units that multiply, a point, a sign, a fraction. So it is read here, to
exact fractions. Libraries for it give floats, and know one language each.
"""

import re
from decimal import Decimal
from fractions import Fraction

from helpers.evaluate.grading.math.plain_text import CJK

_DIGITS = "零〇○영공 一壹일 二贰貳弐两兩이 三叁參参삼 四肆사 五伍오 六陆陸육륙 七柒칠 八捌팔 九玖구"
_VALUES = str.maketrans({char: str(n) for n, chars in enumerate(_DIGITS.split()) for char in chars})
_SAME = str.maketrans("萬만億억조千仟천佰백拾십點점", "万万亿亿兆千千千百百十十点点", " ")
_UNITS = {"兆": 10**12, "亿": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}
_KOREAN_TENS = ["", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔"]
_KOREAN_ONES = ["", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉"]
_KOREAN = {
    tens + ones: 10 * place + value
    for place, tens in enumerate(_KOREAN_TENS)
    for value, word in enumerate(_KOREAN_ONES)
    for ones in (word, {"하나": "한", "둘": "두", "셋": "세", "넷": "네"}.get(word, word))
    if tens + ones
} | {"스무": 20}

_NUMERAL = _DIGITS.replace(" ", "") + "兆조億亿억萬万만百佰백十拾십"
_RUN = (
    rf"(?:(?:\d[\d,]*+(?:\.\d+)?+|[{_NUMERAL}]|[千仟천](?![米克瓦卡帕赫])|[點点]|\s?점\s?(?=[{_NUMERAL}])"
    rf"|(?<=[만억조])\s(?=[{_NUMERAL}]))++|{'|'.join(sorted(_KOREAN, key=len, reverse=True))})"
)
# What may stand before a number and after it. No other word may: 三角形 and 一共 hold no number.
_BEFORE = rf"(?:(?<![{CJK}\d.,])|(?<=[有是为為共约約得和或与與は]))"
_MEASURES = (
    "个個只支本条條张張块元円角分米厘毫公里斤克吨人名位天年月日周週小秒次倍辆棵朵把双对件台臺页頁枚头匹间层筐箱袋瓶杯"
    "种組组岁歲歳度升平立時时和或与與で개명원살시분초일월년권장대번마리킬미센그입이千毫"
)
_AFTER = rf"(?=\s*(?:[^\w\s]|[A-Za-z]|$|(?!角形|分[之の]|분의)[{_MEASURES}]))"
_PHRASE = re.compile(
    rf"{_BEFORE}(?P<sign>负|負|零下|マイナス|마이너스\s*)?"
    rf"(?:(?:(?P<whole>{_RUN})\s*(?:又|と|과|와)\s*)?(?P<bottom>{_RUN})\s*(?:分之|分の|분의)\s*)?"
    rf"(?P<top>{_RUN})(?P<half>[个個]半)?(?P<percent>\s*(?:%|パーセント|퍼센트|프로))?{_AFTER}"
)
_HALF = re.compile(rf"{_BEFORE}(?:一半|半分|절반|半|반){_AFTER}")
_RATIO = re.compile(rf"({_RUN})\s*[比対对對대]\s*({_RUN})")


def with_digits(text: str) -> str:
    """A short text with its East Asian numbers in digits: `负三分之一` is `-1/3`, `三比四` is `3:4`."""
    if text.isascii():
        return text
    if ratio := _RATIO.fullmatch(text.strip(" .。")):
        left, right = map(value_in_words, ratio.groups())
        return text if left is None or right is None else f"{_written(left)}:{_written(right)}"
    return _PHRASE.sub(_rewritten, _HALF.sub("1/2", text))


def _rewritten(match: re.Match) -> str:
    top, bottom, whole = (value_in_words(match[name] or "") for name in ("top", "bottom", "whole"))
    if top is None or (match["bottom"] and not bottom) or (match["whole"] and whole is None):
        return match[0]
    if match["half"]:
        top += Fraction(1, 2)
    percent = bottom == 100 and whole is None
    number = _written(top) + (f"/{_written(bottom)}" if bottom and not percent else "")
    return (
        ("-" if match["sign"] else "")
        + (f"{_written(whole)} " if whole is not None else "")
        + number
        + ("%" if percent or match["percent"] else "")
        + (match["half"] or "")[:1]
    )


def _written(value: Fraction) -> str:
    whole = value.denominator == 1
    return str(value.numerator) if whole else f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


def value_in_words(text: str) -> Fraction | None:
    """The value of a number without its sign; None for none: `3万5千` is 35000, `三百零五` 305, `三百五` 350.

    Digits in a row are read one by one: `二〇二六` is 2026.
    """
    if text in _KOREAN:
        return Fraction(_KOREAN[text])
    return _value(text.translate(_SAME)) if len(text) <= 40 else None


def _value(text: str) -> Fraction | None:
    for unit, size in _UNITS.items():
        if unit in text:
            high, _, low = text.rpartition(unit)
            factor = _value(high) if high else Fraction(1)
            rest = _rest(low, size, bool(high))
            if factor is None or rest is None or rest >= size:
                return None
            return None if size < 10**4 and (factor >= 10 or "点" in high) else factor * size + rest
    number = text.replace("点", ".").translate(_VALUES)
    return (
        Fraction(number.replace(",", ""))
        if re.fullmatch(r"\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+", number)
        else None
    )


def _rest(low: str, size: int, counted: bool) -> Fraction | None:
    """What follows a unit. A digit alone counts the next one: `一万二` is 12000 (Korean `일만이`: 10002)."""
    if not low:
        return Fraction(0)
    if size >= 100 and counted and low in "123456789一二三四五六七八九":
        return Fraction(int(low.translate(_VALUES)) * size, 10)
    return _value(low)
