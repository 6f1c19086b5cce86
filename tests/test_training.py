"""The plan of a run, when it looks, what it calls its best checkpoint, and when it stops."""

import json

import pytest

from helpers.errors import CourseError, DataError
from helpers.train.loop import TrainingLog, evaluation_steps, loss_change, plan_steps


def test_each_epoch_sees_every_example_once_and_the_rate_falls_to_zero():
    plan = plan_steps(10, 4, 2, 1e-3, seed=1)
    assert [len(step.examples) for step in plan] == [4, 4, 2, 4, 4, 2] and [step.epoch for step in plan][
        2::3
    ] == [1, 2]
    for epoch in (plan[:3], plan[3:]):
        assert sorted(i for step in epoch for i in step.examples) == list(range(10))
    assert plan[0].examples != plan[3].examples and plan == plan_steps(10, 4, 2, 1e-3, seed=1) != plan_steps(
        10, 4, 2, 1e-3, seed=2
    )
    rates = [step.learning_rate for step in plan]
    assert rates[0] == 1e-3 and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 2e-4


@pytest.mark.parametrize(
    "arguments, looks",
    [
        ((113, 28), [0, 28, 56, 84, 113]),
        ((10, 4), [0, 4, 8, 10]),
        ((10, 20), [0, 10]),
        ((12, 99, 3.0, 1.0), [0, 4, 8, 12]),  # an epoch is four steps
        ((12, 99, 3.0, 0.5), [0, 2, 4, 6, 8, 10, 12]),
        ((12, 99, 3.0, 5.0), [0, 12]),
    ],
)
def test_looks_come_every_so_many_steps_or_epochs(arguments, looks):
    assert evaluation_steps(*arguments) == looks


def look(log, step, accuracy, loss):
    log.checkpoint(
        step,
        step / 4,
        f"tinker://run/weights/{step}",
        f"tinker://run/sampler_weights/{step}",
        accuracy,
        loss,
        round(10 * accuracy),
        10,
    )


LOOKS = [(0, 0.0, 2.0), (4, 0.5, 0.4), (8, 0.7, 0.3), (12, 0.6, 0.2), (16, 0.7, 0.35), (20, 0.6, 0.5)]


@pytest.mark.parametrize("metric, best", [("accuracy", 8), ("loss", 12)])
def test_the_best_checkpoint_is_by_the_named_metric(metric, best, tmp_path):
    log = TrainingLog(tmp_path, {"seed": 1}, best_metric=metric)
    for row in LOOKS:
        look(log, *row)
        history = json.loads((tmp_path / "evaluation_history.json").read_text())
        assert history[-1] == {
            "epoch": row[0] / 4,
            "step": row[0],
            "accuracy": row[1],
            "loss": row[2],
        }  # it grows as it goes
    assert log.best["step"] == best == json.loads((tmp_path / "best_checkpoint.json").read_text())["step"]
    assert not log.stop_early


@pytest.mark.parametrize(
    "metric, patience, stops_after",
    [("accuracy", 1, 12), ("accuracy", 2, 16), ("accuracy", 3, 20), ("loss", 2, 20), ("accuracy", 9, None)],
)
def test_it_stops_after_so_many_looks_without_a_new_best(metric, patience, stops_after, tmp_path):
    log = TrainingLog(tmp_path, {"seed": 1}, metric, patience)
    stopped = None
    for row in LOOKS:
        look(log, *row)
        if log.stop_early:
            stopped = row[0]
            break
    assert stopped == stops_after
    assert TrainingLog(tmp_path, {"seed": 1}, metric, patience).stop_early == (
        stops_after is not None
    )  # a resumed run knows


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([2.0, 1.0, 0.5], ["fell by 62%, from 2.000 in the first batch to 0.750"]),
        ([2.0, *[1.0] * 9, *[0.4] * 5], ["fell by 80%", "to 0.400"]),
        ([1.0, 0.9, 0.9], ["fell by 10%", "note: that is little"]),
        ([1.0], ["fell by 0%", "note:"]),
        ([0.0, 0.0], ["is 0.000"]),
    ],
)
def test_the_change_of_the_loss_in_words(losses, words):
    said = loss_change([{"train_nll": loss} for loss in losses])
    assert [part for part in words if part not in said] == [] and said.count("note:") == (
        "note:" in str(words)
    ), said


@pytest.mark.parametrize("losses", [[1.0, 1.1, 1.2], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_loss_that_did_not_fall_is_an_error(losses):
    with pytest.raises(
        CourseError, match="did not fall: from 1.000 .*\n→ start another run with a smaller learning_rate"
    ):
        loss_change([{"train_nll": loss} for loss in losses])


def test_impossible_values_are_errors(tmp_path):
    for arguments in (("f1", 0), ("accuracy", -1)):
        with pytest.raises(DataError):
            TrainingLog(tmp_path, {}, *arguments)
    for arguments in ((10, 0), (10, 1, 1.0, -1.0)):
        with pytest.raises(DataError):
            evaluation_steps(*arguments)
    for arguments in ((0, 4, 1, 1e-3, 1), (10, 0, 1, 1e-3, 1), (10, 4, 0, 1e-3, 1), (10, 4, 1, 0, 1)):
        with pytest.raises(DataError):
            plan_steps(*arguments)
