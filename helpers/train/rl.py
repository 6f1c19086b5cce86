"""Reinforcement learning from a reward: the parts of a step, and the loop that puts them together.

    groups = sample_groups(sampling_client, prompts, group_size, sampling_params)
    for group in groups:
        group.rewards = [...]                              # one a sample
    data = policy_data(groups)
    forward = training_client.forward_backward(data, "importance_sampling")
    update = training_client.optim_step(types.AdamParams(learning_rate=3e-4))

Names are the cookbook's (`tinker_cookbook/recipes/rl_loop.py`): a *group* is `group_size` samples of one
prompt, `logprobs` are the sampler's, and `advantages` are rewards less their group's mean.
"""

import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helpers.errors import DataError
from helpers.train.loop_log import LoopLog
from helpers.train.renderers import answer_text, prompt_tokens

Record = dict[str, Any]


@dataclass
class Group:
    """Samples of one prompt.

    Attributes:
        prompt: its tokens.
        tokens: of each sample.
        logprobs: the sampler's, one a token of each sample, in nats.
        rewards: one a sample.
    """

    prompt: list[int]
    tokens: list[list[int]]
    logprobs: list[list[float]]
    rewards: list[float] = field(default_factory=list)

    @property
    def advantages(self) -> list[float]:
        """Each reward less the mean of the group."""
        mean = sum(self.rewards) / len(self.rewards)
        return [reward - mean for reward in self.rewards]

    @property
    def is_useless(self) -> bool:
        """Whether all rewards are the same: then every advantage is 0, and so is the reward's gradient."""
        return len(set(self.rewards)) == 1


def sample_groups(
    sampling_client: Any, prompts: Sequence[list[int]], group_size: int, sampling_params: Any
) -> list[Group]:
    """`group_size` samples of each prompt. All prompts are sent before the first answer is awaited."""
    from tinker import types

    futures = [
        sampling_client.sample(types.ModelInput.from_ints(prompt), group_size, sampling_params)
        for prompt in prompts
    ]
    answers = [future.result().sequences for future in futures]
    return [
        Group(prompt, [list(s.tokens) for s in sequences], [list(s.logprobs) for s in sequences])
        for prompt, sequences in zip(prompts, answers, strict=True)
    ]


def policy_datum(prompt: list[int], tokens: list[int], logprobs: list[float], advantages: list[float]) -> Any:
    """One sample as `importance_sampling`, `ppo` and `cispo` take it. The prompt has advantages of 0.

    Args:
        logprobs: the sampler's, one a token of the sample.
        advantages: likewise.

    Returns:
        `tinker.types.Datum` of length `len(prompt) + len(tokens) - 1`.
    """
    import tinker
    from tinker import types

    before = [0.0] * (len(prompt) - 1)
    length = len(before) + len(tokens)
    return types.Datum(
        model_input=types.ModelInput.from_ints(prompt + tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=prompt[1:] + tokens, dtype="int64", shape=[length]),
            "logprobs": tinker.TensorData(data=before + logprobs, dtype="float32", shape=[length]),
            "advantages": tinker.TensorData(data=before + advantages, dtype="float32", shape=[length]),
        },
    )


def policy_data(groups: Sequence[Group], penalties: Sequence[list[list[float]]] | None = None) -> list[Any]:
    """The datums of a step. Groups in which all rewards are the same are left out, but not where there
    are penalties: those have a gradient of their own.

    Args:
        penalties: added to the advantages: one number a token of each sample of each group, such as
            `kl_penalties` gives.
    """
    data = []
    for place, group in enumerate(groups):
        if group.is_useless and not penalties:
            continue
        for number, (tokens, logprobs) in enumerate(zip(group.tokens, group.logprobs, strict=True)):
            advantages = [group.advantages[number]] * len(tokens)
            if penalties:
                advantages = [a + p for a, p in zip(advantages, penalties[place][number], strict=True)]
            data.append(policy_datum(group.prompt, tokens, logprobs, advantages))
    return data


def token_logprobs(
    sampling_client: Any, groups: Sequence[Group], samples: int | None = None
) -> list[list[list[float]]]:
    """What another model says of the sampled tokens: its logprob of each, in nats.

    Args:
        samples: of each group, the first ones; all by default.
    """
    from tinker import types

    futures = [
        [
            sampling_client.compute_logprobs(types.ModelInput.from_ints(group.prompt + tokens))
            for tokens in group.tokens[:samples]
        ]
        for group in groups
    ]
    return [
        [future.result()[len(group.prompt) :] for future in row]
        for group, row in zip(groups, futures, strict=True)
    ]


def logprob_differences(
    groups: Sequence[Group], reference: Sequence[list[list[float]]]
) -> list[list[list[float]]]:
    """The sampler's logprob less the reference's, one a sampled token. Their mean estimates the KL divergence
    from the reference, in nats a token.
    """
    return [
        [
            [own - other for own, other in zip(ours, theirs, strict=True)]
            for ours, theirs in zip(group.logprobs, rows, strict=False)
        ]
        for group, rows in zip(groups, reference, strict=True)
    ]


def kl_penalties(differences: Sequence[list[list[float]]], kl: float) -> list[list[list[float]]]:
    """What tokens lose that the reference finds unlikely: `kl` times (mean difference - own difference).

    The same as `incorporate_kl_penalty` of the cookbook: centred, so that it moves no reward on the whole.
    """
    mean = mean_of(differences)
    return [[[kl * (mean - value) for value in sample] for sample in samples] for samples in differences]


def mean_of(values: Sequence[list[list[float]]]) -> float:
    """The mean over all tokens of all samples."""
    flat = [value for samples in values for sample in samples for value in sample]
    return sum(flat) / len(flat)


def step_metrics(groups: Sequence[Group], differences: Sequence[list[list[float]]]) -> dict[str, float]:
    """What to watch: `reward` (mean), `kl` to the start and `entropy` (both nats a token, estimated from the
    samples), `length` (tokens a sample), `useless` (share of groups in which all rewards are the same).
    """
    rewards = [reward for group in groups for reward in group.rewards]
    lengths = [len(tokens) for group in groups for tokens in group.tokens]
    return {
        "reward": sum(rewards) / len(rewards),
        "kl": mean_of(differences),
        "entropy": -mean_of([group.logprobs for group in groups]),
        "length": sum(lengths) / len(lengths),
        "useless": sum(group.is_useless for group in groups) / len(groups),
    }


def as_number(reward: Any) -> float:
    """A reward as a number: that of a grader's verdict is 1 or 0.

    Raises:
        DataError: it is neither a number nor a verdict.
    """
    if hasattr(reward, "passed"):
        return float(bool(reward))
    if not isinstance(reward, numbers.Real | np.bool_):
        raise DataError(f"a reward is {reward!r}", "give a number, True or False, or a grader's verdict")
    return float(reward)


def sampling_of(step: int, renderer: Any, max_tokens: int, seed: int) -> Any:
    """Tinker's `SamplingParams` of a step: temperature 1, and a seed that is no other step's."""
    from tinker import types

    stop = renderer.get_stop_sequences()
    return types.SamplingParams(max_tokens=max_tokens, temperature=1.0, stop=stop, seed=seed * 10_000 + step)


def rl_loop(
    training_client: Any,
    start_client: Any,
    log: LoopLog,
    batches: Sequence[Sequence[Record]],
    reward: Callable[[str, str], Any],
    renderer: Any,
    *,
    group_size: int,
    max_tokens: int,
    learning_rate: float,
    seed: int,
    kl: float = 0.0,
    loss_fn: Any = "importance_sampling",
    save_every: int = 8,
) -> Iterator[dict[str, float]]:
    """Train, step by step; gives the metrics of each step. It goes on after the last checkpoint of the log.

    Args:
        start_client: a sampling client of the model before training, for the KL divergence.
        batches: the records of each step.
        reward: takes (answer, the record's `answer` or `output`), as graders do, and gives a number. A grader
            will do: its verdict counts as 1 or 0.
        max_tokens: longest sample. One that is cut off is graded like any other.
        kl: how much the divergence from the start costs; 0 only measures it.
        save_every: steps between two checkpoints to resume from; 0 for none.

    Raises:
        DataError: `group_size` is below 2.
    """
    from tinker import types

    if group_size < 2:
        raise DataError(
            f"group_size={group_size}", "use 2 or more: advantages compare the samples of a group"
        )

    for step in range(log.last_step + 1, len(batches) + 1):
        records = batches[step - 1]
        sampling_client = training_client.save_weights_and_get_sampling_client().result()
        sampling_params = sampling_of(step, renderer, max_tokens, seed)
        prompts = [prompt_tokens(record, renderer) for record in records]
        groups = sample_groups(sampling_client, prompts, group_size, sampling_params)
        for group, record in zip(groups, records, strict=True):
            texts = [answer_text(tokens, renderer) for tokens in group.tokens]
            reference = str(record.get("answer") or record["output"])
            group.rewards = [as_number(reward(text, reference)) for text in texts]
        start = token_logprobs(start_client, groups, samples=None if kl else 1)
        differences = logprob_differences(groups, start)
        data = policy_data(groups, kl_penalties(differences, kl) if kl else None)
        if data:
            forward = training_client.forward_backward(data, loss_fn)
            update = training_client.optim_step(
                types.AdamParams(learning_rate=learning_rate, beta1=0.9, beta2=0.95)
            )
            forward.result()
            update.result()
        yield log.step(step, **step_metrics(groups, differences))
        if save_every and (step % save_every == 0 or step == len(batches)):
            log.save(training_client, step)
