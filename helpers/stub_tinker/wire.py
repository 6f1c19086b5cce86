"""Between the wire's messages (JSON and protobuf, in the SDK's own types) and plain Python and numpy."""

import itertools
import math

import numpy as np
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from helpers.stub_tinker.losses import FIELDS, LOSSES, NOT_OFFERED, Example
from helpers.stub_tinker.sampling import PromptScores, Sequence

DTYPES = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64}
MAX_TARGETS = 1024  # a position
MAX_STOPS, MAX_STOP_LENGTH = 64, 256


class BadRequest(Exception):
    """The request is wrong; the message says which part and what was expected. `status` is a 4xx the SDK raises at once."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    """A forward_backward body.

    Raises:
        BadRequest: it is no such message.
    """
    request = pb.ForwardBackwardRequest()
    try:
        request.ParseFromString(body)
    except Exception as error:  # protobuf raises its own DecodeError, and others on odd input
        raise BadRequest(f"the body is no ForwardBackwardRequest: {error}") from error
    if request.seq_id < 1:
        raise BadRequest(f"seq_id must be at least 1, got {request.seq_id}")
    return request


def _array(content: bytes, dtype: type, where: str) -> np.ndarray:
    if len(content) % np.dtype(dtype).itemsize:
        raise BadRequest(f"{where} holds {len(content)} bytes, no whole number of {np.dtype(dtype).name}")
    return np.frombuffer(content, dtype=dtype)


def _tensor(message, where: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A tensor of `rows` rows as (rows, k), and which of its entries were listed: all of them unless it is sparse."""
    dtype = DTYPES.get(message.dtype)
    if dtype is None:
        raise BadRequest(f"{where} must be float32 or int64")
    encoding, shape = message.WhichOneof("encoding"), list(message.shape)
    if len(shape) > 2 or any(size < 0 for size in shape):
        raise BadRequest(f"{where} has shape {shape[:8]}, expected ({rows},) or ({rows}, k)")
    if encoding == "dense":
        values = _array(message.dense, dtype, where)
        if shape and math.prod(shape) != len(values):
            raise BadRequest(f"{where} says shape {shape} and holds {len(values)} values")
        _check_rows(shape or [len(values)], where, rows)
        values = values.reshape(rows, -1)
        return values, np.ones(values.shape, bool)
    if encoding != "sparse_csr":
        raise BadRequest(f"{where} holds no data")
    _check_rows(shape, where, rows)
    if len(shape) != 2:
        raise BadRequest(f"{where} is sparse, so its shape must be ({rows}, k), got {shape}")
    values = _array(message.sparse_csr.values, dtype, where)
    crow = _array(message.sparse_csr.crow_indices, np.int64, f"{where}: crow_indices")
    column = _array(message.sparse_csr.col_indices, np.int64, f"{where}: col_indices")
    if len(crow) != rows + 1 or crow[0] != 0 or crow[-1] != len(values) or (np.diff(crow) < 0).any():
        raise BadRequest(f"{where}: crow_indices must rise from 0 to {len(values)} in {rows + 1} entries")
    if len(column) != len(values) or (len(column) and not 0 <= column.min() <= column.max() < shape[1]):
        raise BadRequest(f"{where}: col_indices must be {len(values)} numbers in 0 to {shape[1] - 1}")
    full, listed = np.zeros(shape, dtype), np.zeros(shape, bool)
    row = np.repeat(np.arange(rows), np.diff(crow))
    full[row, column], listed[row, column] = values, True
    return full, listed


def _check_rows(shape: list[int], where: str, rows: int) -> None:
    if not shape or shape[0] != rows:
        raise BadRequest(f"{where} has shape {shape} for {rows} input tokens")
    if len(shape) == 2 and not 1 <= shape[1] <= MAX_TARGETS:
        raise BadRequest(f"{where}: 1 to {MAX_TARGETS} targets a position are possible, got {shape[1]}")


def loss_config(request: pb.ForwardBackwardRequest) -> dict[str, float]:
    """The numbers of the request's loss, defaults filled in.

    Raises:
        BadRequest: the loss is unknown, or a number is, or is none.
    """
    name = request.loss_fn
    if name not in LOSSES:
        reason = f": {NOT_OFFERED[name]}" if name in NOT_OFFERED else ""
        raise BadRequest(
            f"loss_fn {name[:80]!r} is not offered by the stub backend{reason}. It offers {', '.join(LOSSES)}"
        )
    config = dict(LOSSES[name].config)
    given: dict[str, float | str] = dict(request.loss_fn_config)
    for key, value in request.loss_fn_config_v2.items():
        given[key] = value.number if value.WhichOneof("value") == "number" else value.text
    for key, value in given.items():
        if key not in config:
            raise BadRequest(f"loss_fn_config[{key[:80]!r}]: {name} takes {', '.join(config) or 'no config'}")
        if isinstance(value, str) or not abs(value) < 1e30:
            raise BadRequest(f"loss_fn_config[{key!r}] must be a number below 1e30, got {value!r:.80}")
        config[key] = value
    return config


def examples(request: pb.ForwardBackwardRequest, vocab: int, max_length: int) -> list[Example]:
    """The datums of a request whose loss is known, checked.

    Raises:
        BadRequest: names the datum and the field.
    """
    if not request.data:
        raise BadRequest("data holds no datum")
    return [
        _example(datum, request.loss_fn, f"data[{i}]", vocab, max_length)
        for i, datum in enumerate(request.data)
    ]


def _example(datum, loss: str, where: str, vocab: int, max_length: int) -> Example:
    tokens = prompt_tokens(datum.model_input, where, vocab, max_length)
    spec, fields = LOSSES[loss], {}
    for name, message in datum.loss_fn_inputs.items():
        if name not in FIELDS:  # as hosted Tinker does; what another loss takes is let through and not used
            raise BadRequest(
                f"{where}: loss_fn_inputs[{name[:80]!r}] is unknown: {loss} takes {', '.join((*spec.required, *spec.optional))}"
            )
        if name in spec.required or name in spec.optional:
            fields[name] = _tensor(message, f"{where}: {name}", len(tokens))
    for name in spec.required:
        if name not in fields:
            raise BadRequest(f"{where}: {loss} needs loss_fn_inputs[{name!r}]")
    targets, listed = fields.pop("target_tokens")
    targets = targets.astype(np.int64)
    if targets.min() < 0 or targets.max() >= vocab:
        raise BadRequest(f"{where}: target_tokens must lie in 0 to {vocab - 1}")
    if targets.shape[1] > 1 and loss != "cross_entropy":
        raise BadRequest(f"{where}: {loss} takes one target a position, got {targets.shape[1]}")
    inputs = {name: values.astype(np.float32) for name, (values, _) in fields.items()}
    if loss == "cross_entropy":
        inputs.setdefault("weights", listed.astype(np.float32))
    for name, values in inputs.items():
        if values.shape != targets.shape:
            raise BadRequest(f"{where}: {name} has shape {values.shape} and target_tokens {targets.shape}")
        if not np.isfinite(values).all():
            raise BadRequest(f"{where}: {name} holds NaN or infinity")
    if loss == "gspo" and not inputs["sequence_ratio_mask"].any():
        raise BadRequest(f"{where}: sequence_ratio_mask marks no token")
    flat = len(datum.loss_fn_inputs["target_tokens"].shape) < 2
    return Example(tokens, targets, inputs, flat)


def prompt_tokens(chunks, where: str, vocab: int, max_length: int) -> list[int]:
    """Token ids of a model input in protobuf chunks.

    Raises:
        BadRequest: it is empty, too long, not text, or holds ids out of range.
    """
    tokens: list[int] = []
    for chunk in chunks:
        if not chunk.HasField("encoded_text"):
            raise BadRequest(f"{where}: only text is offered by the stub backend")
        if len(chunk.encoded_text.tokens) % 4:
            raise BadRequest(f"{where}: model_input tokens must be int32")
        tokens += np.frombuffer(chunk.encoded_text.tokens, np.int32).tolist()
    return check_tokens(tokens, where, vocab, max_length)


def check_tokens(tokens: list[int], where: str, vocab: int, max_length: int) -> list[int]:
    if not tokens:
        raise BadRequest(f"{where}: no input tokens")
    if len(tokens) > max_length:
        raise BadRequest(f"{where}: {len(tokens)} tokens, and the model's context is {max_length}")
    if min(tokens) < 0 or max(tokens) >= vocab:
        raise BadRequest(f"{where}: token ids must lie in 0 to {vocab - 1}")
    return tokens


def forward_backward_output(
    logprobs: list[np.ndarray], examples: list[Example], metrics: dict[str, float]
) -> bytes:
    """The answer to forward_backward: one record for each run of datums with as many targets a position."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=metrics)
    pairs = zip(logprobs, ([] if e.flat else [e.targets.shape[1]] for e in examples))
    for trailing, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        arrays = [np.ascontiguousarray(values, np.float32) for values, _ in group]
        record = message.loss_fn_outputs.add(num_datums=len(arrays))
        field = record.fields["logprobs"]
        field.data = b"".join(values.tobytes() for values in arrays)
        field.offsets = (
            np.cumsum([0, *(values.nbytes for values in arrays)]).astype(np.int64).tobytes()
        )  # in bytes
        field.dtype = pb.DTYPE_FLOAT32
        field.trailing_shape.extend(trailing)
    return message.SerializeToString()


def chunk_tokens(prompt: types.ModelInput) -> list[int]:
    """Token ids of a prompt in JSON chunks.

    Raises:
        BadRequest: it holds something other than text.
    """
    if any(chunk.type != "encoded_text" for chunk in prompt.chunks):
        raise BadRequest("prompt: only text is offered by the stub backend")
    return [token for chunk in prompt.chunks for token in chunk.tokens]


def check_sampling(params: types.SamplingParams, request: types.SampleRequest) -> None:
    """Raises:
    BadRequest: a number is out of range; names it.
    """
    checks = [
        (
            "temperature",
            params.temperature,
            0 <= params.temperature < math.inf,
            "a finite number of at least 0",
        ),
        ("top_p", params.top_p, 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("top_k", params.top_k, -1 <= params.top_k < 2**31, "-1 (no limit) or more"),
        ("max_tokens", params.max_tokens, params.max_tokens is None or params.max_tokens >= 1, "at least 1"),
        (
            "seed",
            params.seed,
            params.seed is None or -(2**62) <= params.seed < 2**62,
            "a whole number within 62 bits",
        ),
    ]
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        checks.append(
            (name, getattr(request, name), 0 <= getattr(request, name) <= MAX_TARGETS, f"0 to {MAX_TARGETS}")
        )
    if (last := request.prompt_logprobs_last_n) is not None:
        most = sum(chunk.length for chunk in request.prompt.chunks) - 1
        checks.append(
            (
                "prompt_logprobs_last_n",
                last,
                bool(request.prompt_logprobs) and 1 <= last <= most,
                f"1 to {most} for this prompt, with prompt_logprobs",
            )
        )
    for name, value, good, expected in checks:
        if not good:
            raise BadRequest(f"{name} must be {expected}, got {value}")


def stops(stop, eos: int | None) -> tuple[frozenset[int], list[str]]:
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


def prompt_targets(
    tensor, length: int, vocab: int
) -> tuple[np.ndarray, tuple[list[int], list[int]] | None] | None:
    """target_prompt_logprobs as (length - 1, k) ids with -1 where nothing is asked, and the CSR indices if it came so.

    Raises:
        BadRequest: its shape or ids do not fit the prompt.
    """
    if tensor is None:
        return None
    name, rows, shape = "target_prompt_logprobs", length - 1, tensor.shape
    if (
        tensor.dtype != "int64"
        or shape is None
        or len(shape) != 2
        or shape[0] != rows
        or not 0 <= shape[1] <= MAX_TARGETS
    ):
        raise BadRequest(
            f"{name} must be int64 of shape ({rows}, k) with k up to {MAX_TARGETS}, got {tensor.dtype} {shape}"
        )
    crow, column, layout = tensor.sparse_crow_indices, tensor.sparse_col_indices, None
    ids = np.array(tensor.data, np.float64)
    if not (np.isfinite(ids).all() and (ids >= -1).all() and (ids < vocab).all()):
        raise BadRequest(f"{name}: ids must be -1 or lie in 0 to {vocab - 1}")
    if crow is None:
        if len(ids) != rows * shape[1]:
            raise BadRequest(f"{name} says shape {shape} and holds {len(ids)} values")
        full = ids.reshape(shape)
    else:
        column = column or []
        steps = np.diff(crow)
        if (
            len(crow) != rows + 1
            or crow[0] != 0
            or crow[-1] != len(ids)
            or (steps < 0).any()
            or len(column) != len(ids)
            or (column and not 0 <= min(column) <= max(column) < shape[1])
        ):
            raise BadRequest(f"{name}: its CSR indices do not fit its shape {shape} and {len(ids)} values")
        full, layout = np.full(shape, -1.0), (crow, column)
        full[np.repeat(np.arange(rows), steps), column] = ids
    return full.astype(np.int64), layout


def sample_response(
    sequences: list[Sequence], scores: PromptScores | None, prompt_logprobs: bool, targets: tuple | None
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
            _topk(
                item.topk_sampled_logprobs,
                np.array([ids for ids, _ in sequence.topk]),
                np.array([v for _, v in sequence.topk]),
            )
    if scores is None:
        return message.SerializeToString()
    if prompt_logprobs:
        message.prompt_logprobs = scores.own.tobytes()
    if scores.topk:
        _topk(message.topk_prompt_logprobs, *scores.topk)
    if targets:
        tensor = message.target_prompt_logprobs
        tensor.dtype = pb.DTYPE_FLOAT32
        tensor.shape.extend(scores.targets.shape)
        if targets[1] is None:
            tensor.dense = scores.targets.tobytes()
        else:
            crow, column = targets[1]
            tensor.sparse_csr.values = scores.targets[
                np.repeat(np.arange(len(crow) - 1), np.diff(crow)), column
            ].tobytes()
            tensor.sparse_csr.crow_indices = np.array(crow, np.int64).tobytes()
            tensor.sparse_csr.col_indices = np.array(column, np.int64).tobytes()
    if scores.draws:
        for tensor, values, dtype in zip(
            (message.prompt_alt_tokens.tokens, message.prompt_alt_tokens.logprobs),
            scores.draws,
            (pb.DTYPE_INT64, pb.DTYPE_FLOAT32),
        ):
            tensor.dtype, tensor.dense = dtype, values.tobytes()
            tensor.shape.extend(values.shape)
    return message.SerializeToString()


def _topk(message, ids: np.ndarray, values: np.ndarray) -> None:
    message.token_ids, message.logprobs = ids.astype(np.int32).tobytes(), values.astype(np.float32).tobytes()
    message.length, message.k = ids.shape
