"""Standard benchmarks through Inspect: the real `inspect_evals` tasks, asked of a Tinker sampler or of a
served model.

    results = run_inspect_eval(sampling_client=sampling_client, benchmark="gsm8k", batch_size=32)
    print(f"GSM8K Score: {results['score']:.2f}%")

    run_inspect_eval(sampling_client, "gsm8k", dataset_path="test.jsonl")         # without the model hub
    run_inspect_eval(benchmark="gsm8k", server_url="http://127.0.0.1:8000/v1")    # the same, asked of vLLM
    run_inspect_eval(sampling_client, test_set, renderer="guide", grader=task.grader)        # our own records

A request that fails twice ends the evaluation: a missing answer is never left out of a score.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.clock import worked
from helpers.errors import BackendError, DataError
from helpers.evaluate.evaluation import Grader
from helpers.evaluate.grading import check_final_answer
from helpers.paths import runs_dir

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.model import Model


@worked("sampling")
def run_inspect_eval(
    sampling_client: Any = None,
    benchmark: "str | Sequence[dict] | Task" = "gsm8k",
    batch_size: int = 32,
    limit: int | None = None,
    *,
    dataset_path: str | Path | None = None,
    renderer: Any = None,
    grader: Grader = check_final_answer,
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
        sampling_client: Tinker's; None if `server_url` is given.
        benchmark: `gsm8k`, `mmlu`, `hellaswag`, another task's name in `inspect_evals`, records of our own,
            or an Inspect `Task`.
        batch_size: requests under way at once.
        limit: ask only the first `limit` samples; None for all.
        dataset_path: the benchmark's published file, to do without the model hub (JSON Lines; for MMLU CSV).
        renderer: name of the prompt format; by default the one that the model was made for. A served model is
            asked by its server's chat template; here it gives the stop rule.
        grader: of our own records.
        max_tokens: longest answer; a task that sets its own keeps it.
        temperature, seed: of sampling; 0 is greedy.
        task_args: arguments of the task, as `{"fewshot": 5}` for GSM8K.
        log_dir: where Inspect's log goes; `runs/inspect` by default. `inspect view --log-dir` shows it.
        server_url, api_key, model: an OpenAI-compatible server, with `/v1`; which of its models, if it has
            several.

    Returns:
        `score` and `stderr` in percent, `metric` (what the score is), `benchmark`, `samples` (asked), `total`
        (in the data set), `truncated` (cut off at `max_tokens`), `tokens`, `seconds`, `renderer`, `metrics`,
        `log`.

    Raises:
        DataError: the benchmark, an argument or its file is not usable; the message says where to get the
            file.
        BackendError: a request failed twice.
    """
    _check_arguments(sampling_client, server_url, batch_size, max_tokens, limit)
    made, name = _task_of(benchmark, dataset_path, task_args or {}, renderer, grader)
    with _progress(name, min(limit or len(made.dataset), len(made.dataset))) as on_answer:
        asked, used, stop = _model_of(sampling_client, renderer, server_url, api_key, model, on_answer)
        start, folder = time.monotonic(), str(log_dir or runs_dir() / "inspect")
        settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop_seqs": stop}
        settings |= {"max_connections": batch_size, "max_samples": batch_size}
        log = _evaluate(made, asked, limit=limit, log_dir=folder, **settings)
    return _summary(log, name, used, time.monotonic() - start)


def _check_arguments(
    sampling_client: Any, server_url: str | None, batch_size: int, max_tokens: int, limit: int | None
) -> None:
    if (sampling_client is None) == (server_url is None):
        raise DataError(
            "nothing to ask" if server_url is None else "two models to ask",
            "give either sampling_client= or server_url=",
        )
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens), ("limit", limit)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DataError(f"{name}={value!r}", "it must be a whole number, 1 or more")


def _task_of(
    benchmark: "str | Sequence[dict] | Task",
    dataset_path: str | Path | None,
    task_args: dict[str, Any],
    renderer: Any,
    grader: Grader,
) -> "tuple[Task, str]":
    """The task, and its name."""
    from inspect_ai import Task

    from helpers.evaluate.inspect_models import named
    from helpers.evaluate.inspect_tasks import make_task, own_data

    if isinstance(benchmark, str):
        return make_task(benchmark, dataset_path, task_args), benchmark
    if isinstance(benchmark, Task):
        return benchmark, benchmark.name
    made = own_data(benchmark, named(renderer) or "chat", grader)
    return made, made.name


def _model_of(
    sampling_client: Any,
    renderer: Any,
    server_url: str | None,
    api_key: str,
    model: str | None,
    on_answer: Callable[[], None],
) -> "tuple[Model, str, list[str] | None]":
    """The model to ask, what makes its prompts, and the stop texts to send with each request."""
    from helpers.evaluate.inspect_models import served_model, stop_texts, tinker_model
    from helpers.evaluate.patches import counted

    if server_url is None:
        asked, used = tinker_model(sampling_client, renderer)
        return counted(asked, on_answer), used, None
    asked = served_model(server_url, api_key, model)
    return counted(asked, on_answer), "chat template of the server", stop_texts(renderer)


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over answers. What it gives counts one, and raises once the reader has left: that ends the
    evaluation.
    """
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


def _evaluate(made: "Task", model: "Model", **settings: Any) -> Any:
    """Run Inspect in a thread of its own: it starts an event loop, and a notebook's kernel has one."""
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
    several = len(log.results.scores) > 1
    metrics = {
        f"{score.name}/{name}" if several else name: metric.value
        for score in log.results.scores
        for name, metric in score.metrics.items()
    }
    first = log.results.scores[0].metrics
    metric = next((name for name in ("accuracy", "mean") if name in first), next(iter(first)))
    return {
        "score": 100 * first[metric].value,
        "stderr": 100 * first["stderr"].value if "stderr" in first else None,
        "metric": metric,
        "benchmark": benchmark,
        "samples": log.results.completed_samples,
        "total": log.eval.dataset.samples,
        "truncated": sum(sample.output.stop_reason == "max_tokens" for sample in log.samples or []),
        "tokens": sum(usage.output_tokens for usage in log.stats.model_usage.values()),
        "seconds": round(seconds, 3),
        "renderer": renderer,
        "metrics": metrics,
        "log": _path(log),
    }
