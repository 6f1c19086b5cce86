"""Reasoning: is every stated equation right, is every step of the reference there, does the text come to its end."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from helpers.evaluate.grading.math.answers import (
    MAX_TEXT,
    Verdict,
    final_answer,
    marked_answers,
    prepare,
    without_extras,
)
from helpers.evaluate.grading.math.arithmetic import (
    CURRENCY,
    NUMBER,
    Number,
    evaluate,
    plain,
    rounds_to,
    same_number,
)
from helpers.evaluate.grading.math.equality import WIDE, sentences
from helpers.evaluate.grading.math.quantities import read_quantity, tidy_answer, unit_at

MAX_EQUATIONS = 300


@dataclass(frozen=True)
class Equation:
    """A chain of sides that a text states to be equal, with the value of each.

    Attributes:
        text: as in the text, shortened.
        values: one a side.
        parts: the values of all numbers and partial results in it.
        right: whether all sides are equal (a decimal may be a rounded value).
    """

    text: str
    values: tuple[Number, ...]
    parts: tuple[Number, ...]
    right: bool


# A word before a number or after it is a noun or a unit ("5 apples + 7 apples"); `x` between numbers multiplies.
_NOUN = re.compile(r"[A-Za-z\u4e00-\u9fff][A-Za-z\u4e00-\u9fff'_-]*\.?")
_ARITHMETIC = rf"{NUMBER}|(?<![A-Za-z])(?:sqrt|pi)(?![A-Za-z])|\*\*|[-+*/^()%!{CURRENCY}]"
_CLAUSE = re.compile(
    r"(?<=[A-Za-z\u4e00-\u9fff]):|:\s|[;?]|[,.]\s|[,.]$|,(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff]),"
    r"|\b(?:is|are|so|then|therefore|thus|hence|and|have|has|get|costs?|because|since|as)\s"
)
_END_OF_VALUE = re.compile(
    r"[;?。，；]|[,.](?:\s|$)|,(?=[\u4e00-\u9fff])|:\s|\b(?:and|so|which|because|since|then|per|each|for|left|in|of)\b"
)


def _side(text: str, where: str, known: dict[str, Number] | None = None) -> str | None:
    """The arithmetic of one side of an equation: the text's end for a first side, its start for a last one.

    Args:
        known: values of unknowns that the text finds, put in their place.
    """
    if where == "first":
        text = _CLAUSE.split(text)[-1]
        text = re.sub(r"^\s*\(?[a-z\d]{1,2}\)\s+(?=[\d(-])|^\s*\d+\.\s+(?=[\d(-])", "", text)
    elif where == "last":
        text = _END_OF_VALUE.split(text)[0]
    for name, value in (known or {}).items():
        text = re.sub(
            rf"(?<=\d)\s*{name}\b",
            f" * ({value})",
            re.sub(rf"(?<![A-Za-z\d])(?<!\d )-?{name}\b", lambda m: f"{m[0][:-1]}({value})", text),
        )
    if where == "first" and re.search(
        r"(?<![A-Za-z])[A-Za-z]\w?\s*(?:_\s*[({]?\w+[)}]?|\([^()]{1,20}\))\s*$", text
    ):
        return None  # S_3 or f(0): a name, no value
    tokens = [token for token in re.split(rf"({_ARITHMETIC})", text) if token.strip()]
    kept: list[str] = []
    for token, following in zip(tokens, [*tokens[1:], ""]):
        if re.fullmatch(_ARITHMETIC, token):
            if (
                re.match(r"[\d.]", token)
                and kept
                and kept[-1] == " "
                and any(re.match(r"[\d.)]", piece) for piece in kept)
            ):
                if where != "first":
                    break  # "60 cups for 3 people": the value is 60
                kept = []  # "for 20 chickens 3 * 20": the arithmetic is 3 * 20
            kept.append(token)
            continue
        words = token.split()
        if any(not _NOUN.fullmatch(word) for word in words):
            return None
        if where == "first" and not any(re.match(r"[\d.]", piece) for piece in kept):
            if re.search(r"(?:^|\s)[b-zB-HJ-Z]\s*$", token) and following in ("+", "-", "*", "/", "^", "**"):
                return None  # x + 66
            kept = []  # "Total cost 5 + 7": words before the arithmetic
        elif (
            len(token.strip()) == 1
            and re.match(r"[a-zA-Z]$", token.strip())
            and token.strip() not in ("m", "g", "l", "L", "h", "s")
        ):
            return None  # a variable: 5x
        elif kept and kept[-1] in "+-*/^(" and where != "first":
            return None
        else:
            kept.append(" ")
    side = re.sub(r"\(\s*\)", " ", " ".join(kept))
    return re.sub(r"\s+", " ", side).strip() or None


def _nouns(text: str) -> set[str]:
    return {word.lower().rstrip("s.") for word in re.findall(r"[A-Za-z]{2,}", text)} - {"sqrt", "pi", "step"}


_BREAK = re.compile(
    r"\n|\s+and\s+(?=[A-Za-z]\w*\s*=)|(?<=[a-z\d)%][.;])\s+(?=[A-Z\d$(])|[。；]|\\\\|(?<=[a-z\d)]),\s+(?=[\d(a-zA-Z$])|\\\]|\\\)(?=[\s,.;])"
)
_WORDS_FOR_SIGNS = {r"plus|added to": "+", r"minus": "-", r"times|multiplied by": "*", r"divided by": "/"}
_REMAINDER = re.compile(
    r"(\d{1,18})\s*[/÷]\s*(\d{1,18})\s*=\s*(\d{1,18})[^\d=.]{0,20}(?:remainder|\br\b|\bR|余|\.{3,}|…+)(?:\s+of)?\s*(\d{1,18})"
)


def _in_signs(text: str) -> str:
    """A solution with signs where it has words, without units that look like arithmetic, one equation a line."""
    text = re.sub(r"<<[^<>\n]{0,200}>>", "", text[-MAX_TEXT:])
    text = re.sub(r"\\(?:begin|end)\{[^{}]{0,40}\}|\\(?:qquad|quad|tag\{[^{}]*\})", " ", text)
    text = re.sub(r"(?:\\\\|\n)\s*&?\s*=(?!=)", " = ", text)
    text = re.sub(
        r"[（(]\s*(?:[\u4e00-\u9fff]{1,4}|cm|km|kg|mm|m)(?:[²³]|\^\d)?(?:/[\u4e00-\u9fffA-Za-z]{1,4})?\s*[)）]",
        " ",
        text,
    )
    for words, sign in _WORDS_FOR_SIGNS.items():
        text = re.sub(rf"(?<=[\d%])\s+(?:{words})\s+(?=[{CURRENCY}]?\d)", f" {sign} ", text)
    text = re.sub(rf"(\d%|\d\s*/\s*\d+\)*)\s+of\s+(?=[{CURRENCY}(]?\d)", r"\1 * ", text)
    return re.sub(
        rf"([-+*/]\s*[{CURRENCY}]?{NUMBER})\s+(?:is|equals|gives|makes)\s+(?=[{CURRENCY}]?\d)", r"\1 = ", text
    )


def _plain_line(line: str) -> str:
    line = re.sub(r"\*\*(?=\D|$)|(?<!\d)\*\*|`", " ", line)
    line = re.sub(
        r"\$\$|\\[()\[\]]|(?<![\d(+*/=-])\s?\$(?=\s|\\|$)|\$(?![\d.])", " ", line.replace("\\$", "$")
    )
    for sign in ("\\implies", "\\Rightarrow", "⇒", "→"):
        line = line.replace(sign, ";")
    line = plain(line.replace("&", " "))
    line = re.sub(r"\b([A-Za-z]{2,}|m)\s*\^\s*\(?[23]\)?", r"\1", line)  # 12 cm^2
    line = re.sub(r"(?<=[\w)])\s*/\s*(?!sqrt|pi\b)[A-Za-z]{2,}", " ", line)  # $2/egg
    line = re.sub(
        r"(?<=[\d)])\s*[xX]\s*(?=[\d($]|\.\d)|(?<=\d)\s*[xX]\s+(?=[\d($]|\.\d)|(?<=[a-z])\s+x\s+(?=[\d($])",
        " * ",
        line.replace("\\", " "),
    )
    line = re.sub(r"^\s*[-*•]\s+(?=\S)", "", line)
    return re.sub(
        r"^\s*(?:step|步骤|第)?\s*\d+\s*步?\s*(?:\.(?!\d)|[:)、])\s*(?=\S)", "", line, flags=re.IGNORECASE
    )


def equations(text: str) -> list[Equation]:
    """The equations that a text states, in its order.

    An equation with an unknown counts where the text gives that unknown one value: `0.75x = 19.50` with `x = 26`.
    """
    lines = []
    for line in _BREAK.split(_in_signs(text)):
        if ("=" in line or "≈" in line or "\\approx" in line) and len(line) <= 800:
            lines += _plain_line(line).split("; ")
        if len(lines) >= MAX_EQUATIONS:
            break
    known = _unknowns(lines)
    return [equation for line in lines for equation in _chain(line, known)][:MAX_EQUATIONS]


def _unknowns(lines: list[str]) -> dict[str, Number]:
    """Unknowns to which a text gives one single value."""
    values: dict[str, set[Number]] = {}
    for line in lines:
        for name, value in re.findall(
            rf"(?<![A-Za-z\d)/*+^-])(?<![/*+^-] )\b([a-zA-Z])\s*=\s*[{CURRENCY}]?\s*(-?{NUMBER}(?:\s*/\s*\d+)?)\s*(?=$|[.,;]|[A-Za-z])",
            line,
        ):
            result = evaluate(value)
            if result and name not in "ie":  # 2i: the imaginary unit
                values.setdefault(name, set()).add(result[0])
    return {name: found.pop() for name, found in values.items() if len(found) == 1}


def _chain(line: str, known: dict[str, Number]) -> list[Equation]:
    if re.search(r"[<>≠]|!=", line):
        return []
    if division := _REMAINDER.search(line):
        top, bottom, whole, rest = (Fraction(number) for number in division.groups())
        return [
            Equation(
                division[0][:200],
                (whole,),
                (top, bottom, whole, rest),
                bool(bottom) and top == bottom * whole + rest and rest < bottom,
            )
        ]
    pieces = re.split(r"(==?|≈)", line)
    sides, signs = _split_middles(pieces[::2], pieces[1::2])
    read: list[tuple[str, Number, list[Number], str] | None] = []
    for place, side in enumerate(sides):
        where = (
            "first"
            if place == 0 or not signs[place - 1]
            else "last"
            if place == len(sides) - 1 or not signs[place]
            else "middle"
        )
        arithmetic = _side(side, where)
        if arithmetic is None and known:
            arithmetic = _side(side, where, known)
        result = evaluate(arithmetic) if arithmetic else None
        read.append((arithmetic, *result, side) if result else None)
    found, run = [], []
    for place, item in enumerate([*read, None]):
        if item is not None and (not run or signs[place - 1]):
            run.append((item, signs[place - 1] if place and run else ""))
            continue
        run = _without_conversion(run)
        if len(run) >= 2 and _says_something(run):
            found.append(_judge(run))
        run = [(item, "")] if item is not None else []
    return found


def _split_middles(sides: list[str], signs: list[str]) -> tuple[list[str], list[str]]:
    """`5 + 7 = 12 and 12 * 2 = 24`: its middle side ends one equation and starts another. An empty sign parts them."""
    split_sides, split_signs = sides[:1], []
    for place, side in enumerate(sides[1:], start=1):
        split_signs.append(signs[place - 1])
        ends = re.match(
            rf"\s*[{CURRENCY}]?\s*-?{NUMBER}(?![,.]?\d)%?\s*[^-+*/^=\d(]*[A-Za-z\u4e00-\u9fff,][^-+*/^=\d(]*(?=[{CURRENCY}(]?\d)",
            side,
        )
        if ends and place < len(sides) - 1:
            split_sides += [side[: ends.end()], side[ends.end() :]]
            split_signs.append("")
        else:
            split_sides.append(side)
    return split_sides, split_signs


def _without_conversion(run: list) -> list:
    """The sides without a first one that only names what is computed: `Cost of 3 pens = 3 * 2 = 6`, `3 hours = 3 * 60 = 180 minutes`."""
    if len(run) < 2:
        return run
    (first, _), (second, _), (last, _) = run[0], run[1], run[-1]
    if _computes(first[0]) or not _computes(second[0]) or same_number(first[1], second[1]):
        return run
    labelled = re.search(r"[A-Za-z\u4e00-\u9fff]{2,}[^\d]*\d", _CLAUSE.split(first[3])[-1])
    nouns = _nouns(first[3])
    counted = nouns and not labelled and _has(first[1], second[2][:-1])  # 4 quarters = 4 * 0.25
    if labelled or counted or (nouns and _nouns(last[3]) and not nouns & _nouns(last[3])):
        return [(second, ""), *run[2:]]
    return run


def _computes(arithmetic: str) -> bool:
    return bool(re.search(r"[\d)%]\s*[-+*/^!]|sqrt|%|\d\s*\(", arithmetic))


def _says_something(run: list) -> bool:
    """`1 foot = 12 inches` converts units: it is no arithmetic. One side at least must compute, or the nouns agree."""
    if any(_computes(item[0]) for item, _ in run):
        return True
    first, last = _nouns(run[0][0][3]), _nouns(run[-1][0][3])
    return not (first or last)


def _judge(run: list) -> Equation:
    right = True
    for (left, _), (item, sign) in zip(run, run[1:]):
        a, b = left[1], item[1]
        if ("cent" in left[3]) != ("cent" in item[3]) and "$" in left[3] + item[3]:  # 100 cents = $1
            a, b = (a / 100, b) if "cent" in left[3] else (a, b / 100)
        right &= _equal_sides(a, b, left[0], item[0], sign == "≈")
    parts = [value for item, _ in run for value in item[2]]
    text = " = ".join(item[0] for item, _ in run)
    return Equation(text[:200], tuple(item[1] for item, _ in run), tuple(parts), right)


def _equal_sides(a: Number, b: Number, left: str, right: str, about: bool) -> bool:
    if same_number(a, b):
        return True
    decimals = re.fullmatch(r"[-+$€£¥\s]*[\d,]+\.(\d+)\s*(%?)", right) or (
        re.fullmatch(r"[-+$€£¥\s]*[\d,]+()\s*(%?)", right) if about else None
    )
    if decimals:
        places = len(decimals[1]) + (2 if decimals[2] else 0)
        if isinstance(b, Fraction) and rounds_to(a, b, places):
            return True
    percent = ("%" in right) != ("%" in left)  # "0.25 * 100 = 25%", "20 / 80 * 100 = 25%"
    if percent and (same_number(a, b * 100) or same_number(a * 100, b)):
        return True
    return (
        about and b != 0 and abs(float(Fraction(a) / Fraction(b)) - 1) < 0.01
        if abs(b) > Fraction(1, 10**300)
        else False
    )


def _show(value: Number) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if len(str(value.numerator)) < 40 else "a very long number"


def _has(value: Number, values: Any) -> bool:
    return any(same_number(value, other) for other in values)


def _stated_numbers(text: str) -> list[Number]:
    tidy = plain(text[-2000:]) if len(text) > 2000 else plain(text)
    return [
        Fraction(match[0].replace(",", ""))
        for match in list(re.finditer(r"\d{1,3}(?:,\d{3})+(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?", tidy))[
            :500
        ]
    ]


def check_reasoning_steps(model_output: str, expected_output: str) -> Verdict:
    """Whether the reasoning holds: every equation stated is right, and every step of the reference is there.

    A reference step counts as there when the model computes its result: in an equation of its own, in another order, or
    inside a longer one (`(5 + 7) * 3 = 36` holds the step `5 + 7 = 12`). So a solution on another way than the
    reference's fails, and its evidence says which steps were not found. A reference without equations (a bare answer)
    asks only for equations that are right and lead to the final answer. Proofs in words need a judge, not this.

    Returns:
        A verdict whose evidence has `equations` (all found), `wrong` (equations that don't hold), `missing` (reference
        steps that the text never reaches), `unsupported` (results that it states without computing them).
    """
    text = prepare(model_output or "")
    stated, steps = equations(text), equations(expected_output or "")
    wrong = [equation.text for equation in stated if not equation.right]
    computed = [value for equation in stated if equation.right for value in _results(equation)]
    numbers = _stated_numbers(text)
    missing, unsupported = [], []
    for step in steps:
        if (
            not step.right
            or _has(step.values[-1], computed)
            or any(_same_work(step, other) for other in stated if not other.right)
        ):
            continue
        (unsupported if _has(step.values[-1], numbers) else missing).append(step.text)
    final = final_answer(text)
    quantity = read_quantity(tidy_answer(final)) if final else None
    if (
        quantity
        and stated
        and not _has(
            quantity.value,
            [v for e in stated for v in (*e.parts, *(-p for p in e.parts), *(p * 100 for p in e.parts))],
        )
        and not any(
            rounds_to(v, quantity.value, quantity.decimals or 0)
            for e in stated
            for v in e.values
            if isinstance(quantity.value, Fraction)
        )
    ):
        unsupported.append(f"final answer {final[:60]}")
    evidence = {
        "equations": [equation.text for equation in stated],
        "wrong": wrong,
        "missing": missing,
        "unsupported": unsupported,
    }
    faults = [f"{name}: {'; '.join(items[:5])}" for name, items in list(evidence.items())[1:] if items]
    if not stated:
        return Verdict(
            False, "the text states no equation" + (f"; {faults[0]}" if faults else ""), final, None, evidence
        )
    if faults:
        return Verdict(False, "; ".join(faults), final, None, evidence)
    why = f"{len(stated)} equation{'s' * (len(stated) > 1)} right" + (
        f", {len(steps)} of {len(steps)} reference steps found" if steps else ""
    )
    return Verdict(True, why, final, None, evidence)


def _results(equation: Equation) -> list[Number]:
    """Values that an equation computes: its sides and the partial results, not the numbers it starts from."""
    inputs = [
        Fraction(n.replace(",", ""))
        for n in re.findall(r"\d[\d,]*(?:\.\d+)?", equation.text.split("=")[0])[:100]
        if len(n) < 60
    ]
    return [value for value in equation.parts if not _has(value, inputs)] + list(equation.values)


def _same_work(step: Equation, other: Equation) -> bool:
    """Whether a wrong equation is this step done wrong: the same left side. It is already named as wrong."""
    return same_number(step.values[0], other.values[0])


# ---------------------------------------------------------------------------------------------------------------------
# Completeness

_DANGLING = re.compile(
    r"(?:\b(?:therefore|thus|hence|so|because|since|and|or|but|the|an?|is|are|was|of|to|that|we|which|with|for|by|if|then|let|in|from|as|have|has|"
    r"implies|consequently|equals|gives|get)|因此|所以|因为|由于|故|则|即|得|为|是|设|从而|[-+*/=<>≤≥,:;(\[{、，：；∈^_&]|\\(?:times|cdot|frac|sqrt|le|ge|in|Rightarrow|implies))\s*$",
    re.IGNORECASE,
)
_QED = re.compile(
    r"(?:q\.?\s?e\.?\s?d\.?|∎|□|■|\\(?:blacksquare|square|qed|Box)\b|as "
    r"(?:required|desired|claimed|was to be (?:shown|proved|demonstrated))|"
    r"completes the proof|proof is complete|proves (?:the|that|our)|is (?:proved|proven)|have "
    r"(?:shown|proved|proven)|contradiction|证毕|得证|矛盾|命题成立|结论成立)",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|in conclusion|in total|finally|it follows|we conclude|"
    r"altogether)\b|∴|\\therefore|因此|所以|故|综上|总之|一共|最后",
    re.IGNORECASE,
)
_PROOF = re.compile(
    r"^\W*(?:proof|证明)|\b(?:we (?:will |shall |now )?prove|to prove|"
    r"suppose for contradiction|assume for contradiction|by induction)\b|证明",
    re.IGNORECASE | re.MULTILINE,
)


_WHOLE_COMMANDS = {
    "blacksquare",
    "square",
    "qed",
    "Box",
    "pi",
    "infty",
    "emptyset",
    "varnothing",
    "circ",
    "checkmark",
    "alpha",
    "beta",
    "theta",
    "omega",
    "lambda",
}


def check_completeness(model_output: str, stop_reason: str | None = None) -> Verdict:
    """Whether a text comes to its end: a conclusion, nothing left open, not cut off.

    Args:
        model_output: what the model wrote.
        stop_reason: `stop` or `length`, as Tinker and vLLM report it; `length` means that the token limit cut the text.
    """
    text = (model_output or "").strip()
    if not text:
        return Verdict(False, "the text is empty")
    stopped = str(stop_reason or "").lower().rsplit(".", 1)[-1] in ("stop", "eos", "end_turn")
    if str(stop_reason or "").lower().rsplit(".", 1)[-1] in ("length", "max_tokens"):
        return Verdict(False, "cut off by the token limit", evidence={"stop_reason": str(stop_reason)})
    if re.search(r"<think(?:ing)?>", text, re.IGNORECASE) and not re.search(
        r"</think(?:ing)?>\s*\S", text, re.IGNORECASE
    ):
        return Verdict(False, "the thinking never ends in an answer")
    text = re.sub(r"</?answer>|<<[^<>\n]{0,200}>>", " ", without_extras(text[-MAX_TEXT:])).strip()
    opened = _left_open(text)
    if opened:
        return Verdict(False, f"left open: {opened}", evidence={"open": opened})
    if re.search(r"\d\s+\*$", text):
        return Verdict(False, f"ends in the middle: {text[-40:]!r}", evidence={"end": text[-40:]})
    text = "".join(char for char in text if unicodedata.category(char) != "So" or char in "□■∎°").rstrip()
    end = re.sub(r"[\s*_`$]+$|\\[\])]\s*$", "", text).strip()
    last_line = end.rsplit("\n", 1)[-1].strip()
    if re.search(r"(?:\.\.\.|…)$", end):
        return Verdict(False, "the text trails off", evidence={"end": end[-40:]})
    command = re.search(r"\\([a-zA-Z]*)$", end)
    if command and command[1] not in _WHOLE_COMMANDS:
        return Verdict(False, f"ends in the middle: {end[-40:]!r}", evidence={"end": end[-40:]})
    dangling = _DANGLING.search(end)
    if (
        dangling
        and not re.search(r"[)\]]$", end)
        and not (len(end) <= 3 and end.isalpha())
        and not re.search(r"(?:(?:answer|答案)\W+(?:is\W+)?|\()\(?[aA]$", end)
    ):
        return Verdict(False, f"ends in the middle: {end[-40:]!r}", evidence={"end": end[-40:]})
    if re.fullmatch(r"[#*\s]*(?:step|步骤|第)\s*\d+\s*步?\W*", last_line, re.IGNORECASE):
        return Verdict(False, "ends with the head of a step", evidence={"end": last_line})
    return _concludes(text, end, last_line, stopped)


def _concludes(text: str, end: str, last_line: str, stopped: bool) -> Verdict:
    finished = bool(re.search(r"[.!?。！？)\]}\"'”’∎□■%]$|\d$|\w$", end))
    if _PROOF.search(text):
        tail = end[-400:]
        if _QED.search(tail) or (
            _CONCLUDES.search(sentences(last_line)[-1]) and re.search(r"[.!。！]$", end)
        ):
            return Verdict(True, "the proof has its conclusion")
        return Verdict(False, "the proof has no conclusion", evidence={"end": end[-80:]})
    prepared = prepare(text)
    if marked_answers(prepared) and finished:
        return Verdict(True, "it gives its final answer", final_answer(text))
    if re.match(r"[#*\s]*(?:step|步骤|第)\s*\d", last_line, re.IGNORECASE) and not _CONCLUDES.search(
        last_line
    ):
        return Verdict(False, "ends on a step, without a conclusion", evidence={"end": last_line[-80:]})
    closed = re.search(r"[.!。！)\]}]$", end.translate(WIDE)) or stopped
    if _QED.search(last_line) or (
        "\n" not in end and len(end) <= 60 and (closed or len(end.split()) <= 3 or re.search(r"[\d%$]$", end))
    ):
        return Verdict(True, "it ends with its conclusion")
    result = re.search(rf".*=\s*[{CURRENCY}]?{NUMBER}(?P<rest>.*)$", last_line)
    if (result and unit_at(result["rest"]) == len(result["rest"])) or (
        "\n" in end and read_quantity(tidy_answer(last_line)) and len(last_line) <= 30
    ):
        return Verdict(True, "it ends with its result", final_answer(text))
    if re.fullmatch(r"\*\*[^*]+\*\*|\\[(\[].+|\|.*\d.*\|?|\$[^$]+", last_line) or text.rstrip().rsplit(
        "\n", 1
    )[-1].startswith(("**", "\\(", "\\[", "$", "|")):
        if final_answer(text) or stopped:
            return Verdict(True, "it ends with its result", final_answer(text))
    if _CONCLUDES.search(last_line) and (closed or re.search(r"=\s*\S+$", last_line)):
        return Verdict(True, "it ends with its conclusion")
    if closed and final_answer(text):
        return Verdict(True, "its last sentence gives an answer", final_answer(text))
    return Verdict(False, "it has no conclusion", evidence={"end": end[-80:]})


def _left_open(text: str) -> str:
    """What is opened and never closed: a fence, a formula, an environment, a box, a bracket in the last paragraph."""
    if text.count("```") % 2:
        return "```"
    if len(re.findall(r"(?<!\\)\$\$", text)) % 2:
        return "$$"
    dollars = [match.start() for match in re.finditer(r"(?<!\\)\$", text)]
    if len(dollars) % 2 and re.match(r"\$[^$\d\s][^$\n]*[=^\\_]|\$\d[^$\n]*\\[a-z]", text[dollars[-1] :]):
        return "$"
    if text.count("\\[") > text.count("\\]"):
        return "\\["
    for name in set(re.findall(r"\\begin\{(\w+\*?)\}", text)):
        if text.count(f"\\begin{{{name}}}") > text.count(f"\\end{{{name}}}"):
            return f"\\begin{{{name}}}"
    box = text.rfind("\\boxed{")
    if box >= 0 and text[box:].count("{") > text[box:].count("}"):
        return "\\boxed{"
    stack: list[str] = []
    for char in re.split(r"\n\s*\n", text)[-1].translate(WIDE).replace("（", "(").replace("）", ")"):
        if char in "([{":
            stack.append(char)
        elif char in ")]}" and stack:
            stack.pop()
    return stack[-1] if stack else ""
