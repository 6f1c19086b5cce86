"""Numbers and rows as people read them: times, sizes, plurals, columns; and text of others on a terminal."""

import os
import re
import sys

# What a terminal obeys instead of showing it: control characters but line break and tab, and what turns the
# direction of writing. Half of a surrogate pair can't be printed at all.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Unicode's Default_Ignorable_Code_Point: characters that show nothing.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """Text of a file or a server that a terminal shows and does not obey: `\\u001b` for an escape character.

    Line breaks and tabs stay. JSON stays JSON of the same value.
    """
    text = text.replace("\r\n", "\n")
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def without_colours(text: str) -> str:
    """Text of a traceback without the escape sequences of its colours."""
    return _COLOUR.sub("", text)


def without_invisible(text: str) -> str:
    """Text without characters that show nothing: zero-width spaces, soft hyphens, direction marks."""
    return text if text.isascii() else _INVISIBLE.sub("", text)


def clock(seconds: float | None) -> str:
    """Minutes and seconds, to the nearest second: `0:09`, `12:40`; `–` for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def minutes(seconds: float) -> str:
    """A rough time, for estimates: `under 1 min`, `6 min`."""
    return "under 1 min" if seconds < 45 else f"{round(seconds / 60)} min"


def plural(number: int, word: str) -> str:
    """`1 run`, `2 runs`, `12,000 runs`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def two_digits(number: int) -> int:
    """An estimate rounded to its first two digits: more would be false precision."""
    digits = len(str(number)) - 2
    return round(number, -digits) if digits > 0 else number


def percent(share: float) -> str:
    """`57.5%`."""
    return f"{share:.1%}"


def rate_text(rate: float, mean_f1: float | None = None) -> str:
    """`57.5%`, and for free text `15.8%, mean F1 0.62`."""
    return percent(rate) + ("" if mean_f1 is None else f", mean F1 {mean_f1:.2f}")


def size_text(size: int | None) -> str:
    """Bytes as `812 B`, `36 MB`, `1.2 GB`; `–` for None."""
    if size is None:
        return "–"
    amount, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"


def table(rows: list[list[str]], right: set[int] | frozenset[int] = frozenset()) -> str:
    """Rows under a head, in columns.

    Args:
        rows: the head first; all of the same length.
        right: the columns that are aligned to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(_cell(cell, widths[i], i in right) for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in [*widths[:-1], min(widths[-1], 40)]))
    return "\n".join(lines)


def _cell(text: str, width: int, to_the_right: bool) -> str:
    return text.rjust(width) if to_the_right else text.ljust(width)


def red(text: str) -> str:
    """In red on a terminal and in a notebook, unless NO_COLOR is set; as it is where it goes to a file."""
    shown = sys.stdout.isatty() or type(sys.stdout).__module__ == "ipykernel.iostream"
    return f"\033[31m{text}\033[0m" if text and shown and not os.environ.get("NO_COLOR") else text
