"""The diagrams of notebooks 00 to 03, as boxes and arrows for make_diagrams.py."""

STEPS = (  # of the road: notebook, what your machine does, the folder it leaves
    ("01 split", "set problems aside", "split/"),
    ("02 train", "run the loop", "train/"),
    ("03 evaluate", "grade the answers", "evaluate/"),
    ("04 export", "unpack, look inside", "export/"),
    ("05 merge", "add it to the base", "merge/"),
    ("06 vLLM", "serve it", "vllm/"),
)
CALLS = (  # what the service does for 02 to 05
    ("gradients", "and Adam's updates"),
    ("answers", "sampled for grading"),
    ("files", "of a checkpoint"),
    ("logprobs", "to compare with"),
)

ROAD = (
    "The road: your machine has the data, the loop, the grader and the files; examples are split (01), a model is trained "
    "on them (02), evaluated (03), its adapter is exported (04), merged into the base model (05) and served with vLLM "
    "(06). A Tinker service holds the model: for 02 to 05 it computes gradients and updates, samples answers, gives "
    "files and log-probabilities.",
    (
        (10, 10, 1055, "data", ("your machine: the data, the loop, the grader, the files", *("",) * 5)),
        (10, 175, 1055, "rule", ("",) * 4),
        (20, 194, 260, "text", ("a Tinker service: the model", "the stub on this machine, or hosted")),
        (20, 58, 90, "data", ("examples", "data/*.json")),
        *((135 + 155 * place, 50, 140, "model", step) for place, step in enumerate(STEPS)),
        *((290 + 155 * place, 194, 140, "data", call) for place, call in enumerate(CALLS)),
    ),
    (
        ((110, 88), (135, 88), ""),
        *(((275 + 155 * place, 88), (290 + 155 * place, 88), "") for place in range(5)),
        *(((335 + 155 * place, 127), (335 + 155 * place, 194), "") for place in range(4)),
        *(((385 + 155 * place, 194), (385 + 155 * place, 127), "") for place in range(4)),
    ),
)

SPLIT = (
    "How the split keeps things apart: records of four templates go into the test set only; of the others, repeats "
    "of a question stay together in one part; training and validation never see the four templates.",
    (
        (10, 90, 130, "data", ("1,248 problems", "from templates")),
        (200, 30, 190, "rule", ("4 unseen templates", "other wording, other names")),
        (200, 150, 190, "data", ("the other templates", "repeats stay together")),
        (480, 20, 190, "model", ("test", "score once, at the end", "seen and unseen apart")),
        (480, 125, 190, "model", ("validation", "choose a checkpoint")),
        (480, 210, 190, "model", ("train", "learn from it")),
    ),
    (
        ((140, 109), (200, 59), ""),
        ((140, 129), (200, 179), ""),
        ((390, 59), (480, 59), ""),
        ((390, 165), (480, 85), ""),
        ((390, 179), (480, 154), ""),
        ((390, 193), (480, 239), ""),
    ),
)

COLUMNS = ((130, 170), (320, 260), (600, 240))  # x and width
LEAK = (
    "How a repeat leaks: cut row by row, one copy of a question goes into train and another into test, so the model answers it "
    "from memory. Cut group by group, all copies stay on one side.",
    (
        *(
            (10, y, 110, "text", lines)
            for y, lines in (
                (20, ("row by row", "train")),
                (110, ("", "test")),
                (220, ("group by group", "train")),
                (300, ("", "test")),
            )
        ),
        *(
            (x, y, width, kind, lines)
            for column, y, kind, lines in (
                (0, 20, "model", ("What is 2 + 2?", "row 0")),
                (1, 20, "model", ("Mia walks 3 km … by the road.", "row 1")),
                (2, 20, "model", ("Mia walks 5 km … by the road.", "row 4: another number")),
                (0, 110, "rule", ("what is  2 + 2?", "row 2, known from row 0")),
                (1, 110, "rule", ("Mia walks 3 km … by the road again.", "row 3, known from row 1")),
                (0, 220, "model", ("What is 2 + 2?", "rows 0 and 2")),
                (2, 220, "model", ("Mia walks 5 km … by the road.", "row 4")),
                (1, 300, "rule", ("Mia walks 3 km … by the road.", "rows 1 and 3")),
            )
            for x, width in [COLUMNS[column]]
        ),
    ),
    (((215, 78), (215, 110), ""), ((450, 78), (450, 110), "")),
)

READS = ("?", "↵", "Response", ":", "Final", "answer", ":", "␣", "5")
WRITES = (*READS[1:], "↵↵")
WIDE = 84
SHIFT = (
    "Shift by one: each token that the model reads has the next token as its target. Targets inside the prompt have "
    "weight 0, targets of the answer weight 1; the last prompt token has the first answer token as its target.",
    (
        *((10, 20 + 60 * row, 70, "text", (name,)) for row, name in enumerate(("reads", "writes", "weight"))),
        *(
            (90 + WIDE * place, 20 + 60 * row, WIDE - 8, "model" if learned and row else "data", (text,))
            for place, (read, write) in enumerate(zip(READS, WRITES, strict=True))
            for learned in [place >= 3]
            for row, text in enumerate((read, write, str(int(learned))))
        ),
    ),
    tuple(((128 + WIDE * place, 59), (128 + WIDE * place, 80), "") for place in range(len(READS))),
)


QUESTIONS = (  # tokens of a prompt in the plain format, without its beginning
    ("␣", "2", "+", "␣", "3", "=", "?"),
    ("␣", "1", "2", "-", "␣", "4", "=", "?"),
    ("␣", "9", "+", "␣", "9", "9", "=", "?"),
)
ANSWERS = (("␣", "5"), ("␣", "8"), ("␣", "1", "0", "8"))


def row_of_targets(y: int, name: str, question: tuple[str, ...], answer: tuple[str, ...]) -> list[tuple]:
    """Boxes of one example: its targets, grey with weight 0, coloured with weight 1."""
    boxes, x = [(10, y, 80, "text", (name,))], 95
    kinds = (
        ("data", ("…", *question, "↵", "Response", ":")),
        ("model", ("Final", "answer", ":", *answer)),
        ("rule", ("↵↵",)),
    )
    for kind, texts in kinds:
        for text in texts:
            width = 12 + 7 * len(text)
            boxes.append((x, y, width, kind, (text,)))
            x += width + 4
    return boxes


BATCH = (
    "A batch of three examples of unequal length. The targets of the prompt are grey and have weight 0; those of the "
    "answer are coloured and have weight 1, and the last of them is the stop text.",
    (
        *(
            box
            for place, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
            for box in row_of_targets(15 + 50 * place, f"example {place + 1}", question, answer)
        ),
        (95, 175, 130, "data", ("0: read only",)),
        (235, 175, 130, "model", ("1: learn to write",)),
        (375, 175, 130, "rule", ("1: learn to stop",)),
        (10, 175, 80, "text", ("weights",)),
    ),
    (),
)

STEP = (
    "One step of training. Your machine turns 8 examples into lists of tokens and sends them with forward_backward; the "
    "service computes the log-probability of each target, which comes back and gives the loss, and the gradient of A "
    "and B; optim_step sends the learning rate, and Adam changes A and B.",
    (
        (10, 20, 105, "text", ("your machine",)),
        (125, 20, 140, "data", ("8 examples", "question, answer")),
        (305, 20, 210, "data", ("8 lists of tokens", "of unequal length, with weights")),
        (555, 20, 160, "data", ("loss", "mean where weight is 1")),
        (755, 20, 140, "data", ("learning rate", "of this step")),
        (10, 150, 105, "text", ("the service",)),
        (305, 150, 210, "model", ("base model + A and B", "logprob of each target")),
        (555, 150, 160, "model", ("gradient", "of A and B only")),
        (755, 150, 140, "rule", ("Adam", "changes A and B")),
    ),
    (
        ((265, 49), (305, 49), ""),
        ((400, 78), (400, 150), "forward_backward"),
        ((470, 150), (570, 78), "logprobs"),
        ((515, 179), (555, 179), ""),
        ((715, 179), (755, 179), ""),
        ((825, 78), (825, 150), "optim_step"),
    ),
)


def lane(y: int, name: str, parts: tuple[tuple[int, int, str, str], ...]) -> tuple:
    """A line of time: its name, and what happens from where, for how long."""
    return (
        (10, y, 120, "text", (name,)),
        *((130 + start, y, width, kind, (text,)) for start, width, kind, text in parts),
    )


PIPELINE = (
    "Two ways to call the service. Waiting after each call leaves the server idle between forward_backward and "
    "optim_step; submitting both calls first lets it go straight from one to the other.",
    (
        *lane(15, "wait after each", ((0, 90, "text", "submit"), (290, 90, "text", "submit"))),
        *lane(
            60,
            "server",
            (
                (90, 190, "model", "forward_backward"),
                (280, 110, "text", "idle"),
                (390, 130, "rule", "optim_step"),
            ),
        ),
        *lane(125, "both at once", ((0, 90, "text", "submit both"),)),
        *lane(
            170,
            "server",
            ((90, 190, "model", "forward_backward"), (280, 130, "rule", "optim_step")),
        ),
    ),
    (),
)

CHECKPOINTS = (
    "Three kinds of checkpoint: save_state keeps weights and optimizer to resume from, save_weights_for_sampler "
    "keeps what a sampling client needs, save_weights_external keeps files to download.",
    (
        (10, 100, 150, "model", ("training client", "base + your adapter")),
        (270, 15, 230, "rule", ("save_state", "tinker://…/weights/…")),
        (270, 100, 230, "rule", ("save_weights_for_sampler", "tinker://…/sampler_weights/…")),
        (270, 185, 230, "rule", ("save_weights_external", "tinker://…/external_weights/…")),
        (590, 15, 200, "data", ("resume", "weights and Adam's state")),
        (590, 100, 200, "data", ("sample", "notebooks 02, 03, 05, 07, 09")),
        (590, 185, 200, "data", ("download", "notebook 04")),
    ),
    (
        ((160, 115), (270, 44), ""),
        ((160, 129), (270, 129), ""),
        ((160, 143), (270, 214), ""),
        ((500, 44), (590, 44), ""),
        ((500, 129), (590, 129), ""),
        ((500, 214), (590, 214), ""),
    ),
)

EVALUATION = (
    "How a score is made: test problems go to the base model, asked in three ways, and to the tuned model; the grader "
    "judges the answers, and beside them empty, reference and mismatched answers, whose score is known; counts become "
    "intervals, flips and a list of errors to read.",
    (
        (10, 100, 120, "data", ("test set", "never trained on")),
        (190, 20, 170, "model", ("base model", "asked in 3 ways")),
        (190, 100, 170, "model", ("tuned model", "format of training")),
        (190, 180, 170, "data", ("controls", "known right or wrong")),
        (430, 100, 120, "rule", ("grader", "right or not")),
        (620, 20, 190, "data", ("how good?", "counts and intervals")),
        (620, 100, 190, "data", ("luck?", "flips, McNemar's test")),
        (620, 180, 190, "data", ("wrong how?", "read the errors")),
    ),
    (
        ((130, 115), (190, 49), ""),
        ((130, 129), (190, 129), ""),
        ((130, 143), (190, 209), ""),
        ((360, 49), (430, 115), ""),
        ((360, 129), (430, 129), ""),
        ((360, 209), (430, 143), ""),
        ((550, 115), (620, 49), ""),
        ((550, 129), (620, 129), ""),
        ((550, 143), (620, 209), ""),
    ),
)

DIAGRAMS = {
    "road.svg": ROAD,
    "split.svg": SPLIT,
    "leak.svg": LEAK,
    "shift_by_one.svg": SHIFT,
    "batch.svg": BATCH,
    "training_step.svg": STEP,
    "submit_then_wait.svg": PIPELINE,
    "checkpoints.svg": CHECKPOINTS,
    "evaluation.svg": EVALUATION,
}
