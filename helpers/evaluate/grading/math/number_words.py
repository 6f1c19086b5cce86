"""Numbers in English words: `twenty-five`, `two thirds`."""

import re
from fractions import Fraction

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)

NUMBER_WORDS = {word: value for value, word in enumerate(_ONES.split())}

NUMBER_WORDS |= {
    word: 10 * value
    for value, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}

NUMBER_WORDS |= {"hundred": 100, "thousand": 1000, "million": 10**6}

_PARTS_OF_ONE = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
}


def number_words(text: str) -> int | None:
    """`twenty-five`, `three hundred` as a number."""
    words = re.sub(r"\band\b|-", " ", text.lower()).split()
    if 0 < len(words) <= 8 and all(word in NUMBER_WORDS for word in words):
        total = part = 0
        for word in words:
            value = NUMBER_WORDS[word]
            if value >= 100:
                part = max(part, 1) * value
                total, part = (total + part, 0) if value >= 1000 else (total, part)
            else:
                part += value
        return total + part
    return None


def part_of_one(words: list[str]) -> Fraction | None:
    """`one half`, `half`, `two thirds`: only where nothing but `of the …` follows."""
    lower = [word.lower() for word in words]
    tops = NUMBER_WORDS | {"a": 1, "an": 1}
    for skip, top in ((0, 1), (1, tops.get(lower[0], 0))):
        if top and 1 <= top < 20 and len(lower) > skip:
            bottom = _PARTS_OF_ONE.get(lower[skip]) or _PARTS_OF_ONE.get(
                lower[skip].removesuffix("s").replace("halve", "half")
            )
            if bottom and (
                len(lower) == skip + 1
                or (lower[skip + 1] == "of" and not any(w in NUMBER_WORDS for w in lower[skip + 2 :]))
            ):
                return Fraction(top, bottom)
    return None
