"""The parity check: right models pass, wrong ones fail."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny_models import PAIRS, by_hand, make_adapter, make_base

from helpers import plots
from helpers.errors import ModelError
from helpers.weights import compare_logprobs, score_with_sampler, score_with_transformers
from helpers.weights.base_model import load_base
from helpers.weights.parity import compare_two, logit_noise, measured_noise
from helpers.weights.peft_form import load_peft
from helpers.weights.scores import ModelShape, Scores


def noise_for(scores: Scores, *precisions: str) -> float:
    assert scores.shape
    return logit_noise(*precisions, shape=scores.shape)


def test_parity_passes_for_peft_and_merged(made):
    for model in (load_peft(made["base"], made["peft"]), load_base(made["merged"])):
        result = compare_two(
            made["scores"],
            score_with_transformers(model, PAIRS),
            noise_for(made["scores"], "float32", "float32"),
        )
        assert result["passed"] and result["token_agreement"] == 1.0
        assert result["prompts"] == len(PAIRS) and result["tokens"] == sum(len(c) for _, c in PAIRS)


def test_parity_passes_for_bfloat16_under_its_own_bound_only(made):
    scores = score_with_transformers(load_base(made["merged"], "bfloat16"), PAIRS)
    assert compare_two(made["scores"], scores, noise_for(made["scores"], "float32", "bfloat16"))["passed"]
    assert not compare_two(made["scores"], scores, noise_for(made["scores"], "float32", "float32"))["passed"]


def test_noise_measured_on_equal_models_passes_them_and_not_the_base(made):
    rounded = score_with_transformers(load_base(made["merged"], "bfloat16"), PAIRS)
    noise = max(noise_for(made["scores"], "float32", "bfloat16"), measured_noise(made["scores"], rounded))
    assert (
        0.1 < measured_noise(made["scores"], rounded) / noise_for(made["scores"], "float32", "bfloat16") < 5
    )
    assert compare_two(made["scores"], rounded, noise)["passed"]
    assert not compare_two(made["scores"], score_with_transformers(load_base(made["base"]), PAIRS), noise)[
        "passed"
    ]
    assert measured_noise(made["scores"], made["scores"]) == 0


WRONG = {
    "base model": lambda made: load_base(made["base"]),
    "double scale": lambda made: by_hand(made["base"], made["adapter"], scale=8.0),
    "scale 1 (alpha / r forgotten)": lambda made: by_hand(made["base"], made["adapter"], scale=1.0),
    "scale off by one percent": lambda made: by_hand(made["base"], made["adapter"], scale=4.04),
    "a layer dropped": lambda made: by_hand(made["base"], made["adapter"], skip=("layers.1.",)),
    "one matrix dropped": lambda made: by_hand(made["base"], made["adapter"], skip=("layers.2.mlp.up_proj",)),
    "another adapter": lambda made: by_hand(
        made["base"], make_adapter(made["folder"] / "other", made["base"], seed=7)
    ),
    "another base": lambda made: by_hand(make_base(made["folder"] / "base2", seed=3), made["adapter"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_parity_fails_for_a_wrong_model(made, fault):
    scores = score_with_transformers(WRONG[fault](made), PAIRS)
    result = compare_two(made["scores"], scores, noise_for(made["scores"], "float32", "float32"))
    assert not result["passed"], result


@pytest.mark.parametrize(
    "fault", ["base model", "double scale", "scale 1 (alpha / r forgotten)", "a layer dropped"]
)
def test_gross_faults_fail_even_in_bfloat16(made, fault):
    scores = score_with_transformers(WRONG[fault](made), PAIRS)
    assert not compare_two(made["scores"], scores, noise_for(made["scores"], "float32", "bfloat16"))["passed"]


def test_scores_agree_with_one_sequence_at_a_time(made):
    model = by_hand(made["base"], made["adapter"])
    scores = made["scores"]
    for (prompt, continuation), row, chosen in zip(PAIRS, scores.logprobs, scores.greedy, strict=True):
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([prompt + continuation])).logits[0].float(), -1)
        places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        assert row == pytest.approx(
            [float(logprobs[p, t]) for p, t in zip(places, continuation, strict=True)], rel=1e-5, abs=1e-5
        )
        assert chosen == [int(logprobs[p].argmax()) for p in places]


def test_scoring_with_a_sampler_takes_the_continuation_only():
    class Sampler:
        def __init__(self):
            self.waiting = 0

        def sample(self, prompt, count, params, include_prompt_logprobs, topk_prompt_logprobs):
            self.waiting += 1
            tokens = prompt.to_ints()
            sent = SimpleNamespace(
                prompt_logprobs=[None, *(-t / 10 for t in tokens[1:])],
                topk_prompt_logprobs=[None, *([(t, -0.1)] for t in tokens[1:])],
            )

            def result():
                assert self.waiting == 2, "all requests are sent before the first is awaited"
                return sent

            return SimpleNamespace(result=result)

    scores = score_with_sampler(cast(Any, Sampler()), [([1, 2], [3, 4]), ([5], [6])])
    assert scores.logprobs == [[-0.3, -0.4], [-0.6]] and scores.greedy == [[3, 4], [6]]


def test_several_models_are_compared_with_one_in_a_table(made):
    trained = Scores("trained", made["scores"].logprobs, made["scores"].greedy)  # a server tells no shape
    models = {"merged": load_base(made["merged"]), "base": load_base(made["base"])}
    others = [score_with_transformers(model, PAIRS, name) for name, model in models.items()]
    results = compare_logprobs(trained, others)
    assert {name: result["passed"] for name, result in results.items()} == {"merged": True, "base": False}
    assert results["merged"]["logit_noise"] == noise_for(others[0], "float32", "float32")
    lines = str(results).splitlines()
    assert lines[0].startswith("against trained") and lines[2].startswith("merged")
    assert lines[2].endswith("yes") and lines[3].endswith("NO")
    with pytest.raises(ModelError, match="none of the scores knows its model's shape"):
        compare_logprobs(trained, [trained])


def test_what_rounding_does_to_this_model_counts_if_it_is_more_than_the_estimate(made):
    merged = load_base(made["merged"])
    scores = score_with_transformers(merged, PAIRS, "merged", rounded_to="bfloat16")
    assert scores.rounded and scores.rounded.logprobs != scores.logprobs
    assert merged.dtype == torch.float32
    measured = measured_noise(scores, scores.rounded)
    result = compare_logprobs(scores, [scores.rounded], precisions=("float32", "float32"))
    assert result["merged, bfloat16"]["logit_noise"] == measured
    generous = compare_logprobs(scores, [scores.rounded], precisions=("bfloat16", "bfloat16"))
    estimate = noise_for(scores, "bfloat16", "bfloat16")
    assert generous["merged, bfloat16"]["logit_noise"] == max(estimate, measured)


def test_comparisons_that_make_no_sense_are_refused(made):
    scores = made["scores"]
    with pytest.raises(ModelError, match="same tokens"):
        compare_two(scores, Scores("short", scores.logprobs[:-1]), 0.1)
    with pytest.raises(ModelError, match="not log-probabilities"):
        compare_two(scores, Scores("nan", [[math.nan] * len(row) for row in scores.logprobs]), 0.1)
    with pytest.raises(ModelError, match="not log-probabilities"):
        compare_two(Scores("none", []), Scores("none", []), 0.1)
    with pytest.raises(ModelError, match="int4"):
        logit_noise("int4", shape=ModelShape(1, 1, 1.0))
    with pytest.raises(ModelError, match="hold tokens"):
        score_with_transformers(load_base(made["base"]), [([1], [])])


def test_scatter_draws_each_token(made):
    figure = plots.parity_scatter(made["scores"], [made["scores"]], 1e-4)
    left, right = figure.axes
    tokens = sum(len(continuation) for _, continuation in PAIRS)
    assert len(cast(Any, left.collections[0].get_offsets())) == tokens
    heights = cast(Any, right.patches[0]).get_xy()[:, 1]
    assert max(heights) == tokens, "all differences are zero, so all are in one bin"
