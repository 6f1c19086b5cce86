"""Figures of loops without epochs: what to watch in notebooks 10, 11 and 13.

live.show(step_panels(log.metrics, RL_PANELS))            # while the loop runs
gains(before=[-1.8, -1.1], after=[-0.8, -5.9])            # of one pair, the chosen answer first
opinions(["7", " cards"], student=[-0.1, -0.4], teacher=[-3.2, -0.3])     # of one sample, token by token
"""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from helpers.plots import LINE_COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RL_PANELS = {
    "reward (mean), useless groups (share)": {"reward": "reward", "useless": "useless groups"},
    "KL from the start, nats a token": {"kl": ""},
    "entropy, nats a token": {"entropy": ""},
    "length, tokens": {"length": ""},
}

DPO_PANELS = {
    "loss": {"dpo_loss": ""},
    "share of pairs won": {"accuracy": ""},
    "beta × gain": {"chosen_reward": "chosen", "rejected_reward": "rejected"},
}

DISTILLATION_PANELS = {
    "KL to the teacher, nats a token": {"teacher_kl": ""},
    "length, tokens": {"length": ""},
}


def step_panels(rows: list[dict], panels: dict[str, dict[str, str]]) -> "Figure":
    """A panel for each thing to watch, over the steps of a loop: at most three in a row.

    Args:
        rows: lines of the loop's metrics.jsonl, with `step`; there may be none yet.
        panels: by the panel's title, the measures to draw there, each with its label; empty for the only one.
    """
    from matplotlib.ticker import MaxNLocator

    down = -(-len(panels) // 3)
    across = -(-len(panels) // down)
    figure = new_figure(3.1 * across, 2.6 * down)
    places = figure.subplots(down, across, squeeze=False).flat
    for (title, lines), axes in zip(panels.items(), places, strict=False):
        drawn = [0.0]
        for (name, label), colour, style in zip(
            lines.items(), LINE_COLOURS, cycle(["o-", "s--"]), strict=False
        ):
            values = [row[name] for row in rows]
            axes.plot([row["step"] for row in rows], values, style, color=colour, markersize=4, label=label)
            drawn += values
        room = 0.08 * (max(drawn) - min(drawn) or 1)
        above = room if len(lines) == 1 else 4 * room  # for the legend
        axes.set(title=title, xlabel="step", ylim=(min(drawn) - (min(drawn) < 0) * room, max(drawn) + above))
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if len(lines) > 1:
            axes.legend(fontsize=9, loc="upper left", ncols=len(lines), columnspacing=1)
    for spare in places:
        spare.remove()
    return figure


def gains(before: Sequence[float], after: Sequence[float]) -> "Figure":
    """What a step did to the two answers of a pair: an arrow each, from the logprob before to the one after.

    Args:
        before: logprobs under the reference, in nats: of the chosen answer, then of the rejected one.
        after: likewise, under the model now.
    """
    figure = new_figure(6.4, 2.2)
    axes = figure.subplots()
    for place, (start, end, colour) in enumerate(zip(before, after, LINE_COLOURS, strict=False)):
        axes.plot(start, place, "o", markerfacecolor="white", color=colour, markersize=8)
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 2}
        axes.annotate("", (end, place), (start, place), arrowprops=arrow)
        words: dict[str, Any] = {
            "ha": "center",
            "va": "bottom",
            "color": colour,
            "textcoords": "offset points",
        }
        axes.annotate(f"gain {end - start:+.2f}", ((start + end) / 2, place), (0, 6), **words)
    apart = (after[0] - before[0]) - (after[1] - before[1])
    axes.set_yticks([0, 1], ["chosen", "rejected"])
    low, high = min(*before, *after), max(*before, *after)
    room = 0.1 * (high - low or 1)
    axes.set(
        ylim=(1.5, -0.7), xlim=(low - room, high + room), xlabel="logprob of the answer, nats (○: reference)"
    )
    axes.set_title(f"difference of the gains: {apart:+.2f} nats", fontsize=10)
    return figure


def opinions(tokens: Sequence[str], student: Sequence[float], teacher: Sequence[float]) -> "Figure":
    """What two models say of one sample: a bar a token, down where the teacher finds it less likely.

    Args:
        tokens: their texts.
        student, teacher: logprobs of these tokens, in nats.
    """
    figure = new_figure(9.3, 2.8)
    axes = figure.subplots()
    differences = [other - own for own, other in zip(student, teacher, strict=True)]
    colours = [LINE_COLOURS[1] if value < 0 else LINE_COLOURS[0] for value in differences]
    axes.bar(range(len(tokens)), differences, color=colours)
    axes.axhline(0, color="gray", linewidth=0.8)
    shown = [token.replace("\n", "\\n").replace(" ", "·").replace("$", r"\$") for token in tokens]
    axes.set_xticks(range(len(tokens)), shown, rotation=90, fontsize=9)
    axes.set(ylabel="teacher − student, nats", xlim=(-0.7, len(tokens) - 0.3))
    axes.set_title("down: the teacher finds this token less likely than the student does", fontsize=10)
    return figure
