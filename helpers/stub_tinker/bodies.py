"""From the bytes of a body to checked values: limits come before memory, and only ordinary values pass."""

import json
import re
from collections.abc import Callable
from typing import TypeVar

import pydantic
import zstandard

from helpers.stub_tinker import support
from helpers.stub_tinker.errors import BadRequest

MAX_BODY = 64 << 20  # of a training request
MAX_SAMPLE = 16 << 20  # of a sampling request: a prompt, and the targets at each of its places
MAX_JSON = 1 << 20  # of any other
LISTS = 1 << 16  # and objects of one body, 20 times as large in memory as their two characters
MAX_METADATA = 16 << 10  # bytes of JSON
MAX_NAME = 200  # characters of a session's display name
NAMES = ("display_name", "project_id", "destination_project_id", "sdk_version")
NO_TOKEN = (
    "weights_access_token is not offered by the stub backend: "
    f"{support.NOT_OFFERED_OPTIONS['weights_access_token']}"
)

Model = TypeVar("Model", bound=pydantic.BaseModel)


def too_large(most: int) -> BadRequest:
    return BadRequest(f"the body is over {most >> 20} MiB: send smaller batches", 413)


def unpacked(body: bytes, most: int, admit: Callable[[int], None]) -> bytes:
    """A zstd body, decompressed a piece at a time, so that a small one can't fill the memory.

    Args:
        most: bytes that it may unpack to.
        admit: is told of each piece's bytes, and raises if there are too many.

    Raises:
        BadRequest: it is not zstd, or unpacks to more than `most`.
    """
    content = bytearray()
    try:
        with zstandard.ZstdDecompressor(max_window_size=MAX_BODY).stream_reader(body) as reader:
            while piece := reader.read(1 << 20):
                admit(len(piece))
                content += piece
                if len(content) > most:
                    raise too_large(most)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BadRequest(f"the body is not zstd: {error}") from error
    return bytes(content)


def json_object(raw: bytes) -> dict:
    """A JSON object of ordinary values: finite numbers, whole numbers of 64 bits, valid text.

    Raises:
        BadRequest: the body is something else, or holds very many lists and objects.
    """
    if (lists := raw.count(b"[") + raw.count(b"{")) > LISTS:
        raise BadRequest(f"the body holds {lists:,} lists and objects, nested or not: {LISTS:,} are possible")
    try:
        body = json.loads(
            raw.decode() or "{}", parse_int=_whole_number, parse_float=_finite, parse_constant=_not_a_number
        )
        if re.search(rb"\\u[dD][89a-fA-F]", raw):  # half a surrogate pair is no character
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else "half a surrogate pair"
        raise BadRequest(f"the body is not valid UTF-8 text: {reason}") from error
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def _whole_number(text: str) -> int:
    value = int(text) if len(text) < 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise BadRequest(f"the body holds a whole number of more than 64 bits: {text[:30]}…")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRequest(f"the body holds a number that is too large: {text[:30]}")
    return value


def _not_a_number(text: str) -> float:
    raise BadRequest(f"the body holds {text}: numbers must be finite")


def validated(raw: bytes, model: type[Model]) -> Model:
    """A request of the SDK, with user metadata and names of a bounded size.

    Raises:
        BadRequest: it is not JSON, too large, or asks for what is not offered.
        pydantic.ValidationError: a field is missing or of another type.
    """
    body = json_object(raw)
    if body.get("weights_access_token") is not None:
        raise BadRequest(NO_TOKEN)
    for name in ("user_metadata", "tags"):
        if len(json.dumps(body.get(name))) > MAX_METADATA:
            raise BadRequest(f"{name} is over {MAX_METADATA >> 10} KiB")
    metadata = body.get("user_metadata")
    if isinstance(metadata, dict):  # the SDK reads texts back
        body["user_metadata"] = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
        }
    for name in NAMES:
        if isinstance(body.get(name), str) and len(body[name]) > MAX_NAME:
            raise BadRequest(f"{name} is over {MAX_NAME} characters")
    return model.model_validate(body)
