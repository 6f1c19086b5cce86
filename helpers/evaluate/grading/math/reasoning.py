"""Reasoning: is every stated equation right, and is every step of the reference there?"""

import re
from fractions import Fraction

from helpers.evaluate.grading.math.arithmetic import Number, rounds_to, same_number, scaled
from helpers.evaluate.grading.math.equations import Equation, equations, holds
from helpers.evaluate.grading.math.final_answer import final_answer, prepare
from helpers.evaluate.grading.math.plain_text import plain
from helpers.evaluate.grading.math.quantities import read_quantity, tidy_answer
from helpers.evaluate.grading.verdict import Verdict


def _stated_numbers(text: str) -> set[Number]:
    tidy = plain(text[-2000:]) if len(text) > 2000 else plain(text)
    return {
        Fraction(match[0].replace(",", ""))
        for match in list(re.finditer(r"\d{1,3}(?:,\d{3})+(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?", tidy))[
            :500
        ]
    }


def check_reasoning_steps(model_output: str, expected_output: str) -> Verdict:
    """Whether the reasoning holds: every equation stated is right, and every step of the reference is there.

    A reference step counts as there when the model computes its result: in an equation of its own, in another
    order, or inside a longer one (`(5 + 7) * 3 = 36` holds the step `5 + 7 = 12`). So a solution on another
    way than the reference's fails, and its evidence says which steps were not found. A reference without
    equations (a bare answer) asks only for equations that are right and lead to the final answer. Proofs in
    words need a judge, not this.

    Returns:
        A verdict whose evidence has `equations` (all found), `wrong` (equations that don't hold), `missing`
        (reference steps that the text never reaches), `unsupported` (results that it states without computing
        them).
    """
    text = prepare(model_output or "")
    stated, steps = equations(text), equations(expected_output or "")
    wrong = [equation.text for equation in stated if not equation.right]
    computed = {value for equation in stated if equation.right for value in _results(equation)}
    numbers = _stated_numbers(text)
    missing, unsupported = [], []
    for step in steps:
        if (
            not step.right
            or holds(step.values[-1], computed)
            or any(_same_work(step, other) for other in stated if not other.right)
        ):
            continue
        (unsupported if holds(step.values[-1], numbers) else missing).append(step.text)
    final = final_answer(text)
    if final and stated and not _computed_in(final, stated):
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


def _computed_in(final: str, stated: list[Equation]) -> bool:
    """Whether a final answer stands in an equation, exactly or rounded; true for one that is no number."""
    quantity = read_quantity(tidy_answer(final))
    if not quantity:
        return True
    parts = {part for equation in stated for part in equation.parts}
    values = {scaled(part, factor) for factor in (1, -1, 100) for part in parts}
    if holds(quantity.value, values):
        return True
    exact, decimals = quantity.value, quantity.decimals or 0
    return isinstance(exact, Fraction) and any(
        rounds_to(v, exact, decimals) for e in stated for v in e.values
    )


def _results(equation: Equation) -> list[Number]:
    """Values that an equation computes: its sides and the partial results, not the numbers it starts from."""
    inputs = {
        Fraction(n.replace(",", ""))
        for n in re.findall(r"\d[\d,]*(?:\.\d+)?", equation.text.split("=")[0])[:100]
        if len(n) < 60
    }
    return [value for value in equation.parts if not holds(value, inputs)] + list(equation.values)


def _same_work(step: Equation, other: Equation) -> bool:
    """Whether a wrong equation is this step done wrong: the same left side. It is already named as wrong."""
    return same_number(step.values[0], other.values[0])
