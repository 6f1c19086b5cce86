"""The diagrams of notebooks 04 to 06, drawn as SVG.

    python notebooks/images/make_serving_diagrams.py

It writes the `.svg` files next to this file. A test compares them with what this script draws.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from make_diagrams import FILLS, Arrow, Box, draw

FOLDER = Path(__file__).parent

CHECKPOINTS: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "Three kinds of checkpoint of one model: weights hold the adapter and the optimizer's state, to go on training; "
    "sampler weights hold the adapter, to sample on the server; external weights are the adapter as files.",
    (
        (10, 95, 150, "model", ("training client", "trains A and B")),
        (230, 20, 240, "data", ("weights/NAME", "save_state")),
        (230, 95, 240, "data", ("sampler_weights/NAME", "save_weights_for_sampler")),
        (230, 170, 240, "data", ("external_weights/NAME", "save_weights_external")),
        (540, 20, 250, "rule", ("go on training", "A, B and the optimizer's state")),
        (540, 95, 250, "rule", ("sample on the server", "A and B")),
        (540, 170, 250, "rule", ("download", "A and B, as files for PEFT and vLLM")),
    ),
    (
        ((160, 110), (230, 49), ""),
        ((160, 124), (230, 124), ""),
        ((160, 138), (230, 199), ""),
        ((470, 49), (540, 49), ""),
        ((470, 124), (540, 124), ""),
        ((470, 199), (540, 199), ""),
    ),
)

MERGE: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "Merging is one sum for each matrix: W, which is m by n, plus the scale s times B times A, gives a matrix of W's "
    "shape. W comes from the base model, s, B and A from the adapter, and the sum goes to the merged model.",
    (
        (10, 20, 150, "data", ("W", "m × n, never trained")),
        (210, 20, 120, "rule", ("+  s", "alpha / r")),
        (350, 20, 120, "model", ("·  B", "m × r, trained")),
        (490, 20, 120, "model", ("·  A", "r × n, trained")),
        (660, 20, 150, "data", ("=  merged W", "m × n")),
        (10, 130, 150, "data", ("base model", "shared by all adapters")),
        (210, 130, 400, "model", ("adapter", "useless without exactly this base model")),
        (660, 130, 150, "data", ("merged model", "needs no adapter")),
    ),
    (
        ((85, 130), (85, 78), ""),
        ((270, 130), (270, 78), ""),
        ((410, 130), (410, 78), ""),
        ((550, 130), (550, 78), ""),
        ((735, 78), (735, 130), ""),
    ),
)

PARITY: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "The parity check: the same prompt and reference answer go through Tinker's sampler, transformers and vLLM; each "
    "gives a log-probability for every answer token; these may differ by rounding and no more.",
    (
        (10, 95, 150, "data", ("prompt + answer", "the same token ids")),
        (230, 20, 230, "model", ("Tinker sampler", "base model with its adapter")),
        (230, 95, 230, "model", ("transformers", "merged model")),
        (230, 170, 230, "model", ("vLLM", "merged model")),
        (530, 95, 130, "data", ("log p", "of each answer token")),
        (710, 95, 150, "rule", ("compare", "only rounding apart?")),
    ),
    (
        ((160, 110), (230, 49), ""),
        ((160, 124), (230, 124), ""),
        ((160, 138), (230, 199), ""),
        ((460, 49), (530, 110), ""),
        ((460, 124), (530, 124), ""),
        ((460, 199), (530, 138), ""),
        ((660, 124), (710, 124), ""),
    ),
)

DIAGRAMS = {"checkpoints.svg": CHECKPOINTS, "merge.svg": MERGE, "parity.svg": PARITY}

# Continuous batching: for each place of the batch, the answers that it writes, as (name, first token, length).
TITLE = (
    "Five answers of different lengths in a batch with two places. In fixed batches, a place that is done waits for the "
    "longest answer of its batch: 140 passes. With continuous batching the next answer starts at once: 110 passes."
)
FIXED = (("A", 0, 20), ("C", 70, 30), ("E", 100, 40)), (("B", 0, 70), ("D", 70, 25))
CONTINUOUS = (("A", 0, 20), ("C", 20, 30), ("D", 50, 25)), (("B", 0, 70), ("E", 70, 40))
LEFT, PIXELS, ROW = 90, 4, 26  # of a pass: 4 pixels


def draw_batching() -> str:
    """Two timelines of the same answers, with the number of passes that each takes."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 208" width="760" role="img">',
        f"<title>{escape(TITLE)}</title>",
        '<rect width="760" height="208" fill="white"/>',
    ]
    for top, name, rows in ((10, "fixed batches", FIXED), (110, "continuous batching", CONTINUOUS)):
        passes = max(start + length for row in rows for _, start, length in row)
        parts.append(_text(LEFT, top + 14, f"{name}: {passes} passes through the model", "start", "bold"))
        for number, row in enumerate(rows):
            y = top + 22 + (ROW + 4) * number
            parts.append(_text(LEFT - 10, y + 17, f"place {number + 1}", "end"))
            parts.append(_bar(0, passes, y, "white", "4 3"))
            for answer, start, length in row:
                parts.append(_bar(start, length, y, FILLS["model"]))
                parts.append(
                    _text(LEFT + PIXELS * start + PIXELS * length // 2, y + 17, f"{answer} {length}")
                )
    return "\n".join([*parts, "</svg>", ""])


def _bar(start: int, length: int, y: int, fill: str, dashes: str = "0") -> str:
    where = f'x="{LEFT + PIXELS * start}" y="{y}" width="{PIXELS * length}" height="{ROW}"'
    return f'<rect {where} fill="{fill}" stroke="#444" stroke-dasharray="{dashes}"/>'


def _text(x: int, y: int, text: str, anchor: str = "middle", weight: str = "normal") -> str:
    style = f'font-family="sans-serif" font-size="12" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def drawn() -> dict[str, str]:
    """All of them, by the names of their files."""
    pictures = {name: draw(*diagram) for name, diagram in DIAGRAMS.items()}
    return {**pictures, "continuous_batching.svg": draw_batching()}


def main() -> None:
    for name, picture in drawn().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
