"""Figures of the course: one function a figure. Each returns a matplotlib `Figure`, which a notebook shows by
itself.
"""

from collections import Counter
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

from helpers.evaluate.promptings import TRAINING
from helpers.evaluate.score import Score

if TYPE_CHECKING:
    from collections.abc import Iterable

    from IPython.display import HTML
    from matplotlib.figure import Figure

    from helpers.weights import Scores


# For labels in Chinese, Japanese or Korean, which matplotlib's own font lacks: common names on Linux, macOS
# and Windows.
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches.

    It is made by pyplot, because a bare `Figure` shows no picture in a notebook, and closed there, because an
    open one is shown twice.
    """
    from matplotlib import font_manager, pyplot

    installed = {font.name for font in font_manager.fontManager.ttflist}
    pyplot.rcParams["font.family"] = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)
    return figure


class LiveFigure:
    """A figure in a notebook's output that is drawn again in its place: `live.show(figure)`."""

    def __init__(self) -> None:
        self._handle = None

    def show(self, figure: "Figure") -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)


def short(name: str) -> str:
    """A user's word for a label: both ends of a long one, since names of runs often differ at the end."""
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"


def length_histogram(prompts: list[int], answers: list[int]) -> "Figure":
    """How long prompts and answers are.

    Args:
        prompts: tokens of each prompt.
        answers: tokens of each answer, its end included.
    """
    figure = new_figure(6, 3.2)
    axes = figure.subplots()
    longest = max(prompts + answers)
    width = max(1, longest // 30)
    bins = range(0, longest + 2 * width, width)
    axes.hist(prompts, bins=bins, histtype="stepfilled", color="lightgrey", edgecolor="black", label="prompt")
    axes.hist(
        answers, bins=bins, histtype="step", color="tab:blue", hatch="///", linewidth=1.5, label="answer"
    )
    axes.set(xlabel="length, tokens", ylabel="records", title="Lengths of prompts and answers")
    axes.legend()
    return figure


def category_bars(parts: dict[str, list[dict]]) -> "Figure":
    """Share of each category in each part of the split, with counts on the bars.

    Args:
        parts: name of a part to its records; records without a category count as `(none)`.
    """
    counts = {name: Counter(row.get("category") or "(none)" for row in rows) for name, rows in parts.items()}
    kinds = sorted({kind for count in counts.values() for kind in count})
    figure = new_figure(6, 3.2)
    axes = figure.subplots()
    width = 0.8 / len(parts)
    for place, ((name, count), hatch) in enumerate(
        zip(counts.items(), cycle(["", "///", "...", "xxx"]), strict=False)
    ):
        shares = [100 * count[kind] / max(1, count.total()) for kind in kinds]
        across = [i + place * width for i in range(len(kinds))]
        bars = axes.bar(
            across, shares, width, hatch=hatch, edgecolor="black", color=f"C{place}", alpha=0.6, label=name
        )
        axes.bar_label(bars, [count[kind] for kind in kinds], fontsize=7)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(kinds))], kinds)
    axes.set(ylabel="share of the part, %", title="Categories in each part (numbers: records)")
    axes.margins(y=0.25)
    axes.legend(ncols=len(parts), loc="upper center")
    return figure


def weight_change_heatmap(description: dict) -> "Figure":
    """Where an adapter changed the weights: one cell a matrix, layers across, modules down.

    Args:
        description: what `helpers.weights.describe_adapter` returns; the colour is each module's `norm`.
    """
    import numpy as np

    rows = [row for row in description["modules"] if row["layer"] is not None]
    layers, modules = sorted({row["layer"] for row in rows}), sorted({row["module"] for row in rows})
    grid = np.full((len(modules), len(layers)), np.nan)
    for row in rows:
        grid[modules.index(row["module"]), layers.index(row["layer"])] = row["norm"]
    figure = new_figure(8, 2.6)
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(modules)), modules)
    step = max(1, len(layers) // 10)
    axes.set_xticks(range(0, len(layers), step), layers[::step])
    axes.set_xlabel("layer")
    axes.set_title("Size of the change of each weight matrix")
    figure.colorbar(image, label="norm of scale·B·A")
    return figure


def parity_scatter(reference: "Scores", others: list, bound: float) -> "Figure":
    """Log-probability of each token: the trained model across, the others up, where equal models lie on the
    diagonal. Beside it, how many tokens are how far apart.

    Args:
        reference: `helpers.weights.Scores` of the trained model.
        others: `Scores` of the same tokens by other models.
        bound: the largest difference that rounding may make, in nats.
    """
    across = [value for row in reference.logprobs for value in row]
    figure = new_figure(8, 3.6)
    left, right = figure.subplots(1, 2)
    lowest = min(across)
    left.plot([lowest, 0], [lowest, 0], color="grey", linewidth=1)
    bins = [10 ** (power / 4) for power in range(-36, 7)]  # from 1e-9, four a power of ten, to 32 nats
    for scores, marker, line in zip(others, cycle("x.+1"), cycle(["-", "--"]), strict=False):
        up = [value for row in scores.logprobs for value in row]
        left.scatter(across, up, s=14, alpha=0.5, marker=marker, label=scores.name)
        apart = [min(max(abs(a - b), bins[0]), bins[-1]) for a, b in zip(across, up, strict=True)]
        right.hist(apart, bins, histtype="step", linestyle=line, label=scores.name)
    right.axvline(bound, color="black", linewidth=1)
    right.annotate(
        "bound", (bound, 0.97), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="top"
    )
    left.set(
        xlabel=f"log p, {reference.name}", ylabel="log p, other model", title="The same tokens, scored twice"
    )
    right.set(
        xlabel="absolute difference, nats (1e-9: none)", ylabel="tokens", xscale="log", title="How far apart"
    )
    left.legend()
    return figure


def throughput_plot(rows: list[dict], lines: dict[str, float] | None = None) -> "Figure":
    """Tokens per second against prompts at once.

    Args:
        rows: from `helpers.serve.engine.measure_throughput`.
        lines: other measurements to draw as level lines, `{label: tokens per second}`.
    """
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    sizes, rates = [row["at_once"] for row in rows], [row["tokens_per_second"] for row in rows]
    axes.plot(sizes, rates, marker="o", label="vLLM")
    for size, rate in zip(sizes, rates, strict=True):
        clear = {"fc": "white", "ec": "none", "pad": 1}  # of a level line behind the number
        place = {"textcoords": "offset points", "xytext": (0, 8), "ha": "center", "bbox": clear}
        axes.annotate(f"{rate:.0f}", (size, rate), **place)
    for label, rate in (lines or {}).items():
        axes.axhline(rate, color="grey", linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, sizes)
    axes.set_ylim(0, max([*rates, *(lines or {}).values()]) * 1.25)
    axes.set(xlabel="prompts at once", ylabel="tokens per second", title="Throughput")
    axes.legend()
    return figure


def prompts_and_training(promptings: list, tuned: Score) -> "Figure":
    """Could a prompt do it? The base model asked in each way, beside the tuned model.

    Args:
        promptings: `helpers.evaluate.promptings.Prompting` of each way; those that were left out have no row.
        tuned: the tuned model, asked in the format of its training.
    """
    rows: dict[str, dict[str, dict]] = {
        row.name: {"base": Score(row.correct, row.total).fields()}
        for row in promptings
        if row.correct is not None
    }
    rows.setdefault(TRAINING, {})["tuned"] = tuned.fields()
    return accuracy_dots(rows, "Could a prompt do it?")


def base_and_tuned(base: dict, tuned: dict, group: str) -> "Figure":
    """Both models on all problems and on each group of them.

    Args:
        base: result of `evaluate_model` for the base model.
        tuned: the same problems, answered by the tuned model.
        group: `by_template` (seen and unseen in training) or `by_category`.
    """
    rows = {"all": {"base": base, "tuned": tuned}}
    rows |= {name: {"base": base[group][name], "tuned": tuned[group][name]} for name in sorted(tuned[group])}
    return accuracy_dots(rows, "The same test problems, before and after")


def training_curves(metrics: list[dict], checkpoints: list[dict], best: dict) -> "Figure":
    """Loss, and right answers on the validation part, over training, the chosen checkpoint marked.

    Args:
        metrics: lines of metrics.jsonl (`step`, `train_nll`).
        checkpoints: lines of checkpoints.jsonl (`step`, `loss`, `correct`, `total`).
        best: the chosen line of checkpoints.jsonl.
    """
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    looks = [row["step"] for row in checkpoints]
    left.plot(
        [row["step"] for row in metrics],
        [row["train_nll"] for row in metrics],
        color="grey",
        linewidth=1,
        label="training batch",
    )
    left.plot(looks, [row["loss"] for row in checkpoints], "o--", color="tab:blue", label="validation")
    left.set(xlabel="optimizer step", ylabel="NLL, nats per answer token", yscale="log", title="Loss")
    left.legend()
    scores = [Score(row["correct"], row["total"]) for row in checkpoints]
    rates = [100 * score.accuracy for score in scores]
    right.errorbar(
        looks,
        rates,
        yerr=[[100 * abs(score.accuracy - score.ci95[end]) for score in scores] for end in (0, 1)],
        fmt="o-",
        color="tab:blue",
        capsize=3,
        label="validation, 95% interval",
    )
    right.plot(
        best["step"],
        100 * best["correct"] / best["total"],
        "*",
        markersize=16,
        color="black",
        label=f"chosen: step {best['step']}",
    )
    right.set(xlabel="optimizer step", ylabel="right answers, %", ylim=(-3, 103), title="Validation")
    right.legend(loc="lower right")
    return figure


LINE_COLOURS = ["tab:blue", "#b84a00", "#1b7837", "#7b3294", "black"]


def curves(
    lines: dict[str, list[tuple[float, float]]],
    ylabel: str,
    title: str,
    log: bool = False,
    star: tuple[float, float] | None = None,
    limits: dict[str, list[tuple[float, float]]] | None = None,
) -> "Figure":
    """Lines over optimizer steps, told apart by style and marker as well as by colour.

    Args:
        lines: (step, value) of each line, by its name; values that are no numbers leave gaps.
        log: whether the values' axis is logarithmic.
        star: a point to mark as the chosen one.
        limits: (low, high) at each point of a line, by its name.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure = new_figure(
        4.6, 2.8 + 0.2 * ((len(lines) + bool(star) + 1) // 2)
    )  # the legend below has two columns
    axes = figure.subplots()
    looks = zip(cycle(LINE_COLOURS), cycle(["-", "--", "-.", ":"]), cycle("osD^vPX"), strict=False)
    for (name, points), (colour, style, marker) in zip(lines.items(), looks, strict=False):
        steps, values = [step for step, _ in points], [value for _, value in points]
        look: Any = {"color": colour, "linestyle": style, "marker": marker, "label": short(name)}
        if limits:
            sides = [
                [abs(value - limit[end]) for value, limit in zip(values, limits[name], strict=True)]
                for end in (0, 1)
            ]
            axes.errorbar(steps, values, yerr=sides, capsize=3, **look)
        else:
            every = max(1, len(points) // 8)
            axes.plot(steps, values, markevery=every, markersize=5, linewidth=1.3, **look)
    if star:
        axes.plot(*star, "*", markersize=15, color="black", label=f"chosen: step {star[0]}")
    axes.set(xlabel="optimizer step", ylabel=ylabel, title=title, yscale="log" if log else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(-3, 103)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


MODEL_LOOKS = [("#767676", "s"), ("tab:blue", "o"), ("#b84a00", "D"), ("#1b7837", "^")]


def token_strips(strips: dict[str, list[tuple[str, float]]]) -> "HTML":
    """Texts token by token, a line each, the darker the likelier. Hovering over a token shows the percentage.

    Args:
        strips: for each label, the tokens' texts and probabilities, 0 to 1.
    """
    from IPython.display import HTML

    lines = []
    for label, tokens in strips.items():
        spans = [_token(*token) for token in tokens]
        lines.append(f"<div style='line-height: 1.9'>{escape(label)}: {''.join(spans)}</div>")
    return HTML("".join(lines))


def _token(text: str, probability: float) -> str:
    red, green, blue = (round(255 - (255 - full) * probability) for full in (31, 119, 180))
    style = f"color: {'white' if probability > 0.6 else 'black'}; padding: 2px; margin: 1px; "
    style += f"background: rgb({red}, {green}, {blue})"
    return f'<span style="{style}" title="{probability:.0%}">{escape(text.replace(chr(10), "⏎"))}</span>'


def accuracy_dots(rows: dict[str, dict[str, dict]], title: str = "") -> "Figure":
    """Right answers of several models, a dot with its 95% interval and its counts each.

    Args:
        rows: by what a row is, such as a category or a run, then by the model's name ("" for no legend):
            `accuracy`, `ci95`, `correct`, `total`. A row may lack a model.
    """
    models = list(dict.fromkeys(model for scores in rows.values() for model in scores))
    figure = new_figure(5.4, 1.3 + len(rows) * (0.24 * len(models) + 0.12))
    axes = figure.subplots()
    looks = dict(zip(models, cycle(MODEL_LOOKS), strict=False))
    for model in models:
        points = [
            (place + (list(scores).index(model) - (len(scores) - 1) / 2) * 0.8 / len(models), scores[model])
            for place, scores in enumerate(rows.values())
            if model in scores
        ]
        up, across = [up for up, _ in points], [100 * score["accuracy"] for _, score in points]
        sides = [[100 * abs(score["accuracy"] - score["ci95"][end]) for _, score in points] for end in (0, 1)]
        colour, marker = looks[model]
        axes.errorbar(across, up, xerr=sides, fmt=marker, color=colour, capsize=3, label=model)
        for y, score in points:
            counts = f"{score['correct']}/{score['total']}"
            axes.annotate(
                counts,
                (103, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
            )
    axes.set_yticks(range(len(rows)), map(short, rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlim=(-3, 103), xlabel="right answers, % (bars: 95% interval)", title=title)
    for border in range(1, len(rows)):
        axes.axhline(border - 0.5, color="grey", linewidth=0.5)
    if any(models):
        figure.legend(loc="outside lower center", ncols=2)
    return figure


UNITS = {
    "epochs": "passes over the data",
    "batch_size": "examples a step",
    "learning_rate": "of the first step",
    "rank": "width of the LoRA factors",
    "max_train": "records, 0 for all",
    "max_length": "tokens",
    "max_tokens": "tokens",
}


def sweep_panels(rows: list[dict], swept: list[str], best: str, left_out: int = 0) -> "Figure":
    """Right answers on validation against each setting of a sweep, a point a run with its 95% interval.

    Values stand side by side in order, not to scale. In a panel, points of one shape agree in all other
    settings.

    Args:
        rows: finished runs, from `helpers.runs.sweep.results.collect`.
        swept: the settings, a panel each.
        best: name of the run to mark.
        left_out: runs that are not among the rows; the title says so.
    """
    figure = new_figure(max(6.0, 4.6 * len(swept)), 4.0)
    panels = figure.subplots(1, len(swept), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, swept, strict=True):
        values = _in_order(row["settings"][name] for row in rows)
        others = _in_order(_other_settings(row, swept, name) for row in rows)
        for place, other in enumerate(others):
            same = [row for row in rows if _other_settings(row, swept, name) == other]
            shift = 0.6 * ((place + 0.5) / len(others) - 0.5)
            across = [values.index(row["settings"][name]) + shift for row in same]
            up = [100 * row["validation"]["accuracy"] for row in same]
            sides = [
                [100 * abs(row["validation"]["accuracy"] - row["validation"]["ci95"][end]) for row in same]
                for end in (0, 1)
            ]
            axes.errorbar(
                across,
                up,
                yerr=sides,
                fmt="osD^vPX*"[place % 8],
                color=f"C{place}",
                markerfacecolor="white" if place % 2 else None,
                capsize=3,
                label=other or None,
            )
            for x, y, row in zip(across, up, same, strict=True):
                if row["run"] == best:
                    axes.plot(
                        x,
                        y,
                        "o",
                        markersize=17,
                        markerfacecolor="none",
                        color="black",
                        label="best by validation",
                    )
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set(
            xlabel=f"{name}, {UNITS[name]}" if name in UNITS else name,
            xlim=(-0.6, len(values) - 0.4),
            ylim=(-3, 103),
        )
        axes.label_outer()
        if len(others) <= 8:
            axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("right answers on the validation data, %")
    missing = f"; {left_out} not finished and not shown" if left_out else ""
    figure.suptitle(f"{len(rows)} runs, bars: 95% interval{missing}", fontsize=10)
    return figure


def _other_settings(row: dict, swept: list[str], name: str) -> str:
    return ", ".join(f"{other}={row['settings'][other]}" for other in swept if other != name)


def _in_order(values: "Iterable") -> list:
    """Each value once: numbers by size, before texts."""
    return sorted(dict.fromkeys(values), key=lambda value: (isinstance(value, str), value))
