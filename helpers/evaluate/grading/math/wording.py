"""Answers in words: their text normalised, their sentences, the letter of a choice."""

import re

from helpers.evaluate.grading.math.plain_text import CJK, tidy_unicode

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


def normalise(text: str | None) -> str:
    """NFKC, casefold, one space between words, no punctuation at the end. Powers stay powers: `x²` is not
    `x2`.
    """
    text = " ".join(tidy_unicode(text or "").casefold().split())
    return text.rstrip(" .。!,;:?、") or text


def sentences(line: str) -> list[str]:
    """A line's sentences; a full stop between digits or after `i.e.` ends none."""
    return [part for part in _SENTENCES.split(line) if part.strip()]


_SENTENCES = re.compile(
    r"(?<!\bi\.e\.)(?<!\be\.g\.)(?<!\bvs\.)(?<!\b[DM]r\.)(?<!\bMrs\.)(?<!\bSt\.)(?<!\bapprox\.)"
    r"(?:(?<=[.!?])|(?<=[.!?]\$)|(?<=[.!?]\$\$))\s+|(?<=[。！？])"
)


def text_forms(text: str) -> set[str]:
    """The answer as text: whole, its first sentence, its first clause; no articles. A list stays whole."""
    text = re.sub(r"\*\*|__|`", "", text).strip()
    forms = [text, *sentences(text)[:1]]
    if not re.match(
        r"[\w' ]+(?:[,，、][\w' ]+)*(?:[,，]?\s+(?:and|or)\s+"
        rf"|[,，、和或])\s*[A-Z{CJK}]\w*(?: [A-Z]\w*)*[\s.。]*$",
        text,
    ):
        forms.append(re.split(r"[,;:(—]|\s(?:because|since|as|so|which|where|for)\s|[，。；：（]", text)[0])
    return {re.sub(r"^(?:the|an|a)\s+", "", normalise(form).strip("\"'$ ")) for form in forms if form.strip()}


_CHOICE = re.compile(
    r"^[\s*_$]*(?:option|choice|选项)?[\s*_]*[(\[{]?\s*(?:\\text\w*\{\s*\(?)?([A-J])(?:\)?\})?\s*(?:[)\]}.:,*]"
    r"|选项|项|$)"
)

_CHOICES = re.compile(
    r"^[\s*_$(]*((?:\(?[A-J]\)?\s*(?:(?:,|and|or|&|、|和|与|或)\s*)?){2,6})(?![A-Za-z])[\s.)*_$]*$"
)


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: `B`, `(B)`, `B.`, `**B) 12 cm**`, `option B`; `A, C` and `AC`
    give `AC`.
    """
    text = text[:300].translate(WIDE)
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


def stated_by(gold: str, sentence: str) -> bool:
    """Whether a sentence's subject or predicate is the reference, a name or a word: `Therefore, Eve is
    faster` says `Eve`.
    """
    name = normalise(gold)
    if not re.fullmatch(r"[\w' -]{2,40}", name) or len(name.split()) > 3 or re.search(r"\d", name):
        return False
    text = re.sub(
        r"^(?:therefore|thus|hence|so|finally|in conclusion|所以|因此)[\s,，]*", "", normalise(sentence)
    )
    if re.search(r"\b(?:not|never|neither|cannot)\b|n't\b|不", text):
        return False
    name = re.escape(re.sub(r"^(?:the|an|a)\s+", "", name))
    subject = (
        rf"(?:the )?{name} (?:is|was|has|had|will|can|gets|got|wins|won|runs|ran|earns|made|makes|needs"
        r"|should|did|does)\b"
    )
    predicate = rf".*\b(?:is|be|was|are|on|called|named)\s+(?:an? |the )?{name}"
    return bool(re.match(subject, text) or re.fullmatch(predicate, text))
