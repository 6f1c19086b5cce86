"""Several answers to one problem: the chance that one of k is right, and the answer that most agree on."""

import math
from collections.abc import Sequence

from helpers.errors import DataError
from helpers.evaluate.evaluation import Grader
from helpers.evaluate.grading import check_final_answer


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k answers is right, estimated without bias from more samples.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1: 1 - C(n-c, k) / C(n, k).

    Raises:
        DataError: k is not between 1 and the number of samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise DataError(
            f"pass@{k} can't be had from {correct} right of {samples} samples", "sample at least k answers"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_vote(outputs: Sequence[str], grader: Grader = check_final_answer) -> str:
    """The output whose answer most outputs give (the first at a tie); outputs without an answer don't vote.

    Two answers are one when the grader takes one for the other: by value, `1/2` and `0.5` vote together. An
    output has no answer if the grader would not even take it for itself.
    """
    groups: list[list[str]] = []
    for output in outputs:
        if not grader(output, output):
            continue
        for group in groups:
            if grader(output, group[0]):
                group.append(output)
                break
        else:
            groups.append([output])
    return max(groups, key=len)[0] if groups else ""
