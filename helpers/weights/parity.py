"""Is this the model that was trained? Compare the log-probabilities that both give to the same tokens.

    trained = score_with_sampler(sampling_client, pairs)
    merged = score_with_transformers(model, pairs)
    results = compare_logprobs(trained, [merged], precisions=("float32", "float32"))
    results["transformers"]["passed"]

Equal answers prove little: a wrong merge can still give the right number on easy questions. Log-probabilities
show a wrong scale, a lost layer or the wrong adapter at once. What they may differ by is not a matter of
taste; it follows from the precision of the two computations (see `logit_noise` and `compare_two`).
"""

import math
from collections.abc import Sequence
from typing import Any

from helpers.errors import ModelError
from helpers.text import table
from helpers.weights.scores import ModelShape, Scores

# Half the distance between 1 and the next number: the largest relative error of one rounding.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# In one layer: two norms, q, k, v, their rotation, attention weights, attention output, o, gate, up, silu·up,
# down, two sums (14 results), and the seven weight matrices themselves.
ROUNDINGS_PER_LAYER = 14 + 7
FLOOR = 1e-5  # log-softmax over tens of thousands of float32 logits, and float32 on the wire


def logit_noise(*precisions: str, shape: ModelShape) -> float:
    """Standard deviation of the difference of two logits that only rounding sets apart, in nats.

    Each rounding moves a number by at most u relative to its size, and by u/√3 in the root mean square. A
    layer rounds its 14 results and its 7 weight matrices; each is counted in full, though those inside a
    branch weigh less. Independent errors add in squares, so after L layers the last hidden state is off by ρ
    = u_eff · √(21·L/3) relative to its length. Matrix products are summed in float32 in all three precisions,
    which adds about √n · 2⁻²⁴ for n terms, so u_eff = u + √n · 2⁻²⁴ with n the hidden width. A logit is a
    product with the last hidden state, so it moves by ρ times the spread of the logits. Two computations with
    errors of their own: the squares add.

    The estimate takes it that errors neither grow nor cancel on their way through the layers. In float32 it
    is generous: a fine-tuned SmolLM2-135M, merged, was off by 2e-5 at most (bound 7e-4, 1,236 tokens). In
    bfloat16 the errors of that model do grow, to 1.1 to 1.9 times the estimate; so for 16-bit precisions take
    the larger of this and `measured_noise`.

    Args:
        precisions: of each side, `float32`, `bfloat16` or `float16`: the coarsest that its weights or
            activations have.
        shape: of the model (`Scores.shape`).

    Raises:
        ModelError: a precision has another name.
    """
    unknown = set(precisions) - set(UNIT_ROUNDOFF)
    if unknown or not precisions:
        raise ModelError(
            f"no precision {', '.join(sorted(unknown)) or 'given'}", f"use {', '.join(UNIT_ROUNDOFF)}"
        )
    sums = math.sqrt(shape.hidden) * UNIT_ROUNDOFF["float32"]
    path = math.sqrt(ROUNDINGS_PER_LAYER * shape.layers / 3)
    return shape.logit_std * path * math.sqrt(sum((UNIT_ROUNDOFF[p] + sums) ** 2 for p in precisions))


def measured_noise(exact: Scores, rounded: Scores) -> float:
    """The same quantity as `logit_noise`, measured on one model's weights in two precisions.

    A third computation, such as vLLM's, rounds in other places but as often, so it should be as far away as
    `rounded` is. On SmolLM2-135M in bfloat16, vLLM's mean difference was within 10% of that of `transformers`
    in bfloat16.

    Args:
        exact: the model in float32.
        rounded: the same folder in the coarser precision, with the same library.

    Raises:
        ModelError: the two are not scores of the same tokens.
    """
    result = compare_two(exact, rounded, noise=0.0)
    doubts = [1 - math.exp(min(v, 0.0)) for row in exact.logprobs for v in row]
    # The mean size of a normal error is √(2/π) times its standard deviation, here √2·δ·(1 − p).
    return result["mean_abs_logprob_diff"] / (
        math.sqrt(2 / math.pi) * math.sqrt(2) * max(sum(doubts) / len(doubts), FLOOR)
    )


class Comparisons(dict[str, dict[str, Any]]):
    """What `compare_two` found for each model, by its name. Printed, it is a table."""

    def __str__(self) -> str:
        reference = next(iter(self.values()))["reference"]
        head = [f"against {reference}", "largest", "bound", "mean", "bound", "same choice", "passed"]
        return table([head, *(_row(name, result) for name, result in self.items())], right={1, 2, 3, 4, 5})


def _row(name: str, result: dict[str, Any]) -> list[str]:
    keys = ("max_abs_logprob_diff", "tolerance", "mean_abs_logprob_diff", "mean_tolerance")
    agreement = result["token_agreement"]
    same = "not known" if agreement is None else f"{agreement:.1%}"
    return [name, *(f"{result[key]:.1e}" for key in keys), same, "yes" if result["passed"] else "NO"]


def compare_logprobs(
    reference: Scores, others: Sequence[Scores], precisions: Sequence[str] = ("float32", "float32")
) -> Comparisons:
    """Compare models' scores with those of a reference, against what rounding alone may do.

    How far rounding may move a logit is estimated by `logit_noise`, from the first of the scores that know
    their model's shape. Where one of them was scored in a coarser precision too, the larger of the estimate
    and of `measured_noise` counts.

    Args:
        reference: the trained model, as the server has it.
        others: what was made from it; names must differ.
        precisions: of the reference and of the others, `float32`, `bfloat16` or `float16`.

    Returns:
        For each of `others`, by name, what `compare_two` returns.

    Raises:
        ModelError: no scores know their model's shape; the scores aren't of the same tokens, or hold values
            that are not log-probabilities; or a precision has another name.
    """
    known = [scores for scores in (reference, *others) if scores.shape]
    if not known or known[0].shape is None:
        raise ModelError(
            f"no bound for differences from '{reference.name}': none of the scores knows its model's shape",
            "compare scores of score_with_transformers along with these",
        )
    measured = [measured_noise(scores, scores.rounded) for scores in known if scores.rounded]
    noise = max(logit_noise(*precisions, shape=known[0].shape), *measured, 0.0)
    return Comparisons({other.name: compare_two(reference, other, noise) for other in others})


def compare_two(reference: Scores, other: Scores, noise: float) -> dict[str, Any]:
    """Compare two models' scores of the same continuations, against what rounding alone may do.

    When every logit moves by δ (`noise`), log p of a token moves by at most √2·δ·(1 − p): a token the model
    is sure of can't move. From this, two bounds, each over all N tokens:

    - largest difference: √2·δ·max(1 − p) · √(2 ln 2N), the largest of N normal errors;
    - mean difference: √2·δ·mean(1 − p). Its expected value is 0.8 of that, so it is the sharper test.

    Both get 1e-5 on top, for the float32 log-softmax itself.

    Args:
        reference: the trained model, as the server has it.
        other: what was made from it.
        noise: from `logit_noise`, or the larger of it and `measured_noise`.

    Returns:
        `max_abs_logprob_diff`, `mean_abs_logprob_diff`, `token_agreement` (share of places where both would
        choose the same token; None if one can't say), `prompts`, `tokens`, `tolerance`, `mean_tolerance`,
        `logit_noise`, `passed`, `reference`, `other`.

    Raises:
        ModelError: the two are not scores of the same tokens, or hold values that are not log-probabilities.
    """
    if [len(row) for row in reference.logprobs] != [len(row) for row in other.logprobs]:
        raise ModelError(
            f"'{reference.name}' and '{other.name}' did not score the same tokens",
            "score both on the same pairs",
        )
    left, right = ([v for row in s.logprobs for v in row] for s in (reference, other))
    if not left or any(math.isnan(v) or v > 1e-3 for v in left + right):
        raise ModelError("there are values that are not log-probabilities", "score both models again")
    differences = [abs(a - b) for a, b in zip(left, right, strict=True)]
    doubt = [1 - math.exp(min(v, 0.0)) for v in left]
    count = len(differences)
    tolerance = math.sqrt(2) * noise * max(doubt) * math.sqrt(2 * math.log(2 * count)) + FLOOR
    mean_tolerance = math.sqrt(2) * noise * sum(doubt) / count + FLOOR
    largest, mean = max(differences), sum(differences) / count
    return {
        "reference": reference.name,
        "other": other.name,
        "max_abs_logprob_diff": largest,
        "mean_abs_logprob_diff": mean,
        "token_agreement": _agreement(reference.greedy, other.greedy),
        "prompts": len(reference.logprobs),
        "tokens": count,
        "tolerance": tolerance,
        "mean_tolerance": mean_tolerance,
        "logit_noise": noise,
        "passed": largest <= tolerance and mean <= mean_tolerance,
    }


def _agreement(left: list[list[int]] | None, right: list[list[int]] | None) -> float | None:
    if left is None or right is None:
        return None
    same = [a == b for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(same) / len(same)
