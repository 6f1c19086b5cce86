"""A few supervised steps, without checkpoints: a start for loops that learn in another way.

    client = sft(training_client, batches, renderer, learning_rate=1e-3)

The loop to lift is in notebook 02.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from helpers.train.renderers import build_datum

Record = dict[str, Any]


def sft(
    training_client: Any, batches: Sequence[Sequence[Record]], renderer: Any, learning_rate: float
) -> Any:
    """Train on the answers of records, one batch a step. The learning rate falls linearly to zero.

    Returns:
        A sampling client of the result.
    """
    from tinker import types

    for step, records in enumerate(batches):
        data = [build_datum(record, renderer) for record in records]
        forward = training_client.forward_backward(data, "cross_entropy")
        rate = learning_rate * (1 - step / len(batches))
        update = training_client.optim_step(types.AdamParams(learning_rate=rate))
        forward.result()
        update.result()
    return training_client.save_weights_and_get_sampling_client().result()


def in_batches(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """The records in their order, `size` at a time; the last batch may be smaller."""
    return [records[n : n + size] for n in range(0, len(records), size)]


def until_tokens(records: Sequence[Record], tokens: float, renderer: Any) -> list[Record]:
    """As many records as it takes to train on so many answer tokens: starting again when they run out."""
    endless, chosen = cycle(records), []
    while tokens > 0:
        chosen.append(next(endless))
        tokens -= sum(build_datum(chosen[-1], renderer).loss_fn_inputs["weights"].tolist())
    return chosen
