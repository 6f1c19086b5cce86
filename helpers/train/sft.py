"""A few supervised steps, without checkpoints: a start for loops that learn in another way.

    client = sft(training_client, batches, renderer, learning_rate=1e-3)

The loop to lift is in notebook 02.
"""

from collections.abc import Sequence
from typing import Any

from helpers.train.renderers import build_datum


def sft(
    training_client: Any, batches: Sequence[Sequence[dict[str, Any]]], renderer: Any, learning_rate: float
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
