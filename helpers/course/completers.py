"""What the Tab key offers for each kind of value; argcomplete asks for it."""

import argparse
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from helpers.errors import CourseError


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer one press of the Tab key, and end this process."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False)


def offer(action: argparse.Action, words: Callable[..., Iterable[str]]) -> None:
    """Let the Tab key offer these words for a value. Files are offered where nothing else is."""

    def completer(prefix: str, **_: Any) -> list[str]:
        with contextlib.suppress(CourseError, OSError):  # a Tab key has nowhere to show an error
            return list(words(prefix))
        return []

    action.completer = completer  # pyright: ignore[reportAttributeAccessIssue]  (argcomplete reads it)


def profiles(_: str = "") -> Iterable[str]:
    from helpers.runs.chosen import profiles

    return profiles()


def runs(_: str = "") -> Iterable[str]:
    from helpers.paths import runs_dir

    names = {path.parent.name for path in runs_dir().glob("[!.]*/manifest.json")}
    return ["latest", *sorted(names - {"latest"})]


def sweeps(_: str = "") -> Iterable[str]:
    from helpers.paths import runs_dir
    from helpers.runs.run import SWEEP_FILE

    return sorted(path.parent.name for path in runs_dir().glob(f"[!.]*/{SWEEP_FILE}"))


def runs_and_sweeps(_: str = "") -> Iterable[str]:
    return [*runs(), *sweeps()]


def settings(prefix: str = "") -> Iterable[str]:
    """`rank=`, and after `task=` the few words that it takes."""
    from helpers.runs.settings import choices, setting_names

    name, sign, _ = prefix.partition("=")
    if sign:
        return [f"{name}={word}" for word in choices(name) if word]
    return [f"{name}=" for name in sorted(setting_names())]


def backends(_: str = "") -> Iterable[str]:
    return ["auto", "stub", "hosted"]


def notebooks(_: str = "") -> Iterable[str]:
    from helpers.paths import NOTEBOOKS

    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
