"""Asking a sampling client everything at once: prompts in, answers out as they come."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from helpers.errors import BackendError, DataError
from helpers.train.renderers import prompt_tokens


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 is greedy, so that a score can be repeated.
        seed: for temperatures above 0.
        num_samples: answers a prompt.
        max_in_flight: requests under way at once.

    Raises:
        DataError: `max_in_flight` is below 1.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int | None = 42
    num_samples: int = 1
    max_in_flight: int = 64

    def __post_init__(self) -> None:
        if self.max_in_flight < 1:
            raise DataError(
                f"max_in_flight={self.max_in_flight} would send nothing", "use 1 or more; 64 is a good value"
            )


class RequestsFailed(BackendError):
    """Requests that failed twice. `failed` lists their indices; all others were answered before."""

    failed: list[int]


def sample_all(
    client: Any,
    asked: Sequence[tuple[Any, dict]],
    sampling: Sampling,
    on_answer: Callable[[int, Any], int],
    description: str,
    word: str = "right",
) -> float:
    """Sample every prompt and hand each response on as it comes.

    Args:
        asked: each problem after the renderer with which it is asked.
        on_answer: takes an index of `asked` and the SDK's response, gives how many are right.
        description: the progress bar's label.
        word: what the bar counts.

    Returns:
        Seconds it took.

    Raises:
        RequestsFailed: requests failed twice.
        BackendError: the server is gone.
    """
    requests = [
        _Request(index, _arguments(example, renderer, sampling))
        for index, (renderer, example) in enumerate(asked)
    ]
    failures: list[tuple[int, Any]] = []
    start = time.monotonic()
    with _Bar(len(requests), description, word) as bar:
        for index, response in _collect(client, requests, sampling.max_in_flight):
            if isinstance(response, Exception) or len(response.sequences) != sampling.num_samples:
                failures.append((index, response))
                bar.failed()
            else:
                tokens = sum(len(sequence.tokens) for sequence in response.sequences)
                bar.answered(on_answer(index, response), tokens)
    if failures:
        _report(failures, len(requests))
    return time.monotonic() - start


@dataclass
class _Request:
    index: int
    arguments: dict[str, Any]
    future: Any = None
    retried: bool = False


def _arguments(example: dict, renderer: Any, sampling: Sampling) -> dict[str, Any]:
    from tinker import types

    return {
        "prompt": types.ModelInput.from_ints(prompt_tokens(example, renderer)),
        "num_samples": sampling.num_samples,
        "sampling_params": types.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            stop=renderer.get_stop_sequences(),
        ),
    }


def _submit(client: Any, request: _Request) -> _Request:
    try:
        request.future = client.sample(**request.arguments)
    except Exception as error:  # a request that the SDK can't send takes the same road as a failed one
        request.future = Future()
        request.future.set_exception(error)
    return request


def _collect(client: Any, requests: Sequence[_Request], max_in_flight: int) -> Iterator[tuple[int, Any]]:
    """(index, response or exception) as they come; a failed request is tried once more."""
    waiting, flying = deque(requests), deque()
    while waiting or flying:
        while waiting and len(flying) < max_in_flight:
            flying.append(_submit(client, waiting.popleft()))
        request = _next_done(flying)
        try:
            response = request.future.result()
        except BackendError:  # the server is gone: no use asking for the rest
            raise
        except Exception as error:  # any failure of one request: retried once, then reported with its cause
            if not request.retried:
                request.retried = True
                waiting.append(request)
                continue
            response = error
        yield request.index, response


def _next_done(flying: deque[_Request]) -> _Request:
    """Take out the oldest request that is done; wait until one is."""
    while True:
        futures = [
            request.future.future() if hasattr(request.future, "future") else request.future
            for request in flying
        ]
        done, _ = wait(futures, return_when=FIRST_COMPLETED)
        for place, future in enumerate(futures):
            if future in done:
                request = flying[place]
                del flying[place]
                return request


class _Bar:
    """A progress bar that says how many answers are right, and the speed."""

    def __init__(self, total: int, description: str, word: str):
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=description, file=sys.stdout, mininterval=1, ncols=90, position=0)
        self._word, self._start = word, time.monotonic()
        self._right = self._scored = self._tokens = self._failed = 0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def answered(self, right: int, tokens: int) -> None:
        self._right, self._tokens, self._scored = self._right + right, self._tokens + tokens, self._scored + 1
        self._update()

    def failed(self) -> None:
        self._failed += 1
        self._update()

    def _update(self) -> None:
        speed = self._tokens / max(1e-6, time.monotonic() - self._start)
        failed = f", {self._failed} FAILED" if self._failed else ""
        text = f"{self._right}/{self._scored} {self._word}, {speed:.0f} tok/s{failed}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()


def _report(failures: list[tuple[int, Any]], total: int) -> None:
    index, error = failures[0]
    known = isinstance(error, Exception)
    cause = f"{type(error).__name__}: {error}" if known else "the wrong number of answers came back"
    failure = RequestsFailed(
        f"{len(failures)} of {total} requests failed twice; the first is request {index}: {cause}",
        "no score is reported, since they can't count as wrong; check the backend and run this cell again",
    )
    failure.failed = [index for index, _ in failures]
    raise failure from (error if known else None)
