"""Give every grader long texts that degenerate models write: one piece over and over. Run as a process.

Takes the size of a text in kB: one of 100 kB may take a second, others in proportion; each may take 200 MB.
Prints a line of JSON for each call that is too slow or raises, out of memory included, and then the count.
"""

import itertools
import json
import resource
import sys
import time
from pathlib import Path

from helpers.evaluate.grading import (
    check_answer,
    check_calls,
    check_completeness,
    check_fields,
    check_final_answer,
    check_label,
    check_reasoning_steps,
    text_f1,
)

SIZE = 1000 * int(sys.argv[1])
SECONDS = SIZE / 100_000
MEMORY = 200 << 20
_SOLID = r"""
1 , . ( { [ $ = 1+ 1= - * ** | ^ \ \frac \frac{ \boxed{ answer: <answer> <think> <| 1,111,111 1/7^2000+
{"a": a: 一 百 分之 三分之 点 负 한 ½ ① 🙂
"""
_BLANKS = [
    "\n",
    " ",
    "\t\n ",
    "#### ",
    "- ",
    "\\boxed 1",
    "the answer is 1",
    "```\n",
    '{"a": [',
    "a: ",
    "a1: b\n",
]
_OTHERS = [
    "A ",
    "not A ",
    "= 1/3 + 1/7\n",
    "1 to a ",
    "\nQuestion:",
    "1. ",
    "is A* ",
    "e\u0301\u0316",
    "\u0301\u0316",
    "\0",
]
PIECES = [*_SOLID.split(), *_BLANKS, *_OTHERS]
LABELS = ["spam", "not spam", "A", "B"]
GRADERS = {
    "answer": lambda text: check_answer(text, "12"),
    "final answer": lambda text: check_final_answer(text, "x^2 + 1"),
    "reference": lambda text: check_final_answer("12", text),
    "words": lambda text: check_final_answer(text, "Paris"),
    "steps": lambda text: check_reasoning_steps(text, text),
    "completeness": check_completeness,
    "label": lambda text: check_label(text, "A", LABELS),
    "calls": lambda text: check_calls(text, '{"name": "f", "arguments": {}}'),
    "wrapped calls": lambda text: check_calls(f"<tool_call>{text}</tool_call>", "x"),
    "fields": lambda text: check_fields(text, '{"a": 1}'),
    "text": lambda text: text_f1(text, "the red bike"),
}


def main() -> None:
    check_final_answer("x(x+1)", "x^2+x")  # starts the process that compares expressions, with its own limits
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    calls = 0
    for piece, (name, grade) in itertools.product(PIECES, GRADERS.items()):
        flood = (piece * (SIZE // len(piece) + 1))[: SIZE - 30]
        start, fault = time.process_time(), ""
        try:
            grade(f"So 5 + 7 = 12 {flood} is 12" if calls % 2 else flood)
        except Exception as error:
            fault = type(error).__name__
        seconds = time.process_time() - start
        calls += 1
        if fault or seconds > SECONDS:
            print(json.dumps([name, piece, round(seconds, 2), fault]))
    print(calls)


if __name__ == "__main__":
    main()
