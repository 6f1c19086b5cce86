"""Learning from pairs of answers, a better and a worse one: direct preference optimization (DPO).

    data = [build_datum(chosen, renderer), build_datum(rejected, renderer)]      # two records with one prompt
    reference = reference_logprobs(reference_client, data) # of the model before training
    training_client.forward_backward_custom(data, dpo_loss(reference, dpo_beta=0.1))

Names and numbers are those of `tinker_cookbook/preference/train_dpo.py`: `dpo_loss`, `margin`, `accuracy`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from helpers.train.loop_log import LoopLog


def reference_logprobs(reference_client: Any, data: Sequence[Any]) -> list[float]:
    """The logprob of each datum's answer under the reference model, in nats: a sum over its tokens."""
    futures = [
        reference_client.compute_logprobs(
            datum.model_input.append_int(datum.loss_fn_inputs["target_tokens"].tolist()[-1])
        )
        for datum in data
    ]
    return [
        sum(
            weight * value
            for weight, value in zip(
                datum.loss_fn_inputs["weights"].tolist(), future.result()[1:], strict=True
            )
            if weight
        )
        for datum, future in zip(data, futures, strict=True)
    ]


def dpo_loss(reference: Sequence[float], dpo_beta: float) -> Callable[..., Any]:
    """A loss for `forward_backward_custom`: the mean over pairs of `-log sigmoid(dpo_beta · difference)`.

    The difference is how much more the model than the reference favours the chosen answer, in nats.

    Args:
        reference: from `reference_logprobs`, of the same datums.
        dpo_beta: small values let the model go far from the reference.

    Returns:
        A function of (datums, their logprobs) that gives the loss and its metrics: `dpo_loss`, `margin`
        (`dpo_beta` times the mean difference), `accuracy` (share of pairs with a difference above 0),
        `chosen_reward`, `rejected_reward`.
    """

    def loss_fn(data: Sequence[Any], logprobs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
        import torch
        from torch.nn.functional import logsigmoid

        answers = [
            (values * datum.loss_fn_inputs["weights"].to_torch()).sum()
            for datum, values in zip(data, logprobs, strict=True)
        ]
        rewards = dpo_beta * (torch.stack(answers) - torch.tensor(reference))
        chosen, rejected = rewards[::2], rewards[1::2]
        loss = -logsigmoid(chosen - rejected).mean()
        return loss, {
            "dpo_loss": loss.item(),
            "accuracy": (chosen > rejected).float().mean().item(),
            "margin": (chosen - rejected).mean().item(),
            "chosen_reward": chosen.mean().item(),
            "rejected_reward": rejected.mean().item(),
        }

    return loss_fn


def dpo_loop(
    training_client: Any,
    reference_client: Any,
    log: LoopLog,
    batches: Sequence[Sequence[list[Any]]],
    *,
    dpo_beta: float,
    learning_rate: float,
    save_every: int = 8,
) -> Iterator[dict[str, float]]:
    """Train on pairs, step by step; gives the metrics of each step. The learning rate falls linearly to zero.
    It goes on after the last checkpoint of the log.

    Args:
        reference_client: a sampling client of the model before training.
        batches: the pairs of each step; a pair is two datums, the chosen answer's first.
        save_every: steps between two checkpoints to resume from; 0 for none.
    """
    from tinker import types

    for step in range(log.last_step + 1, len(batches) + 1):
        data = [datum for pair in batches[step - 1] for datum in pair]
        reference = reference_logprobs(reference_client, data)
        rate = learning_rate * (1 - (step - 1) / len(batches))
        forward = training_client.forward_backward_custom(data, dpo_loss(reference, dpo_beta))
        update = training_client.optim_step(types.AdamParams(learning_rate=rate, beta1=0.9, beta2=0.95))
        metrics = forward.result().metrics
        update.result()
        names = ("dpo_loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
        yield log.step(step, **{name: metrics[name] for name in names})
        if save_every and (step % save_every == 0 or step == len(batches)):
            log.save(training_client, step)
