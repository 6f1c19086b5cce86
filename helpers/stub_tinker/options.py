"""The options of `python -m helpers.stub_tinker`, and what they mean."""

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers import paths
from helpers.errors import CourseError

PORT = 8765


@dataclass(frozen=True)
class Roster:
    """A class, for the status page.

    Attributes:
        names: of learners, by their keys.
        notebook: the one whose duration the page states.
        trained, sampled: tokens of that notebook that the server trains on and samples, for one learner.
    """

    names: Mapping[str, str]
    notebook: str
    trained: int
    sampled: int


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.stub_tinker",
        description="A stub Tinker backend: the wire protocol of the real tinker SDK, "
        "and real LoRA training on this machine.",
    )
    _add_place(parser)
    _add_keys(parser)
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of training and sampling",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with (default: all cores)")
    parser.add_argument(
        "--idle-exit",
        type=float,
        default=0,
        metavar="SECONDS",
        help="end when unused for this long (default: never)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=0,
        metavar="GIB",
        help="that clients may use together (default: the machine's, less 3)",
    )
    parser.add_argument(
        "--disk",
        type=float,
        default=0,
        metavar="GIB",
        help="that clients may use together (default: the size of the disk)",
    )
    parser.add_argument(
        "--renderers",
        type=_registering,
        default="helpers.train.renderers:register_renderers",
        metavar="MODULE:FUNCTION",
        help="adds prompt formats to those of tinker_cookbook, for chats (default: the course's guide)",
    )
    parser.add_argument("--status", action="store_true", help="say what the running server does, and end")
    parser.add_argument(
        "--url", help="with --status: the server to ask (default: the one that uses the state folder)"
    )
    parser.set_defaults(roster=None)  # `course serve` gives one
    return parser.parse_args(arguments)


def _registering(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise argparse.ArgumentTypeError("expected MODULE:FUNCTION")
    return text


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s; 0.0.0.0 is every network that this machine is on)",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="another name that clients may use for this server, such as that of a proxy in front of it; may "
        "be given more than once",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help="port to listen on, 0 for any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--state-dir", type=Path, help="folder for checkpoints (default: stub/ in the course's cache folder)"
    )
    parser.add_argument(
        "--base-model",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of a base model, may be given more than once (default: the course's 135M model)",
    )


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="another key that lets a client in, starting with tml-; may be given more than once (default: "
        "$STUB_TINKER_API_KEY). The one in the file `key` of the state folder always does",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file with one key a line, for a class; lines with # are notes",
    )


def api_keys(options: argparse.Namespace) -> list[str]:
    """The keys that the options name, beside the one of the state folder.

    Raises:
        CourseError: the file can't be read, or a key is not one that the SDK sends; the key is never shown.
    """
    keys = list(options.api_key)
    if options.api_key_file:
        keys += _keys_in(options.api_key_file)
    if not keys and os.environ.get("STUB_TINKER_API_KEY"):
        keys = [os.environ["STUB_TINKER_API_KEY"]]
    for number, key in enumerate(keys, start=1):
        if not key.startswith("tml-") or not key.isascii() or not key.isprintable() or " " in key:
            which = "the key" if len(keys) == 1 else f"key {number} of {len(keys)}"
            raise CourseError(
                f"{which} must start with tml- and hold letters, digits and signs only, "
                "or the SDK refuses it",
                "choose a key such as tml-my-class",
            )
    return keys


def _keys_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(
            f"can't read the keys in {file}: {getattr(error, 'strerror', error)}", "write one key a line"
        ) from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise CourseError(f"{file} holds no key", "write one key a line")
    return keys


def state_dir(options: argparse.Namespace) -> Path:
    return (options.state_dir or paths.cache_dir() / "stub").absolute()
