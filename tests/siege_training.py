"""Hostile forward_backward messages: drawn ones, and by hand those that parse and make no sense."""

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from hypothesis import strategies as st
from siege import API, JSON_TYPE, PROTO_TYPE, Case, World, sequence
from siege_values import TEXTS, corrupted, fresh_numbers
from stub import datums
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest


def int32(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def int64(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()


def float32(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def training_message(world: World, seq_id: int | None = None) -> pb.ForwardBackwardRequest:
    """A valid forward_backward of two datums, as the SDK encodes it."""
    return forward_backward_request_to_proto(
        ForwardBackwardRequest(
            forward_backward_input=ForwardBackwardInput(data=datums(2, 6), loss_fn="cross_entropy"),
            model_id=world.model,
            seq_id=seq_id or next(sequence),
        )
    )


def training_case(message: pb.ForwardBackwardRequest | bytes, **headers: str) -> Case:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return Case("POST", f"{API}/forward_backward", body, {"Content-Type": PROTO_TYPE, **headers})


# Many of the counts below do not fit what stands next to them: that is the point.
int_bytes = st.one_of(
    st.binary(max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(lambda v: int64(*v)),
    st.lists(st.integers(-1, 50_000), max_size=8).map(lambda v: int64(*v)),
)
float_bytes = st.one_of(
    st.binary(max_size=30),
    st.lists(st.floats(width=32), min_size=6, max_size=6).map(lambda v: float32(*v)),
    st.just(float32(*[1e38] * 6)),
)
dimension = st.one_of(st.integers(-2, 8), st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]))
LOSSES = [
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "",
    "no_such_loss",
    "CROSS_ENTROPY",
    "x" * 5000,
]
NAMES = ["target_tokens", "weights", "logprobs", "advantages", "mask", "", "x" * 1000]


@st.composite
def tensors(draw) -> pb.Tensor:
    tensor = pb.Tensor(
        dtype=draw(st.sampled_from([0, 1, 2, 3, 99, -1])), shape=draw(st.lists(dimension, max_size=3))
    )
    kind = draw(st.sampled_from(["dense", "dense", "csr", "none"]))
    if kind == "dense":
        tensor.dense = draw(int_bytes | float_bytes)
    if kind == "csr":
        tensor.sparse_csr.values, tensor.sparse_csr.crow_indices, tensor.sparse_csr.col_indices = (
            draw(int_bytes | float_bytes),
            draw(int_bytes),
            draw(int_bytes),
        )
    return tensor


CLIPS = ["clip_low_threshold", "clip_high_threshold", "beta", "zzz", ""]


def _tensor(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    datum.loss_fn_inputs[draw(st.sampled_from(NAMES))].CopyFrom(draw(tensors()))


def _no_tensor(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    datum.loss_fn_inputs.pop(draw(st.sampled_from(NAMES)), None)


def _loss(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    message.loss_fn = draw(st.sampled_from(LOSSES))


def _config(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    message.loss_fn_config[draw(st.sampled_from(CLIPS))] = draw(st.floats())


def _text_config(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    name = draw(st.sampled_from(["clip_low_threshold", "zzz"]))
    message.loss_fn_config_v2[name].text = draw(st.text(max_size=5))


def _tokens(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    numbers = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(lambda v: int32(*v))
    datum.model_input.add().encoded_text.tokens = draw(st.binary(max_size=20) | numbers)


def _no_text(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    chunk = datum.model_input.add()
    if draw(st.booleans()):
        chunk.image.data, chunk.image.format = draw(st.binary(max_size=8)), "png"
        chunk.image.expected_tokens = draw(st.integers(-(2**31), 2**31 - 1))
    else:
        chunk.dmel.dmel = draw(st.binary(max_size=8))


def _seq_id(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    message.seq_id = draw(st.integers(-(2**31), 2**31 - 1))


def _model_id(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    message.model_id = draw(st.sampled_from([text for text in TEXTS if text.isprintable()]))


def _fewer_datums(draw, message: pb.ForwardBackwardRequest, datum: pb.Datum) -> None:
    del message.data[draw(st.integers(0, 2)) :]


WRONGS = [_tensor] * 3 + [_no_tensor, _loss, _config, _text_config, _tokens, _no_text, _seq_id, _model_id]
WRONGS += [_fewer_datums]
ENCODINGS = [{"Content-Encoding": "zstd"}, {"Content-Encoding": "gzip"}, {"Content-Type": JSON_TYPE}]


@st.composite
def training_cases(draw, world: World) -> Case:
    """A valid forward_backward with one to three things wrong with it."""
    message = training_message(world, draw(fresh_numbers))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        datum = draw(st.sampled_from(list(message.data) or [message.data.add()]))
        draw(st.sampled_from(WRONGS))(draw, message, datum)
    message.forward_only = draw(st.booleans())
    body = message.SerializeToString(deterministic=True)
    if draw(st.integers(0, 4)) == 0:
        body = corrupted(draw, body)
    headers = draw(st.sampled_from([{}] * 8 + ENCODINGS))
    if draw(st.integers(0, 9)) == 0:
        body, headers = zstandard.ZstdCompressor().compress(body), {"Content-Encoding": "zstd"}
        body = corrupted(draw, body) if draw(st.booleans()) else body
    return training_case(body, **headers)


class Corpus:
    """Messages for one world."""

    def __init__(self, world: World):
        self.world = world

    def message(self, change: Callable[[pb.ForwardBackwardRequest], Any]) -> Case:
        valid = training_message(self.world)
        change(valid)
        return training_case(valid)

    def tensor(self, name: str, **values: Any) -> Case:
        return self.message(lambda m: m.data[0].loss_fn_inputs[name].CopyFrom(pb.Tensor(**values)))

    def csr(self, values: bytes, crow: bytes, col: bytes, shape: list[int]) -> Case:
        sparse = pb.SparseCsr(values=values, crow_indices=crow, col_indices=col)
        return self.tensor("target_tokens", dtype=pb.DTYPE_INT64, shape=shape, sparse_csr=sparse)

    def everything(self) -> list[Case]:
        return [
            *self.weights(),
            *self.targets(),
            *self.sparse_targets(),
            *self.losses(),
            *self.messages(),
            *self.frames(),
        ]

    def weights(self) -> list[Case]:
        ones = float32(*[1] * 6)
        return [
            self.tensor("weights", dtype=pb.DTYPE_FLOAT32, shape=shape, dense=data)
            for shape in (
                [],
                [6],
                [5],
                [7],
                [0],
                [-6],
                [2**62],
                [2**40, 2**40],
                [6, 1],
                [1, 6],
                [2, 3],
                [6, 0],
                [1] * 1000,
                [-1, -6],
                [0, 2**63 - 1],
            )
            for data in (
                b"",
                ones,
                ones[:-1],
                float32(*[math.nan] * 6),
                float32(*[math.inf] * 6),
                float32(*[1e38] * 6),
                float32(*[-1] * 6),
                float32(*[0] * 6),
            )
        ]

    def targets(self) -> list[Case]:
        ones, targets = float32(*[1] * 6), int64(*[1] * 6)
        return [
            self.tensor("target_tokens", dtype=dtype, shape=shape, dense=data)
            for dtype in (0, pb.DTYPE_FLOAT32, pb.DTYPE_INT64, 99)
            for shape in ([], [6], [3], [6, 1], [3, 2], [6, 2**40])
            for data in (
                targets,
                int64(*[-1] * 6),
                int64(*[2**62] * 6),
                int64(*[49_152] * 6),
                int64(*[-(2**63)] * 6),
                b"\x01" * 47,
                ones,
            )
        ]

    def sparse_targets(self) -> list[Case]:
        targets = int64(*[1] * 6)
        columns = int64(0, 0, 0, 0, 0, 0)
        return [
            self.csr(values, crow, col, shape)
            for values in (targets, b"", int64(1), b"\x01" * 9)
            for crow in (
                int64(0, 1, 2, 3, 4, 5, 6),
                int64(0, 6, 5, 4, 3, 2, 6),
                int64(0, -1, 2, 3, 4, 5, 6),
                int64(0, 1, 2, 3, 4, 5, 2**62),
                int64(0),
                b"",
                b"\x00" * 11,
                int64(5, 5, 5, 5, 5, 5, 5),
            )
            for col in (columns, int64(*[2**62] * 6), int64(*[-1] * 6), b"", b"\x00" * 5)
            for shape in ([6, 1], [6, 8], [6], [], [2**40, 2**40])
        ]

    def losses(self) -> list[Case]:
        cases = []
        for loss in LOSSES:
            cases.append(self.message(lambda m, loss=loss: setattr(m, "loss_fn", loss)))
            for value in (math.nan, math.inf, -1.0, 0.0, 1e308):
                for key in ("clip_low_threshold", "clip_high_threshold", "beta", "unknown"):

                    def change(m, loss=loss, key=key, value=value):
                        m.loss_fn = loss
                        m.loss_fn_config[key] = value
                        m.loss_fn_config_v2[key].number = value
                        for datum in m.data:
                            datum.loss_fn_inputs.pop("weights")
                            for name in ("logprobs", "advantages"):
                                datum.loss_fn_inputs[name].CopyFrom(
                                    pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[6], dense=float32(*[-1] * 6))
                                )

                    cases.append(self.message(change))
            cases.append(
                self.message(
                    lambda m, loss=loss: (
                        setattr(m, "loss_fn", loss),
                        setattr(m.loss_fn_config_v2["clip_low_threshold"], "text", "high"),
                    )
                )
            )
        return cases

    def messages(self) -> list[Case]:
        message = self.message
        return [
            message(lambda m: m.ClearField("data")),
            message(lambda m: m.data.add()),
            message(lambda m: m.data[0].ClearField("model_input")),
            message(lambda m: m.data[0].ClearField("loss_fn_inputs")),
            message(lambda m: m.data[0].model_input.add()),
            message(lambda m: setattr(m, "model_id", "")),
            message(lambda m: setattr(m, "model_id", "\x00")),
            message(lambda m: setattr(m, "seq_id", 0)),
            message(lambda m: setattr(m, "seq_id", -1)),
            message(lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", b"\x01" * 23)),
            message(lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", int32(*[-1] * 6))),
            message(
                lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", int32(*[2**31 - 1] * 6))
            ),
            message(
                lambda m: setattr(m.data[0].model_input[0].encoded_text, "tokens", int32(*[1] * 100_000))
            ),
            message(lambda m: [m.data.add() for _ in range(20_000)]),
            message(lambda m: setattr(m.data[0].model_input.add().image, "data", b"\x89PNG")),
            message(lambda m: setattr(m.data[0].model_input.add().dmel, "dmel", b"\x00")),
            training_case(b""),
            training_case(b"\xff" * 100),
            training_case(b"\x0a\xff\xff\xff\xff\x0f"),
            training_case(b"\x0b" * 10_000),
            training_case(b"{}"),
        ]

    def frames(self) -> list[Case]:
        cases = []
        valid = training_message(self.world).SerializeToString()
        cases += [training_case(valid[:cut]) for cut in range(0, len(valid), 7)]
        frame = zstandard.ZstdCompressor().compress(valid)
        for body in (
            b"",
            b"\x28\xb5\x2f\xfd",
            frame[:-3],
            frame[4:],
            frame + b"x",
            frame + frame,
            b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
            b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 62) + frame[6:],
            b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
            valid,
            b"\x28\xb5\x2f\xfd" + b"\x00" * 1000,
        ):
            cases.append(training_case(body, **{"Content-Encoding": "zstd"}))
        return cases
