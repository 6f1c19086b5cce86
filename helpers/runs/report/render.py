"""From templates to a page: one file of HTML that needs no network, no script and no other file.

All that comes from data or models is escaped: nothing in it can become markup or break the file.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from helpers.evaluate.score import Headline, Score
from helpers.runs.settings import written
from helpers.text import clock, percent, plural, size_text

NONE = "–"  # in a cell that has no value
MEAN_F1 = ("mean F1", "its 95% interval")  # columns of free text


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first cell of a row names it. True and False become words in colour.

    Attributes:
        caption: what it shows, for a reader who jumps from table to table.
        right: columns of numbers.
        code: columns of names that may break anywhere.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    right: Collection[int] = ()
    code: Collection[int] = ()


def for_the_page(value: Any) -> Any:
    """Without characters that no page can hold, which become �. Markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return "".join(
        c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff" and c != "\x7f") else "�"
        for c in str(value)
    )


def interval(score: Score) -> str:
    """The 95% interval of a score: `49.4% to 66.8%`."""
    return " to ".join(map(percent, score.ci95))


def rate(score: Score) -> str:
    """A score with its interval: `58.3% (49.4% to 66.8%)`."""
    return f"{percent(score.accuracy)} ({interval(score)})"


def told(headline: Headline) -> str:
    """A rate with its interval, and the mean F1 of free text with its own."""
    if not (mean := headline.mean_f1):
        return rate(headline.score)
    low, high = mean.ci95
    return f"{rate(headline.score)}, mean F1 {mean.value:.2f} ({low:.2f} to {high:.2f})"


def score_cells(headline: Headline) -> list[str]:
    """Right ones, rate and interval; then what MEAN_F1 names, of free text only."""
    score, mean = headline.score, headline.mean_f1
    cells = [f"{score.correct}/{score.total}", percent(score.accuracy), interval(score)]
    if mean is None:
        return [*cells, NONE, NONE]
    return [*cells, f"{mean.value:.2f}", " to ".join(f"{end:.2f}" for end in mean.ci95)]


def small(number: float) -> str:
    """Two digits that count, of a number that may be tiny."""
    return f"{number:.2g}"


def p_text(p_value: float) -> str:
    """A p-value to three places."""
    return "below 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def minute(when: datetime) -> str:
    """Date and time in UTC."""
    return f"{when:%Y-%m-%d %H:%M}"


def render(template: str, **values: Any) -> str:
    """A page, from a template in `templates/`. A name that the template uses and nobody gave is an error."""
    environment = Environment(
        loader=PackageLoader("helpers.runs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=for_the_page,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (clock, interval, minute, p_text, percent, plural, size_text, small, told, written)
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(template).render(**values) + "\n"
