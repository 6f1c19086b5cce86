"""Make data/word_problems.json: short word problems whose every step a program can check.

    python data/make_word_problems.py             # write the file again: the same bytes each time
    python data/make_word_problems.py --check     # does the committed file match, does every step evaluate?

Only the standard library and a fixed seed are used. The templates are in word_problem_templates.py. Numbers
are small on
purpose: the course shows how fine-tuning teaches a way of working, and a small model that slips in 7 * 48
    would hide it.
"""

import argparse
import ast
import json
import operator
import random
import re
import sys
from pathlib import Path

import word_problem_templates  # noqa: F401  (registers the templates)
from word_problem_words import TEMPLATES, Problem, Template

OUT = Path(__file__).resolve().parent / "word_problems.json"
SEED = 2026
PER_TEMPLATE = 44  # 27 templates: 1,188 problems to split into train, validation and test
PER_UNSEEN_TEMPLATE = 15  # 4 templates: 60 problems that only a test set may hold
LARGEST = 120  # no number in a problem, a step or an answer is larger
LARGEST_PRODUCT = 60  # nor is the result of a multiplication, or what is divided

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def evaluate(expression: str) -> int:
    """The value of an expression of non-negative whole numbers and `+ - * /`.

    Raises:
        ValueError: something else is in it, or a division leaves a remainder.
    """

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            left, right = value(node.left), value(node.right)
            if right == 0 or left % right:
                raise ValueError(f"{expression}: {left} / {right} is not a whole number")
            return left // right
        raise ValueError(f"{expression}: only whole numbers and + - * / are allowed")

    return value(ast.parse(expression, mode="eval").body)


def make_record(source: Template, problem: Problem) -> dict:
    """A record of the data file: the problem, its worked answer, and the steps for a program to check."""
    steps = [
        {"text": text, "expression": expression, "value": str(evaluate(expression))}
        for text, expression in problem.steps
    ]
    answer = steps[-1]["value"]
    return {
        "instruction": problem.instruction,
        "input": problem.input,
        "output": written_out(steps, answer),
        "answer": answer,
        "category": source.category,
        "template": source.name,
        "unseen": source.unseen,
        "steps": steps,
    }


def written_out(steps: list[dict], answer: str) -> str:
    """The worked answer as text: a line for each step, then the final answer."""
    lines = [f"Step {i}: {s['text']}: {s['expression']} = {s['value']}" for i, s in enumerate(steps, start=1)]
    return "\n".join([*lines, f"Final answer: {answer}"])


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def make_problems(seed: int = SEED) -> list[dict]:
    """All problems. No two of one template have the same numbers, so none is another one renamed."""
    records = []
    for source in TEMPLATES:
        rng = random.Random(f"{seed}/{source.name}")
        wanted, seen, draws = (PER_UNSEEN_TEMPLATE if source.unseen else PER_TEMPLATE), set(), 0
        while len(seen) < wanted:
            draws += 1
            if draws > 20_000:
                raise ValueError(f"template {source.name} has too few different problems")
            record = make_record(source, source.draw(rng))
            numbers = tuple(sorted(numbers_in(f"{record['instruction']} {record['input']}")))
            if numbers in seen or problems_with(record):
                continue
            seen.add(numbers)
            records.append(record)
    random.Random(seed).shuffle(records)
    return records


def problems_with(record: dict) -> list[str]:
    """What is wrong with a record; empty when all its steps hold."""
    found = []
    if record["output"] != written_out(record["steps"], record["answer"]):
        found.append("the output is not its steps and its answer")
    for step in record["steps"]:
        if str(evaluate(step["expression"])) != step["value"]:
            found.append(f"{step['expression']} is not {step['value']}")
    if record["steps"][-1]["value"] != record["answer"]:
        found.append("the last step is not the answer")
    given = set(numbers_in(f"{record['instruction']} {record['input']}")) | {7}  # days in a week
    for step in record["steps"]:
        largest = max(*numbers_in(step["expression"]), int(step["value"]))
        if largest > LARGEST_PRODUCT and re.search("[*/]", step["expression"]):
            found.append(f"{step['expression']} goes over {LARGEST_PRODUCT}")
        if not set(numbers_in(step["expression"])) <= given:
            found.append(f"{step['expression']} uses a number that is not given")
        given.add(int(step["value"]))
    if min(given) < 1 or max(given) > LARGEST:
        found.append(f"a number is not between 1 and {LARGEST}")
    return found


def as_text(records: list[dict]) -> str:
    return json.dumps(records, ensure_ascii=False, indent=1) + "\n"


def check(path: Path = OUT) -> list[str]:
    """What is wrong with the data file at `path`; empty when it is what this script makes and every step
    holds.
    """
    text = path.read_text(encoding="utf-8")
    found = (
        [] if text == as_text(make_problems()) else [f"{path.name} is not what make_word_problems.py makes"]
    )
    for index, record in enumerate(json.loads(text)):
        found += [f"record {index}: {what}" for what in problems_with(record)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check the committed file, write nothing")
    if parser.parse_args().check:
        found = check()
        print("\n".join(found) or f"{OUT.name} is what the script makes, and all steps hold")
        return 1 if found else 0
    records = make_problems()
    OUT.write_bytes(as_text(records).encode("utf-8"))
    print(f"{OUT.name}: {len(records)} problems from {len(TEMPLATES)} templates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
