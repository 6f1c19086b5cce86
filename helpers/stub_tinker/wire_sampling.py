"""Sampling requests between the wire's messages and numpy, with every check of what comes in."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.jobs import PromptScores, Sequence
from helpers.stub_tinker.wire_training import MAX_TARGETS, check_tokens

MAX_STOPS, MAX_STOP_LENGTH = 64, 256
JOB_BYTES, TOKEN_BYTES = 2048, 72  # of a sample that waits; of a token with its logprob in a list
COUNTS = ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k")

Layout = tuple[list[int], list[int]]  # CSR: crow and column indices


def prompt_tokens(prompt: types.ModelInput, vocab: int, max_length: int) -> list[int]:
    """Token ids of a prompt that leaves room for a new token.

    Raises:
        BadRequest: it holds something other than text, or ids out of range, or is empty or too long.
    """
    tokens: list[int] = []
    for chunk in prompt.chunks:
        if not isinstance(chunk, types.EncodedTextChunk):
            raise BadRequest("prompt: only text is offered by the stub backend")
        tokens += chunk.tokens
    check_tokens(tokens, "prompt", vocab, max_length)
    if len(tokens) == max_length:
        raise BadRequest(
            f"prompt: {max_length} tokens, and the model's context is {max_length}: "
            "there is no room for a new token"
        )
    return tokens


def cost(request: types.SampleRequest, prompt: int, new: int) -> dict[str, int]:
    """What a checked request will take at most, by the names of budgets.

    Args:
        prompt: its tokens.
        new: tokens of each sample, at most.
    """
    samples = request.num_samples * new * (TOKEN_BYTES + 8 * request.topk_sample_logprobs)
    scores = prompt * (8 * request.topk_prompt_logprobs + 20 * request.prompt_alt_tokens_k)
    if (targets := request.target_prompt_logprobs) and targets.shape:
        scores += prompt * 28 * max(targets.shape[-1], 0)
    queued = JOB_BYTES * request.num_samples + TOKEN_BYTES * prompt + samples + scores
    return {"positions": prompt + request.num_samples * new, "queued": queued}


def check_sampling(request: types.SampleRequest) -> None:
    """Check the numbers of a request.

    Raises:
        BadRequest: something is not offered, or a number is out of range; names it.
    """
    if request.record_stability_info:
        raise BadRequest(
            "record_stability_info is not offered by the stub backend: it serves the stable_reinforce loss, "
            "whose objective is not published. Use loss_fn='ppo' or 'importance_sampling'"
        )
    params, last = request.sampling_params, request.prompt_logprobs_last_n
    temperature, top_p, top_k = params.temperature, params.top_p, params.top_k
    longest, seed = params.max_tokens, params.seed
    checks = [
        ("temperature", temperature, 0 <= temperature < math.inf, "a finite number of at least 0"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("top_k", top_k, -1 <= top_k < 2**31, "-1 (no limit) or more"),
        ("max_tokens", longest, longest is None or longest >= 1, "at least 1"),
        ("seed", seed, seed is None or -(2**62) <= seed < 2**62, "a whole number within 62 bits"),
    ]
    for name in COUNTS:
        value = getattr(request, name)
        checks.append((name, value, 0 <= value <= MAX_TARGETS, f"0 to {MAX_TARGETS}"))
    if last is not None:
        most = sum(chunk.length for chunk in request.prompt.chunks) - 1
        good = bool(request.prompt_logprobs) and 1 <= last <= most
        expected = f"1 to {most} for this prompt, with prompt_logprobs"
        checks.append(("prompt_logprobs_last_n", last, good, expected))
    for name, value, good, expected in checks:
        if not good:
            raise BadRequest(f"{name} must be {expected}, got {value}")


def stops(
    stop: str | Iterable[str] | Iterable[int] | None, eos: int | None
) -> tuple[frozenset[int], list[str]]:
    """Stop tokens and strings: nothing given means the end-of-text token, an empty list means no stop at all.

    Raises:
        BadRequest: there are too many, or they are too long to look for after each token.
    """
    if stop is None:
        return frozenset() if eos is None else frozenset([eos]), []
    given = [stop] if isinstance(stop, str) else list(stop)
    strings = [s for s in given if isinstance(s, str) and s]
    if len(given) > MAX_STOPS or any(len(s) > MAX_STOP_LENGTH for s in strings):
        raise BadRequest(
            f"stop takes up to {MAX_STOPS} strings or tokens, each of up to {MAX_STOP_LENGTH} characters"
        )
    return frozenset(s for s in given if isinstance(s, int)), strings


def prompt_targets(tensor: Any, length: int, vocab: int) -> tuple[np.ndarray, Layout | None] | None:
    """target_prompt_logprobs as ids (length - 1, k), -1 where nothing is asked, and its CSR indices if any.

    Args:
        tensor: a `TensorData`, of which the SDK has two classes, or None.
        length: of the prompt, in tokens.

    Raises:
        BadRequest: its shape or ids do not fit the prompt.
    """
    if tensor is None:
        return None
    name, rows, shape = "target_prompt_logprobs", length - 1, tensor.shape
    fits = shape is not None and len(shape) == 2 and shape[0] == rows and 0 <= shape[1] <= MAX_TARGETS
    if tensor.dtype != "int64" or shape is None or not fits:
        raise BadRequest(
            f"{name} must be int64 of shape ({rows}, k) with k up to {MAX_TARGETS}, "
            f"got {tensor.dtype} {shape}"
        )
    ids = np.array(tensor.data, np.float64)
    if not (np.isfinite(ids).all() and (ids >= -1).all() and (ids < vocab).all()):
        raise BadRequest(f"{name}: ids must be -1 or lie in 0 to {vocab - 1}")
    if tensor.sparse_crow_indices is None:
        if len(ids) != rows * shape[1]:
            raise BadRequest(f"{name} says shape {shape} and holds {len(ids)} values")
        return ids.reshape(shape).astype(np.int64), None
    crow, column = tensor.sparse_crow_indices, tensor.sparse_col_indices or []
    if not _is_csr(crow, column, len(ids), (rows, shape[1])):
        raise BadRequest(f"{name}: its CSR indices do not fit its shape {shape} and {len(ids)} values")
    full = np.full(shape, -1.0)
    full[_rows(crow), column] = ids
    return full.astype(np.int64), (crow, column)


def _is_csr(crow: list[int], column: list[int], values: int, shape: tuple[int, int]) -> bool:
    """Whether these indices place so many values in a matrix of this shape."""
    rows, columns = shape
    if len(crow) != rows + 1 or crow[0] != 0 or crow[-1] != values or (np.diff(crow) < 0).any():
        return False
    return len(column) == values and (not column or 0 <= min(column) <= max(column) < columns)


def _rows(crow: list[int]) -> np.ndarray:
    """The row of each value of a CSR matrix."""
    return np.repeat(np.arange(len(crow) - 1), np.diff(crow))


def sample_response(
    sequences: list[Sequence],
    scores: PromptScores | None,
    prompt_logprobs: bool,
    targets: tuple[np.ndarray, Layout | None] | None,
) -> bytes:
    """The answer to asample; `targets` is what `prompt_targets` made of the request."""
    message = pb.SampleResponse()
    for sequence in sequences:
        item = message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if sequence.stop_reason == "stop" else pb.STOP_REASON_LENGTH,
            tokens=np.array(sequence.tokens, np.int32).tobytes(),
            logprobs=np.array(sequence.logprobs, np.float32).tobytes(),
        )
        if sequence.topk:
            ids, values = zip(*sequence.topk, strict=True)
            _topk(item.topk_sampled_logprobs, np.array(ids), np.array(values))
    if scores:
        _add_scores(message, scores, prompt_logprobs, targets[1] if targets else None)
    return message.SerializeToString()


def _add_scores(
    message: pb.SampleResponse, scores: PromptScores, prompt_logprobs: bool, layout: Layout | None
) -> None:
    if prompt_logprobs:
        message.prompt_logprobs = scores.own.tobytes()
    if scores.topk:
        _topk(message.topk_prompt_logprobs, *scores.topk)
    if scores.targets is not None:
        _add_targets(message.target_prompt_logprobs, scores.targets, layout)
    if scores.draws:
        answer = message.prompt_alt_tokens
        places = (answer.tokens, pb.DTYPE_INT64), (answer.logprobs, pb.DTYPE_FLOAT32)
        for (tensor, dtype), values in zip(places, scores.draws, strict=True):
            tensor.dtype, tensor.dense = dtype, values.tobytes()
            tensor.shape.extend(values.shape)


def _add_targets(tensor: pb.Tensor, values: np.ndarray, layout: Layout | None) -> None:
    tensor.dtype = pb.DTYPE_FLOAT32
    tensor.shape.extend(values.shape)
    if layout is None:
        tensor.dense = values.tobytes()
        return
    crow, column = layout
    tensor.sparse_csr.values = values[_rows(crow), column].tobytes()
    tensor.sparse_csr.crow_indices = np.array(crow, np.int64).tobytes()
    tensor.sparse_csr.col_indices = np.array(column, np.int64).tobytes()


def _topk(message: pb.TopkLogprobs, ids: np.ndarray, values: np.ndarray) -> None:
    message.token_ids, message.logprobs = ids.astype(np.int32).tobytes(), values.astype(np.float32).tobytes()
    message.length, message.k = ids.shape
