"""LaTeX and Unicode mathematics as plain text that `arithmetic` can evaluate."""

import re
import unicodedata
from fractions import Fraction

from helpers.evaluate.grading.answer_text import short_runs

MAX_LENGTH = 1000

# Letters of Japanese, Chinese and Korean, for a class in a pattern.
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")

_SIGNS = str.maketrans(
    {
        "−": "-",
        "‐": "-",
        "‑": "-",
        "–": "-",
        "×": "*",
        "✕": "*",
        "✖": "*",
        "⋅": "*",
        "·": "*",
        "∙": "*",
        "∗": "*",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "：": ":",
        "∶": ":",
        "，": ",",
        "（": "(",
        "）": ")",
        "\u200b": "",
        "\ufeff": "",
        "\u2060": "",
    }
)


def tidy_unicode(text: str) -> str:
    """NFKC, but `x²` becomes `x^2` (NFKC alone: `x2`) and `1½` becomes `1 1/2` (NFKC alone: `11/2`); one
    minus.
    """
    if text.isascii():
        return text
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+",
        lambda m: (
            f"^({m[0].translate(_SUPERSCRIPT)})" if len(m[0]) > 1 else f"^{m[0].translate(_SUPERSCRIPT)}"
        ),
        short_runs(text),
    )
    text = re.sub("[¼-¾⅐-⅞↉]", lambda m: f" {unicodedata.normalize('NFKC', m[0])}", text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)


_LATEX = [
    (re.compile(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)"), ","),
    (re.compile(r"(?<=\d)(?:(,)\\!|\\[,;:])(?=\d{3}(?!\d))"), lambda m: m[1] or ""),
    (re.compile(r"\\!"), ""),
    (
        re.compile(
            r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|,|!|;|:|quad|qquad| )(?![a-zA-Z])"
        ),
        " ",
    ),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\pi(?![a-zA-Z])|π"), " pi "),
    (re.compile(r"\\infty(?![a-zA-Z])|∞"), " oo "),
    (re.compile(r"\\(?:leq?|leqslant)(?![a-zA-Z])|≤"), "<="),
    (re.compile(r"\\(?:geq?|geqslant)(?![a-zA-Z])|≥"), ">="),
    (re.compile(r"\\(?:approx|simeq|sim)(?![a-zA-Z])"), "≈"),
    (re.compile(r"\\(?:neq?)(?![a-zA-Z])"), "≠"),
    (re.compile(r"\\pm(?![a-zA-Z])"), "±"),
    (re.compile(r"(?<=[a-zA-Z\s])!="), "≠"),
    (re.compile(r"\\(?:emptyset|varnothing)(?![a-zA-Z])"), "∅"),
    (re.compile(r"\\langle(?![a-zA-Z])"), "⟨"),
    (re.compile(r"\\rangle(?![a-zA-Z])"), "⟩"),
    (re.compile(r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|°|\\degree(?![a-zA-Z])"), " "),
    (re.compile(r"\\\{"), "⟦"),
    (re.compile(r"\\\}"), "⟧"),
    (re.compile(r"\\[()\[\]]"), " "),
]

_BRACED = [
    (
        re.compile(r"\\(?:text[a-z]*|mathrm|mathbf|mathit|mbox|operatorname|boxed|fbox)\s*\{([^{}]*)\}"),
        r" \1 ",
    ),
    (re.compile(r"(\d)\s*\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1 ((\2)/(\3))"),
    (re.compile(r"(\d)\s*\\frac\s*(\d)\s*(\d)"), r"\1 ((\2)/(\3))"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"((\1)/(\2))"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*(\d)"), r"((\1)/(\2))"),
    (re.compile(r"\\frac\s*(\d)\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r"sqrt(\1)"),
    (re.compile(r"\\sqrt\s*(\d)"), r"sqrt(\1)"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?)"), r"sqrt(\1)"),
    (re.compile(r"√\s*\("), r"sqrt("),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
    (re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}"), lambda m: _repeating(m[1], m[2], m[3])),
]


def _repeating(whole: str, fixed: str, repeat: str) -> str:
    if len(whole + fixed + repeat) > 50:
        return "?"
    value = Fraction(int(fixed + repeat) - int(fixed or 0), 10 ** len(fixed) * (10 ** len(repeat) - 1)) + int(
        whole or 0
    )
    return f"({value})"


def plain(text: str) -> str:
    """LaTeX and Unicode mathematics as plain text: `\\frac{1}{2}` to `((1)/(2))`. Sets get `⟦ ⟧`."""
    text = tidy_unicode(text[:MAX_LENGTH])
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    for _ in range(12):
        before = text
        for pattern, replacement in _BRACED:
            text = pattern.sub(replacement, text)
        if text == before or len(text) > 2 * MAX_LENGTH:
            break
    return re.sub(r"\s+", " ", text).strip()
