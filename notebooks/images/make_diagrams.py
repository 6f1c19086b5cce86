"""The diagrams of the notebooks, drawn as SVG.

    python notebooks/images/make_diagrams.py

It writes the `.svg` files next to this file. A test compares them with what this script draws.
"""

from pathlib import Path
from xml.sax.saxutils import escape

import diagrams_road
import diagrams_serve

FOLDER = Path(__file__).parent
FONT, LINE = 13, 19
STYLE = """<style>
.page { fill: #ffffff } .model { fill: #dbe9f6 } .data { fill: #f2f2f2 } .rule { fill: #fdebd0 }
.model, .data, .rule, .arrow { stroke: #444444 } text, .tip { fill: #111111 }
@media (prefers-color-scheme: dark) {
.page { fill: #181818 } .model { fill: #1d3b57 } .data { fill: #333333 } .rule { fill: #563c13 }
.model, .data, .rule, .arrow { stroke: #bbbbbb } text, .tip { fill: #f4f4f4 }
}
</style>"""

# x, y, width, kind, lines of text; and the height, where the lines don't give it
Box = tuple[int, int, int, str, tuple[str, ...]] | tuple[int, int, int, str, tuple[str, ...], int]
Arrow = tuple[tuple[int, int], tuple[int, int], str]  # from, to, label

POLICY_STEP: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "One step of reinforcement learning: the model samples a group of answers to one prompt, the reward scores "
    "each, the group's mean is subtracted, and the advantages change the model.",
    (
        (10, 20, 120, "data", ("prompt", "“Name exactly 3 birds”")),
        (180, 20, 130, "model", ("model", "samples 8 answers")),
        (360, 20, 130, "rule", ("reward", "1, 0, 0, 1, 0, 0, 0, 0")),
        (540, 20, 150, "data", ("advantages", "reward − mean (0.25)")),
        (
            360,
            120,
            330,
            "model",
            ("forward_backward + optim_step", "+0.75: more likely    −0.25: less likely"),
        ),
    ),
    (
        ((130, 49), (180, 49), ""),
        ((310, 49), (360, 49), ""),
        ((490, 49), (540, 49), ""),
        ((615, 78), (615, 120), ""),
        ((360, 149), (245, 78), "the next step samples anew"),
    ),
)

LORA_LAYER: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "A LoRA layer: the input x goes through the frozen matrix W, and beside it through A, which reduces it to r "
    "numbers, and B, which spreads them out again, scaled by s; both results are added.",
    (
        (10, 70, 80, "data", ("x", "n numbers")),
        (210, 10, 240, "data", ("W", "m × n, frozen")),
        (170, 130, 130, "model", ("A", "r × n, trained")),
        (350, 130, 130, "model", ("B", "m × r, trained")),
        (540, 130, 100, "rule", ("× s", "alpha / r")),
        (700, 70, 130, "data", ("W·x + s·B·(A·x)", "m numbers")),
    ),
    (
        ((90, 90), (210, 39), ""),
        ((90, 108), (170, 159), ""),
        ((300, 159), (350, 159), ""),
        ((480, 159), (540, 159), ""),
        ((450, 39), (700, 90), ""),
        ((640, 159), (700, 110), ""),
    ),
)

LORA_SIZES: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (  # a quarter of a pixel a row or column
    "W, B and A of one layer drawn to scale: W has 576 rows of 1,536 numbers and is frozen; B has 576 rows of 32, A has "
    "32 rows of 1,536. Both together are 8% of W.",
    (
        (10, 10, 384, "data", ("W, frozen", "576 × 1,536: 884,736 numbers"), 144),
        (400, 60, 50, "text", ("+ s ·",)),
        (460, 10, 8, "model", (), 144),
        (478, 10, 384, "model", (), 8),
        (
            478,
            50,
            384,
            "text",
            ("B, the column, and A, the row: trained", "576 × 32 and 32 × 1,536: 67,584 numbers"),
        ),
    ),
    (),
)

PREFERENCE_STEP: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "One step of DPO: the model samples answers to a prompt, two that differ in one thing make a pair, a rule "
    "says which is better, and the loss compares how much more the model than the reference favours the chosen one.",
    (
        (10, 20, 140, "model", ("model", "samples 4 answers")),
        (200, 20, 150, "rule", ("rule", "which is better?")),
        (400, 20, 170, "data", ("pair", "chosen, rejected")),
        (200, 120, 150, "model", ("reference", "logprob of each answer")),
        (400, 120, 170, "rule", ("difference", "model less reference, β")),
        (620, 120, 250, "model", ("forward_backward_custom", "chosen up against rejected")),
    ),
    (
        ((150, 49), (200, 49), ""),
        ((350, 49), (400, 49), ""),
        ((485, 78), (485, 120), ""),
        ((350, 149), (400, 149), ""),
        ((570, 149), (620, 149), ""),
    ),
)

RLHF_AND_DPO: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "Two ways from pairs to a model: RLHF trains a reward model on the pairs, then the model by reinforcement "
    "learning with that reward, as in notebook 10; DPO trains the model on the pairs, with one loss.",
    (
        (10, 75, 150, "data", ("pairs", "chosen, rejected")),
        (230, 15, 160, "model", ("reward model", "learns to score")),
        (450, 15, 200, "rule", ("reinforcement learning", "sample, score: notebook 10")),
        (
            230,
            135,
            420,
            "rule",
            ("DPO: one loss on the pairs", "no reward model, no sampling: this notebook"),
        ),
        (710, 75, 150, "model", ("model", "prefers the chosen")),
    ),
    (
        ((160, 95), (230, 44), ""),
        ((390, 44), (450, 44), ""),
        ((650, 44), (710, 95), ""),
        ((160, 113), (230, 164), ""),
        ((650, 164), (710, 113), ""),
    ),
)

DISTILLATION_STEP: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "One step of on-policy distillation: the student samples answers to a prompt, the teacher scores each of their "
    "tokens, the student's logprobs are subtracted, and these advantages change the student.",
    (
        (10, 20, 120, "data", ("prompt", "a word problem")),
        (180, 20, 140, "model", ("student", "samples answers")),
        (370, 20, 150, "model", ("teacher", "scores every token")),
        (570, 20, 190, "data", ("advantages", "teacher − student, a token")),
        (
            370,
            120,
            390,
            "model",
            ("forward_backward + optim_step", "above 0: more likely, below 0: less likely"),
        ),
    ),
    (
        ((130, 49), (180, 49), ""),
        ((320, 49), (370, 49), ""),
        ((520, 49), (570, 49), ""),
        ((665, 78), (665, 120), ""),
        ((370, 149), (250, 78), "the next step samples anew"),
    ),
)

OWN_DATA: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "The checklist: check the data, prove the measure, try a prompt. If the prompt is good enough, stop. "
    "Otherwise train, choose a checkpoint on validation, test once, and decide.",
    (
        (10, 20, 130, "data", ("check the data", "rows, repeats")),
        (180, 20, 140, "rule", ("prove the measure", "floor, ceiling")),
        (360, 20, 140, "model", ("try a prompt", "training records")),
        (540, 20, 130, "rule", ("good enough?", "your number")),
        (740, 20, 130, "data", ("use the prompt", "yes: done")),
        (180, 130, 140, "model", ("train", "no: go on")),
        (360, 130, 140, "model", ("choose", "validation part")),
        (540, 130, 130, "data", ("test", "test part, once")),
        (740, 130, 130, "rule", ("decide", "your rule")),
    ),
    (
        ((140, 49), (180, 49), ""),
        ((320, 49), (360, 49), ""),
        ((500, 49), (540, 49), ""),
        ((670, 49), (740, 49), ""),
        ((600, 78), (250, 130), ""),
        ((320, 159), (360, 159), ""),
        ((500, 159), (540, 159), ""),
        ((670, 159), (740, 159), ""),
    ),
)

BREAK_IT: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "One change at a time: a small baseline run is trained again with another learning rate, another rank, the mask "
    "off, and ten epochs; each is measured by what it learned and what it forgot.",
    (
        (10, 115, 170, "data", ("baseline", "few examples, one epoch")),
        (260, 10, 190, "rule", ("learning rate", "10 times up, 10 times down")),
        (260, 80, 190, "rule", ("rank", "1 and 8 in place of 32")),
        (260, 150, 190, "rule", ("mask off", "learn the question too")),
        (260, 220, 190, "rule", ("ten epochs", "the same few examples")),
        (530, 115, 190, "model", ("two questions to each", "what it learned, what it forgot")),
    ),
    (
        ((180, 132), (260, 39), ""),
        ((180, 140), (260, 109), ""),
        ((180, 148), (260, 179), ""),
        ((180, 156), (260, 249), ""),
        ((450, 39), (530, 132), ""),
        ((450, 109), (530, 140), ""),
        ((450, 179), (530, 148), ""),
        ((450, 249), (530, 156), ""),
    ),
)

TEMPLATES: tuple[str, tuple[Box, ...], tuple[Arrow, ...]] = (
    "A renderer turns messages into tokens, weights and a stop rule for training; the server's chat template turns "
    "them into tokens too. The tokens must be equal.",
    (
        (10, 65, 140, "data", ("messages", "user, assistant")),
        (220, 10, 150, "rule", ("renderer", "in training")),
        (220, 120, 150, "rule", ("chat template", "in serving")),
        (440, 10, 190, "data", ("tokens", "with weights, a stop rule")),
        (440, 120, 190, "data", ("tokens", "of the prompt")),
        (700, 65, 140, "model", ("the same?", "notebook 07 checks")),
    ),
    (
        ((150, 85), (220, 39), ""),
        ((150, 103), (220, 149), ""),
        ((370, 39), (440, 39), ""),
        ((370, 149), (440, 149), ""),
        ((630, 39), (700, 85), ""),
        ((630, 149), (700, 103), ""),
    ),
)

OWN = {
    "templates.svg": TEMPLATES,
    "policy_step.svg": POLICY_STEP,
    "lora_layer.svg": LORA_LAYER,
    "lora_sizes.svg": LORA_SIZES,
    "preference_step.svg": PREFERENCE_STEP,
    "rlhf_and_dpo.svg": RLHF_AND_DPO,
    "distillation_step.svg": DISTILLATION_STEP,
    "own_data.svg": OWN_DATA,
    "break_it.svg": BREAK_IT,
}
DIAGRAMS = OWN | diagrams_road.DIAGRAMS | diagrams_serve.DIAGRAMS


def draw(title: str, boxes: tuple[Box, ...], arrows: tuple[Arrow, ...]) -> str:
    """The SVG of a diagram: boxes with centred lines of text, the first one bold, and arrows with labels.

    It has a page of its own, light or dark as the browser asks, so it can be read on any page around it.
    """
    width = max(x + w for x, _, w, *_ in boxes) + 10
    height = max(box[1] + height_of(*box[4:]) for box in boxes) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{escape(title)}</title>",
        STYLE,
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
    ]
    parts += [line for box in boxes for line in _box(*box)]
    parts += [line for arrow in arrows for line in _arrow(*arrow)]
    return "\n".join([*parts, "</svg>", ""])


def height_of(lines: tuple[str, ...], height: int = 0) -> int:
    return height or 20 + LINE * len(lines)


def _box(x: int, y: int, width: int, kind: str, lines: tuple[str, ...], height: int = 0) -> list[str]:
    shape = f'x="{x}" y="{y}" width="{width}" height="{height_of(lines, height)}" rx="{min(6, width // 4)}"'
    parts = [] if kind == "text" else [f'<rect class="{kind}" {shape}/>']
    for number, line in enumerate(lines):
        weight, size = ("bold", FONT) if number == 0 else ("normal", FONT - 2)
        parts.append(_text(x + width // 2, y + 24 + LINE * number, line, size, weight))
    return parts


def _arrow(start: tuple[int, int], end: tuple[int, int], label: str) -> list[str]:
    (x1, y1), (x2, y2) = start, end
    line = f'<line class="arrow" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#tip)"/>'
    return [line] + ([_text((x1 + x2) // 2 - 60, (y1 + y2) // 2 + 22, label, FONT - 2)] if label else [])


def _text(x: int, y: int, text: str, size: int, weight: str = "normal") -> str:
    style = f'font-family="sans-serif" font-size="{size}" font-weight="{weight}" text-anchor="middle"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def main() -> None:
    for name, diagram in DIAGRAMS.items():
        (FOLDER / name).write_text(draw(*diagram), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
