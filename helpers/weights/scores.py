"""Three ways to score the same tokens: Tinker's sampler, `transformers`, vLLM.

trained = score_with_sampler(sampling_client, pairs)
merged = score_with_transformers(model, pairs)
"""

import copy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.clock import worked
from helpers.errors import BackendError, ModelError
from helpers.weights.base_model import torch_dtype

if TYPE_CHECKING:
    import tinker
    from torch import Tensor

Pairs = list[tuple[list[int], list[int]]]  # (prompt tokens, continuation tokens)


@dataclass(frozen=True)
class ModelShape:
    """What decides how far rounding alone moves a model's logits.

    Attributes:
        layers: number of layers.
        hidden: width of the hidden state.
        logit_std: spread of the logits over the vocabulary, averaged over the places that were scored.
    """

    layers: int
    hidden: int
    logit_std: float


@dataclass(frozen=True)
class Scores:
    """How one model scores the continuations.

    Attributes:
        name: what was scored, for tables and plots.
        logprobs: for each pair, log p of each continuation token, in nats.
        greedy: for each pair, the token the model would have chosen at each of these places; None if it can't
            say.
        shape: what decides how far rounding moves this model; None if it can't say.
        rounded: the same model's scores in a coarser precision, if they were asked for.
    """

    name: str
    logprobs: list[list[float]]
    greedy: list[list[int]] | None = None
    shape: ModelShape | None = None
    rounded: "Scores | None" = None


def check_pairs(pairs: Pairs) -> None:
    """Check that there is something to score.

    Raises:
        ModelError: there is no pair, or a prompt or continuation without tokens.
    """
    if not pairs or any(not prompt or not continuation for prompt, continuation in pairs):
        raise ModelError(
            "parity needs prompts and continuations that hold tokens",
            "take them from the evaluation's samples",
        )


@worked("sampling")
def score_with_sampler(
    sampling_client: "tinker.SamplingClient", pairs: Pairs, name: str = "Tinker sampler"
) -> Scores:
    """Score through Tinker: all requests are sent, then awaited.

    `sampling_client.compute_logprobs` is this request without the top token.

    Args:
        sampling_client: of the model to score.
        pairs: tokens of the prompts, and of the continuations whose log-probabilities count.
        name: what was scored, for tables and plots.

    Raises:
        BackendError: a request fails, or the answer has no logprobs.
        ModelError: a prompt or a continuation has no tokens.
    """
    from tinker import types

    check_pairs(pairs)
    params = types.SamplingParams(max_tokens=1, temperature=0.0)
    futures = [
        sampling_client.sample(
            types.ModelInput.from_ints(prompt + continuation),
            1,
            params,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=1,
        )
        for prompt, continuation in pairs
    ]
    logprobs: list[list[float]] = []
    greedy: list[list[int]] = []
    for (prompt, continuation), future in zip(pairs, futures, strict=True):
        try:
            response = future.result()
        except Exception as error:
            raise BackendError(
                f"the sampler can't score: {error}", "check that the checkpoint still exists"
            ) from error
        places = slice(len(prompt), len(prompt) + len(continuation))
        scored = [value for value in (response.prompt_logprobs or [])[places] if value is not None]
        if len(scored) != len(continuation):
            raise BackendError(
                "the sampler gave no logprobs for the continuation",
                "use a server that returns prompt logprobs",
            )
        logprobs.append(scored)
        greedy.append([place[0][0] for place in (response.topk_prompt_logprobs or [])[places] if place])
    complete = all(len(top) == len(row) for top, row in zip(greedy, logprobs, strict=True))
    return Scores(name, logprobs, greedy if complete else None)


@worked("merging")
def score_with_transformers(
    model: Any,
    pairs: Pairs,
    name: str = "transformers",
    batch_size: int = 16,
    progress: bool = False,
    rounded_to: str = "float32",
) -> Scores:
    """Score with a `transformers` or PEFT model, in right-padded batches and the model's own precision.

    Only the continuation's places go through the output layer: at 49,152 logits a token the rest would cost
    more than the layers do.

    Args:
        model: a causal language model, or a `PeftModel` of one.
        pairs: tokens of the prompts, and of the continuations whose log-probabilities count.
        name: what was scored, for tables and plots.
        batch_size: pairs at once; those of like length go together.
        progress: show a bar.
        rounded_to: a coarser precision in which a copy of the model scores the same, to measure what rounding
            does to this model. `float32` leaves that out.

    Raises:
        ModelError: a prompt or a continuation has no tokens, or there is no such precision.
    """
    import torch
    from tqdm import tqdm

    check_pairs(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logprobs: list[list[float]] = [[]] * len(pairs)
    greedy: list[list[int]] = [[]] * len(pairs)
    spreads: list[float] = []
    starts = range(0, len(order), batch_size)
    with torch.inference_mode():
        for start in tqdm(starts, desc=name, file=sys.stdout, mininterval=1, ncols=90, disable=not progress):
            rows = order[start : start + batch_size]
            for i, logits in zip(rows, _continuation_logits(model, [pairs[i] for i in rows]), strict=True):
                targets = torch.tensor(pairs[i][1], device=logits.device)
                logprobs[i] = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0].tolist()
                greedy[i] = logits.argmax(-1).tolist()
                spreads += logits.std(-1).tolist()
    config = model.config
    shape = ModelShape(config.num_hidden_layers, config.hidden_size, sum(spreads) / len(spreads))
    rounded = None
    if rounded_to != "float32":
        coarse = copy.deepcopy(model).to(torch_dtype(rounded_to))
        rounded = score_with_transformers(coarse, pairs, f"{name}, {rounded_to}", batch_size, progress)
    return Scores(name, logprobs, greedy, shape, rounded)


def _continuation_logits(model: Any, pairs: Pairs) -> list["Tensor"]:
    """For each pair the float32 logits that predict its continuation, (tokens, vocabulary)."""
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    sequences = [prompt + continuation for prompt, continuation in pairs]
    longest = max(len(s) for s in sequences)
    tokens = torch.zeros(len(pairs), longest, dtype=torch.long)
    mask = torch.zeros(len(pairs), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    device = next(causal.parameters()).device
    hidden = causal.model(
        input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False
    ).last_hidden_state
    return [
        causal.lm_head(hidden[row, len(prompt) - 1 : len(prompt) - 1 + len(continuation)]).float()
        for row, (prompt, continuation) in enumerate(pairs)
    ]


@worked("vllm")
def score_with_vllm(llm: Any, pairs: Pairs, name: str = "vLLM") -> Scores:
    """Score with a vLLM engine (`vllm.LLM`): its prompt logprobs, with the top token of each place.

    Args:
        llm: the engine.
        pairs: tokens of the prompts, and of the continuations whose log-probabilities count.
        name: what was scored, for tables and plots.

    Raises:
        ModelError: the engine gives no logprobs for a token, or a prompt or a continuation has no tokens.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    check_pairs(pairs)
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=p + c) for p, c in pairs], params, use_tqdm=False)
    logprobs, greedy = [], []
    for (prompt, continuation), output in zip(pairs, outputs, strict=True):
        places = (output.prompt_logprobs or [])[len(prompt) :]
        if len(places) != len(continuation) or any(
            token not in place for token, place in zip(continuation, places, strict=True)
        ):
            raise ModelError(
                "vLLM gave no logprobs for the continuation",
                "check the vLLM version against requirements.lock",
            )
        logprobs.append([place[token].logprob for token, place in zip(continuation, places, strict=True)])
        greedy.append([max(place, key=lambda token: place[token].logprob) for place in places])
    return Scores(name, logprobs, greedy)
