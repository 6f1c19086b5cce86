"""Final answers: finding them in free text, and judging them against a reference.

What counts as the final answer: the last of `\\boxed{...}`, `#### ...`, `Final answer: ...`, `the answer is ...`,
`答案是...`, `<answer>...</answer>`, `"answer": ...` in JSON; without any of them, the value of the concluding sentence.
Thinking in a `<think>` block does not count, nor good wishes at the end.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from helpers.evaluate.grading.math.arithmetic import CURRENCY, NUMBER
from helpers.evaluate.grading.math.equality import (
    WIDE,
    choice,
    looks_symbolic,
    normalise,
    same_answer,
    sentences,
    stated_by,
    structure,
)
from helpers.evaluate.grading.math.quantities import (
    MAX_ANSWER,
    NUMBER_WORDS,
    clock_time,
    read_quantity,
    tidy_answer,
    unit_at,
)

MAX_TEXT = 20_000


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
# The part of a text that can hold the answer

_NEXT_PROBLEM = re.compile(
    r"\n[ \t]*[#*]*[ \t]*(?:Instruction|Question|Problem|Human|User|问题|题目)\b[ \t]*\d*[ \t]*\**[ \t]*[:：]",
    re.IGNORECASE,
)
_THINK_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_TURN = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>")
_END_TOKEN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<eo[a-z]>|\[/?INST\]|<end_of_turn>|</answer>\s*$")
_FAREWELL = re.compile(
    r"(?:^|(?<=[.!?。！}\s$)]))\s*[*_]*(?:(?:I )?hope (?:this|that|it|my)\b[^.!?\n]{0,120}|(?:Please |Just )?(?:let me know|feel free)\b[^.!?\n]{0,120}|"
    r"If you have (?:any|more|other)\b[^\n.!?]{0,120}|Thank you[^.!?\n]{0,60}|Happy to help[^.!?\n]{0,60}|"
    r"希望(?:这|对|能)[^。！\n]{0,60}|如(?:果|有)[^。\n]{0,40}(?:问题|疑问)[^。！\n]{0,40})[.!。！]*[*_]*\s*$",
    re.IGNORECASE,
)


def without_extras(text: str) -> str:
    """A text without chat tokens, invented further turns, and good wishes at its end."""
    text = re.sub(rf"^\s*(?:{_TURN.pattern})\s*(?:assistant\b)?", "", text)
    turn = _TURN.search(text)
    if turn and text[: turn.start()].strip():
        text = text[: turn.start()]
    text = _END_TOKEN.sub(" ", text).rstrip()
    for _ in range(5):
        tail = text[-600:]
        shorter = (
            text[:-600] + _FAREWELL.sub("", tail).rstrip()
            if len(text) > 600
            else _FAREWELL.sub("", tail).rstrip()
        )
        if shorter == text or not shorter.strip():
            break
        text = shorter
    return text


def prepare(text: str) -> str:
    """The part of a text where its answer stands: after thinking, before an invented next problem, at most the end."""
    ends = list(_THINK_END.finditer(text))
    if ends and text[ends[-1].end() :].strip():
        text = text[ends[-1].end() :]
    elif not ends and re.search(r"<think(?:ing)?>", text, re.IGNORECASE):
        return ""
    for cut in _NEXT_PROBLEM.finditer(text):
        if marked_answers(text[max(0, cut.start() - MAX_TEXT) : cut.start()]):
            text = text[: cut.start()]
        break
    return without_extras(text[-MAX_TEXT:])


# ---------------------------------------------------------------------------------------------------------------------
# Answers that a mark announces

_MARKER = re.compile(
    r"(?:^|(?<=[\s*_#\"(>.,;:!?]))(?:final[ \t]+|correct[ \t]+)?(?:answer|ans)\b[ \t]*(?:\*\*|__)?[ \t]*"
    r"(?:(?:to|of|for)[ \t][^\n.:：?]{1,100}?[ \t])?"
    r"(?P<verb>(?:is|are|was|would be|will be|should be|must be|equals)\b|[:=])"
    r"|^[ \t]*\**A\**:(?=[ \t]*\**\s*[-$]?\d)"
    r"|\b(?:correct|right)[ \t]+(?:option|choice)[ \t]+is\b[ \t]*:?"
    r"|【(?:最终)?答案】[ \t]*:?"
    r"|(?:最终|最后)?(?:答案|结果|答)(?:应该|应|就)?(?P<zh>[是为:])"
    r"|(?:最终|正确)?答案(?=[A-H](?![A-Za-z]))|正确(?:选项|答案)[是为:]"
    r"|故选[:]?|(?:(?<=[,。;\s])|(?<=所以)|(?<=因此)|(?<=答案)|(?<=^)|(?<=[故应]))(?:应)?选择?(?:选项)?:?(?=\s*[A-H](?![A-Za-z]))"
    r"|^[ \t#*_]*(?:final[ \t]+|the[ \t]+)*(?:answer|最终答案|答案)[ \t#*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(?P<payload>[^\n]*)|####[ \t]*(?P<inline>[^#\n]+)", re.MULTILINE)
_TAGGED = re.compile(r"<(answer|final_answer)>(.{1,2000}?)(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_JSON = re.compile(
    r"[\"'](?:final[_ ]?)?answer[\"']\s*:\s*(\"(?:[^\"\\\n]|\\.){0,500}\"|'[^'\n]{0,500}'|-?[\d.,]+|true|false|\[[^\]\n]{0,300}\])",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?:that |indeed |therefore |thus |so |now |also )*(?:correct|right|wrong|incorrect|"
    r"reasonable|consistent|verified|valid|as follows|below|above|"
    r"given|found|obtained|clear|let'?s|let me|we |i |to |in the|confirmed|accurate|sensible|plausible)(?:\b|(?<=\s))",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:not|n't|neither|never|不是|并非)(?:\b|(?=[^a-z]))", re.IGNORECASE)


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
        content = f"({content})" if content.rstrip().endswith("!") else content  # a factorial, not joy
        if last_end >= 0 and _joins(text[last_end : match.start()]):
            found[-1] = (found[-1][0], f"{found[-1][1]}, {content}")
        else:
            found.append((match.start(), content))
        last_end = match.end() if match[1] else match.end() + len(_group(text, match.end() - 1)) + 1
    return found


def _joins(between: str) -> bool:
    """Whether what stands between two boxes makes them one answer."""
    if len(between) > 60:
        return False
    bare = re.sub(r"\\q?quad|\\text\w*\s*\{([^{}]*)\}|\\[,;:() ]|[\s${}]", r" \1 ", between)
    return bool(re.fullmatch(r"\s*(?:,|and|or|和|或)\s*(?:and\s+|or\s+)?(?:[a-z]\s*=)?\s*", bare))


_MATHS = re.compile(r"\$\$?\s*([^$\n]{1,300}?)\s*\$\$?|\\\((.{1,300}?)\\\)", re.DOTALL)
_JOINT = re.compile(r"\s*(?:,?\s*(?:and|or)\s+|[,和或、]\s*)")
_REMARK = re.compile(
    r"[,;]?\s+(?:because|since|which|where|as (?:we|the|it|both)|so that|I (?:hope|apologi[sz]e))\b|\s+(?:因为|由于)"
)
_SENTENCE_END = re.compile(r"(?<!\bSt)(?<!\b[DM]r)(?<!\bMrs)[.!?]\s+(?=[A-Z\\(*\[])|。")


def _formula_at(text: str, place: int) -> re.Match | None:
    """The formula that starts there in `$...$` or `\\(...\\)`; dollars of money (`$5 and $7`) open none."""
    match = _MATHS.match(text, place)
    if not match:
        return None
    content = match[1] or match[2]
    if match[1] and (
        re.search(r"(?<![\\A-Za-z{])\b(?!cm|km)[a-z]{2,}\s", content)
        or re.match(r"\d", text[match.end() : match.end() + 1])
    ):
        return None
    return match


def cut_remark(payload: str) -> str:
    """The answer at the start of what follows a mark: a formula with its unit, or the text up to the end of its sentence."""
    place, formula = 0, _formula_at(payload, 0)
    while formula:
        place = formula.end()
        joint = _JOINT.match(payload, place)
        formula = _formula_at(payload, joint.end()) if joint else None
    end = _SENTENCE_END.search(payload, place) if place else _SENTENCE_END.search(payload)
    if end:
        payload = payload[: end.start()]
    remark = _REMARK.search(payload, place)
    if remark and remark.start() > 0:
        payload = payload[: remark.start()]
    return payload.strip()


def _after_marker(text: str, place: int) -> str:
    """What stands after "the answer is": the rest of the line, or a displayed formula, a fence, or the next line."""
    rest = text[place : place + 4 * MAX_ANSWER]
    rest = re.sub(r"^(?:[\s:：*_]|that\s|probably\s|therefore\s)+", "", rest, flags=re.IGNORECASE)
    rest = re.sub(r"^```\w*\s*\n", "", rest)
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if rest.startswith(opening) and closing in rest[2:]:
            return rest[2 : rest.index(closing, 2)].strip()
    return cut_remark(rest.split("\n", 1)[0].strip()[:MAX_ANSWER])


def marked_answers(text: str) -> list[str]:
    """The answers that marks announce, in the order of the text."""
    found = _boxed(text)
    found += [
        (m.start(), cut_remark((m["payload"] or m["inline"] or "").strip())) for m in _HASHES.finditer(text)
    ]
    for match in _TAGGED.finditer(text):
        inner = match[2].strip()
        found.append(
            (
                match.start(),
                inner
                if len(inner) <= 60 and "\n" not in inner and "=" not in inner
                else final_answer(inner) or "",
            )
        )
    if "{" in text:
        found += [(m.start(), _json_value(m[1])) for m in _JSON.finditer(text)]
    for match in _MARKER.finditer(text.translate(WIDE)):
        payload = _after_marker(text, match.end())
        if (
            payload
            and not _NOT.match(payload)
            and "\\boxed" not in payload
            and not payload.startswith(("####", "<answer>"))
        ):
            if not (_FILLER.match(payload) and not re.match(r"(?:i|we|right)\W*$", payload, re.IGNORECASE)):
                found.append((match.start(), payload))
    return [payload for _, payload in sorted(found, key=lambda item: item[0]) if payload.strip(" .*_$")]


def _json_value(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:  # LaTeX with single backslashes, or single quotes: as it stands
        return text.strip("\"'")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# The concluding sentence, where no mark announces an answer

_UNSURE = re.compile(
    r"\b(?:not sure|unsure|do(?:n't| not) know|can(?:not|'t| not) (?:be )?(?:determine|say|tell|"
    r"answer|solve)\w*|no idea|unable|not enough)"
    r"|不知道|不确定|无法",
    re.IGNORECASE,
)
_DANGLES = re.compile(
    r"(?:(?<!\*)[-+*/=^(,:]|\\times|\\cdot|×|÷|\b(?:is|are|the|of|and|or|to|has|have|a|get|equals))\s*$"
)
_VALUE = re.compile(
    rf"[-−]?\s?[{CURRENCY}]?[-−]?(?<![A-Za-z\d_^])(?:\d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}}(?!\d)|\d+,\d{{1,2}}(?![\d,])|\\[dt]?frac\{{\d+\}}\{{\d+\}}|\d+ \d+/\d+|{NUMBER}(?:\s*/\s*\d+(?!\d|\.\d))?)(?:\s*\\?%)?(?:\s*(?:[*·]\s*)?(?:π|pi\b|√\s*\d+|sqrt\(\d+\)))?"
    rf"|(?<![\w)])-?(?:π|√\s*\d+)"
)
_BRACKETED = re.compile(r"(?<![\w)])[(\[{][^()\[\]{}]{1,80},[^()\[\]{}]{1,80}[)\]}](?=[\s.。,]*$)")
_GIVEN = re.compile(
    r"\b(?:in|for|after|within|over|during|per|every|with|each of|out of|all|of (?:the|these|those|his|her|their)|[a-z]{3,}s of)\s+(?:the\s+|all\s+|about\s+|only\s+)?$",
    re.IGNORECASE,
)


def _conclusion(text: str) -> str | None:
    """The value of the concluding sentence, for a text without any mark; None if it concludes nothing."""
    fence = re.search(r"```\w*\n(.{1,200}?)\n?```\s*$", text, re.DOTALL)
    if fence and "\n" not in fence[1].strip():
        return fence[1].strip()
    lines = [line for line in text.strip().split("\n") if line.strip()]
    if not lines:
        return None
    last = sentences(lines[-1].strip()[-2000:])[-1].strip()
    last = re.sub(r"\*\*\s*$", "", last) if last.count("**") == 1 else last
    if _UNSURE.search(last) or _DANGLES.search(last):
        return None
    if re.search(r"[?？]\s*$", last) or last.count("{") > last.count("}"):
        return None
    if re.match(r"(?:step|步骤)\s*\d", last, re.IGNORECASE) and not re.search(
        r"[=≈]|\b(?:is|are|has|have|gives|total)\b", last
    ):
        return None
    bare = last.strip(" *_")
    words = re.search(
        r"[A-Za-z]{2,}|[\u4e00-\u9fff]{2,}",
        re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?|\b(?:and|or|sqrt)\b", "", bare),
    )
    if len(bare) <= 60 and not words and (len(lines) == 1 or not re.search(r"=", bare)):
        return bare
    if len(lines) == 1 and len(bare) <= 60 and _reads_whole(bare):
        return bare
    return _value_of_sentence(last, alone=len(lines) == 1)


def _value_of_sentence(last: str, alone: bool) -> str | None:
    """The last value in a sentence: a formula, bold text, a right side, a tuple, or a number with its unit."""
    bold = re.findall(r"\*\*([^*\n]{1,80})\*\*", last)
    if bold and re.search(r"\d", bold[-1]) and not bold[-1].strip().endswith(":"):
        return bold[-1]
    plain_text, formulas = _formulas(last)
    if formulas and not re.search(r"\d", plain_text[formulas[-1][0] :]):
        joined = _assignments_at_end(last)
        if len(joined) > 1:
            return ", ".join(joined)
        content = formulas[-1][1]
        return _right_side(content)
    if _negated(plain_text):
        return None
    if "=" in plain_text:
        return _right_side(plain_text)
    if listed := re.search(
        rf"\b(?:are|were|be)\s+([{CURRENCY}]?-?{NUMBER}(?:,\s*[{CURRENCY}]?-?{NUMBER})*,?\s+and\s+[{CURRENCY}]?-?{NUMBER})\W*$",
        plain_text,
    ):
        return listed[1]
    if bracketed := _BRACKETED.search(plain_text):
        return bracketed[0]
    items = [
        (m.end() - len(m[0].lstrip()), m.end(), m[0].strip())
        for m in _VALUE.finditer(plain_text)
        if m[0].strip(" -−")
    ]
    if not items and not alone:
        return None
    money = [item for item in items if item[2].strip(" -−")[:1] in tuple(CURRENCY)]
    if len(money) == 1:  # "she pays $64 for 16 glasses"
        return re.sub(r"^[-−]\s", "", money[0][2])
    spelled = [
        (m.start(), m.end(), m[0])
        for m in re.finditer(
            r"\b(?:(?:negative|minus)\s+)?(?:"
            + "|".join(w for w in NUMBER_WORDS if w not in ("zero", "one"))
            + r")\b",
            plain_text,
            re.IGNORECASE,
        )
    ]
    if spelled and (
        (not items and alone and len(plain_text) < 200)
        or (
            items
            and spelled[-1][0] > items[-1][1]
            and re.search(r"\b(?:is|are|total|equals|be)\s+(?:of\s+)?$", plain_text[: spelled[-1][0]])
        )
    ):
        return spelled[-1][2]
    if not items or re.search(r"\d\s*[-+*/×÷]\s*\d+\s*\.?$", plain_text.replace("/", "|")):
        return None
    for start, end, value in reversed(
        items
    ):  # "180 miles in 3 hours": a number after `in` is given, not found
        given = _GIVEN.search(plain_text[:start]) or re.search(
            r"\d.*\sto (?!\d)[a-z]+\b(?:(?!\b(?:is|are)\b).)*$", plain_text[:start]
        )
        if not given or len(items) == 1:
            break
    else:
        start, end, value = items[-1]
    return _with_unit(plain_text, start, end, value)


def _assignments_at_end(text: str) -> list[str]:
    """`x=2`, `x=3` of a sentence that ends in `$x=2$ or $x=3$`."""
    found, place, last_end = [], 0, -1
    while place < len(text):
        match = _formula_at(text, place) if text[place] in "$\\" else None
        if not match:
            place += 1
            continue
        content = (match[1] or match[2]).strip()
        joint = _JOINT.fullmatch(text[last_end:place]) if found else None
        assigns = re.match(r"[a-zA-Z]\s*=[^=]+$", content)
        found = [*found, content] if joint and assigns else [content] if assigns else []
        place = last_end = match.end()
    return found


def _formulas(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text with each formula that holds a digit or a command blanked out, and (place, content) of those."""
    kept, found, place = [], [], 0
    while place < len(text):
        match = _formula_at(text, place) if text[place] in "$\\" else None
        if match:
            content = match[1] or match[2]
            if re.search(r"\d|\\[a-zA-Z]", content):
                found.append((place, content.strip()))
            kept.append(" " * (match.end() - place))
            place = match.end()
        else:
            kept.append(text[place])
            place += 1
    return "".join(kept), found


def _right_side(text: str) -> str | None:
    """What follows the last `=`; the whole where the left side still has its unknown in it (`3x = 12`)."""
    assignments = re.findall(r"(?<![\w^\\])([a-zA-Z])\s*=\s*(-?[^\s,;=]+)", text)
    if len(assignments) > 1 and len(re.findall(r"(?<![<>!])=", text)) == len(assignments):
        return ", ".join(f"{name} = {value.rstrip('.')}" for name, value in assignments)
    sides = re.split(r"(?<![<>!\\])=", text)
    side = sides[-1].strip()
    if not re.search(r"\d|\\|[a-z]", side):
        return None
    if len(sides) == 2 and re.search(r"\d\s*[a-z]\s*$", sides[0]):
        return f"{sides[0].split()[-1]} = {side}"
    return side


def _negated(text: str) -> bool:
    return bool(
        re.search(
            rf"\b(?:not|cannot be|never|(?:more|less|fewer|greater|larger|smaller) than)\s+(?:be\s+)?(?:equal to\s+)?[{CURRENCY}]?{NUMBER}\W*$",
            text,
        )
    )


def _with_unit(text: str, start: int, end: int, value: str) -> str:
    """A number in a sentence with what makes it another one: its unit, the larger unit before it, or the range that it ends."""
    before, after = text[:start], text[end:]
    if reach := re.search(rf"\bbetween\s+({NUMBER})\s*\w*\s+and\s*$", before):
        return f"between {reach[1]} and {value}"
    if reach := re.search(rf"({NUMBER})\s*(?:to|–|-|到)\s*$", before):
        return f"{reach[1]} to {value}"
    if clock := re.search(r"\b(\d{1,2}:)$", before):
        late = re.match(r"\s*[ap]\.?m\.?(?![a-z])", after, re.IGNORECASE)
        return clock[1] + value + (late[0] if late else "")
    if clock := re.match(r":\d\d\b(?:\s*[ap]\.?m\.?)?|\s*[ap]\.?m\.?(?![a-z])", after, re.IGNORECASE):
        return value + clock[0]
    length = unit_at(after)
    value += after[:length]
    if larger := re.search(
        rf"({NUMBER}\s*(?:hours?|hrs?|days?|minutes?|feet|foot|kg|km|小时|分钟))[\s,]*(?:and\s+)?$", before
    ):
        return f"{larger[1]} {value}"
    return re.sub(r"^[-−]\s", "", value.strip())


def _reads_whole(text: str) -> bool:
    """Whether a short text starts with its value: `2 hours`, `negative 5`, `two hundred and five`, but no sentence."""
    return "=" not in text and len(text.split()) <= 6 and read_quantity(tidy_answer(text)) is not None


def final_answer(text: str | None) -> str | None:
    """The final answer that a text gives, as it stands there; None if it gives none."""
    prepared = prepare(text or "")
    marked = marked_answers(prepared)
    return marked[-1] if marked else _conclusion(prepared)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def check_final_answer(model_output: str, expected_output: str) -> Verdict:
    """Whether the final answer of a free text has the value of the reference's final answer.

    Args:
        model_output: what the model wrote; its last announced answer counts.
        expected_output: the reference: a bare answer (`12`), or a worked solution that ends with one.
    """
    reference = _reference(expected_output or "")
    if not reference.strip(" .*_$"):
        return Verdict(False, "the reference holds no answer", final_answer(model_output), None)
    prepared = prepare(model_output or "")
    marked = marked_answers(prepared)
    found = marked[-1] if marked else _conclusion(prepared)
    same_text = normalise(model_output) == normalise(expected_output)
    if not marked and _is_words(reference):
        found = _text_without_mark(prepared, reference)
    if found is None and not same_text:
        return Verdict(False, "the text gives no final answer", None, reference[:MAX_ANSWER])
    if same_text and normalise(model_output):
        return Verdict(True, "the same text", (found or reference)[:MAX_ANSWER], reference[:MAX_ANSWER])
    passed, why = same_answer(reference[:MAX_ANSWER], found[:MAX_ANSWER])
    if not passed and marked:
        for other in _other_readings(reference, marked):
            if same_answer(reference[:MAX_ANSWER], other[:MAX_ANSWER])[0]:
                passed, why, found = True, "the same value", other
    return Verdict(passed, why, found[:MAX_ANSWER], reference[:MAX_ANSWER])


def _other_readings(reference: str, marked: list[str]) -> list[str]:
    """What a marked answer may also say: the value of a whole sentence after the mark, or the last of several, for a list."""
    readings = []
    if (
        re.match(r"[A-Za-z](?![.):])", marked[-1])
        and len(marked[-1].split()) >= 5
        and read_quantity(tidy_answer(reference))
    ):
        readings.append(_value_of_sentence(marked[-1], alone=False) or "")
    wanted = structure(tidy_answer(reference.replace("$", "")))
    if wanted and wanted[0] in ("list", "set") and len(marked) >= len(wanted[1]):
        readings.append(", ".join(marked[-len(wanted[1]) :]))
    return [reading for reading in readings if reading]


def _reference(text: str) -> str:
    """The answer of a reference: marked, or the whole of a bare one, or what its last sentence concludes."""
    prepared = prepare(text)
    marked = marked_answers(prepared)
    if marked:
        return marked[-1]
    bare = prepared.strip()
    sentence = (len(bare.split()) >= 4 and re.search(r"[.!。]$", bare)) or (
        len(bare) > 60 and not looks_symbolic(tidy_answer(bare))
    )
    if (
        "\n" in bare
        or ("=" in bare and re.search(r"[A-Za-z]{3,}", re.sub(r"\\[a-zA-Z]+", "", bare)))
        or sentence
    ):
        return _conclusion(prepared) or bare
    return bare


def _is_words(reference: str) -> bool:
    return (
        bool(
            re.search(
                r"[A-Za-z]{2,}|[\u4e00-\u9fff]|^\W*[A-J]\W*$",
                re.sub(r"(?<=\d)\W*\b(?:and|or)\b", "", reference),
            )
        )
        and read_quantity(tidy_answer(reference)) is None
        and clock_time(reference) is None
        and "\\" not in reference
    )


_STATED_CHOICE = re.compile(
    r"(?:option|choice|选项)\s*\(?([A-J])\)?(?![A-Za-z])|(?<![A-Za-z])\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|answer|best|true)|"
    r"\b(?:is|be|选|选择|为)\s*:?\s*\**\(?([A-J])\)?\**\s*[.。]*$|选择?\s*([A-J])(?![A-Za-z])",
    re.MULTILINE,
)


def _text_without_mark(text: str, reference: str) -> str | None:
    """Where the reference is words or a letter and no mark announces the answer: the last line, or a yes or no."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if normalise(reference) in ("yes", "no", "true", "false"):
        return _yes_or_no(" ".join(lines[-3:]).lower())
    if re.fullmatch(r"\(?[A-J]\)?", reference.strip()) and not choice(lines[-1]):
        stated = [
            next(filter(None, match.groups())) for match in _STATED_CHOICE.finditer("\n".join(lines[-3:]))
        ]
        return stated[-1] if stated else None
    last = sentences(lines[-1])[-1]
    return (last if stated_by(reference, last) else lines[-1])[:MAX_ANSWER]


def _yes_or_no(text: str) -> str | None:
    """The one of yes, no, true and false that a text says; `not true` is false, and `no remainder` says nothing."""
    found = set()
    for match in re.finditer(
        r"\b(not\s+)?(yes|true|false)\b|(?:^|[,;.:]\s*|\bso\s+|\bis\s+)(no)\b(?=\W*$|[,.;!])", text
    ):
        word = match[2] or match[3]
        found.add({"true": "false", "false": "true"}.get(word, word) if match[1] else word)
    return found.pop() if len(found) == 1 else None
