"""Between the wire's messages (JSON and protobuf, in the SDK's own types) and plain Python and numpy."""

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from helpers.stub_tinker.losses import REQUIRED, Example
from helpers.stub_tinker.sampling import Sequence

DTYPES = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64}


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


def _tensor(name: str, message, where: str) -> np.ndarray:
    if message.WhichOneof("encoding") != "dense":
        raise BadRequest(f"{where}: sparse {name} is not offered by the stub backend: send a dense one-dimensional tensor")
    dtype = DTYPES.get(message.dtype)
    if dtype is None:
        raise BadRequest(f"{where}: {name} must be float32 or int64")
    if len(message.dense) % np.dtype(dtype).itemsize:
        raise BadRequest(f"{where}: {name} holds {len(message.dense)} bytes, no whole number of {np.dtype(dtype).name}")
    values = np.frombuffer(message.dense, dtype=dtype)
    if len(message.shape) > 1:
        raise BadRequest(f"{where}: {name} of shape {list(message.shape)} is not offered by the stub backend: send one dimension")
    if message.shape and message.shape[0] != len(values):
        raise BadRequest(f"{where}: {name} says shape {list(message.shape)} and holds {len(values)} values")
    return values


def examples(request: pb.ForwardBackwardRequest, vocab: int, max_length: int) -> list[Example]:
    """The datums of a request, checked.

    Raises:
        BadRequest: names the datum and the field.
    """
    required = REQUIRED.get(request.loss_fn)
    if required is None:
        raise BadRequest(f"loss_fn {request.loss_fn!r} is not offered by the stub backend: {', '.join(REQUIRED)} is")
    if not request.data:
        raise BadRequest("data holds no datum")
    result = []
    for number, datum in enumerate(request.data):
        where = f"data[{number}]"
        tokens = prompt_tokens(datum.model_input, where, vocab, max_length)
        fields = {name: _tensor(name, tensor, where) for name, tensor in datum.loss_fn_inputs.items()}
        for name in required:
            if name not in fields:
                raise BadRequest(f"{where}: {request.loss_fn} needs loss_fn_inputs[{name!r}]")
        for name, values in fields.items():
            if len(values) != len(tokens):
                raise BadRequest(f"{where}: {name} has {len(values)} values for {len(tokens)} input tokens")
        targets = fields.pop("target_tokens").astype(np.int64)
        if targets.min() < 0 or targets.max() >= vocab:
            raise BadRequest(f"{where}: target_tokens must lie in 0 to {vocab - 1}")
        inputs = {name: values.astype(np.float32) for name, values in fields.items()}
        if request.loss_fn == "cross_entropy":
            inputs.setdefault("weights", np.ones(len(tokens), np.float32))
        for name, values in inputs.items():
            if not np.isfinite(values).all():
                raise BadRequest(f"{where}: {name} holds NaN or infinity")
        result.append(Example(tokens, targets, inputs))
    names = [set(example.inputs) for example in result]
    if any(n != names[0] for n in names):
        raise BadRequest("all datums of a request must carry the same loss_fn_inputs")
    return result


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


def forward_backward_output(logprobs: list[np.ndarray], metrics: dict[str, float]) -> bytes:
    """The answer to forward_backward: offsets are in bytes, one more than there are datums."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=metrics)
    record = message.loss_fn_outputs.add(num_datums=len(logprobs))
    field = record.fields["logprobs"]
    field.data = np.concatenate(logprobs).astype(np.float32).tobytes()
    field.offsets = np.cumsum([0, *(4 * len(values) for values in logprobs)]).astype(np.int64).tobytes()
    field.dtype = pb.DTYPE_FLOAT32
    return message.SerializeToString()


def sample_response(
    sequences: list[Sequence], prompt_logprobs: np.ndarray | None, prompt_topk: tuple[np.ndarray, np.ndarray] | None
) -> bytes:
    """The answer to asample.

    Args:
        prompt_logprobs: (n,) float32 with NaN at 0, or None if not asked for.
        prompt_topk: ids and logprobs of positions 1 to n-1, (n-1, k) each, or None.
    """
    message = pb.SampleResponse()
    for sequence in sequences:
        item = message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if sequence.stop_reason == "stop" else pb.STOP_REASON_LENGTH,
            tokens=np.array(sequence.tokens, np.int32).tobytes(),
            logprobs=np.array(sequence.logprobs, np.float32).tobytes(),
        )
        if sequence.topk:
            _topk(item.topk_sampled_logprobs, np.array([ids for ids, _ in sequence.topk]), np.array([v for _, v in sequence.topk]))
    if prompt_logprobs is not None:
        message.prompt_logprobs = prompt_logprobs.astype(np.float32).tobytes()
    if prompt_topk is not None:
        ids, values = prompt_topk
        k = ids.shape[1]  # position 0 has no context: id 0 with logprob -99999 is the wire's "none"
        _topk(
            message.topk_prompt_logprobs,
            np.concatenate([np.zeros((1, k)), ids]),
            np.concatenate([np.full((1, k), -99999.0), values]),
        )
    return message.SerializeToString()


def _topk(message, ids: np.ndarray, values: np.ndarray) -> None:
    message.token_ids, message.logprobs = ids.astype(np.int32).tobytes(), values.astype(np.float32).tobytes()
    message.length, message.k = ids.shape
