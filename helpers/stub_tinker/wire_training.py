"""Training requests between the wire's protobuf messages and numpy, with every check of what comes in."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.losses import FIELDS, LOSSES, NOT_OFFERED, Example

MAX_TARGETS = 1024  # a position
MAX_FIELDS = 1 << 16  # of a message and those in it; a datum has about 25, and the SDK sends 1,024 at once
MAX_PACKED = 1024  # bytes of numbers in a row
TOKEN_BYTES, VALUE_BYTES = 36, 16  # of an id in a list; of a target with its weight and its logprob
DTYPES = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64}


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    """A forward_backward body.

    Raises:
        BadRequest: it is no such message, or one of very many fields.
    """
    _count_fields(memoryview(body), pb.ForwardBackwardRequest.DESCRIPTOR, 0)
    request = pb.ForwardBackwardRequest()
    try:
        request.ParseFromString(body)
    except Exception as error:  # protobuf raises its own DecodeError, and others on odd input
        raise BadRequest(f"the body is no ForwardBackwardRequest: {error}") from error
    if request.seq_id < 1:
        raise BadRequest(f"seq_id must be at least 1, got {request.seq_id}")
    return request


def _count_fields(content: memoryview, message: Any, seen: int) -> int:
    """`seen` and the fields of a message and of those in it, counted before protobuf makes an object of each.

    What is no message is left to protobuf, which says so.

    Raises:
        BadRequest: there are too many.
    """
    kinds = {number: field.message_type for number, field in message.fields_by_number.items()}
    at = 0
    while at < len(content):
        seen += 1
        if seen > MAX_FIELDS:
            raise BadRequest(f"the body holds over {MAX_FIELDS:,} fields: send fewer datums at once", 413)
        tag, at = _varint(content, at)
        size = {0: 0, 1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 in (0, 2):
            value, at = _varint(content, at)
            size = value if tag & 7 == 2 else 0
        inner = content[at : at + size]
        at += size
        if tag & 7 == 2 and tag >> 3 in kinds:
            if kinds[tag >> 3] is not None:
                seen = _count_fields(inner, kinds[tag >> 3], seen)
            elif message.fields_by_number[tag >> 3].is_packed and size > MAX_PACKED:
                raise BadRequest(f"the body holds a shape of {size:,} bytes", 413)
    return seen


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place behind it; cut short at the end of the content."""
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            break
    return value, at


def cost(request: pb.ForwardBackwardRequest) -> dict[str, int]:
    """What the datums of a request will take, by the names of budgets: positions, and bytes once unpacked.

    Counted from sizes alone: a sparse tensor of few bytes can stand for a large one.
    """
    positions = size = 0
    for datum in request.data:
        tokens = sum(len(chunk.encoded_text.tokens) // 4 for chunk in datum.model_input)
        positions += tokens
        size += TOKEN_BYTES * tokens
        for tensor in datum.loss_fn_inputs.values():
            listed = max(math.prod(tensor.shape[:8]), 0) if tensor.HasField("sparse_csr") else 0
            size += VALUE_BYTES * max(listed, len(tensor.dense) // 4)
    return {"positions": positions, "queued": size}


def _array(content: bytes, dtype: type, where: str) -> np.ndarray:
    if len(content) % np.dtype(dtype).itemsize:
        raise BadRequest(f"{where} holds {len(content)} bytes, no whole number of {np.dtype(dtype).name}")
    return np.frombuffer(content, dtype=dtype)


def _tensor(message: pb.Tensor, where: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A tensor of `rows` rows as (rows, k), and which entries were listed: all unless it is sparse."""
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
    return _sparse(message, dtype, where, rows)


def _sparse(message: pb.Tensor, dtype: type, where: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    shape = list(message.shape)
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


def _example(datum: pb.Datum, loss: str, where: str, vocab: int, max_length: int) -> Example:
    tokens = _input_tokens(datum.model_input, where, vocab, max_length)
    fields = _fields(datum, loss, where, len(tokens))
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


def _fields(datum: pb.Datum, loss: str, where: str, rows: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The tensors that the loss takes, by name. Those of other losses are let through, and not used."""
    spec, fields = LOSSES[loss], {}
    taken = (*spec.required, *spec.optional)
    for name, message in datum.loss_fn_inputs.items():
        if name not in FIELDS:
            raise BadRequest(
                f"{where}: loss_fn_inputs[{name[:80]!r}] is unknown: {loss} takes {', '.join(taken)}"
            )
        if name in taken:
            fields[name] = _tensor(message, f"{where}: {name}", rows)
    for name in spec.required:
        if name not in fields:
            raise BadRequest(f"{where}: {loss} needs loss_fn_inputs[{name!r}]")
    return fields


def _input_tokens(chunks: Iterable[pb.Chunk], where: str, vocab: int, max_length: int) -> list[int]:
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
    trailing_shapes = ([] if example.flat else [example.targets.shape[1]] for example in examples)
    pairs = zip(logprobs, trailing_shapes, strict=True)
    for trailing, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        arrays = [np.ascontiguousarray(values, np.float32) for values, _ in group]
        record = message.loss_fn_outputs.add(num_datums=len(arrays))
        field = record.fields["logprobs"]
        field.data = b"".join(values.tobytes() for values in arrays)
        ends = np.cumsum([0, *(values.nbytes for values in arrays)])  # in bytes
        field.offsets = ends.astype(np.int64).tobytes()
        field.dtype = pb.DTYPE_FLOAT32
        field.trailing_shape.extend(trailing)
    return message.SerializeToString()
