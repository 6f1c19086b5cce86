"""The plan of a training run, made from its settings alone: which examples each step sees, how fast it
learns, and when to evaluate. A run that was interrupted makes the same plan again.
"""

import math
import random
from dataclasses import dataclass

from helpers.errors import DataError

MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: from 1.
        epoch: passes over the data at its end, a fraction.
        examples: indices into the training data.
        learning_rate: for this step.
        evaluate: whether an evaluation follows it.
    """

    number: int
    epoch: float
    examples: list[int]
    learning_rate: float
    evaluate: bool = False


def plan_steps(
    size: int,
    batch_size: int,
    epochs: float,
    learning_rate: float,
    seed: int,
    *,
    warmup: int = 0,
    eval_every: int = 0,
    eval_every_epochs: float = 0.0,
) -> list[Step]:
    """All steps of a run: each epoch sees every example once, in a new order; the learning rate falls
    linearly to zero.

    Args:
        size: number of training examples.
        batch_size: examples a step; the last step of an epoch may have fewer.
        epochs: passes over the data; a fraction ends within a pass.
        learning_rate: of the first step after warm-up.
        seed: decides the order.
        warmup: steps over which the learning rate first rises from zero.
        eval_every: steps between two evaluations; 0 evaluates nowhere.
        eval_every_epochs: above 0, the epochs between two evaluations instead.

    Raises:
        DataError: there is nothing to train on, or a number is impossible.
    """
    if size < 1:
        raise DataError("there are no training examples", "run 01_split with more data")
    if batch_size < 1 or epochs <= 0 or learning_rate <= 0:
        raise DataError(
            f"batch_size={batch_size}, epochs={epochs}, learning_rate={learning_rate}: each must be above "
            "zero",
            "correct the parameter",
        )
    per_epoch = math.ceil(size / batch_size)
    total = count_steps(size, batch_size, epochs)
    evaluated = evaluation_steps(total, eval_every, epochs, eval_every_epochs) if eval_every else []
    evaluated = set(evaluated)
    steps, order = [], []
    for number in range(1, total + 1):
        epoch, place = divmod(number - 1, per_epoch)
        if place == 0:
            order = random.Random(f"{seed}-{epoch}").sample(range(size), size)
        examples = order[place * batch_size : (place + 1) * batch_size]
        rising = number <= warmup
        share = number / warmup if rising else 1 - (number - 1 - warmup) / (total - warmup)
        rate = learning_rate * share
        steps.append(Step(number, round(number / per_epoch, 4), examples, rate, number in evaluated))
    return steps


def count_steps(size: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of a run.

    Raises:
        DataError: they are too many to plan.
    """
    total = math.ceil(size / batch_size) * epochs
    if total > MOST_STEPS:
        raise DataError(
            f"epochs={epochs:g} over {size:,} examples in batches of {batch_size:,} make {total:,.0f} steps, "
            f"over the limit of {MOST_STEPS:,}",
            "lower epochs, or raise batch_size",
        )
    return max(1, round(total))


def evaluation_steps(total: int, every: int, epochs: float = 1.0, every_epochs: float = 0.0) -> list[int]:
    """Steps after which to evaluate: 0 (before training), every `every`, and the last, which replaces one
    just before it.

    Args:
        total: steps of the run.
        every: steps between two evaluations.
        epochs: of the run.
        every_epochs: above 0, the epochs between two evaluations; `every` is then not used.

    Raises:
        DataError: `every` is not above zero, or `every_epochs` is below it.
    """
    if every < 1 or every_epochs < 0:
        raise DataError(
            f"eval_every={every}, eval_every_epochs={every_epochs}: the first must be at least 1, the second "
            "at least 0",
            "correct the parameter",
        )
    if every_epochs:
        every = max(1, round(every_epochs * total / epochs))
    return [0, *(step for step in range(every, total, every) if total - step >= every / 2), total]
