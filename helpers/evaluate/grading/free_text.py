"""Free text: how many of its words an answer shares with the reference.

There is no rule that tells a good text from a bad one. The F1 over words is simple and can be repeated, and
it misses much: a good text in other words scores low, and a wrong one that changes a number or adds a "not"
scores high. So read answers, too.
"""

import re
import string
import unicodedata
from collections import Counter

from helpers.evaluate.grading.answer_text import short_runs, without_extras

# Scripts that put no spaces between words, or (Korean) few, and their marks above and below letters.
_UNSPACED = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u19e0-\u19ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u318f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def text_f1(model_output: str, expected_output: str) -> float:
    """F1 over the words that an answer shares with the reference, in [0, 1]; 0 for an empty answer."""
    answer, reference = short_runs(without_extras(model_output)).strip(), short_runs(expected_output)
    return token_f1(*(unicodedata.normalize("NFKC", text) for text in (answer, reference))) if answer else 0.0


def token_f1(model_output: str, expected_output: str) -> float:
    """SQuAD's F1 over words: lower case, without punctuation and the articles a, an, the. In [0, 1].

    Rajpurkar et al. 2016. Where no space parts words, each character counts as one, as in CMRC 2018 and MLQA:
    in Chinese, Japanese, Korean, Thai, Lao, Tibetan, Burmese and Khmer.
    """

    def words(text: str) -> list[str]:
        text = "".join(
            char
            for char in text.lower()
            if not unicodedata.category(char).startswith("P") and char not in string.punctuation
        )
        return _WORD.findall(re.sub(r"\b(a|an|the)\b", " ", text))

    found, expected = words(model_output), words(expected_output)
    if not found or not expected:
        return float(found == expected)
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected))
