"""How much work a run would be, how long it takes on the stub, and what it costs hosted.

Records, steps and tokens are counted from the data, in the way the notebooks do it. Times and costs are
estimates (dollars: prices.py): speeds were measured on one machine, and how long answers become is known only
afterwards (here: as long as the reference answers).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from heapq import nlargest
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

from helpers.data.conversation import call_text, conversation, has_conversation
from helpers.errors import RunError
from helpers.evaluate.promptings import EXAMPLES
from helpers.paths import ROOT
from helpers.runs.prices import KINDS, cost
from helpers.runs.run import Run
from helpers.train.supervised import LAST, training_tokens

# Speeds of the local base model on the stub, from the outputs of the committed notebooks (run 20261125-150848
# of 2026-11-25): 2 cores with AVX-512 and bfloat16. FIXED is what is left of each notebook's time there.
MEASURED_ON = "2 cores with AVX-512 and bfloat16, 2026-11-25; slower ones took twice as long"
TOKENS_PER_SECOND = {"training": 723, "sampling": 560, "transformers": 142, "vllm": 553}
FIXED_SECONDS = {"split": 5, "train": 20, "evaluate": 12, "export": 5, "merge": 50, "vllm": 80}

# The course's own data with the local model's tokenizer: 179,935 characters, 67,701 tokens.
CHARACTERS_PER_TOKEN = 2.66
CHAT_TOKENS = 12  # what a chat format puts around a question and its answer
MOST_COUNTED = 10_000  # examples of a part whose tokens are counted


@dataclass(frozen=True)
class Part:
    """One part of the split: records, and tokens of their prompts and of their answers."""

    records: int
    prompts: int
    answers: int
    longest: int
    longest_answer: int = 0
    longest_prompt: int = 0

    def of(self, count: float) -> "Part":
        """As large a share of it as `count` records."""
        share = count / self.records if self.records else 0
        return Part(
            round(count),
            round(self.prompts * share),
            round(self.answers * share),
            self.longest,
            self.longest_answer,
            self.longest_prompt,
        )


@dataclass(frozen=True)
class Work:
    """What a run has to do. Tokens are those that Tinker bills: trained on, read (prefill), written (sample).

    Attributes:
        written_at_most: tokens written if every answer is as long as `max_tokens` allows.
        local: tokens that notebooks 05 and 06 write on this machine, by engine.
    """

    steps: int = 0
    tokens_an_epoch: int = 0
    train: int = 0
    prefill: int = 0
    sample: int = 0
    written_at_most: int = 0
    local: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Counted:
    """What the data are, and how large.

    Attributes:
        about: `records`, `sources`, `notes`, `left_out`, `task`, `right_if` and `labels`.
        parts: records and tokens of `train`, `validation` and `test`.
        by: what counted the tokens, the name of a tokenizer or `characters`.
    """

    about: dict[str, Any]
    parts: dict[str, Part]
    by: str


def estimate(settings: Mapping[str, Any], run: Run | None, counted: Counted) -> dict[str, Any]:
    """Work, time and cost of the stages in `settings`.

    Args:
        settings: of each stage to be run, as `settings_until` gives them; they may do without the split.
        run: the run to go on with, for stages after split; None for a new one.
        counted: from `count_parts`.

    Returns:
        `backend`, `model`, `data`, `work`, `seconds` (by stage; None if no speed is known) and `cost` (None
        where nothing is billed).

    Raises:
        CourseError: prices.toml can't be used.
    """
    work = {stage: stage_work(stage, settings, counted.parts) for stage in settings}
    kind, model = backend_and_model(settings, run)
    return {
        "backend": kind,
        "model": model,
        "data": counted.about
        | {"tokens_counted_by": counted.by}
        | {name: part.records for name, part in counted.parts.items()},
        "work": {stage: asdict(one) | {"local": dict(one.local)} for stage, one in work.items()},
        "seconds": seconds(work) if kind == "stub" and not model else None,
        "speeds_measured_on": MEASURED_ON,
        "cost": _cost(work, model) if kind == "hosted" else None,
    }


def _cost(work: dict[str, Work], model: str) -> dict[str, Any]:
    tokens = {kind: sum(getattr(one, kind) for one in work.values()) for kind in KINDS}
    return cost(tokens, sum(one.written_at_most for one in work.values()), model)


# Data


def count_parts(settings: Mapping[str, Any], run: Run | None) -> Counted:
    """Count records and tokens.

    A new split is made in memory, as notebook 01 makes it; that of an existing run is read.

    Raises:
        DataError: the data can't be read or split, or the renderer can't write a record, or train on it.
        RunError: the run has no split.
    """
    about, task, examples = _new_parts(settings["split"]) if "split" in settings else _parts_of(run)
    trained = settings.get("train") or settings.get("split") or (run.stage("train").settings if run else None)
    base_model, prompt_format = (trained.base_model, trained.prompt_format) if trained else ("", "guide")
    train_on = settings["train"].train_on if "train" in settings else LAST
    plain = train_on == LAST and not any(map(has_conversation, chain(*examples.values())))
    counter, by = token_counter(base_model, prompt_format, plain)
    parts = {
        name: count_tokens(rows, counter, prompt_format, LAST if name == "test" else train_on)
        for name, rows in examples.items()
    }
    about["notes"] = [*about["notes"], *_too_short(settings, parts)]
    return Counted(about | {"task": task.name, "right_if": task.rule, "labels": task.labels}, parts, by)


def _new_parts(own: Any) -> tuple[dict[str, Any], Any, dict[str, list[dict[str, Any]]]]:
    """The split that notebook 01 would make: what to say of it, the task, and the examples of each part."""
    from helpers.data.records import load_data
    from helpers.data.split import PARTS, split_data
    from helpers.evaluate.tasks import choose_task

    data = load_data(own.data_files, own.columns, own.instruction, ROOT, own.skip_bad)
    task, rows = choose_task(own.task, data.records)
    split = split_data(
        rows,
        own.test_size,
        own.validation_size,
        own.seed,
        unseen_templates=[name.strip() for name in own.unseen_templates.split(",") if name.strip()],
        max_train=own.max_train,
        max_validation=own.max_validation,
        max_test=own.max_test,
    )
    about = {
        "records": len(rows),
        "sources": [asdict(source) for source in data.sources],
        "notes": split.report["notes"] + task.check(split),
        "left_out": split.report["left_out"],
    }
    return about, task, {name: getattr(split, name) for name in PARTS}


def _parts_of(run: Run | None) -> tuple[dict[str, Any], Any, dict[str, list[dict[str, Any]]]]:
    """The same, read from a run."""
    from helpers.data.split import PARTS, load_part

    if run is None:
        raise RunError("a new run begins with its split", "name the run to go on with")
    about: dict[str, Any] = {"records": None, "sources": [], "notes": []}
    results: Any = run.stage("split").results
    return about, results.task, {name: load_part(run.file(f"split/{file}")) for name, file in PARTS.items()}


def _too_short(settings: Mapping[str, Any], parts: dict[str, Part]) -> list[str]:
    """A note if the model may not write as much as the reference answers have."""
    longest = max(parts["validation"].longest_answer, parts["test"].longest_answer)
    limits = [own.max_tokens for own in settings.values() if getattr(own, "max_tokens", longest) < longest]
    if not limits:
        return []
    return [
        f"the longest reference answer has {longest} tokens, and max_tokens={min(limits)} cuts answers off "
        f"before: -p max_tokens={longest + longest // 4}"
    ]


class ByCharacters:
    """Stands in for a tokenizer where none is at hand: a token for every CHARACTERS_PER_TOKEN characters."""

    def encode(self, text: str, add_special_tokens: bool = False) -> range:
        return range(ceil(len(text) / CHARACTERS_PER_TOKEN))


class ByFile:
    """A `tokenizer.json`, read without loading transformers."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def token_counter(base_model: str, prompt_format: str, plain: bool = True) -> tuple[Any, str]:
    """What counts tokens, and its name: the tokenizer of a model folder on this machine, or `characters`.

    It is the renderer with that tokenizer, unless the format is the guide's and the data are plain.

    Args:
        plain: each record is a question and an answer, and the answer is what is trained on.
    """
    from helpers.local_model import LOCAL_MODEL
    from helpers.paths import cache_dir
    from helpers.train.renderers import get_renderer

    folder = Path(base_model) if base_model else cache_dir() / "models" / LOCAL_MODEL
    by = f"the tokenizer of {folder.name}"
    if not (folder / "tokenizer.json").is_file():
        return ByCharacters(), "characters"
    if prompt_format != "guide" or not plain:
        return get_renderer(prompt_format, str(folder)), by
    try:
        return ByFile(folder / "tokenizer.json"), by
    except Exception:  # tokenizers raises bare Exception for a damaged file; an estimate is still possible
        return ByCharacters(), "characters"


def count_tokens(
    examples: list[dict[str, Any]], counter: Any, prompt_format: str, train_on: str = LAST
) -> Part:
    """Tokens of all prompts and answers. Without a tokenizer they are estimated: for a chat format, with
    what it puts around each turn.

    Of more than MOST_COUNTED examples, some are counted for the sums, and the longest ones for the maxima.

    Raises:
        DataError: the format can't write an example, or can't train on it like that.
    """
    size = _size_by(counter, prompt_format, train_on)
    every = max(1, ceil(len(examples) / MOST_COUNTED))
    sizes = [size(example) for example in examples[::every]]
    longest = nlargest(MOST_COUNTED // 10, examples, key=_characters) if every > 1 else []
    extremes = sizes + [size(example) for example in longest]
    share = len(examples) / len(sizes) if sizes else 1
    return Part(
        len(examples),
        round(sum(p for p, _ in sizes) * share),
        round(sum(a for _, a in sizes) * share),
        max((p + a for p, a in extremes), default=0),
        max((a for _, a in extremes), default=0),
        max((p for p, _ in extremes), default=0),
    )


def _size_by(counter: Any, prompt_format: str, train_on: str) -> Callable[[dict[str, Any]], tuple[int, int]]:
    """What gives the tokens of a record's prompt and of its answer."""
    from helpers.train.renderers import prompt_tokens

    if not isinstance(counter, ByFile | ByCharacters):

        def rendered(record: dict[str, Any]) -> tuple[int, int]:
            prompt = len(prompt_tokens(record, counter))
            return prompt, len(training_tokens(record, counter, train_on)[0]) - prompt

        return rendered
    size = _guide_size if prompt_format == "guide" else _chat_size
    return lambda record: size(record, counter)


def _characters(record: dict[str, Any]) -> int:
    return sum(len(_whole(turn)) for turn in conversation(record))


def _guide_size(record: dict[str, Any], counter: Any) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, turn by turn as the renderer encodes them."""
    from helpers.train.guide import before_input, guide_answer, guide_turn

    *before, answer = conversation(record, before_input("guide"))
    start = len(counter.encode("", add_special_tokens=True))
    prompt = sum(len(counter.encode(guide_turn(turn))) for turn in before)
    return start + prompt, len(counter.encode(guide_answer(answer, record["instruction"])))


def _chat_size(record: dict[str, Any], counter: Any) -> tuple[int, int]:
    *before, answer = [len(counter.encode(_whole(turn))) for turn in conversation(record)]
    return sum(before) + CHAT_TOKENS * len(before), answer + 1


def _whole(turn: Any) -> str:
    """All that a turn says."""
    calls = call_text(turn["tool_calls"]) if turn.get("tool_calls") else ""
    return turn["content"] + calls + turn.get("reasoning_content", "")


# Work


def stage_work(stage: str, settings: Mapping[str, Any], parts: dict[str, Part]) -> Work:
    """What a notebook asks of the service and of this machine; 01 and 04 ask for nothing that counts."""
    own, test = settings[stage], parts["test"]
    if stage == "train":
        return _train_work(own, parts)
    if stage == "evaluate":
        return _evaluate_work(own, parts)
    if stage == "merge":
        asked = test.of(min(own.test_limit or test.records, test.records))
        compared = test.of(min(own.parity_prompts, test.records))
        return Work(
            prefill=compared.prompts + compared.answers,
            local=(("transformers", min(asked.answers, asked.records * own.max_tokens)),),
        )
    if stage == "vllm":
        return Work(local=(("vllm", min(test.answers, test.records * own.max_tokens)),))
    return Work()


def _train_work(own: Any, parts: dict[str, Part]) -> Work:
    from helpers.train.schedule import evaluation_steps, plan_steps

    train, validation = parts["train"], parts["validation"]
    plan = plan_steps(train.records, own.batch_size, own.epochs, own.learning_rate, own.seed)
    evaluations = len(evaluation_steps(len(plan), own.eval_every, own.epochs, own.eval_every_epochs))
    # A datum is one token shorter than its example: see notebook 02.
    an_epoch = train.prompts + train.answers - train.records
    trial = min(own.trial_batches * own.batch_size, train.records)
    seen = 2 * trial + sum(len(step.examples) for step in plan)
    at_most = evaluations * validation.records * own.max_tokens
    return Work(
        steps=len(plan),
        tokens_an_epoch=an_epoch,
        train=round(an_epoch * seen / train.records),
        # An evaluation reads every validation example for its loss, and every prompt to answer it.
        prefill=evaluations * (2 * validation.prompts + validation.answers),
        sample=min(evaluations * validation.answers, at_most),
        written_at_most=at_most,
    )


def _evaluate_work(own: Any, parts: dict[str, Part]) -> Work:
    """Tuned model, and base model in three ways, one of them after examples, if its answers are not taken
    over; then some problems again, through Inspect; then some with several answers, the prompt read once.
    """
    test, shown = parts["test"], parts["train"].of(min(EXAMPLES, parts["train"].records))
    once = test.of(test.records if own.base_run else 4 * test.records)
    before = 0 if own.base_run else test.records * (shown.prompts + shown.answers)
    again = test.of(min(own.subset, test.records))
    several = test.of(min(own.sampled_problems, test.records))
    answers = once.answers + again.answers + several.answers * own.samples_each
    count = once.records + again.records + several.records * own.samples_each
    return Work(
        prefill=once.prompts + before + again.prompts + several.prompts,
        sample=min(answers, count * own.max_tokens),
        written_at_most=count * own.max_tokens,
    )


# Time and cost


def backend_and_model(settings: Mapping[str, Any], run: Run | None) -> tuple[str, str]:
    """`stub`, `hosted` or `url`, and the name of the model; an empty name is the local base model.

    Args:
        run: the run to go on with, which knows the model that it trained.

    Raises:
        BackendError: there is no such backend.
    """
    from helpers.train.backend import choose_backend
    from helpers.train.lineup import hosted_model

    names = [own.backend_name for own in settings.values() if hasattr(own, "backend_name")]
    kind, _ = choose_backend(names[0] if names else "stub")
    own = [settings[stage].base_model for stage in ("train", "split") if stage in settings]
    model = next(filter(None, own), "")
    if kind == "hosted" and not model:
        model = (run and run.manifest.base_model) or hosted_model()
    return kind, model


def seconds(work: dict[str, Work]) -> dict[str, int]:
    """Seconds a stage, by the measured speeds."""
    speed = TOKENS_PER_SECOND
    return {
        stage: round(
            FIXED_SECONDS[stage]
            + one.train / speed["training"]
            + one.sample / speed["sampling"]
            + sum(tokens / speed[engine] for engine, tokens in one.local)
        )
        for stage, one in work.items()
    }
