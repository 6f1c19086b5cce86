"""Is this the model that was trained? Compare the log-probabilities that both give to the same tokens.

    trained = score_with_sampler(sampling_client, pairs)
    merged = score_with_transformers(model, pairs)
    noise = logit_noise("float32", "float32", layers=30, hidden=576, logit_std=merged.logit_std)
    compare_logprobs(trained, merged, noise)["passed"]

Equal answers prove little: a wrong merge can still give the right number on easy questions. Log-probabilities
show a wrong scale, a lost layer or the wrong adapter at once. What they may differ by is not a matter of
taste; it follows from the precision of the two computations (see `logit_noise` and `compare_logprobs`).
"""

import math
from collections.abc import Sequence
from typing import Any

from helpers.errors import ModelError
from helpers.weights.scores import Scores

# Half the distance between 1 and the next number: the largest relative error of one rounding.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# In one layer: two norms, q, k, v, their rotation, attention weights, attention output, o, gate, up, silu·up,
# down, two sums (14 results), and the seven weight matrices themselves.
ROUNDINGS_PER_LAYER = 14 + 7
FLOOR = 1e-5  # log-softmax over tens of thousands of float32 logits, and float32 on the wire


# ---- the tokenizer


def check_same_tokenizer(reference: Any, other: Any, texts: Sequence[str]) -> None:
    """Check that two tokenizers make the same tokens of some texts, and the same texts of those.

    Log-probabilities can't show it: whoever scores tokens by their numbers never asks what the numbers stand
    for.

    Args:
        reference: the tokenizer of training.
        other: the one that was saved with the merged model.
        texts: real prompts and answers; more texts see more of the vocabulary.

    Raises:
        ModelError: they differ, with the first text at which they do; or there are no texts.
    """
    if not texts:
        raise ModelError(
            "no texts to compare the tokenizers with", "give prompts and answers of the test set"
        )
    fix = "merge again: the base model's own tokenizer belongs beside the merged weights"
    if reference.eos_token_id != other.eos_token_id:
        raise ModelError(
            "the tokenizers end a text with different tokens: "
            f"{reference.eos_token_id} and {other.eos_token_id}",
            fix,
        )
    for text in texts:
        a, b = reference.encode(text), other.encode(text)
        if a != b or reference.decode(a) != other.decode(b):
            place = next(
                (n for n, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]),
                min(len(a), len(b)),
            )
            raise ModelError(
                f"the tokenizers differ on {text[:60]!r}: "
                f"token {place} is {a[place : place + 3]} and {b[place : place + 3]}",
                fix,
            )


# ---- what rounding alone may do


def logit_noise(*precisions: str, layers: int, hidden: int, logit_std: float) -> float:
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
        layers: number of layers of the model.
        hidden: width of its hidden state.
        logit_std: spread of the logits over the vocabulary (`Scores.logit_std`).

    Raises:
        ModelError: a precision has another name.
    """
    unknown = set(precisions) - set(UNIT_ROUNDOFF)
    if unknown or not precisions:
        raise ModelError(
            f"no precision {', '.join(sorted(unknown)) or 'given'}", f"use {', '.join(UNIT_ROUNDOFF)}"
        )
    sums = math.sqrt(hidden) * UNIT_ROUNDOFF["float32"]
    path = math.sqrt(ROUNDINGS_PER_LAYER * layers / 3)
    return logit_std * path * math.sqrt(sum((UNIT_ROUNDOFF[p] + sums) ** 2 for p in precisions))


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
    result = compare_logprobs(exact, rounded, noise=0.0)
    doubts = [1 - math.exp(min(v, 0.0)) for row in exact.logprobs for v in row]
    # The mean size of a normal error is √(2/π) times its standard deviation, here √2·δ·(1 − p).
    return result["mean_abs_logprob_diff"] / (
        math.sqrt(2 / math.pi) * math.sqrt(2) * max(sum(doubts) / len(doubts), FLOOR)
    )


def compare_logprobs(reference: Scores, other: Scores, noise: float) -> dict[str, Any]:
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
