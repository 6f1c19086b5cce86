"""On-policy distillation: a student learns from what a teacher thinks of the student's own answers.

    groups = sample_groups(student_client, prompts, group_size, sampling_params)
    differences = logprob_differences(groups, token_logprobs(teacher_client, groups))
    data = distillation_data(groups, differences)
    training_client.forward_backward(data, "importance_sampling")

As in `tinker_cookbook/distillation/train_on_policy.py`, the advantage of a token is minus its share of the
reverse KL divergence: the teacher's logprob less the student's. Nothing else is rewarded.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from helpers.train.loop_log import LoopLog
from helpers.train.renderers import prompt_tokens
from helpers.train.rl import (
    Group,
    Record,
    logprob_differences,
    mean_of,
    policy_datum,
    sample_groups,
    sampling_of,
    token_logprobs,
)


def distillation_data(groups: Sequence[Group], differences: Sequence[list[list[float]]]) -> list[Any]:
    """One datum a sample.

    Args:
        differences: the student's logprob of each sampled token less the teacher's, from
            `logprob_differences`.
    """
    return [
        policy_datum(group.prompt, tokens, logprobs, [-value for value in row])
        for group, rows in zip(groups, differences, strict=True)
        for tokens, logprobs, row in zip(group.tokens, group.logprobs, rows, strict=True)
    ]


def step_metrics(groups: Sequence[Group], differences: Sequence[list[list[float]]]) -> dict[str, float]:
    """What to watch: `teacher_kl` (nats a token), `length` (tokens a sample), `tokens` (trained on)."""
    lengths = [len(tokens) for group in groups for tokens in group.tokens]
    return {
        "teacher_kl": mean_of(differences),
        "length": sum(lengths) / len(lengths),
        "tokens": sum(lengths),
    }


def distill_loop(
    training_client: Any,
    teacher_client: Any,
    log: LoopLog,
    batches: Sequence[Sequence[Record]],
    renderer: Any,
    *,
    group_size: int,
    max_tokens: int,
    learning_rate: float,
    seed: int,
    save_every: int = 8,
) -> Iterator[dict[str, float]]:
    """Train a student, step by step; gives the `step_metrics` of each. It goes on after the last checkpoint
    of the log.

    Args:
        teacher_client: a sampling client of the teacher, which has the student's tokenizer.
        batches: the records of each step; only their prompts are used.
        save_every: steps between two checkpoints to resume from; 0 for none.
    """
    from tinker import types

    for step in range(log.last_step + 1, len(batches) + 1):
        student_client = training_client.save_weights_and_get_sampling_client().result()
        sampling_params = sampling_of(step, renderer, max_tokens, seed)
        prompts = [prompt_tokens(record, renderer) for record in batches[step - 1]]
        groups = sample_groups(student_client, prompts, group_size, sampling_params)
        differences = logprob_differences(groups, token_logprobs(teacher_client, groups))
        data = distillation_data(groups, differences)
        forward = training_client.forward_backward(data, "importance_sampling")
        update = training_client.optim_step(
            types.AdamParams(learning_rate=learning_rate, beta1=0.9, beta2=0.95)
        )
        forward.result()
        update.result()
        yield log.step(step, **step_metrics(groups, differences))
        if save_every and (step % save_every == 0 or step == len(batches)):
            log.save(training_client, step)
