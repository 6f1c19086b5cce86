"""Scoring a model on a test set: how many are right, how sure that is, and which ones.

    result = evaluate_model(sampling_client, test_data, tokenizer)
    print(result["score"])                                # 70/120 = 58.3%, 95% interval 49.4% to 66.8%
    mcnemar(base["samples"], tuned["samples"])            # the same problems, two models: see paired.py

Answers that exist already, such as those of the merged model, go through `score_outputs` and give the same
result.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.data.conversation import conversation, has_conversation
from helpers.errors import BackendError, DataError
from helpers.evaluate.grading import check_final_answer
from helpers.evaluate.sampling import Sampling, sample_all
from helpers.evaluate.score import Score
from helpers.evaluate.tasks import reference_of
from helpers.files import write_jsonl
from helpers.train.renderers import answer_text, get_renderer, prompt_tokens

Grader = Callable[[str, str], Any]


def evaluate_model(
    sampling_client: Any,
    test_data: Sequence[dict],
    tokenizer: Any,
    *,
    renderer: Any = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    seed: int | None = 42,
    grader: Grader = check_final_answer,
    max_in_flight: int = 64,
    samples_path: str | Path | None = None,
    description: str = "Evaluating",
) -> dict[str, Any]:
    """Sample an answer to every problem and grade it.

    Args:
        sampling_client: Tinker's sampling client.
        test_data: records with `instruction`, `output` and perhaps `input`, `answer`, `category`, `unseen`.
        tokenizer: the base model's tokenizer.
        renderer: from `get_renderer`: how a record becomes a prompt, and the stop rule; the guide's by
            default. Use the one of training.
        max_tokens, temperature, seed, max_in_flight: see `helpers.evaluate.sampling.Sampling`.
        grader: takes (answer, reference), gives something true or false, with a `why` if it has one. The
            reference is the record's `answer`, or its `output` where it has none.
        samples_path: a file for the per-sample records, as JSON Lines. If the evaluation is cut short, those
            that came are in `….partial.jsonl` beside it.
        description: the progress bar's label.

    Returns:
        `accuracy`, `correct`, `total`, `ci95` (Wilson) and the four as one `score` (a `Score`), `by_category`
        and `by_template` (`seen`, `unseen`; empty where the records don't say), `failed` (0), `tokens`
        (sampled), `seconds`, `samples` (one record a problem: index, problem, prompt, output, expected,
        score, why, stop_reason, tokens, mean_logprob, category, template; of a conversation, also the `turns`
        before the answer).

    Raises:
        DataError: the test set is empty, or a record has no instruction or output.
        RequestsFailed: requests failed twice; its `failed` lists their indices. They never count as wrong
            answers.
    """
    renderers = {"": renderer or get_renderer("guide", tokenizer)}
    sampling = Sampling(max_tokens, temperature, seed, max_in_flight=max_in_flight)
    [result] = evaluate_formats(
        sampling_client, test_data, renderers, sampling, grader, samples_path, description
    ).values()
    if samples_path is not None:
        write_jsonl(samples_path, result["samples"])
    return result


@worked("sampling")
def evaluate_formats(
    sampling_client: Any,
    test_data: Sequence[dict],
    renderers: Mapping[str, Any],
    sampling: Sampling,
    grader: Grader,
    samples_path: str | Path | None,
    description: str,
) -> dict[str, dict[str, Any]]:
    """Ask the same problems in several formats, all at once. Writes no file, unless it is cut short.

    Returns:
        What `evaluate_model` gives, for each name of `renderers`. `seconds` is the time of all together.

    Raises:
        DataError: the test set is empty, or a record has no instruction or output.
        RequestsFailed: requests failed twice.
    """
    test_data = check_test_data(test_data)
    asked = [(renderer, example) for renderer in renderers.values() for example in test_data]
    samples: dict[int, dict] = {}

    def on_answer(place: int, response: Any) -> int:
        sequence, (renderer, example) = response.sequences[0], asked[place]
        prompt = renderer.tokenizer.decode(prompt_tokens(example, renderer))
        output = answer_text(sequence.tokens, renderer)
        samples[place] = sample_record(
            place % len(test_data), example, prompt, output, grader, **sequence_fields(sequence)
        )
        return int(samples[place]["score"])

    with _kept_if_cut_short(samples, samples_path):
        seconds = sample_all(sampling_client, asked, sampling, on_answer, description)
    ordered, count = [samples[place] for place in sorted(samples)], len(test_data)
    return {
        name: _result(ordered[number * count : (number + 1) * count], seconds)
        for number, name in enumerate(renderers)
    }


def score_outputs(
    test_data: Sequence[dict],
    outputs: Sequence[str],
    grader: Grader = check_final_answer,
    stop_reasons: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score answers that exist already: of the merged model, of vLLM, or of a person.

    Args:
        test_data: records with `instruction` and `output`.
        outputs: one answer a record, in the same order.
        grader: takes (answer, reference), gives something true or false, with a `why` if it has one.
        stop_reasons: `stop` or `length` for each answer, kept in the samples.

    Returns:
        The fields of `evaluate_model`; `tokens` is 0, since text has none.

    Raises:
        DataError: there is nothing to score, or the lengths differ.
    """
    test_data = check_test_data(test_data)
    reasons = [None] * len(test_data) if stop_reasons is None else list(stop_reasons)
    if not len(outputs) == len(reasons) == len(test_data):
        raise DataError(
            f"{len(outputs)} answers for {len(test_data)} problems", "score exactly one answer a problem"
        )
    start = time.monotonic()
    samples = [
        sample_record(index, example, "", output, grader, stop_reason=reason)
        for index, (example, output, reason) in enumerate(zip(test_data, outputs, reasons, strict=True))
    ]
    return _result(samples, time.monotonic() - start)


def check_test_data(test_data: Sequence[dict]) -> list[dict]:
    """The test set as a list.

    Raises:
        DataError: it is empty, or a record has no instruction or output.
    """
    if not test_data:
        raise DataError(
            "the test set is empty", "make it with notebook 01_split, or check the file that you loaded"
        )
    for index, example in enumerate(test_data):
        if not isinstance(example, dict) or not all(
            str(example.get(key) or "").strip() for key in ("instruction", "output")
        ):
            raise DataError(
                f"test record {index} has no `instruction` or no `output`",
                "load the file with helpers.data.load_json_files",
            )
    return list(test_data)


def sample_record(
    index: int, example: dict[str, Any], prompt: str, output: str, grader: Grader, **more: Any
) -> dict[str, Any]:
    """One answer and how it was graded: a line of samples.jsonl."""
    verdict = grader(output, reference_of(example))
    turns = {"turns": conversation(example)[:-1]} if has_conversation(example) else {}
    problem = " ".join(part for part in (example["instruction"], example.get("input") or "") if part)
    return {
        "index": index,
        "problem": problem,
        **turns,
        "prompt": prompt,
        "output": output,
        "expected": reference_of(example),
        "score": bool(verdict),
        "why": str(getattr(verdict, "why", "")),
        **more,
        "category": example.get("category"),
        "template": _template_kind(example),
    }


def sequence_fields(sequence: Any) -> dict[str, Any]:
    """`stop_reason`, `tokens` (a count) and `mean_logprob` of a sampled sequence."""
    logprobs = sequence.logprobs
    mean = sum(logprobs) / len(logprobs) if logprobs is not None and len(logprobs) else None
    return {
        "stop_reason": str(getattr(sequence.stop_reason, "value", sequence.stop_reason)),
        "tokens": len(sequence.tokens),
        "mean_logprob": mean,
    }


def _template_kind(example: dict[str, Any]) -> str | None:
    return None if "unseen" not in example else ("unseen" if example["unseen"] else "seen")


def _result(samples: list[dict], seconds: float) -> dict[str, Any]:
    score = Score.of(sample["score"] for sample in samples)
    return {
        **score.fields(),
        "score": score,
        "by_category": _by(samples, "category"),
        "by_template": _by(samples, "template"),
        "failed": 0,
        "tokens": sum(sample.get("tokens") or 0 for sample in samples),
        "seconds": round(seconds, 3),
        "samples": samples,
    }


def _by(samples: Iterable[dict], key: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.get(key) is not None:
            groups.setdefault(sample[key], []).append(sample["score"])
    return {name: Score.of(verdicts).fields() for name, verdicts in sorted(groups.items())}


@contextlib.contextmanager
def _kept_if_cut_short(samples: dict[int, dict], samples_path: str | Path | None) -> Iterator[None]:
    """Write the answers that came before a failure or Ctrl-C to `….partial.jsonl`: they were paid for."""
    partial = Path(samples_path).with_suffix(".partial.jsonl") if samples_path is not None else None
    try:
        yield
    except (BackendError, KeyboardInterrupt) as error:
        if partial is not None and samples:
            write_jsonl(partial, [samples[index] for index in sorted(samples)])
            if isinstance(error, BackendError):
                error.what += f"; the {len(samples)} answers that came are in {partial}"
        raise
    if partial is not None:
        partial.unlink(missing_ok=True)
