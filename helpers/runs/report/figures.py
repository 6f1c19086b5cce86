"""The figures of the pages: matplotlib's, as SVG in the page's own colours and letters."""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from helpers.evaluate.score import Headline
from helpers.plots import accuracy_dots, base_and_tuned, curves, throughput_plot
from helpers.runs.report.render import for_the_page
from helpers.runs.result_forms import Checkpoint, Evaluation, Speed, Step

NLL = "NLL, nats per answer token"
RIGHT = "right answers, %"

# What stands on the page for the colours of plots.py: style.css has values for light and dark.
COLOURS = {
    "#000000": "currentColor",
    "#1f77b4": "var(--c0)",
    "#808080": "var(--grey)",
    "#b84a00": "var(--c1)",
    "#1b7837": "var(--c2)",
    "#7b3294": "var(--c3)",
    "#ffffff": "var(--paper)",
}


@dataclass(frozen=True)
class Figure:
    """The inside of an `<svg>`, its `viewBox`, and what it shows: its caption, also for who can't see it."""

    box: str
    inside: Markup
    caption: str


def _figure(name: str, caption: str, draw: Callable[[], Any]) -> Figure:
    """Draw a figure.

    Args:
        name: a word for it, once a page; ids in the figure begin with it.
        draw: makes the matplotlib figure. It is called with settings that keep labels as plain text.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "legend.frameon": False,
        "font.size": 10,
        "savefig.transparent": True,
    }
    with rc_context(settings), warnings.catch_warnings():
        # matters to pictures; here the browser has the letters
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        draw().savefig(buffer, format="svg", metadata={"Date": None})
    return _on_the_page(name, caption, for_the_page(buffer.getvalue()))


def _on_the_page(name: str, caption: str, svg: str) -> Figure:
    found = re.search(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>(.*)</svg>', svg, re.S)
    if found is None:
        raise ValueError(f"matplotlib made no SVG of figure {name}")
    box, inside = found.groups()
    inside = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", inside, flags=re.S)
    inside = re.sub(r' xmlns(:xlink)?="[^"]*"| font-family: [^;"]*;', "", inside)
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = inside.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    inside = re.sub("|".join(COLOURS), lambda match: COLOURS[match[0]], inside)
    return Figure(box, Markup(inside), caption)


def _losses(checkpoints: list[Checkpoint]) -> list[tuple[float, float]]:
    return [(row.step, row.loss) for row in checkpoints]


def _batch_losses(metrics: list[Step]) -> list[tuple[float, float]]:
    return [(row.step, row.train_nll) for row in metrics]


def _rates(checkpoints: list[Checkpoint]) -> list[tuple[float, float]]:
    return [(row.step, 100 * row.score.accuracy) for row in checkpoints]


# One run


def loss(metrics: list[Step], checkpoints: list[Checkpoint] | None) -> Figure:
    """Loss of the training batches and on the validation part."""
    first, last = metrics[0], metrics[-1]
    caption = (
        f"Loss: {first.train_nll:.3f} in the batch of step {first.step}, "
        f"{last.train_nll:.3f} in that of step {last.step}"
    )
    if checkpoints:
        start, end = checkpoints[0], checkpoints[-1]
        caption += f"; on the validation part {start.loss:.3f} at step {start.step}, "
        caption += f"{end.loss:.3f} at step {end.step}"
    lines = {"training batch": _batch_losses(metrics), "validation": _losses(checkpoints or [])}
    return _figure("loss", caption, lambda: curves(lines, NLL, "Loss", log=True))


def validation(checkpoints: list[Checkpoint], best: Checkpoint | None) -> Figure:
    """Right answers on the validation part, with intervals, the chosen checkpoint marked."""
    first, last = checkpoints[0], checkpoints[-1]
    chosen = (
        f"chosen: step {best.step}, {best.correct} of {best.total}" if best else "no checkpoint is chosen yet"
    )
    caption = (
        f"Right answers on the validation part: {first.correct} of {first.total} at step {first.step}, "
        f"{last.correct} of {last.total} at step {last.step}; {chosen}"
    )
    name = "validation, 95% interval"
    lines = {name: _rates(checkpoints)}
    limits = {name: [(100 * low, 100 * high) for low, high in (row.score.ci95 for row in checkpoints)]}
    star = _rates([best])[0] if best else None
    return _figure(
        "validation",
        caption,
        lambda: curves(lines, RIGHT, "Validation", star=star, limits=limits),
    )


def categories(evaluation: Evaluation) -> Figure:
    """Base and tuned model in each category."""

    def draw() -> Any:
        drawn = base_and_tuned(*evaluation.base_and_tuned, "by_category")
        drawn.axes[0].set_title("")
        return drawn

    caption = "Right answers of base and tuned model by category, with 95% intervals; numbers: right of all"
    return _figure("categories", caption, draw)


def throughput(speed: Speed) -> Figure:
    """Tokens a second over prompts at once."""
    best = max(speed.throughput, key=lambda row: row.tokens_per_second)
    caption = (
        f"vLLM, {speed.dtype}: at most {best.tokens_per_second:,.0f} tokens a second, with {best.at_once} "
        "prompts at once"
    )

    def draw() -> Any:
        drawn = throughput_plot([row.model_dump() for row in speed.throughput], speed.others)
        drawn.set_size_inches(4.6, 3.1)
        return drawn

    return _figure("throughput", caption, draw)


# Several runs, by their names


def scores_by_run(runs: dict[str, dict[str, Headline]]) -> Figure:
    """The scores of each run's models."""
    fields = {
        name: {model: own.score.fields() for model, own in models.items()} for name, models in runs.items()
    }
    caption = "Right answers of each run's models on its own test set: a dot, and its 95% interval as a bar"
    return _figure("scores", caption, lambda: accuracy_dots(fields))


def batch_losses(metrics: dict[str, list[Step]]) -> Figure:
    """Loss of each run's training batches."""
    lines = {name: _batch_losses(rows) for name, rows in metrics.items()}
    caption = "Loss of each run's training batches over optimizer steps"
    title = "Loss of the training batches"
    return _figure("training-loss", caption, lambda: curves(lines, NLL, title, log=True))


def validation_losses(checkpoints: dict[str, list[Checkpoint]]) -> Figure:
    """Loss on each run's validation part."""
    lines = {name: _losses(rows) for name, rows in checkpoints.items()}
    caption = "Loss on each run's validation part over optimizer steps"
    title = "Loss on the validation part"
    return _figure("validation-loss", caption, lambda: curves(lines, NLL, title, log=True))


def validation_rates(checkpoints: dict[str, list[Checkpoint]]) -> Figure:
    """Right answers on each run's validation part."""
    lines = {name: _rates(rows) for name, rows in checkpoints.items()}
    caption = "Right answers on each run's validation part over optimizer steps"
    return _figure("validation", caption, lambda: curves(lines, RIGHT, "Validation"))
