"""Final answers: finding them in free text.

What counts as the final answer: the last of `\\boxed{...}`, `#### ...`, `Final answer: ...`, `the answer is
...`, `答案是...`, `<answer>...</answer>`, `"answer": ...` in JSON; without any of them, the value of the
concluding sentence. Thinking in a `<think>` block does not count, nor good wishes at the end.
"""

import json
import re

from helpers.evaluate.grading.answer_text import short_runs, without_extras
from helpers.evaluate.grading.math.conclusion import JOINT, conclusion, formula_at
from helpers.evaluate.grading.math.quantities import MAX_ANSWER
from helpers.evaluate.grading.math.wording import WIDE

MAX_TEXT = 20_000
MAX_MARKS = 200

_NEXT_PROBLEM = re.compile(
    r"\n[ \t#*]*+(?:Instruction|Question|Problem|Human|User|问题|题目)\b[ \t\d*]*+[:：]",
    re.IGNORECASE,
)

_THINK_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def prepare(text: str) -> str:
    """The part of a text where its answer stands: after thinking, before an invented next problem, at most
    the end.
    """
    text = short_runs(text)
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


_MARKER = re.compile(
    r"(?:^|(?<=[\s*_#\"(>.,;:!?]))(?:final[ \t]+|correct[ \t]+)?(?:answer|ans)\b[ \t]*(?:\*\*|__)?[ \t]*"
    r"(?:(?:to|of|for)[ \t][^\n.:：?]{1,100}?[ \t])?"
    r"(?P<verb>(?:is|are|was|would be|will be|should be|must be|equals)\b|[:=])"
    r"|^[ \t]*\**A\**:(?=[ \t]*\**\s*[-$]?\d)"
    r"|\b(?:correct|right)[ \t]+(?:option|choice)[ \t]+is\b[ \t]*:?"
    r"|【(?:最终)?答案】[ \t]*:?"
    r"|(?:最终|最后|最終|최종[ \t]*)?(?:答案|结果|結果|答え?|解答|정?답)(?:应该|应|就)?[ \t]*[是为為:は은는]"
    r"|(?:最终|正确)?答案(?=[A-H](?![A-Za-z]))|正确(?:选项|答案)[是为:]"
    r"|故选[:]?|(?:(?<=[,。;\s])|(?<=所以)|(?<=因此)|(?<=答案)|(?<=^)"
    r"|(?<=[故应]))(?:应)?选择?(?:选项)?:?(?=\s*[A-H](?![A-Za-z]))"
    r"|^[ \t#*_]*(?:final[ \t]+|the[ \t]+)*(?:answer|最终答案|答案)[ \t#*_]*$",
    re.IGNORECASE | re.MULTILINE,
)

_HASHES = re.compile(r"^[ \t]*####[ \t]*(?P<payload>[^\n]*)|####[ \t]*(?P<inline>[^#\n]+)", re.MULTILINE)

_TAGGED = re.compile(
    r"<(answer|final_answer)>((?:(?!<(?:final_)?answer>).){1,2000}?)(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL
)

_JSON = re.compile(
    r"[\"'](?:final[_ ]?)?answer[\"']\s*:\s*(\"(?:[^\"\\\n]|\\.){0,500}\"|'[^'\n]{0,500}'|-?[\d.,]+|true"
    r"|false|\[[^\]\n]{0,300}\])",
    re.IGNORECASE,
)

_FILLER = re.compile(
    r"(?:that |indeed |therefore |thus |so |now |also )*(?:correct|right|wrong|incorrect|"
    r"reasonable|consistent|verified|valid|as follows|below|above|"
    r"given|found|obtained|clear|let'?s|let me|we |i |to |in the|confirmed|accurate|sensible|plausible)(?:\b"
    r"|(?<=\s))",
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


# A box, or without braces what stands behind it: `\\boxed 13`, `\\boxed\\frac{1}{2}`.
_BOX = re.compile(
    r"\\(?:boxed|fbox)\s*(?:\{|((?:\([^()\n]{0,80}\)|\{[^{}\n]{0,80}\}|\\[a-zA-Z]+|[^\s{}()$\\]){1,100}))"
)


def _boxed(text: str) -> list[tuple[int, str]]:
    """(position, content) of each `\\boxed{...}`; boxes joined by `and`, `or` or a comma are one answer."""
    found: list[tuple[int, str]] = []
    last_end = -1
    for match in list(_BOX.finditer(text))[-MAX_MARKS:]:
        group = "" if match[1] else _group(text, match.end() - 1)
        content = match[1].rstrip(".,;:") if match[1] else group
        if content is None or not content.strip():
            continue
        content = f"({content})" if content.rstrip().endswith("!") else content  # a factorial, not joy
        if last_end >= 0 and _joins(text[last_end : match.start()]):
            found[-1] = (found[-1][0], f"{found[-1][1]}, {content}")
        else:
            found.append((match.start(), content))
        last_end = match.end() + (len(group) + 1 if group else 0)
    return found


def _joins(between: str) -> bool:
    """Whether what stands between two boxes makes them one answer."""
    if len(between) > 60:
        return False
    bare = re.sub(r"\\q?quad|\\text\w*\s*\{([^{}]*)\}|\\[,;:() ]|[\s${}]", r" \1 ", between)
    return bool(re.fullmatch(r"\s*(?:,|and|or|和|或)\s*(?:and\s+|or\s+)?(?:[a-z]\s*=)?\s*", bare))


_REMARK = re.compile(
    r"[,;]?\s+(?:because|since|which|where|as (?:we|the|it|both)|so that|I (?:hope|apologi[sz]e))\b"
    r"|\s+(?:因为|由于)"
)

_SENTENCE_END = re.compile(r"(?<!\bSt)(?<!\b[DM]r)(?<!\bMrs)[.!?]\s+(?=[A-Z\\(*\[])|。")


def cut_remark(payload: str) -> str:
    """The answer at the start of what follows a mark: a formula with its unit, or the text up to the end of
    its sentence.
    """
    place, formula = 0, formula_at(payload, 0)
    while formula:
        place = formula.end()
        joint = JOINT.match(payload, place)
        formula = formula_at(payload, joint.end()) if joint else None
    end = _SENTENCE_END.search(payload, place) if place else _SENTENCE_END.search(payload)
    if end:
        payload = payload[: end.start()]
    remark = _REMARK.search(payload, place)
    if remark and remark.start() > 0:
        payload = payload[: remark.start()]
    return payload.strip()


def _after_marker(text: str, place: int) -> str:
    """What stands after "the answer is": the rest of the line, or a displayed formula, a fence, or the next
    line.
    """
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
    for match in list(_MARKER.finditer(text.translate(WIDE)))[-MAX_MARKS:]:
        payload = _after_marker(text, match.end())
        if payload and not _says_no_answer(payload):
            found.append((match.start(), payload))
    return [payload for _, payload in sorted(found, key=lambda item: item[0]) if payload.strip(" .*_$")]


def _says_no_answer(payload: str) -> bool:
    """Whether what follows a mark is a denial, filler, or another mark that is read by itself."""
    if _NOT.match(payload) or "\\boxed" in payload or payload.startswith(("####", "<answer>")):
        return True
    return bool(_FILLER.match(payload) and not re.match(r"(?:i|we|right)\W*$", payload, re.IGNORECASE))


def _json_value(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:  # LaTeX with single backslashes, or single quotes: as it stands
        return text.strip("\"'")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def final_answer(text: str | None) -> str | None:
    """The final answer that a text gives, as it stands there; None if it gives none."""
    prepared = prepare(text or "")
    marked = marked_answers(prepared)
    return marked[-1] if marked else conclusion(prepared)
