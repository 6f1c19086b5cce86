"""Standard benchmarks through Inspect: the real `inspect_evals` tasks, asked of a Tinker sampler or of a served model.

    results = run_inspect_eval(sampling_client=sampling_client, benchmark="gsm8k", batch_size=32)
    print(f"GSM8K Score: {results['score']:.2f}%")

    run_inspect_eval(sampling_client, "gsm8k", dataset_path="test.jsonl")        # without the model hub
    run_inspect_eval(benchmark="gsm8k", server_url="http://127.0.0.1:8000/v1")    # the same task, asked of vLLM
    inspect eval helpers/evaluate/benchmarks.py@own_data -T data=test_set.json --model …    # our own data, from the shell

A task's prompts, examples and scorer are those of `inspect_evals`. Only two things are ours: where its records come from,
if `dataset_path` is given, and that a request which fails twice ends the evaluation instead of leaving it out of the score.
"""

import contextlib
import csv
import difflib
import importlib
import inspect
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.scorer import CORRECT, INCORRECT, Score, accuracy, scorer, stderr
from inspect_ai.solver import generate
from tinker_cookbook.eval.inspect_utils import DEFAULT_MAX_TOKENS, InspectAPIFromTinkerSampling

from helpers.clock import worked
from helpers.data.split import load_json_files
from helpers.errors import BackendError, DataError
from helpers.evaluate.grading import check_final_answer
from helpers.paths import runs_dir
from helpers.train import guide_renderer
from helpers.train.prompts import GUIDE_STOP, question_text, renderer_for

guide_renderer.register()


# ---------------------------------------------------------------------------------------------------------------------
# Benchmarks, and their published files


@dataclass(frozen=True)
class Benchmark:
    """A task of `inspect_evals`, and what to know about the file that its authors publish.

    Attributes:
        module: where the task is defined.
        task: its function there.
        read: makes records in the hub's form from a published file.
        where: where to get that file.
        train_file: name of the file beside it that few-shot examples are taken from; empty if the task has none.
    """

    module: str
    task: str
    read: Callable[[Path], list[dict]]
    where: str
    train_file: str = ""


def _json_lines(path: Path, check: Callable[[dict], str]) -> list[dict]:
    """Rows of a JSON Lines file; `check` says what a row lacks, or nothing."""
    rows = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}", "get the published file again"
            ) from error
        lacks = check(row) if isinstance(row, dict) else "it is no object with fields"
        if lacks:
            raise DataError(
                f"{path}, line {number}: {lacks}", "get the published file again, or name the right benchmark"
            )
        rows.append(row)
    return rows


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {path}: {error}", "check the path and its permissions") from error
    if not text.strip():
        raise DataError(f"{path} is empty", "get the published file again")
    return text


def _read_gsm8k(path: Path) -> list[dict]:
    def check(row: dict) -> str:
        if not all(
            isinstance(row.get(field), str) and row[field].strip() for field in ("question", "answer")
        ):
            return "`question` and `answer` must be text"
        return "" if "####" in row["answer"] else "`answer` has no `####` before the final answer"

    return _json_lines(path, check)


def _read_hellaswag(path: Path) -> list[dict]:
    def check(row: dict) -> str:
        if not isinstance(row.get("ctx"), str) or not isinstance(row.get("endings"), list):
            return "`ctx` must be text and `endings` a list"
        if "label" not in row or str(row["label"]) == "":
            return "there is no `label`: the test file has none, use hellaswag_val.jsonl"
        if not str(row["label"]).isdigit() or int(row["label"]) >= len(row["endings"]):
            return f"`label` is {row['label']!r}, and there are {len(row['endings'])} endings"
        return ""

    rows = _json_lines(path, check)
    return [
        row | {"source_id": str(row.get("source_id") or row.get("ind") or number)}
        for number, row in enumerate(rows)
    ]


MMLU_COLUMNS = ["Question", "A", "B", "C", "D", "Answer"]


def _read_mmlu(path: Path) -> list[dict]:
    """MMLU's CSV without a header (question, four choices, letter; the file's name is the subject), or with one."""
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"there is no .csv file in {path}", "name the folder `test` of MMLU's archive, or one file of it"
        )
    return [row for file in files for row in _read_mmlu_file(file)]


def _read_mmlu_file(path: Path) -> list[dict]:
    reader = csv.reader(io.StringIO(_read(path), newline=""))
    subject = path.stem.removesuffix("_test").removesuffix("_val").removesuffix("_dev")
    rows, header = [], None
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if header is None and set(MMLU_COLUMNS) <= set(cells):
                header = cells
                continue
            if not cells:
                continue
            row = dict(zip(header or MMLU_COLUMNS, cells))
            letter = row.get("Answer", "").strip().upper()
            if len(cells) != len(header or MMLU_COLUMNS) or letter not in tuple("ABCD"):
                raise DataError(
                    f"{where}: a row must be a question, four choices and a letter from A to D",
                    "get the published file again",
                )
            rows.append(
                {
                    "question": row["Question"],
                    "choices": [row[name] for name in "ABCD"],
                    "answer": "ABCD".index(letter),
                    "subject": row.get("Subject") or subject,
                }
            )
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num} is not CSV: {error}", "get the published file again"
        ) from error
    return rows


BENCHMARKS = {
    "gsm8k": Benchmark(
        "inspect_evals.gsm8k.gsm8k",
        "gsm8k",
        _read_gsm8k,
        "test.jsonl, and train.jsonl beside it for the worked examples in the prompt, are in "
        "https://github.com/openai/grade-school-math/tree/master/grade_school_math/data",
        "train.jsonl",
    ),
    "mmlu": Benchmark(
        "inspect_evals.mmlu.mmlu",
        "mmlu_0_shot",
        _read_mmlu,
        "the folder `test` of https://people.eecs.berkeley.edu/~hendrycks/data.tar, or one .csv file of it",
    ),
    "hellaswag": Benchmark(
        "inspect_evals.hellaswag.hellaswag",
        "hellaswag",
        _read_hellaswag,
        "hellaswag_val.jsonl is in https://github.com/rowanz/hellaswag/tree/master/data",
    ),
}


def _local_records(benchmark: str, dataset_path: str | Path) -> dict[str, list[dict]]:
    """Records by split: `test` and `validation` are the named file, `train` the one beside it if there is one."""
    known = BENCHMARKS[benchmark]
    path = Path(dataset_path).expanduser()
    if not path.exists():
        raise DataError(f"{benchmark}'s file {path} does not exist", f"get it: {known.where}")
    if path.is_dir() and known.read is not _read_mmlu:
        raise DataError(f"{path} is a folder", f"name one file: {known.where}")
    rows = known.read(path)
    records = {"test": rows, "validation": rows}
    train = path.parent / known.train_file
    if known.train_file and train.exists() and train != path:
        records["train"] = known.read(train)
    return records


@contextlib.contextmanager
def _records_from(module: Any, records: dict[str, list[dict]] | None) -> Iterator[None]:
    """While a task is made, let its module read `records`, or else the hub, without the minutes of retries of its own."""

    def read(
        path: str,
        split: str,
        sample_fields: Any,
        shuffle: bool = False,
        seed: int | None = None,
        limit: int | None = None,
        **where: Any,
    ) -> MemoryDataset:
        rows = (
            datasets.Dataset.from_list(records[split])
            if records
            else datasets.load_dataset(path, split=split, **where)
        )
        rows = (
            rows.shuffle(seed=seed) if shuffle else rows
        )  # the generator of the hub's reader: the same order
        rows = rows.select(range(min(limit, len(rows)))) if limit else rows
        samples = [sample_fields(row) for row in rows]
        return MemoryDataset(
            [s for made in samples for s in (made if isinstance(made, list) else [made])], name=path
        )

    original = module.hf_dataset
    module.hf_dataset = read
    try:
        yield
    finally:
        module.hf_dataset = original


def _make_task(benchmark: str, dataset_path: str | Path | None, task_args: dict[str, Any]) -> Task:
    if benchmark not in BENCHMARKS:
        if dataset_path is not None:
            raise DataError(
                f"dataset_path can't be used with {benchmark!r}", f"it is for {', '.join(BENCHMARKS)}"
            )
        function, remedy = (
            _registered_task(benchmark),
            "this task reads from the hub: run it where the hub can be reached",
        )
        return _call(function, benchmark, task_args, remedy)
    known = BENCHMARKS[benchmark]
    records = _local_records(benchmark, dataset_path) if dataset_path is not None else None
    if records and known.train_file and "train" not in records and task_args.get("fewshot") != 0:
        if task_args.get("fewshot"):
            raise DataError(
                f"fewshot={task_args['fewshot']} needs {known.train_file} beside {dataset_path}",
                f"get it: {known.where}",
            )
        print(
            f"no {known.train_file} beside {dataset_path}: the prompt holds no worked examples (fewshot=0), which published scores have"
        )
        task_args = task_args | {"fewshot": 0}
    module = importlib.import_module(known.module)
    with _records_from(module, records):
        return _call(
            getattr(module, known.task),
            benchmark,
            task_args,
            f"without the hub, give its published file as dataset_path=…: {known.where}",
        )


def _call(function: Callable[..., Task], benchmark: str, task_args: dict[str, Any], remedy: str) -> Task:
    try:
        inspect.signature(function).bind(**task_args)
    except TypeError as error:
        takes = ", ".join(inspect.signature(function).parameters)
        raise DataError(f"{benchmark}: {error}", f"task_args may hold {takes}") from error
    try:
        return function(**task_args)
    except (OSError, LookupError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{benchmark}'s records can't be read: {cause}", remedy) from error


def _registered_task(name: str) -> Callable[..., Task]:
    """Any other task of `inspect_evals`, by its name there; it reads from where it wants."""
    from inspect_evals import _registry

    tasks = {
        key: value
        for key, value in vars(_registry).items()
        if callable(value) and hasattr(value, "__registry_info__")
    }
    if name not in tasks:
        near = difflib.get_close_matches(name, {*BENCHMARKS, *tasks}, n=3)
        raise DataError(
            f"there is no benchmark {name!r}",
            f"did you mean {' or '.join(near)}?"
            if near
            else f"use {', '.join(BENCHMARKS)}, or the name of a task of inspect_evals",
        )
    return tasks[name]


# ---------------------------------------------------------------------------------------------------------------------
# Our own data as an Inspect task


@scorer(metrics=[accuracy(), stderr()])
def final_answer_scorer(grader: Callable[[str, str], Any] = check_final_answer):
    """Inspect's scorer with a grader of the course: by default the final answer, compared by value."""

    async def score(state, target) -> Score:
        verdict = grader(state.output.completion, target.text)
        return Score(
            value=CORRECT if verdict else INCORRECT, answer=verdict.found or "", explanation=verdict.why
        )

    return score


@task
def own_data(
    data: str | Sequence[dict] = "runs/latest/split/test_set.json",
    prompt_format: str = "guide",
    grader: Callable[[str, str], Any] = check_final_answer,
) -> Task:
    """The course's records as an Inspect task, judged by final answer, or by another grader.

    Args:
        data: a file of any form that `load_json_files` reads, or records.
        prompt_format: of the renderer that asks; it decides how an `input` follows its instruction.
        grader: takes an answer and a reference, gives a verdict; `task_of(run).grader` is that of a run.

    Raises:
        DataError: the file is not usable, or there are no records.
    """
    records = load_json_files([data]) if isinstance(data, (str, Path)) else list(data)
    if not records:
        raise DataError("there are no records to ask about", "give a test set that has some")
    return Task(
        name="own_data",
        dataset=MemoryDataset(
            [
                Sample(
                    id=number,
                    input=question_text(row, prompt_format),
                    target=str(row.get("answer") or row["output"]),
                    metadata={"category": row.get("category")},
                )
                for number, row in enumerate(records)
            ],
            name=Path(data).name if isinstance(data, (str, Path)) else "own_data",
        ),
        solver=[generate()],
        scorer=final_answer_scorer(grader),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Asking


class _Sampler(InspectAPIFromTinkerSampling):
    """The cookbook's bridge, plus a progress count, a way to stop, and the truth about answers that were cut off."""

    def __init__(self, *args: Any, on_answer: Callable[[], None], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.on_answer = on_answer

    async def generate(self, input, tools, tool_choice, config) -> ModelOutput:
        output = await super().generate(input, tools, tool_choice, config)
        if len(output.choices) == 1 and output.usage.output_tokens >= (
            config.max_tokens or DEFAULT_MAX_TOKENS
        ):
            output.choices[0].stop_reason = "max_tokens"
        self.on_answer()
        return output


def _tinker_model(
    sampling_client: Any, renderer: str | None, on_answer: Callable[[], None]
) -> tuple[Model, str]:
    base = sampling_client.get_base_model()
    if renderer is not None and not isinstance(renderer, str):
        renderer = getattr(renderer, "_renderer_name", None) or getattr(renderer, "name", "")
    renderer = renderer or renderer_for(base, sampling_client.get_tokenizer())
    try:
        api = _Sampler(renderer, base, sampling_client=sampling_client, on_answer=on_answer)
    except ValueError as error:
        raise DataError(
            f"no renderer {renderer!r}: {error}",
            "use 'guide', or a tinker_cookbook renderer such as 'qwen3_instruct'",
        ) from error
    return Model(api, GenerateConfig()), renderer


def _served_model(server_url: str, api_key: str, wanted: str | None, on_answer: Callable[[], None]) -> Model:
    import httpx

    try:
        answer = httpx.get(
            f"{server_url.rstrip('/')}/models", headers={"Authorization": f"Bearer {api_key}"}, timeout=10
        )
        answer.raise_for_status()
        names = [entry["id"] for entry in answer.json()["data"]]
        name = wanted or names[0]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise BackendError(
            f"no OpenAI-compatible server answers at {server_url}: {error}",
            "start one (`vllm serve FOLDER`) and give its address with /v1 at the end",
        ) from error
    if name not in names or (wanted is None and len(names) > 1):
        raise DataError(f"{server_url} serves {', '.join(names)}", "say which one: model=…")
    model = get_model(f"openai-api/vllm/{name}", base_url=server_url, api_key=api_key, memoize=False)
    ask = model.api.generate

    async def counted(*args: Any, **kwargs: Any) -> Any:
        output = await ask(*args, **kwargs)
        on_answer()
        return output

    model.api.generate = counted
    return model


def _stop_of(renderer: Any) -> list[str] | None:
    """The stop texts of the guide's format; chat templates end an answer with a token that the server knows."""
    return list(GUIDE_STOP) if getattr(renderer, "name", renderer) == "guide" else None


@worked("sampling")
def run_inspect_eval(
    sampling_client: Any = None,
    benchmark: str | Task = "gsm8k",
    batch_size: int = 32,
    limit: int | None = None,
    *,
    dataset_path: str | Path | None = None,
    renderer: Any = None,
    max_tokens: int = 1024,
    temperature: float = 0.0,
    seed: int = 42,
    task_args: dict[str, Any] | None = None,
    log_dir: str | Path | None = None,
    server_url: str | None = None,
    api_key: str = "none",
    model: str | None = None,
) -> dict[str, Any]:
    """Run a benchmark through Inspect and give its score.

    Args:
        sampling_client: Tinker's sampling client; None if `server_url` is given.
        benchmark: `gsm8k`, `mmlu`, `hellaswag`, another task's name in `inspect_evals`, or an Inspect `Task`, for one
            `own_data(records)`.
        batch_size: requests under way at once.
        limit: ask only the first `limit` samples; None for all.
        dataset_path: the benchmark's own published file (GSM8K and HellaSwag: JSON Lines; MMLU: CSV, or a folder of
            them), to do without the model hub.
        renderer: name of the prompt format: `guide`, or a renderer of `tinker_cookbook`. By default the one that the
            model was made for. A served model is asked by the chat template of its server; here it gives the stop rule.
        max_tokens: longest answer; a task that sets its own keeps it.
        temperature: 0 is greedy.
        seed: of sampling, where the temperature is above 0.
        task_args: arguments of the task, as `{"fewshot": 5}` for GSM8K.
        log_dir: where Inspect's log goes; `runs/inspect` by default. `inspect view --log-dir` shows it.
        server_url: address of an OpenAI-compatible server, with `/v1`: vLLM's, to ask a merged model the same.
        api_key: for that server.
        model: which of the server's models or adapters to ask; needed where it has more than one.

    Returns:
        `score` and `stderr` in percent, `metric` (what the score is), `benchmark`, `samples` (number asked), `total` (in
        the data set), `truncated` (answers cut off at `max_tokens`), `tokens` (sampled), `seconds`, `renderer`, `metrics`
        (all of the task's), `log` (a path).

    Raises:
        DataError: the benchmark, an argument or its file is not usable; the message says where to get the file.
        BackendError: a request failed twice; no score is given, since a missing answer can't count as wrong.
    """
    if (sampling_client is None) == (server_url is None):
        raise DataError(
            "nothing to ask" if server_url is None else "two models to ask",
            "give either sampling_client= or server_url=",
        )
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens), ("limit", limit)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DataError(f"{name}={value!r}", "it must be a whole number, 1 or more")
    made = benchmark if isinstance(benchmark, Task) else _make_task(benchmark, dataset_path, task_args or {})
    name = made.name if isinstance(benchmark, Task) else benchmark
    asked = min(limit or len(made.dataset), len(made.dataset))
    with _progress(name, asked) as on_answer:
        if server_url is None:
            asked_model, used = _tinker_model(sampling_client, renderer, on_answer)
        else:
            asked_model, used = (
                _served_model(server_url, api_key, model, on_answer),
                "chat template of the server",
            )
        folder = Path(log_dir) if log_dir else runs_dir() / "inspect"
        start = time.monotonic()
        log = _evaluate(
            made,
            asked_model,
            limit=limit,
            log_dir=str(folder),
            max_connections=batch_size,
            max_samples=batch_size,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop_seqs=_stop_of(renderer) if server_url else None,
        )
    return _summary(log, name, used, time.monotonic() - start)


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over answers. What it gives counts one, and raises once the reader has left: that ends the evaluation."""
    from tqdm import tqdm

    left = False

    def on_answer() -> None:
        if left:
            raise InterruptedError("interrupted")
        bar.update()

    with tqdm(
        total=total, desc=name, file=sys.stdout, mininterval=1, ncols=90, position=0, unit="answers"
    ) as bar:
        try:
            yield on_answer
        finally:
            left = True


_one_at_a_time = threading.Lock()


def _evaluate(made: Task, model: Model, **settings: Any) -> Any:
    """Run Inspect in a thread of its own: it starts an event loop, and a notebook's kernel has one already."""
    import inspect_ai

    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["log"] = inspect_ai.eval(
                made,
                model,
                display="log",
                log_level="warning",
                fail_on_error=True,
                retry_on_error=1,
                log_realtime=False,
                ctl_server=False,
                score_display=False,
                **settings,
            )[0]
        except BaseException as error:  # it crosses to the caller's thread, where it is raised
            outcome["error"] = error
        finally:
            _one_at_a_time.release()

    if not _one_at_a_time.acquire(blocking=False):
        raise BackendError(
            "another evaluation runs in this process, and Inspect can only run one",
            "wait for it, or use another process",
        )
    thread = threading.Thread(target=work, name="inspect", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if "error" in outcome:
        raise outcome["error"]
    log = outcome["log"]
    if log.status != "success":
        cause = log.error.message if log.error else f"its status is {log.status!r}"
        raise BackendError(
            f"the evaluation did not finish: {cause}",
            f"no score is reported; check the backend and run it again. The log is {_path(log)}",
        )
    return log


def _path(log: Any) -> str:
    return log.location.removeprefix("file://")


def _summary(log: Any, benchmark: str, renderer: str, seconds: float) -> dict[str, Any]:
    metrics = {
        f"{score.name}/{name}" if len(log.results.scores) > 1 else name: metric.value
        for score in log.results.scores
        for name, metric in score.metrics.items()
    }
    first = log.results.scores[0].metrics
    metric = next((name for name in ("accuracy", "mean") if name in first), next(iter(first)))
    samples = log.samples or []
    return {
        "score": 100 * first[metric].value,
        "stderr": 100 * first["stderr"].value if "stderr" in first else None,
        "metric": metric,
        "benchmark": benchmark,
        "samples": log.results.completed_samples,
        "total": log.eval.dataset.samples,
        "truncated": sum(sample.output.stop_reason == "max_tokens" for sample in samples),
        "tokens": sum(usage.output_tokens for usage in log.stats.model_usage.values()),
        "seconds": round(seconds, 3),
        "renderer": renderer,
        "metrics": metrics,
        "log": _path(log),
    }
