"""Scoring on answers whose score is known, through a client that answers with the SDK's own types."""

import asyncio
import json
import random
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from tinker import types
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from helpers.data.conversation import conversation_record
from helpers.errors import BackendError, DataError
from helpers.evaluate.completions import evaluate_completions
from helpers.evaluate.evaluation import evaluate_model, score_outputs
from helpers.evaluate.grading import check_answer
from helpers.evaluate.grading.free_text import text_f1, token_f1
from helpers.evaluate.math_reasoning import evaluate_math_reasoning
from helpers.evaluate.paired import mcnemar, win_rate
from helpers.evaluate.pass_at_k import majority_vote, pass_at_k
from helpers.evaluate.score import wilson_interval
from helpers.files import read_jsonl

ROWS = [
    {
        "instruction": f"What is {n} + {n + 1}?",
        "input": "",
        "output": f"Step 1: {n} + {n + 1} = {2 * n + 1}\nFinal answer: {2 * n + 1}",
        "answer": str(2 * n + 1),
        "category": "odd" if n % 2 else "even",
        "unseen": n % 3 == 0,
    }
    for n in range(1, 31)
]


class Characters:
    """A tokenizer whose tokens are characters."""

    eos_token_id = None

    def encode(self, text, add_special_tokens=False):
        return [ord(char) for char in text]

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(chr(token) for token in tokens)


def sequence(text, stop_reason="stop"):
    tokens = np.array([ord(char) for char in text], dtype=np.int32)
    return types.SampledSequence(
        stop_reason=stop_reason,
        sequence_id="s",
        tokens_np=tokens,
        logprobs_np=np.full(len(tokens), -0.5, np.float32),
    )


class Client:
    """Answers `reply(prompt text, attempt)` after a moment, from other threads and out of order, as a server
    does.
    """

    def __init__(self, reply):
        self.reply, self.attempts, self.flying, self.most, self.lock = reply, {}, 0, 0, threading.Lock()

    def sample(self, prompt, num_samples, sampling_params):
        text, future = "".join(chr(token) for token in prompt.to_ints()), Future()
        with self.lock:
            self.attempts[text] = self.attempts.get(text, 0) + 1
            self.flying += 1
            self.most = max(self.most, self.flying)
        threading.Timer(
            random.uniform(0, 0.02), self.finish, (future, text, self.attempts[text], num_samples)
        ).start()
        self.params = sampling_params
        return AwaitableConcurrentFuture(future)

    def finish(self, future, text, attempt, num_samples):
        with self.lock:
            self.flying -= 1
        try:
            texts = self.reply(text, attempt)
            texts = [texts] * num_samples if isinstance(texts, str) else texts
            ends = ["length" if text.endswith("Therefore") else "stop" for text in texts]
            future.set_result(types.SampleResponse(sequences=list(map(sequence, texts, ends))))
        except Exception as error:
            future.set_exception(error)


BY_PROMPT = {f"Instruction: {row['instruction']}\nResponse:": row["output"] for row in ROWS}


def right(prompt, attempt):
    return f" {BY_PROMPT[prompt]}\n\n"


def wrong_on_odd(prompt, attempt):
    return (
        right(prompt, attempt) if int(prompt.split("is ")[1].split()[0]) % 2 == 0 else " Final answer: 0\n\n"
    )


def test_floor_and_ceiling():
    assert evaluate_model(Client(lambda *_: ""), ROWS, Characters())["accuracy"] == 0
    result = evaluate_model(Client(right), ROWS, Characters())
    assert (result["accuracy"], result["correct"], result["total"], result["failed"]) == (1, 30, 30, 0)
    assert result["ci95"][1] == 1 and 0.85 < result["ci95"][0] < 0.9


def test_result_counts_by_category_and_template(tmp_path):
    path = tmp_path / "samples.jsonl"
    client = Client(wrong_on_odd)
    result = evaluate_model(client, ROWS, Characters(), max_in_flight=5, samples_path=path)
    assert client.most <= 5
    assert result["by_category"]["even"]["correct"] == 15 and result["by_category"]["odd"]["correct"] == 0
    assert {name: group["total"] for name, group in result["by_template"].items()} == {
        "seen": 20,
        "unseen": 10,
    }
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert samples == result["samples"] and [sample["index"] for sample in samples] == list(range(30))
    first = samples[0]
    assert (
        first["score"] is False
        and first["why"]
        and first["stop_reason"] == "stop"
        and first["mean_logprob"] == pytest.approx(-0.5)
    )
    assert (
        first["output"] == "Final answer: 0"
        and first["prompt"].endswith("Response:")
        and first["tokens"] == 18
    )


def test_the_order_of_the_test_set_changes_no_number():
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    results = [evaluate_model(Client(wrong_on_odd), rows, Characters()) for rows in (ROWS, shuffled)]
    for key in ("accuracy", "correct", "ci95", "by_category", "by_template", "tokens"):
        assert results[0][key] == results[1][key]


def test_greedy_and_the_stop_rule_reach_the_client():
    client = Client(right)
    evaluate_model(client, ROWS[:1], Characters(), max_tokens=7, seed=3)
    assert (client.params.temperature, client.params.max_tokens, client.params.seed, client.params.stop) == (
        0.0,
        7,
        3,
        ["\n\n", "Instruction:"],
    )


def test_a_request_that_fails_once_is_tried_again():
    def flaky(prompt, attempt):
        if attempt == 1:
            raise RuntimeError("connection lost")
        return right(prompt, attempt)

    client = Client(flaky)
    assert evaluate_model(client, ROWS, Characters())["accuracy"] == 1
    assert set(client.attempts.values()) == {2}


@pytest.mark.parametrize("error", [RuntimeError("connection lost"), TimeoutError("too slow")])
def test_a_request_that_fails_twice_is_reported_and_never_scored(error):
    def broken(prompt, attempt):
        if "What is 4 +" in prompt:
            raise error
        return right(prompt, attempt)

    client = Client(broken)
    with pytest.raises(BackendError, match=r"1 of 30 requests failed twice.*request 3") as raised:
        evaluate_model(client, ROWS, Characters())
    assert (
        raised.value.failed == [3] and raised.value.__cause__ is error and max(client.attempts.values()) == 2
    )


def test_answers_that_came_before_a_failure_are_kept(tmp_path):
    def broken(prompt, attempt):
        if "What is 4 +" in prompt:
            raise RuntimeError("connection lost")
        return right(prompt, attempt)

    path = tmp_path / "samples.jsonl"
    with pytest.raises(BackendError, match=r"29 answers that came are in .*samples.partial.jsonl"):
        evaluate_model(Client(broken), ROWS, Characters(), samples_path=path)
    kept = [
        json.loads(line)
        for line in (tmp_path / "samples.partial.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(kept) == 29 and all(sample["score"] for sample in kept) and not path.exists()
    evaluate_model(Client(right), ROWS, Characters(), samples_path=path)
    assert path.exists() and not (tmp_path / "samples.partial.jsonl").exists()


def test_bad_test_sets_are_errors():
    for rows in ([], [{"instruction": "?"}], [{"instruction": "?", "output": " "}]):
        with pytest.raises(DataError):
            evaluate_model(Client(right), rows, Characters())
        with pytest.raises(DataError):
            score_outputs(rows, [""] * len(rows))
    with pytest.raises(DataError):
        score_outputs(ROWS, ["12"])
    with pytest.raises(DataError):
        evaluate_model(Client(right), ROWS, Characters(), max_in_flight=0)


def test_score_outputs_agrees_with_evaluate_model():
    sampled = evaluate_model(Client(wrong_on_odd), ROWS, Characters())
    scored = score_outputs(
        ROWS, [sample["output"] for sample in sampled["samples"]], stop_reasons=["stop"] * 30
    )
    for key in ("accuracy", "correct", "total", "ci95", "by_category", "by_template"):
        assert scored[key] == sampled[key]


def outcomes(scores):
    return [
        {"index": index, "problem": str(index), "score": bool(score)} for index, score in enumerate(scores)
    ]


def test_mcnemar_is_the_exact_binomial_test():
    from scipy.stats import binomtest

    base, tuned = [0] * 9 + [1] * 2 + [1] * 5 + [0] * 4, [1] * 9 + [0] * 2 + [1] * 5 + [0] * 4
    result = mcnemar(outcomes(base), random.Random(1).sample(outcomes(tuned), 20))
    assert (len(result["gained"]), len(result["lost"]), result["both_right"], result["both_wrong"]) == (
        9,
        2,
        5,
        4,
    )
    assert result["p_value"] == pytest.approx(binomtest(2, 11).pvalue) and result[
        "difference"
    ] == pytest.approx(7 / 20)
    assert mcnemar(outcomes(tuned), outcomes(base))["p_value"] == pytest.approx(result["p_value"])
    assert mcnemar(outcomes(base), outcomes(base))["p_value"] == 1
    assert result["ci95"] == pytest.approx((0.0397, 0.5967), abs=1e-4)  # Agresti and Min's formula, by hand


def test_a_tie_counts_half_a_win():
    won = win_rate([(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 1), (1, 0), (1, 0), (1, 0)])
    assert (won.wins, won.ties, won.losses, won.rate) == (2, 1, 1, 0.625)
    assert won.ci95 == pytest.approx(wilson_interval(2.5, 4))
    assert str(won).startswith("win rate 62.5%, 95% interval ") and "2 won, 1 tied, 1 lost" in str(won)
    for before, after in (([], []), ([1], [1, 2])):
        with pytest.raises(DataError, match="answers against"):
            win_rate(before, after)


def test_mcnemar_refuses_other_problems():
    with pytest.raises(DataError):
        mcnemar(outcomes([1, 0]), outcomes([1, 0, 1]))
    with pytest.raises(DataError):
        mcnemar(outcomes([1, 0]), [{**row, "problem": "another"} for row in outcomes([1, 0])])


def test_pass_at_k_is_the_mean_over_all_choices():
    from itertools import combinations

    for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (8, 1, 4)]:
        draws = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))
    with pytest.raises(DataError):
        pass_at_k(3, 1, 4)


def test_majority_vote_counts_values_and_skips_silence():
    assert (
        majority_vote(["The answer is 0.5", "", "Final answer: 2", "#### 1/2", "I don't know"])
        == "The answer is 0.5"
    )
    assert majority_vote(["", ""]) == ""


def test_math_reasoning_tells_answer_steps_and_completeness_apart():
    def reply(prompt, attempt):
        n = int(prompt.split("is ")[1].split()[0])
        bare, good = f"Final answer: {2 * n + 1}", right(prompt, attempt)
        return [bare, good, good.split("\nFinal")[0] + "\nTherefore", good.replace("= ", "= 1")][n % 4]

    result = evaluate_math_reasoning(Client(reply), ROWS[:28], Characters())
    # bare: answer, complete. good: all three. cut: steps only. wrong sum: complete, right answer, wrong
    # equation.
    assert result["counts"] == {"answer_accuracy": 21, "step_accuracy": 14, "completeness": 21}
    assert (
        result["answer_accuracy"] == 0.75
        and result["step_accuracy"] == 0.5
        and result["completeness"] == 0.75
    )
    assert result["ci95"]["step_accuracy"] == list(wilson_interval(14, 28))


def test_several_samples_give_pass_at_k_and_a_vote():
    def reply(prompt, attempt):
        return [right(prompt, attempt), "Final answer: 0", right(prompt, attempt), "Final answer: -1"]

    result = evaluate_math_reasoning(Client(reply), ROWS[:5], Characters(), num_samples=4)
    assert result["answer_accuracy"] == 0.5 and result["total"] == 20
    assert result["pass_at_k"] == pytest.approx({1: 0.5, 2: 5 / 6, 4: 1.0})
    assert result["majority_vote"]["accuracy"] == 1


def test_a_conversation_is_asked_up_to_its_last_answer(tmp_path):
    asked = {"role": "user", "content": "Where is it?"}
    messages = [
        asked,
        {"role": "assistant", "content": "On its way."},
        asked,
        {"role": "assistant", "content": "4"},
    ]
    record = conversation_record(messages)
    client = Client(lambda prompt, attempt: "4\n\n" if prompt.count("Where is it?") == 2 else "?")
    result = evaluate_model(client, [record], Characters(), grader=check_answer, samples_path=tmp_path / "s")
    [sample] = read_jsonl(tmp_path / "s")
    assert result["correct"] == 1 and sample["turns"] == messages[:-1] and sample["expected"] == "4"
    assert (
        sample["prompt"]
        == "Instruction: Where is it?\nResponse: On its way.\n\nInstruction: Where is it?\nResponse:"
    )


def test_evaluate_completions_runs_and_plugs_into_the_cookbook():
    from tinker_cookbook.eval.evaluators import SamplingClientEvaluator

    from helpers.train.renderers import get_renderer

    renderer = get_renderer("guide", Characters())
    evaluator = evaluate_completions(
        sampling_client=Client(wrong_on_odd), test_dataset=ROWS, renderer=renderer
    )
    assert isinstance(evaluator, SamplingClientEvaluator)
    results = evaluator.run()
    assert results["accuracy"] == results["exact_match"] == 0.5 and 0.5 < results["f1"] < 1
    assert asyncio.run(evaluator(Client(right))) == {"accuracy": 1, "exact_match": 1, "f1": 1}
    with pytest.raises(DataError, match="bleu"):
        evaluate_completions(None, ROWS, renderer, metrics=["bleu"])
    with pytest.raises(DataError):
        evaluate_completions(None, ROWS, renderer).run()


def test_token_f1_is_that_of_squad():
    assert token_f1("The Eiffel Tower!", "eiffel tower") == 1
    assert token_f1("in the big city of Paris", "Paris city") == pytest.approx(2 * 2 / (5 + 2))
    assert (
        token_f1("答案是北京。", "北京") == pytest.approx(2 * 2 / (5 + 2)) and token_f1("北京！", "北京") == 1
    )
    assert token_f1("", "") == 1 and token_f1("", "Paris") == 0 and token_f1("Rome", "Paris") == 0
    assert text_f1("ｒｅｄ bike<|im_end|>", "red bike") == 1 and text_f1("<|im_end|>", "red bike") == 0
