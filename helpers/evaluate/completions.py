"""An evaluator in the cookbook's form, which plugs into its training loops.

evaluator = evaluate_completions(sampling_client, test_set, renderer)
evaluator.run()                       # {"accuracy": 0.58, "exact_match": 0.21, "f1": 0.74}
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tinker_cookbook.eval.evaluators import SamplingClientEvaluator

from helpers.errors import DataError
from helpers.evaluate.evaluation import Grader, check_test_data, evaluate_model
from helpers.evaluate.grading import check_answer, check_final_answer, text_f1

METRICS: dict[str, Callable[[dict, dict], float]] = {
    "accuracy": lambda sample, example: float(sample["score"]),
    "exact_match": lambda sample, example: float(bool(check_answer(sample["output"], example["output"]))),
    "f1": lambda sample, example: text_f1(sample["output"], example["output"]),
}


def evaluate_completions(
    sampling_client: Any,
    test_dataset: Sequence[dict],
    renderer: Any,
    metrics: Sequence[str] = ("accuracy", "exact_match", "f1"),
    *,
    max_tokens: int = 512,
    temperature: float = 0.0,
    max_in_flight: int = 64,
    grader: Grader = check_final_answer,
) -> "Completions":
    """An evaluator in the cookbook's form: `.run()` gives the metrics, and it plugs into the cookbook's
    training loops.

    Args:
        sampling_client: used by `.run()`; None where a training loop calls the evaluator with its own.
        test_dataset: records with `instruction` and `output`.
        renderer: from `get_renderer`, or any `tinker_cookbook` renderer.
        metrics: `accuracy` (by the grader), `exact_match` (the whole text), `f1` (SQuAD's, over words).

    Raises:
        DataError: the dataset is empty, or a metric is unknown.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise DataError(
            f"unknown metrics: {', '.join(unknown) or '(none given)'}", f"choose from {', '.join(METRICS)}"
        )
    settings = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "max_in_flight": max_in_flight,
        "grader": grader,
    }
    return Completions(sampling_client, test_dataset, renderer, metrics, settings)


class Completions(SamplingClientEvaluator):
    """What `evaluate_completions` makes: `.run()`, or called by a training loop with its sampling client."""

    def __init__(
        self,
        sampling_client: Any,
        test_dataset: Sequence[dict],
        renderer: Any,
        metrics: Sequence[str],
        settings: dict[str, Any],
    ):
        self._client, self._data = sampling_client, check_test_data(test_dataset)
        self._renderer, self._metrics, self._settings = renderer, metrics, settings

    def run(self) -> dict[str, float]:
        """The metrics, each in [0, 1].

        Raises:
            DataError: there is no sampling client to ask.
            RequestsFailed: requests failed twice.
        """
        if self._client is None:
            raise DataError("no sampling client to run with", "pass sampling_client= to evaluate_completions")
        return self._score(self._client)

    async def __call__(self, sampling_client: Any) -> dict[str, float]:
        return await asyncio.to_thread(self._score, sampling_client)

    def _score(self, client: Any) -> dict[str, float]:
        tokenizer, settings = self._renderer.tokenizer, self._settings
        result = evaluate_model(client, self._data, tokenizer, renderer=self._renderer, **settings)
        pairs = [(sample, self._data[sample["index"]]) for sample in result["samples"]]
        return {name: sum(METRICS[name](*pair) for pair in pairs) / len(pairs) for name in self._metrics}
