"""Scores and their intervals."""

import dataclasses
import json

import pytest

from helpers.errors import DataError
from helpers.evaluate import Score, evaluate_model, score_outputs, wilson_interval


@pytest.mark.parametrize(
    "correct, total, low, high",
    [  # statsmodels.stats.proportion.proportion_confint(method="wilson"), z = 1.96
        (0, 10, 0.0, 0.27753),
        (8, 10, 0.49016, 0.94332),
        (10, 10, 0.72247, 1.0),
        (50, 100, 0.40383, 0.59617),
        (1, 60, 0.00295, 0.08862),
    ],
)
def test_the_interval_is_wilsons(correct, total, low, high):
    assert (
        wilson_interval(correct, total) == Score(correct, total).ci95 == pytest.approx((low, high), abs=1e-4)
    )


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2), (0, -1)])
def test_what_is_no_proportion_is_refused(counts):
    for make in (wilson_interval, Score):
        with pytest.raises(DataError, match="is no proportion"):
            make(*counts)


def test_a_score_says_itself():
    score = Score(70, 120)
    assert str(score) == "70/120 = 58.3%, 95% interval 49.4% to 66.8%"
    assert score.accuracy == 70 / 120
    assert (
        json.loads(json.dumps(score.fields()))
        == score.fields()
        == {
            "accuracy": 70 / 120,
            "correct": 70,
            "total": 120,
            "ci95": list(wilson_interval(70, 120)),
        }
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.correct = 71


def test_a_score_of_verdicts():
    assert Score.of([True, "", 1, None]) == Score(2, 4)
    with pytest.raises(DataError):
        Score.of([])


def test_results_carry_their_score():
    rows = [{"instruction": "1 + 1?", "output": "2", "category": "sums"}] * 3
    result = score_outputs(rows, ["2", "3", "2"])
    assert result["score"] == Score(2, 3)
    assert {name: result[name] for name in Score(2, 3).fields()} == Score(2, 3).fields()
    assert result["by_category"] == {"sums": Score(2, 3).fields()}
    assert evaluate_model.__doc__, "the decorator that counts its time keeps what it says of itself"
