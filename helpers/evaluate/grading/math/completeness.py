"""Completeness: does a text come to its end?"""

import re
import unicodedata

from helpers.evaluate.grading.answer_text import short_runs, without_extras
from helpers.evaluate.grading.math.arithmetic import CURRENCY, NUMBER
from helpers.evaluate.grading.math.final_answer import MAX_TEXT, final_answer, marked_answers, prepare
from helpers.evaluate.grading.math.plain_text import CJK
from helpers.evaluate.grading.math.quantities import read_quantity, tidy_answer
from helpers.evaluate.grading.math.units import unit_at
from helpers.evaluate.grading.math.wording import WIDE, sentences
from helpers.evaluate.grading.verdict import Verdict

_DANGLING = re.compile(
    r"(?:\b(?:therefore|thus|hence|so|because|since|and|or|but|the|an?|is|are|was|of|to|that|we|which|with"
    r"|for|by|if|then|let|in|from|as|have|has|"
    r"implies|consequently|equals|gives|get)|因此|所以|因为|由于|故|则|即|得|为|是|设|从而|[-+*/=<>≤≥,:;(\[{、，：；∈^_&]"
    r"|\\(?:times|cdot|frac|sqrt|le|ge|in|Rightarrow|implies)"
    r"|(?<![没所])有|(?<!不)需要?|共|总计|等于|还剩|剩[下余]|和|与|或|但|而|如果|那么|把|被|给|从|[はがをへ을를]"
    r"|(?<!\d)(?<!\d\s)[€£¥₹₩₽])\s*$",
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
    r"^[^\w\n]*+(?:proof|证明)|\b(?:we (?:will |shall |now )?prove|to prove|"
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


# What Tinker, vLLM, OpenAI's interface and Inspect say of an answer that ended by itself, and of one that was
# cut off.
_ENDED = ("stop", "eos", "end_turn")
_CUT = ("length", "max_tokens")


def check_completeness(model_output: str, stop_reason: str | None = None) -> Verdict:
    """Whether a text comes to its end.

    Args:
        model_output: what the model wrote.
        stop_reason: `stop` or `length`, as Tinker and vLLM report it. It knows whether the token limit cut
            the text, so it decides. Without one, the text must have a conclusion, and leave nothing open. So
            must a proof in any case: `stop` may also be a stop text, such as the empty line that ends an
            answer of the guide, and proofs have paragraphs.
    """
    text = short_runs(model_output or "").strip()
    if not text:
        return Verdict(False, "the text is empty")
    reason = str(stop_reason or "").lower().rsplit(".", 1)[-1]
    if reason in _CUT:
        return Verdict(False, "cut off by the token limit", evidence={"stop_reason": str(stop_reason)})
    if reason in _ENDED and not (reason == "stop" and _PROOF.search(text)):
        return Verdict(True, "the model ended it", evidence={"stop_reason": str(stop_reason)})
    return _read_to_its_end(text)


def _read_to_its_end(text: str) -> Verdict:
    """The guess from a text of which nobody says how it ended."""
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
    end = (text[:-2] if text.endswith(("\\]", "\\)")) else text.rstrip(" \t\n*_`$")).strip()
    last_line = end.rsplit("\n", 1)[-1].strip()[-1000:]
    if re.search(r"(?:\.\.\.|…)$", end):
        return Verdict(False, "the text trails off", evidence={"end": end[-40:]})
    command = re.search(r"\\([a-zA-Z]*)$", end)
    if (command and command[1] not in _WHOLE_COMMANDS) or _dangles(end):
        return Verdict(False, f"ends in the middle: {end[-40:]!r}", evidence={"end": end[-40:]})
    if _STEP_HEAD.fullmatch(last_line) or _item_without_text(text, last_line):
        return Verdict(False, "ends with the head of a step", evidence={"end": last_line})
    return _concludes(text, end, last_line)


_STEP_HEAD = re.compile(r"[#*\s]*(?:step|步骤|第)\s*[\d一二三四五六七八九十]+\s*步?\W*", re.IGNORECASE)


def _item_without_text(text: str, last_line: str) -> bool:
    """Whether a last line holds only the mark that follows an earlier item's: `3.` after `2. b`."""
    mark = re.fullmatch(r"[(（]?(\d{1,2}|[a-z])[.)）、:]|([①-⑳])", last_line)
    if not mark:
        return False
    this = mark[1] or mark[2]
    before = str(int(this) - 1) if this.isdecimal() else chr(ord(this) - 1)
    return bool(re.search(rf"^[^\w\n]*+{re.escape(before)}[^\w\n]", text, re.MULTILINE))


def _dangles(end: str) -> bool:
    return (
        bool(_DANGLING.search(end))
        and not re.search(r"[)\]]$", end)
        and not (len(end) <= 3 and end.isalpha())
        and not re.search(r"(?:(?:answer|答案)\W+(?:is\W+)?|\()\(?[aA]$", end)
    )


def _concludes(text: str, end: str, last_line: str) -> Verdict:
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
    closed = re.search(r"[.!。！)\]}]$", end.translate(WIDE))
    if _QED.search(last_line) or (
        "\n" not in end
        and len(end) <= 60
        and (closed or _few_words(end) or re.search(rf"[\d%{CURRENCY}]$", end))
    ):
        return Verdict(True, "it ends with its conclusion")
    result = re.search(rf".*=\s*[{CURRENCY}]?{NUMBER}(?P<rest>.*)$", last_line)
    if (result and unit_at(result["rest"]) == len(result["rest"])) or (
        "\n" in end and read_quantity(tidy_answer(last_line)) and len(last_line) <= 30
    ):
        return Verdict(True, "it ends with its result", final_answer(text))
    if _stands_out(text, last_line) and final_answer(text):
        return Verdict(True, "it ends with its result", final_answer(text))
    if _CONCLUDES.search(last_line) and (closed or re.search(r"=\s*\S+$", last_line)):
        return Verdict(True, "it ends with its conclusion")
    if closed and final_answer(text):
        return Verdict(True, "its last sentence gives an answer", final_answer(text))
    return Verdict(False, "it has no conclusion", evidence={"end": end[-80:]})


def _few_words(text: str) -> bool:
    """At most three words. Where no spaces part them, two letters make one, and digits make a few."""
    letters = re.findall(f"[{CJK}]", text)
    others = re.sub(f"[{CJK}，、]+", " ", text)
    return len(letters) / 2 + len(others.split()) <= 3 or bool(letters and re.search(r"\d", others))


def _stands_out(text: str, last_line: str) -> bool:
    """Whether the last line is bold, a formula, or a row of a table."""
    if re.fullmatch(r"\*\*[^*]+\*\*|\\[(\[].+|\|.*\d.*\|?|\$[^$]+", last_line):
        return True
    return text.rstrip().rsplit("\n", 1)[-1].startswith(("**", "\\(", "\\[", "$", "|"))


_OPEN_DOLLAR = re.compile(
    r"\$[^$\d\s][^$\n]*[=^\\_]|\$\d[^$\n]*\\[a-z]|(?<!\d)(?<!\d\s)\$\s*$"
)  # of a formula, or of money: "It costs $"


def _left_open(text: str) -> str:
    """What is opened and never closed: a fence, a formula, an environment, a box, a bracket in the last
    paragraph.
    """
    if text.count("```") % 2:
        return "```"
    if len(re.findall(r"(?<!\\)\$\$", text)) % 2:
        return "$$"
    dollars = [match.start() for match in re.finditer(r"(?<!\\)\$", text)]
    if len(dollars) % 2 and _OPEN_DOLLAR.match(text, dollars[-1]):
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
