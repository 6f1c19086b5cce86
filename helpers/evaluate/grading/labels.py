"""Classification: which label an answer names.

Right is an answer that names the reference's label and no other one. What counts as naming it:

- case, spaces, `_` and `-` between words, quotes, punctuation, and full-width forms make no difference;
- after `Label:`, `Category:`, `类别：` and the like, only what follows counts: reasons may come before;
- where labels are letters, `a` before a word is the article, and `I` the pronoun: `A good one is B` names B;
- a label inside a longer word (`ham` in `hamster`) is not named, nor is one that is denied (`not spam`,
`不是垃圾邮件`);
- two different labels make no answer, and no label makes none.

Limits: a denial is seen only in the same clause and before the label, or as a plain "no" right after it.
Irony and meaning are not read. An answer that only paraphrases a label (`about the invoice` for `billing`) is
wrong.
"""

import re
from collections.abc import Sequence

from helpers.evaluate.grading.math.final_answer import prepare
from helpers.evaluate.grading.math.plain_text import tidy_unicode
from helpers.evaluate.grading.verdict import Verdict

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_BEFORE, _AFTER = (
    rf"(?<![^\W{_CJK}])(?<!-)(?<!\d[.,])",
    rf"(?![^\W{_CJK}])(?!-\w)(?![.,]\d)",
)  # no letter, digit or hyphen goes on
_NO_WORD = (  # "A is right" names a label; other words make an article or a pronoun of it
    r"(?!['’](?:m|d|ll|ve)\b"
    r"|[ \t]+(?!(?:is|and|or|but|because|since|as|for|with|seems|fits|looks|applies)\b)[a-z])"
)
_MARK = re.compile(
    r"(?:\b(?:label|category|class|classification|sentiment|topic|intent|answer)\b|类别|分类|标签|情感|答案|结果)"
    r"[\"'*_\s]*(?::|=|\bis\b|是|为)"
)
_CLAUSE = re.compile(r"[.,;:!?\n，。；：！？、()]|\bbut\b|\brather\b|\binstead\b|而是|但")
_DENIED = re.compile(
    r"\b(?:not|no|non|never|neither|nor|without|cannot)\b|n['’]t\b|\b(?:isnt|dont|doesnt|cant)\b|不|非|没|無|无|别"
    r"|勿"
)
_NO_AFTER = re.compile(r"\W*(?:no|nope|wrong|incorrect|is wrong|is not|isn['’]t|不是|不对|否|错)(?!\w)")


def check_label(model_output: str, expected_output: str, labels: Sequence[str]) -> Verdict:
    """Whether an answer names the label of the reference, and no other.

    Args:
        model_output: the answer.
        expected_output: a label, or a text that names one.
        labels: all labels that there are.
    """
    expected, found = labels_in(expected_output, labels), labels_in(model_output, labels)
    if len(expected) != 1:
        what = f"names {len(expected)} labels: {', '.join(expected)}" if expected else "names no label"
        return Verdict(False, f"the reference {what}", None, None, {"named": found})
    if not found:
        why = "the answer is empty" if not model_output.strip() else "the answer names no label"
    elif len(found) > 1:
        why = f"the answer names {len(found)} labels: {', '.join(found)}"
    else:
        why = f"label {found[0]!r}" if found == expected else f"label {found[0]!r}, not {expected[0]!r}"
    return Verdict(
        found == expected, why, found[0] if len(found) == 1 else None, expected[0], {"named": found}
    )


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The one label that a text names; None if it names none or several."""
    found = labels_in(text, labels)
    return found[0] if len(found) == 1 else None


def labels_in(text: str, labels: Sequence[str]) -> list[str]:
    """Labels that a text names and does not deny, in the order of `labels`; the text alone, if it is a label
    itself.
    """
    text = tidy_unicode(prepare(text)).casefold()
    marks = list(_MARK.finditer(text))
    after = _first_line(text[marks[-1].end() :]) if marks else ""
    for part in filter(None, (text, after)):
        bare = _bare(part)
        if whole := [label for label in labels if _bare(label) == bare]:
            return whole
    text = after or text
    named = set()
    for label in sorted(labels, key=len, reverse=True):  # the longest first: "not urgent" before "urgent"
        for match in _pattern(label).finditer(text):
            if label not in named and not _denied(text, *match.span()):
                named.add(label)
        text = _pattern(label).sub(lambda match: "\0" * len(match[0]), text)
    return [label for label in labels if label in named]


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if re.search(r"\w", line)), "")


def _bare(text: str) -> str:
    """A label for comparing: without what surrounds it, words joined by one space."""
    text = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", tidy_unicode(text).casefold().strip())
    backwards = re.sub(r"^[^\w+-]+", "", text)[::-1]
    return re.sub(r"^[^\w+#%]+", "", backwards)[::-1] or text


def _pattern(label: str) -> re.Pattern:
    bare = _bare(label)
    words = r"[\s_-]+".join(map(re.escape, bare.split()))
    before = _BEFORE if re.match(r"\w", bare) else r"(?<!\w)"
    after = _AFTER if re.search(r"\w$", bare) else ""
    return re.compile(before + words + after + (_NO_WORD if bare in ("a", "i") else ""))


def _denied(text: str, start: int, end: int) -> bool:
    clause = _CLAUSE.split(text[max(0, start - 300) : start])[-1]
    return bool(_DENIED.search(clause) or _NO_AFTER.match(text[end : end + 100]))
