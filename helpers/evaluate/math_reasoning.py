"""Mathematical reasoning: is the answer right, do the steps hold, does the text come to its end.

    result = evaluate_math_reasoning(sampling_client, test_data, tokenizer, num_samples=8)
    result["answer_accuracy"], result["step_accuracy"], result["completeness"], result["pass_at_k"][8]

Steps are checked equation by equation. Where the reference states none, as in a proof, a judge may decide
(judge.py).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from helpers.clock import worked
from helpers.errors import DataError
from helpers.evaluate.evaluation import Grader, check_test_data, sample_record, sequence_fields
from helpers.evaluate.grading import check_completeness, check_final_answer, check_reasoning_steps
from helpers.evaluate.pass_at_k import majority_vote, pass_at_k
from helpers.evaluate.sampling import Sampling, sample_all
from helpers.evaluate.score import Score
from helpers.evaluate.tasks import reference_of
from helpers.train.renderers import answer_text, get_renderer, prompt_tokens

Judge = Callable[[Sequence[dict]], Sequence[Any]]

MEASURES = {"answer_accuracy": "score", "step_accuracy": "steps_right", "completeness": "complete"}
KS = (1, 2, 4, 5, 8, 10, 16, 32, 64, 100)


@worked("sampling")
def evaluate_math_reasoning(
    sampling_client: Any,
    test_data: Sequence[dict],
    tokenizer: Any,
    max_tokens: int = 2048,
    num_samples: int = 1,
    *,
    renderer: Any = None,
    temperature: float | None = None,
    seed: int | None = 42,
    max_in_flight: int = 64,
    grader: Grader = check_final_answer,
    judge: Judge | None = None,
    description: str = "Evaluating reasoning",
) -> dict[str, Any]:
    """Judge answers, steps and completeness of mathematical reasoning.

    Args:
        num_samples: answers a problem. Above 1, `pass_at_k` and `majority_vote` are added.
        temperature: 0 for one sample; 0.7 for several, which would otherwise all be the same.
        grader: judges the answers and groups their votes; steps and completeness are always those of
            mathematics.
        judge: decides the steps of problems whose reference states no equation, such as proofs: a
            `ProofJudge`, or any function from records with `problem` and `proof` to verdicts.
        The other arguments are those of `evaluate_model`.

    Returns:
        `answer_accuracy`, `step_accuracy`, `completeness`: shares of all samples, each with its counts and
        interval under `counts` and `ci95`. Several samples of one problem are not independent: read their
        intervals as too narrow. `pass_at_k` maps k to a share, `majority_vote` holds accuracy, correct,
        total, ci95 and `score`; `samples` has one record a sample, with the three verdicts.

    Raises:
        DataError: the test set is empty or `num_samples` is below 1.
        RequestsFailed: requests failed twice.
    """
    test_data = check_test_data(test_data)
    if num_samples < 1:
        raise DataError(f"num_samples={num_samples}", "use 1, or more for pass@k and majority vote")
    renderer = renderer or get_renderer("guide", tokenizer)
    by_problem: dict[int, list[dict]] = {}

    def on_answer(index: int, response: Any) -> int:
        record = functools.partial(_reasoning_record, index, test_data[index], renderer, grader=grader)
        by_problem[index] = [record(sequence) for sequence in response.sequences]
        return int(by_problem[index][0]["score"])

    heat = (0.0 if num_samples == 1 else 0.7) if temperature is None else temperature
    sampling = Sampling(max_tokens, heat, seed, num_samples, max_in_flight)
    asked = [(renderer, row) for row in test_data]
    seconds = sample_all(sampling_client, asked, sampling, on_answer, description)
    samples = [sample for index in sorted(by_problem) for sample in by_problem[index]]
    if judge is not None:
        _ask_judge(judge, [s for s in samples if _states_no_equation(test_data[s["index"]])])
    result = _measures(samples) | {"total": len(samples), "problems": len(test_data)}
    if num_samples > 1:
        result |= _several(test_data, by_problem, num_samples, grader)
    tokens = sum(sample["tokens"] for sample in samples)
    return result | {"failed": 0, "tokens": tokens, "seconds": round(seconds, 3), "samples": samples}


def _reasoning_record(
    index: int, example: dict, renderer: Any, sequence: Any, grader: Grader
) -> dict[str, Any]:
    output, fields = answer_text(sequence.tokens, renderer), sequence_fields(sequence)
    steps = check_reasoning_steps(output, example["output"])
    complete = check_completeness(output, fields["stop_reason"])
    prompt = renderer.tokenizer.decode(prompt_tokens(example, renderer))
    return sample_record(index, example, prompt, output, grader, **fields) | {
        "steps_right": steps.passed,
        "steps_why": steps.why,
        "complete": complete.passed,
        "complete_why": complete.why,
    }


def _states_no_equation(example: dict) -> bool:
    return not check_reasoning_steps("", example["output"]).evidence["missing"]


def _ask_judge(judge: Judge, samples: list[dict]) -> None:
    written = [sample for sample in samples if sample["output"]]
    if not written:
        return
    verdicts = judge([{"problem": sample["problem"], "proof": sample["output"]} for sample in written])
    for sample, verdict in zip(written, verdicts, strict=True):
        sample["steps_right"], sample["steps_why"] = verdict.passed, f"judged: {verdict.why}"


def _measures(samples: list[dict]) -> dict[str, Any]:
    scores = {name: Score.of(sample[key] for sample in samples) for name, key in MEASURES.items()}
    return {name: score.accuracy for name, score in scores.items()} | {
        "counts": {name: score.correct for name, score in scores.items()},
        "ci95": {name: list(score.ci95) for name, score in scores.items()},
    }


def _several(
    test_data: list[dict], by_problem: dict[int, list[dict]], num_samples: int, grader: Grader
) -> dict[str, Any]:
    right = [sum(sample["score"] for sample in samples) for samples in by_problem.values()]
    ks = [*(k for k in KS if k < num_samples), num_samples]
    votes = Score.of(
        grader(majority_vote([s["output"] for s in by_problem[index]], grader), reference_of(example))
        for index, example in enumerate(test_data)
    )
    return {
        "pass_at_k": {k: sum(pass_at_k(num_samples, count, k) for count in right) / len(right) for k in ks},
        "majority_vote": votes.fields() | {"score": votes},
    }
