"""`course run --dry-run`: how much work a run would be, how long it takes on the stub, and what it costs hosted.

Records, steps and tokens are counted from the data, in the way the notebooks do it. Times and costs are estimates: speeds were
measured on one machine, and how long answers become is known only afterwards (here: as long as the reference answers).
"""

import logging
from dataclasses import asdict, dataclass
from datetime import date
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.errors import CourseError, DataError
from helpers.paths import ROOT
from helpers.runs.run import Run
from helpers.runs.settings import read_toml

# Speeds of the local base model on the stub, from the outputs of the committed notebooks (run 20261125-150848 of 2026-11-25; README,
# "What a run gives"): 2 cores with AVX-512 and bfloat16. FIXED is what is left of each notebook's time there.
MEASURED_ON = "2 cores with AVX-512 and bfloat16, 2026-11-25; slower ones took twice as long"
TOKENS_PER_SECOND = {"training": 723, "sampling": 560, "transformers": 142, "vllm": 553}
FIXED_SECONDS = {"split": 5, "train": 20, "evaluate": 12, "export": 5, "merge": 50, "vllm": 80}

CHARACTERS_PER_TOKEN = (
    2.66  # of the course's own data with the local model's tokenizer: 179,935 characters, 67,701 tokens
)
CHAT_TOKENS = 12  # what a chat format puts around a question and its answer
KINDS = ("train", "prefill", "sample")


@dataclass(frozen=True)
class Part:
    """One part of the split: records, and tokens of their prompts and of their answers."""

    records: int
    prompts: int
    answers: int
    longest: int
    longest_answer: int = 0

    def of(self, count: float) -> "Part":
        """As large a share of it as `count` records."""
        share = count / self.records if self.records else 0
        return Part(
            round(count),
            round(self.prompts * share),
            round(self.answers * share),
            self.longest,
            self.longest_answer,
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


def estimate(
    values: dict[str, dict[str, Any]],
    run: Run | None,
    counted: tuple[dict[str, Any], dict[str, Part], str] | None = None,
) -> dict[str, Any]:
    """Work, time and cost of the stages in `values`.

    Args:
        values: the parameters of each stage to be run, defaults included.
        run: the run to go on with, for stages after split; None for a new one.
        counted: from `count_parts`, if the caller has it already; then `values` may do without the split.

    Returns:
        `data`, `task`, `work`, `seconds` (by stage; None if no speed is known) and `cost` (dollars, or why there is none).

    Raises:
        DataError: the data can't be used.
        CourseError: prices.toml can't be used, or a number is impossible.
    """
    about, parts, counted_by = counted or count_parts(values, run)
    work = {stage: stage_work(stage, values, parts) for stage in values}
    kind, model = backend_and_model(values)
    return {
        "backend": kind,
        "model": model,
        "data": about
        | {"tokens_counted_by": counted_by}
        | {name: part.records for name, part in parts.items()},
        "work": {stage: asdict(one) | {"local": dict(one.local)} for stage, one in work.items()},
        "seconds": seconds(work) if kind == "stub" and not model else None,
        "speeds_measured_on": MEASURED_ON,
        "cost": cost(work, model) if kind == "hosted" else None,
    }


# Data


def count_parts(
    values: dict[str, dict[str, Any]], run: Run | None
) -> tuple[dict[str, Any], dict[str, Part], str]:
    """What the data are (`records`, `sources`, `task`, `notes`), sizes of the parts in records and tokens, and what counted the tokens.

    A new split is made in memory, as notebook 01 makes it; that of an existing run is read.

    Raises:
        DataError: the data can't be read, split or prompted with.
    """
    from helpers.data.records import load_data
    from helpers.data.split import PARTS, load_part, split_data
    from helpers.evaluate.tasks import choose_task

    about: dict[str, Any] = {"records": None, "sources": [], "notes": []}
    if "split" in values:
        own = values["split"]
        data = load_data(own["data_files"], own["columns"], own["instruction"], ROOT)
        task, rows = choose_task(own["task"], data.records, own["text_threshold"])
        split = split_data(
            rows,
            own["test_size"],
            own["validation_size"],
            own["seed"],
            unseen_templates=[name.strip() for name in own["unseen_templates"].split(",") if name.strip()],
            max_train=own["max_train"],
            max_validation=own["max_validation"],
            max_test=own["max_test"],
        )
        task, notes = task.finish(split)
        about = {
            "records": len(rows),
            "sources": [asdict(source) for source in data.sources],
            "notes": notes,
            "left_out": split.report["left_out"],
        }
        examples = {name: getattr(split, name) for name in PARTS}
    else:
        task = run.stage("split").results.task
        examples = {name: load_part(run.file(f"split/{file}")) for name, file in PARTS.items()}
    settings = values.get("train") or values.get("split") or (run.stage("train")["parameters"] if run else {})
    counter, counted_by = token_counter(
        settings.get("base_model", ""), settings.get("prompt_format", "guide")
    )
    parts = {
        name: count_tokens(rows, counter, settings.get("prompt_format", "guide"))
        for name, rows in examples.items()
    }
    limit = values.get("train", {}).get("max_length")
    longest = max(parts["train"].longest, parts["validation"].longest)
    if limit and longest > limit and counted_by != "characters":
        raise DataError(
            f"the longest example has {longest} tokens, over max_length={limit}",
            "raise max_length, or leave long examples out of the data",
        )
    about["notes"] = [*about["notes"], *_too_short(values, parts)]
    return about | {"task": task.name, "right_if": task.rule, "labels": task.labels}, parts, counted_by


def _too_short(values: dict[str, dict[str, Any]], parts: dict[str, Part]) -> list[str]:
    """A note if the model may not write as much as the reference answers have."""
    longest = max(parts["validation"].longest_answer, parts["test"].longest_answer)
    limits = {own["max_tokens"] for own in values.values() if own.get("max_tokens", longest) < longest}
    return (
        [
            f"the longest reference answer has {longest} tokens, and max_tokens={min(limits)} cuts answers off before: "
            f"-p max_tokens={longest + longest // 4}"
        ]
        if limits
        else []
    )


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


def token_counter(base_model: str, prompt_format: str) -> tuple[Any, str]:
    """What counts tokens, and its name: the tokenizer of a model folder on this machine, or `characters`."""
    from helpers.local_model import LOCAL_MODEL
    from helpers.paths import cache_dir

    folder = Path(base_model) if base_model else cache_dir() / "models" / LOCAL_MODEL
    if prompt_format == "guide" and (folder / "tokenizer.json").is_file():
        try:
            return ByFile(folder / "tokenizer.json"), f"the tokenizer of {folder.name}"
        except (
            Exception
        ):  # tokenizers raises bare Exception for a damaged file; an estimate is still possible
            pass
    return ByCharacters(), "characters"


def count_tokens(examples: list[dict[str, Any]], counter: Any, prompt_format: str) -> Part:
    """Tokens of all prompts and answers; for a chat format from characters, with what it puts around them.

    Raises:
        DataError: an answer holds text at which sampling would stop.
    """
    from helpers.train.prompts import GUIDE_STOP, PromptFormat, question_text

    if prompt_format == "guide":
        fmt = PromptFormat("guide", counter, list(GUIDE_STOP))
        sizes = [(len(fmt.prompt_tokens(example)), len(fmt.answer_tokens(example))) for example in examples]
    else:
        sizes = [
            (
                len(counter.encode(question_text(example, "chat"))) + CHAT_TOKENS,
                len(counter.encode(example["output"])) + 1,
            )
            for example in examples
        ]
    return Part(
        len(examples),
        sum(p for p, _ in sizes),
        sum(a for _, a in sizes),
        max((p + a for p, a in sizes), default=0),
        max((a for _, a in sizes), default=0),
    )


# Work


def stage_work(stage: str, values: dict[str, dict[str, Any]], parts: dict[str, Part]) -> Work:
    """What a notebook asks of the service and of this machine; 00, 01 and 04 ask for nothing that counts."""
    own, test = values[stage], parts["test"]
    if stage == "train":
        return _train_work(own, parts)
    if stage == "evaluate":
        # Tuned model, and base model if its answers are not taken over; then some problems again, twice; then some with several
        # answers, the prompt read once.
        once = test.of(test.records if own["base_run"] else 2 * test.records)
        again, several = (
            test.of(2 * min(own["subset"], test.records)),
            test.of(min(own["sampled_problems"], test.records)),
        )
        answers = once.answers + again.answers + several.answers * own["samples_each"]
        count = once.records + again.records + several.records * own["samples_each"]
        return Work(
            prefill=once.prompts + again.prompts + several.prompts,
            sample=min(answers, count * own["max_tokens"]),
            written_at_most=count * own["max_tokens"],
        )
    if stage == "merge":
        asked, compared = (
            test.of(min(own["test_limit"] or test.records, test.records)),
            test.of(min(own["parity_prompts"], test.records)),
        )
        return Work(
            prefill=compared.prompts + compared.answers,
            local=(("transformers", min(asked.answers, asked.records * own["max_tokens"])),),
        )
    if stage == "vllm":
        return Work(local=(("vllm", min(test.answers, test.records * own["max_tokens"])),))
    return Work()


def _train_work(own: dict[str, Any], parts: dict[str, Part]) -> Work:
    from helpers.train.plan import evaluation_steps, plan_steps

    train, validation = parts["train"], parts["validation"]
    plan = plan_steps(train.records, own["batch_size"], own["epochs"], own["learning_rate"], own["seed"])
    looks = len(evaluation_steps(len(plan), own["eval_every"], own["epochs"], own["eval_every_epochs"]))
    an_epoch = (
        train.prompts + train.answers - train.records
    )  # a datum is one shorter than its tokens: see notebook 02
    seen = sum(len(step.examples) for step in plan)
    at_most = looks * validation.records * own["max_tokens"]
    return Work(
        steps=len(plan),
        tokens_an_epoch=an_epoch,
        train=round(an_epoch * seen / train.records),
        # A look reads every validation example for its loss, and every prompt to answer it.
        prefill=looks * (2 * validation.prompts + validation.answers),
        sample=min(looks * validation.answers, at_most),
        written_at_most=at_most,
    )


# Time and cost


def backend_and_model(values: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """`stub`, `hosted` or `url`, and the name of the model; an empty name is the local base model.

    Raises:
        BackendError: there is no such backend.
    """
    from helpers.train.backend import HOSTED_MODEL, choose_backend

    names = [own["backend_name"] for own in values.values() if "backend_name" in own]
    kind, _ = choose_backend(names[0] if names else "stub")
    model = next(
        (
            own["base_model"]
            for stage in ("train", "split")
            if (own := values.get(stage)) and own["base_model"]
        ),
        "",
    )
    return kind, model or (HOSTED_MODEL if kind == "hosted" else "")


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


def prices() -> dict[str, Any]:
    """helpers/runs/prices.toml: `source`, `date`, and for each model `train`, `prefill` and `sample`.

    Raises:
        CourseError: it is not TOML, or a price is not a number of dollars.
    """
    path = Path(__file__).with_name("prices.toml")
    table = read_toml(path)
    for model, row in table.items():
        if model in ("source", "date"):
            continue
        if not isinstance(row, dict):
            raise CourseError(
                f"{path}: {model!r} is no section of a model",
                f'write ["{model}"] and below it train, prefill and sample',
            )
        for kind, price in row.items():
            if (
                kind not in KINDS
                or isinstance(price, bool)
                or not isinstance(price, (int, float))
                or not 0 <= price < 10000
            ):
                raise CourseError(
                    f"{path}: {kind} = {price!r} of {model}",
                    f"{', '.join(KINDS)} are dollars per million tokens, such as train = 0.5",
                )
    return table


def published_prices(model: str) -> dict[str, float]:
    """Dollars per million tokens, from the price list that Tinker publishes for programs. Empty where it can't be had or lacks the model."""
    rates = cost_estimation().fetch_model_pricing(model, url=cost_estimation().PRICING_URL)
    return {kind: getattr(rates, f"{kind}_usd_per_million") for kind in KINDS} if rates else {}


def cost_estimation() -> ModuleType:
    """The cookbook's module of prices. It logs what it could not fetch; the estimate says so by itself."""
    from tinker_cookbook.utils import cost_estimation as module

    module.logger.setLevel(logging.CRITICAL)
    return module


def cost(work: dict[str, Work], model: str) -> dict[str, Any]:
    """Dollars for the tokens, by prices.toml or else by the published price list, or `missing`: what neither holds."""
    table = prices()
    where, day, row = "helpers/runs/prices.toml", str(table.get("date", "")), table.get(model) or {}
    if not row and (published := published_prices(model)):
        where, day, row = cost_estimation().PRICING_URL, f"{date.today()}", published
    tokens = {kind: sum(getattr(one, kind) for one in work.values()) for kind in KINDS}
    at_most = tokens | {"sample": sum(one.written_at_most for one in work.values())}
    missing = [kind for kind in KINDS if kind not in row and tokens[kind]]
    found = {
        "tokens": tokens,
        "sample_at_most": at_most["sample"],
        "missing": missing,
        "prices": where,
        "date": day,
        "source": table.get("source", ""),
    }
    if not missing:
        for name, amounts in (("dollars", tokens), ("dollars_at_most", at_most)):
            found[name] = round(sum(amount * row.get(kind, 0) for kind, amount in amounts.items()) / 1e6, 4)
    return found
