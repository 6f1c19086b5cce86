"""Scoring a model on a test set: how many are right, how sure that is, and which ones.

result = evaluate_model(sampling_client, test_data, tokenizer)
print(f"{result['correct']}/{result['total']}", result["ci95"])
print(mcnemar(base["samples"], tuned["samples"]))     # the same problems, two models
"""

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.errors import BackendError, DataError
from helpers.evaluate.grading import (
    check_answer,
    check_completeness,
    check_final_answer,
    check_reasoning_steps,
)
from helpers.evaluate.grading.free_text import token_f1
from helpers.evaluate.tasks import reference_of
from helpers.files import write_jsonl
from helpers.train.prompts import PromptFormat, prompt_format

Grader = Callable[[str, str], Any]


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion: it stays inside [0, 1] and is honest at 0 of n, unlike mean ± error.

    Args:
        correct: successes.
        total: trials, at least 1.
        z: 1.96 for 95%.

    Raises:
        DataError: the counts make no proportion.
    """
    if total < 1 or not 0 <= correct <= total:
        raise DataError(f"{correct} of {total} is no proportion", "score at least one problem")
    p, spread = correct / total, z * z / total
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / total + spread / (4 * total)) / (1 + spread)
    # At 0 of n and n of n the bounds are 0 and 1 exactly; rounding must not put them beside.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == total else middle + half)


def mcnemar(base_samples: Sequence[dict], tuned_samples: Sequence[dict]) -> dict[str, Any]:
    """McNemar's exact test: of the problems where two models differ, is the split a fair coin's?

    Args:
        base_samples: `samples` of a result, in any order.
        tuned_samples: the same problems, judged for the other model.

    Returns:
        `gained` and `lost` (pairs of records: only the tuned, only the base model right), `both_right`, `both_wrong`
        (counts), `p_value` (two-sided), `difference` (accuracy of tuned minus base).

    Raises:
        DataError: the two lists are not about the same problems.
    """
    base, tuned = (
        {sample["index"]: sample for sample in samples} for samples in (base_samples, tuned_samples)
    )
    if (
        not base
        or base.keys() != tuned.keys()
        or len(base) != len(base_samples)
        or len(tuned) != len(tuned_samples)
    ):
        raise DataError(
            "the two results are not about the same problems", "score both models on the same test set"
        )
    if any(base[i].get("problem") != tuned[i].get("problem") for i in base):
        raise DataError(
            "problems with the same index differ between the two results",
            "score both models on the same test set",
        )
    pairs = [(base[index], tuned[index]) for index in sorted(base)]
    gained = [pair for pair in pairs if pair[1]["score"] and not pair[0]["score"]]
    lost = [pair for pair in pairs if pair[0]["score"] and not pair[1]["score"]]
    both = sum(bool(a["score"] and b["score"]) for a, b in pairs)
    flips, fewer = len(gained) + len(lost), min(len(gained), len(lost))
    tail = sum(math.comb(flips, k) for k in range(fewer + 1)) / 2**flips
    return {
        "gained": gained,
        "lost": lost,
        "both_right": both,
        "both_wrong": len(pairs) - both - flips,
        "p_value": min(1.0, 2 * tail),
        "difference": (len(gained) - len(lost)) / len(pairs),
    }


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k answers is right, estimated without bias from more samples.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1: 1 - C(n-c, k) / C(n, k).

    Raises:
        DataError: k is not between 1 and the number of samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise DataError(
            f"pass@{k} can't be had from {correct} right of {samples} samples", "sample at least k answers"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


# ---------------------------------------------------------------------------------------------------------------------
# Results


def _judge(grader: Grader, output: str, example: dict[str, Any]) -> tuple[bool, str]:
    verdict = grader(output, reference_of(example))
    return bool(verdict), str(getattr(verdict, "why", ""))


def _template_kind(example: dict[str, Any]) -> str | None:
    return None if "unseen" not in example else ("unseen" if example["unseen"] else "seen")


def _counts(samples: Iterable[dict], key: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.get(key) is not None:
            groups.setdefault(sample[key], []).append(sample["score"])
    return {
        name: {
            "correct": sum(scores),
            "total": len(scores),
            "accuracy": sum(scores) / len(scores),
            "ci95": list(wilson_interval(sum(scores), len(scores))),
        }
        for name, scores in sorted(groups.items())
    }


def _record(
    index: int, example: dict[str, Any], prompt: str, output: str, grader: Grader, **more: Any
) -> dict[str, Any]:
    score, why = _judge(grader, output, example)
    problem = " ".join(part for part in (example["instruction"], example.get("input") or "") if part)
    return {
        "index": index,
        "problem": problem,
        "prompt": prompt,
        "output": output,
        "expected": reference_of(example),
        "score": score,
        "why": why,
        **more,
        "category": example.get("category"),
        "template": _template_kind(example),
    }


def _result(samples: list[dict], seconds: float) -> dict[str, Any]:
    correct, total = sum(sample["score"] for sample in samples), len(samples)
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "ci95": list(wilson_interval(correct, total)),
        "by_category": _counts(samples, "category"),
        "by_template": _counts(samples, "template"),
        "failed": 0,
        "tokens": sum(sample.get("tokens") or 0 for sample in samples),
        "seconds": round(seconds, 3),
        "samples": samples,
    }


def _check_data(test_data: Sequence[dict]) -> list[dict]:
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
                "load the file with helpers.data.split.load_json_files",
            )
    return list(test_data)


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
    test_data = _check_data(test_data)
    if len(outputs) != len(test_data) or (stop_reasons is not None and len(stop_reasons) != len(test_data)):
        raise DataError(
            f"{len(outputs)} answers for {len(test_data)} problems", "score exactly one answer a problem"
        )
    start = time.monotonic()
    samples = [
        _record(
            index,
            example,
            "",
            output,
            grader,
            stop_reason=stop_reasons[index] if stop_reasons is not None else None,
        )
        for index, (example, output) in enumerate(zip(test_data, outputs))
    ]
    return _result(samples, time.monotonic() - start)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


@dataclass
class _Request:
    index: int
    arguments: dict[str, Any]
    future: Any = None
    retried: bool = False


def _submit(client: Any, request: _Request) -> _Request:
    try:
        request.future = client.sample(**request.arguments)
    except (
        Exception
    ) as error:  # the SDK raises here for a request that it can't send: same road as a failed one
        request.future = Future()
        request.future.set_exception(error)
    return request


def _collect(client: Any, requests: Sequence[_Request], max_in_flight: int) -> Iterator[tuple[int, Any]]:
    """(index, response or exception) as they come, `max_in_flight` at once; a failed request is tried once more."""
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


def _next_done(flying: deque) -> _Request:
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


def sample_all(
    client: Any,
    test_data: list[dict],
    fmt: PromptFormat,
    *,
    num_samples: int,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    max_in_flight: int,
    description: str,
    on_answer: Callable[[int, Any], int],
    word: str = "right",
) -> float:
    """Sample every prompt, hand each response to `on_answer` (which returns how many are right), return the seconds.

    Raises:
        DataError: `max_in_flight` is below 1.
        BackendError: requests failed twice; its `failed` lists their indices. All others were handed on before.
    """
    from tinker import types
    from tqdm import tqdm

    if max_in_flight < 1:
        raise DataError(
            f"max_in_flight={max_in_flight} would send nothing", "use 1 or more; 64 is a good value"
        )
    params = types.SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, stop=fmt.stop)
    requests = [
        _Request(
            index,
            {
                "prompt": types.ModelInput.from_ints(fmt.prompt_tokens(example)),
                "num_samples": num_samples,
                "sampling_params": params,
            },
        )
        for index, example in enumerate(test_data)
    ]
    start, right, tokens, failures = time.monotonic(), 0, 0, []
    with tqdm(
        total=len(requests), desc=description, file=sys.stdout, mininterval=1, ncols=90, position=0
    ) as bar:
        for done, (index, response) in enumerate(_collect(client, requests, max_in_flight), start=1):
            if isinstance(response, Exception) or len(response.sequences) != num_samples:
                failures.append((index, response))
            else:
                right += on_answer(index, response)
                tokens += sum(len(sequence.tokens) for sequence in response.sequences)
            scored = done - len(failures)
            speed = tokens / max(1e-6, time.monotonic() - start)
            bar.set_postfix_str(
                f"{right}/{scored} {word}, {speed:.0f} tok/s"
                + (f", {len(failures)} FAILED" if failures else ""),
                refresh=False,
            )
            bar.update()
    if failures:
        index, error = failures[0]
        cause = (
            f"{type(error).__name__}: {error}"
            if isinstance(error, Exception)
            else "the wrong number of answers came back"
        )
        failure = BackendError(
            f"{len(failures)} of {len(requests)} requests failed twice; the first is test record {index}: {cause}",
            "no score is reported, since they can't count as wrong; check the backend and run this cell again",
        )
        failure.failed = [index for index, _ in failures]
        raise failure from (error if isinstance(error, Exception) else None)
    return time.monotonic() - start


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
                error.args = (f"{error}\nThe {len(samples)} answers that came are in {partial}.",)
        raise
    if partial is not None:
        partial.unlink(missing_ok=True)


def _sequence_fields(sequence: Any) -> dict[str, Any]:
    logprobs = sequence.logprobs
    mean = sum(logprobs) / len(logprobs) if logprobs is not None and len(logprobs) else None
    return {
        "stop_reason": str(getattr(sequence.stop_reason, "value", sequence.stop_reason)),
        "tokens": len(sequence.tokens),
        "mean_logprob": mean,
    }


@worked("sampling")
def evaluate_model(
    sampling_client: Any,
    test_data: Sequence[dict],
    tokenizer: Any,
    *,
    fmt: PromptFormat | None = None,
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
        fmt: how a record becomes a prompt, and the stop rule; the guide's by default. Use the one of training.
        max_tokens: longest answer, in tokens.
        temperature: 0 is greedy, so that a score can be repeated.
        seed: for temperatures above 0.
        grader: takes (answer, reference), gives something true or false, with a `why` if it has one. The reference is
            the record's `answer`, or its `output` where it has none.
        max_in_flight: requests under way at once.
        samples_path: a file for the per-sample records, as JSON Lines. If the evaluation is cut short, those that came are
            in `….partial.jsonl` beside it.
        description: the progress bar's label.

    Returns:
        `accuracy`, `correct`, `total`, `ci95` (Wilson), `by_category` and `by_template` (`seen`, `unseen`; empty where
        the records don't say), `failed` (0), `tokens` (sampled), `seconds`, `samples` (one record a problem: index,
        problem, prompt, output, expected, score, why, stop_reason, tokens, mean_logprob, category, template).

    Raises:
        DataError: the test set is empty, or a record has no instruction or output.
        BackendError: requests failed twice; its `failed` lists their indices. They never count as wrong answers.
    """
    test_data = _check_data(test_data)
    fmt = fmt or prompt_format("guide", tokenizer)
    samples: dict[int, dict] = {}

    def on_answer(index: int, response: Any) -> int:
        sequence, example = response.sequences[0], test_data[index]
        prompt = fmt.tokenizer.decode(fmt.prompt_tokens(example))
        samples[index] = _record(
            index, example, prompt, fmt.answer_text(sequence.tokens), grader, **_sequence_fields(sequence)
        )
        return int(samples[index]["score"])

    with _kept_if_cut_short(samples, samples_path):
        seconds = sample_all(
            sampling_client,
            test_data,
            fmt,
            num_samples=1,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            max_in_flight=max_in_flight,
            description=description,
            on_answer=on_answer,
        )
    ordered = [samples[index] for index in sorted(samples)]
    if samples_path is not None:
        write_jsonl(samples_path, ordered)
    return _result(ordered, seconds)


def majority_vote(outputs: Sequence[str], grader: Grader = check_final_answer) -> str:
    """The output whose answer most outputs give (the first at a tie); outputs without an answer don't vote.

    Two answers are one when the grader takes one for the other: by value, `1/2` and `0.5` vote together. An output has no
    answer if the grader would not even take it for itself.
    """
    groups: list[list[str]] = []
    for output in outputs:
        if not grader(output, output):
            continue
        for group in groups:
            if grader(output, group[0]):
                group.append(output)
                break
        else:
            groups.append([output])
    return max(groups, key=len)[0] if groups else ""


@worked("sampling")
def evaluate_math_reasoning(
    sampling_client: Any,
    test_data: Sequence[dict],
    tokenizer: Any,
    max_tokens: int = 2048,
    num_samples: int = 1,
    *,
    fmt: PromptFormat | None = None,
    temperature: float | None = None,
    seed: int | None = 42,
    max_in_flight: int = 64,
    grader: Grader = check_final_answer,
    judge: Callable[[Sequence[dict]], Sequence[Any]] | None = None,
    description: str = "Evaluating reasoning",
) -> dict[str, Any]:
    """Judge answers, steps and completeness of mathematical reasoning.

    Args:
        max_tokens: mathematics needs long answers.
        num_samples: answers a problem. Above 1, `pass_at_k` and `majority_vote` are added.
        temperature: 0 for one sample; 0.7 for several, which would otherwise all be the same.
        grader: judges the answers and groups their votes; steps and completeness are always those of mathematics.
        judge: decides the steps of problems whose reference states no equation, such as proofs: a
            `helpers.evaluate.judge.ProofJudge`, or any function from records with `problem` and `proof` to verdicts.
        The other arguments are those of `evaluate_model`.

    Returns:
        `answer_accuracy`, `step_accuracy`, `completeness`: shares of all samples, each with its counts and an interval
        under `counts` and `ci95`. With several samples the intervals treat them as independent, which samples of one
        problem are not: read them as too narrow. `pass_at_k` maps k to a share, `majority_vote` holds accuracy,
        correct, total and ci95; `samples` has one record a sample, with the three verdicts.

    Raises:
        DataError: the test set is empty or `num_samples` is below 1.
        BackendError: requests failed twice.
    """
    test_data = _check_data(test_data)
    if num_samples < 1:
        raise DataError(f"num_samples={num_samples}", "use 1, or more for pass@k and majority vote")
    fmt = fmt or prompt_format("guide", tokenizer)
    by_problem: dict[int, list[dict]] = {}

    def on_answer(index: int, response: Any) -> int:
        example = test_data[index]
        by_problem[index] = [
            _reasoning_record(index, example, fmt, sequence, grader) for sequence in response.sequences
        ]
        return int(by_problem[index][0]["score"])

    seconds = sample_all(
        sampling_client,
        test_data,
        fmt,
        num_samples=num_samples,
        max_tokens=max_tokens,
        temperature=(0.0 if num_samples == 1 else 0.7) if temperature is None else temperature,
        seed=seed,
        max_in_flight=max_in_flight,
        description=description,
        on_answer=on_answer,
    )
    samples = [sample for index in sorted(by_problem) for sample in by_problem[index]]
    if judge is not None:
        _ask_judge(
            judge,
            [
                s
                for s in samples
                if not check_reasoning_steps("", test_data[s["index"]]["output"]).evidence["missing"]
            ],
        )
    result: dict[str, Any] = {"counts": {}, "ci95": {}, "total": len(samples), "problems": len(test_data)}
    for name, key in (
        ("answer_accuracy", "score"),
        ("step_accuracy", "steps_right"),
        ("completeness", "complete"),
    ):
        correct = sum(sample[key] for sample in samples)
        result[name] = correct / len(samples)
        result["counts"][name] = correct
        result["ci95"][name] = list(wilson_interval(correct, len(samples)))
    if num_samples > 1:
        result |= _several(test_data, by_problem, num_samples, grader)
    return result | {
        "failed": 0,
        "tokens": sum(s["tokens"] for s in samples),
        "seconds": round(seconds, 3),
        "samples": samples,
    }


def _reasoning_record(
    index: int, example: dict, fmt: PromptFormat, sequence: Any, grader: Grader
) -> dict[str, Any]:
    output, fields = fmt.answer_text(sequence.tokens), _sequence_fields(sequence)
    steps, complete = (
        check_reasoning_steps(output, example["output"]),
        check_completeness(output, fields["stop_reason"]),
    )
    prompt = fmt.tokenizer.decode(fmt.prompt_tokens(example))
    return _record(index, example, prompt, output, grader, **fields) | {
        "steps_right": steps.passed,
        "steps_why": steps.why,
        "complete": complete.passed,
        "complete_why": complete.why,
    }


def _ask_judge(judge: Callable[[Sequence[dict]], Sequence[Any]], samples: list[dict]) -> None:
    written = [sample for sample in samples if sample["output"]]
    if not written:
        return
    for sample, verdict in zip(
        written, judge([{"problem": s["problem"], "proof": s["output"]} for s in written]), strict=True
    ):
        sample["steps_right"], sample["steps_why"] = verdict.passed, f"judged: {verdict.why}"


def _several(
    test_data: list[dict], by_problem: dict[int, list[dict]], num_samples: int, grader: Grader
) -> dict[str, Any]:
    right = {index: sum(sample["score"] for sample in samples) for index, samples in by_problem.items()}
    ks = [k for k in (1, 2, 4, 5, 8, 10, 16, 32, 64, 100) if k < num_samples] + [num_samples]
    votes = [
        bool(grader(majority_vote([s["output"] for s in by_problem[i]], grader), reference_of(e)))
        for i, e in enumerate(test_data)
    ]
    return {
        "pass_at_k": {k: sum(pass_at_k(num_samples, c, k) for c in right.values()) / len(right) for k in ks},
        "majority_vote": {
            "accuracy": sum(votes) / len(votes),
            "correct": sum(votes),
            "total": len(votes),
            "ci95": list(wilson_interval(sum(votes), len(votes))),
        },
    }


def before_after_table(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    """Two results of `evaluate_model` side by side: all, each category, each kind of template, with counts and intervals."""

    def cell(row: dict[str, Any]) -> str:
        return f"{row['correct']:3}/{row['total']:<3} {row['accuracy']:4.0%}  [{row['ci95'][0]:.0%}, {row['ci95'][1]:.0%}]"

    lines = [f"{'':16} {'base':28} tuned", f"{'all':16} {cell(base):28} {cell(tuned)}"]
    for group in ("by_category", "by_template"):
        if tuned[group]:
            lines += [
                "",
                *(
                    f"{name:16} {cell(base[group][name]):28} {cell(row)}"
                    for name, row in tuned[group].items()
                ),
            ]
    return "\n".join(line.rstrip() for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# The cookbook's interface


METRICS: dict[str, Callable[[dict, dict], float]] = {
    "accuracy": lambda sample, example: float(sample["score"]),
    "exact_match": lambda sample, example: float(bool(check_answer(sample["output"], example["output"]))),
    "f1": lambda sample, example: token_f1(sample["output"], example["output"]),
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
) -> Any:
    """An evaluator in the cookbook's form: `.run()` gives the metrics, and it plugs into the cookbook's training loops.

    Args:
        sampling_client: used by `.run()`; None where a training loop calls the evaluator with its own.
        test_dataset: records with `instruction` and `output`.
        renderer: a `tinker_cookbook` renderer, or a `PromptFormat`.
        metrics: `accuracy` (by the grader), `exact_match` (the whole text), `f1` (SQuAD's, over words).

    Returns:
        A `tinker_cookbook.eval.evaluators.SamplingClientEvaluator` with `.run() -> dict[str, float]`, each in [0, 1].

    Raises:
        DataError: the dataset is empty, or a metric is unknown.
    """
    from tinker_cookbook.eval.evaluators import SamplingClientEvaluator

    test_dataset = _check_data(test_dataset)
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise DataError(
            f"unknown metrics: {', '.join(unknown) or '(none given)'}", f"choose from {', '.join(METRICS)}"
        )
    fmt = (
        renderer
        if isinstance(renderer, PromptFormat)
        else PromptFormat(
            type(renderer).__name__, renderer.tokenizer, renderer.get_stop_sequences(), renderer
        )
    )

    class Completions(SamplingClientEvaluator):
        def run(self) -> dict[str, float]:
            if sampling_client is None:
                raise DataError(
                    "no sampling client to run with", "pass sampling_client= to evaluate_completions"
                )
            return self.score(sampling_client)

        def score(self, client: Any) -> dict[str, float]:
            result = evaluate_model(
                client,
                test_dataset,
                fmt.tokenizer,
                fmt=fmt,
                max_tokens=max_tokens,
                temperature=temperature,
                max_in_flight=max_in_flight,
                grader=grader,
            )
            pairs = [(sample, test_dataset[sample["index"]]) for sample in result["samples"]]
            return {name: sum(METRICS[name](*pair) for pair in pairs) / len(pairs) for name in metrics}

        async def __call__(self, sampling_client: Any) -> dict[str, float]:
            import asyncio

            return await asyncio.to_thread(self.score, sampling_client)

    return Completions()
