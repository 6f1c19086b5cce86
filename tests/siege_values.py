"""Hostile values for the fields, headers and paths of requests, and ways to put them there."""

import math
from collections.abc import Iterator

from hypothesis import strategies as st
from siege import PROTO_TYPE
from tinker import types
from tinker.types.copy_weights_request import CopyWeightsRequest

DEEP = "@@" + "[" * 100_000 + "]" * 100_000 + "@@"
UNCLOSED = "@@" + '{"a":' * 100_000 + "@@"
NUMBERS = [
    0,
    -1,
    1,
    2,
    1.5,
    -0.0,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**32,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**12,
    10**30,
    1e308,
    1e-320,
    math.nan,
    math.inf,
    -math.inf,
    "@@1e400@@",
    "@@-1e400@@",
    "@@" + "9" * 5000 + "@@",
    "@@-" + "9" * 5000 + "@@",
    "@@0." + "0" * 5000 + "1@@",
    "@@01@@",
]
TEXTS = [
    "",
    " ",
    "a",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\U0001f600",
    "x" * 10_000,
    "..",
    "../..",
    "../../../../etc/passwd",
    "/etc/passwd",
    "%2e%2e%2f",
    "%00",
    "a/b",
    "a\\b",
    "~",
    "~root",
    ".",
    ".hidden",
    ".tmp-0",
    "con",
    "-rf",
    "a\nb",
    "a\r\nX: y",
    "ａｂｃ",
    "‮",
    "․․／",
    "'; DROP TABLE runs; --",
    "{{7*7}}",
    "$(id)",
    "tinker://",
    "tinker://a",
    "tinker://a/weights",
    "tinker://a/weights/b/c",
    "tinker://../weights/base",
    "tinker://a/../b",
    "tinker:///weights/x",
    "tinker://a/weights/",
    "tinker://a/weights/%2e%2e",
    "file:///etc/passwd",
    "TINKER://a/weights/b",
    "tinker://" + "a/" * 5000,
    "nan",
    "Infinity",
    "true",
    "null",
]
SHAPES = [
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    [[[]]],
    {"a": {}},
    {"": None},
    [0] * 10_000,
    ["x"] * 10_000,
    [""],
    [1, "a", None, {}],
    DEEP,
    UNCLOSED,
]
HOSTILE = NUMBERS + TEXTS + SHAPES
FIELDS = sorted(
    {
        name
        for model in (
            types.CreateModelRequest,
            types.OptimStepRequest,
            types.SaveWeightsRequest,
            types.SaveWeightsForSamplerRequest,
            types.SaveWeightsExternalRequest,
            types.LoadWeightsRequest,
            types.CreateSamplingSessionRequest,
            types.SampleRequest,
            types.SamplingParams,
            types.LoraConfig,
            types.AdamParams,
            CopyWeightsRequest,
        )
        for name in model.model_fields
    }
)
HEADERS = [{}] * 12 + [
    {"Content-Type": "text/plain"},
    {"Content-Type": PROTO_TYPE},
    {"Content-Type": ""},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "x" * 5000},
    {"Content-Encoding": "zstd"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "br, zstd, \xff"},
    {"Accept": "text/html"},
    {"X-API-Key": ""},
    {"X-API-Key": "tml-\xe9\xff"},
    {"X-API-Key": "x" * 20_000},
    {"Host": "evil.example:99999"},
    {"Host": ""},
    {"X-Forwarded-For": "1.1.1.1", "X-Forwarded-Proto": "https"},
    {"X-Tinker-Request-Iteration": "-1"},
    {"Range": "bytes=9999999999-"},
    {"Cookie": "a=" + "b" * 4000},
]


def positions(value, at=()) -> Iterator[tuple]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from positions(inner, (*at, key))


def replaced(value, at: tuple, new, drop: bool = False):
    """`value` with `new` at a position, or with that position taken out."""
    if not at:
        return new
    copy = value.copy()
    if len(at) > 1:
        copy[at[0]] = replaced(value[at[0]], at[1:], new, drop)
    elif drop:
        del copy[at[0]]
    else:
        copy[at[0]] = new
    return copy


anything = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(HOSTILE),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
        lambda s: st.lists(s, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), s, max_size=3),
        max_leaves=5,
    ),
)


fresh_numbers = st.integers(
    3 * 10**8, 2**31 - 1
)  # all of one length, so that what is drawn later depends on draws alone


def corrupted(draw, data: bytes) -> bytes:
    """Cut, flipped, doubled or stuffed bytes."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    return draw(
        st.sampled_from(
            [
                data[:at],
                data[at:],
                data + data,
                data[:at] + b"\xff\xfe" + data[at:],
                data[:at] + bytes([(data[at] if data else 0) ^ 0x55]) + data[at + 1 :],
                b"\xef\xbb\xbf" + data,
                data.decode("utf-8", "replace").encode("utf-16"),
                data[:at] + b"\x00" + data[at:],
            ]
        )
    )
