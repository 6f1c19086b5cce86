"""Diagrams of notebooks 04 to 06: export, merge, parity, continuous batching. make_diagrams.py draws them."""

EXPORT = (
    "An export starts from a training checkpoint: a new training client is made from it, and saves external weights, "
    "which are two files. They go into one archive. A sampler checkpoint has no files to download.",
    (
        (10, 20, 180, "data", ("weights/NAME", "A, B and Adam's state")),
        (240, 20, 230, "model", ("training client", "create_training_client_from_state")),
        (520, 20, 190, "data", ("external_weights/NAME", "save_weights_external")),
        (400, 130, 210, "data", ("adapter_config.json", "rank, alpha, base model")),
        (630, 130, 210, "data", ("adapter_model.safetensors", "A and B of each matrix")),
        (520, 240, 190, "rule", ("model-checkpoint.tar.gz", "with a hash for each file")),
        (10, 130, 230, "data", ("sampler_weights/NAME", "only samples; no files to download")),
    ),
    (
        ((190, 49), (240, 49), ""),
        ((470, 49), (520, 49), ""),
        ((585, 79), (505, 130), ""),
        ((645, 79), (735, 130), ""),
        ((505, 188), (585, 240), ""),
        ((735, 188), (645, 240), ""),
    ),
)

MERGE = (
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

PARITY = (
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

PASS, LEFT = 5, 90  # pixels for one pass through the model, and before the first


def _answers(y: int, *answers: tuple[str, int, int]) -> list:
    """Boxes of one place: the answers it writes, as (name, first pass, passes)."""
    return [
        (LEFT + PASS * start, y, PASS * length, "model", (f"{name}: {length}",))
        for name, start, length in answers
    ]


def _place(y: int, number: int) -> tuple:
    return (10, y, 80, "text", (f"place {number}",))


BATCHING = (
    "Five answers of different lengths in a batch with two places. In fixed batches, a place that is done waits for the "
    "longest answer of its batch: 140 passes. With continuous batching the next answer starts at once: 110 passes.",
    (
        (LEFT, 5, 380, "text", ("fixed batches: 140 passes through the model",)),
        _place(40, 1),
        *_answers(40, ("A", 0, 20), ("C", 70, 30), ("E", 100, 40)),
        _place(84, 2),
        *_answers(84, ("B", 0, 70), ("D", 70, 25)),
        (LEFT, 140, 380, "text", ("continuous batching: 110 passes through the model",)),
        _place(175, 1),
        *_answers(175, ("A", 0, 20), ("C", 20, 30), ("D", 50, 25)),
        _place(219, 2),
        *_answers(219, ("B", 0, 70), ("E", 70, 40)),
    ),
    (),
)

DIAGRAMS = {
    "export.svg": EXPORT,
    "merge.svg": MERGE,
    "parity.svg": PARITY,
    "continuous_batching.svg": BATCHING,
}
