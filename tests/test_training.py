"""The plan of a run, when it looks, what it calls its best checkpoint, and when it stops."""

import json
import re
import runpy
import subprocess
import sys

import pytest
from pydantic import BaseModel

from helpers.errors import CourseError, DataError
from helpers.files import read_jsonl
from helpers.paths import ROOT
from helpers.train.progress import Progress
from helpers.train.schedule import Step, evaluation_steps, plan_steps
from helpers.train.training_log import TrainingLog


class TrainSettings(BaseModel):
    """As those of notebook 02, as far as the log asks."""

    seed: int = 1
    best_metric: str = "accuracy"
    patience: int = 0
    prompt_format: str = "guide"


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
        {"accuracy": accuracy, "correct": round(10 * accuracy), "total": 10},
        loss,
    )


LOOKS = [(0, 0.0, 2.0), (4, 0.5, 0.4), (8, 0.7, 0.3), (12, 0.6, 0.2), (16, 0.7, 0.35), (20, 0.6, 0.5)]


@pytest.mark.parametrize("metric, best", [("accuracy", 8), ("loss", 12)])
def test_the_best_checkpoint_is_by_the_named_metric(metric, best, tmp_path):
    log = TrainingLog(tmp_path, TrainSettings(best_metric=metric))
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
    log = TrainingLog(tmp_path, TrainSettings(best_metric=metric, patience=patience))
    stopped = None
    for row in LOOKS:
        look(log, *row)
        if log.stop_early:
            stopped = row[0]
            break
    assert stopped == stops_after
    assert TrainingLog(tmp_path, TrainSettings(best_metric=metric, patience=patience)).stop_early == (
        stops_after is not None
    )  # a resumed run knows


def log_with(folder, losses):
    log = TrainingLog(folder, TrainSettings())
    for number, loss in enumerate(losses, start=1):
        log.step(Step(number, 0.5, [0], 1e-3), loss, tokens=100)
    return log


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
def test_the_change_of_the_loss_in_words(losses, words, tmp_path):
    said = log_with(tmp_path, losses).loss_change()
    assert [part for part in words if part not in said] == [] and said.count("note:") == (
        "note:" in str(words)
    ), said


@pytest.mark.parametrize("losses", [[1.0, 1.1, 1.2], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_loss_that_did_not_fall_is_an_error(losses, tmp_path):
    with pytest.raises(
        CourseError, match=r"did not fall: from 1.000 .*\n→ start another run with a smaller learning_rate"
    ):
        log_with(tmp_path, losses).loss_change()


def test_impossible_values_are_errors(tmp_path):
    for wrong in ({"best_metric": "f1"}, {"patience": -1}):
        with pytest.raises(DataError):
            TrainingLog(tmp_path, TrainSettings(**wrong))
    for arguments in ((10, 0), (10, 1, 1.0, -1.0)):
        with pytest.raises(DataError):
            evaluation_steps(*arguments)
    for arguments in (
        (0, 4, 1, 1e-3, 1),
        (10, 0, 1, 1e-3, 1),
        (10, 4, 0, 1e-3, 1),
        (10, 4, 1, 0, 1),
        (10, 4, 1e9, 1, 1),
    ):
        with pytest.raises(DataError):
            plan_steps(*arguments)


PLAN = plan_steps(8, 2, 1.0, 1e-3, seed=1)


def train(log, until=99):
    """Notebook 02's loop without a model: an evaluation after every second step."""
    done = []
    for step in Progress(PLAN, log):
        log.step(step, 1 / step.number, tokens=100)
        done.append(step.number)
        if step.number % 2 == 0:
            look(log, step.number, 0.5, 1 / step.number)
        if step.number == until:
            break
    return done


def test_an_interrupted_loop_goes_on_after_its_last_checkpoint(tmp_path):
    assert train(TrainingLog(tmp_path, TrainSettings(), base="a"), until=3) == [1, 2, 3]
    log = TrainingLog(tmp_path, TrainSettings(), base="a")
    assert log.resumed and train(log) == [3, 4]
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    log.finish()
    assert not TrainingLog(tmp_path, TrainSettings(), base="a").resumed, "a finished run is begun anew"


@pytest.mark.parametrize(("settings", "base"), [(TrainSettings(seed=2), "a"), (TrainSettings(), "b")])
def test_other_settings_begin_anew(settings, base, tmp_path):
    train(TrainingLog(tmp_path, TrainSettings(), base="a"), until=3)
    log = TrainingLog(tmp_path, settings, base=base)
    assert not log.resumed and log.metrics == [] and train(log) == [1, 2, 3, 4]


def test_the_loop_ends_when_patience_does(tmp_path, capsys):
    log = TrainingLog(tmp_path, TrainSettings(patience=1))
    look(log, 0, 0.9, 0.1)  # nothing later is as good
    assert train(log) == [1, 2]
    assert "no improvement in the last 1 evaluations: stopped after step 2 of 4" in capsys.readouterr().out


FAKE_WANDB = """
import json, os
config = {}
class Run:
    url = "https://tracker.example/run"
def init(**arguments):
    say("init", project=arguments["project"], name=arguments["name"], seed=arguments["config"]["seed"])
    return Run()
def log(metrics, step=None, **_):
    say("log", step=step, **metrics)
def finish():
    say("finish")
def say(what, **more):
    with open(os.environ["SAID"], "a") as file:
        file.write(json.dumps({"what": what, **more}) + "\\n")
"""

TRACKED = """
import sys
from pathlib import Path
from test_training import TrainSettings, TrainingLog, train
folder = Path(sys.argv[1]) / "mine" / "train"
folder.mkdir(parents=True)
log = TrainingLog(folder, TrainSettings())
train(log)
log.finish()
"""


def test_a_tracker_that_is_installed_gets_the_curves(tmp_path, monkeypatch):
    """W&B by a stand-in of that name, since it is no part of the course; all that comes to it goes through
    the cookbook.
    """
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)
    said = tmp_path / "said.jsonl"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("SAID", str(said))
    for project in ("", "lessons"):
        monkeypatch.setenv("WANDB_PROJECT", project)
        subprocess.run([sys.executable, "-c", TRACKED, tmp_path / f"runs{project}"], check=True, timeout=120)
        assert said.exists() == bool(project), "only a project that is named is tracked"
    rows = read_jsonl(said)
    assert rows[0] == {"what": "init", "project": "lessons", "name": "mine", "seed": 1}
    assert {row["step"]: row["train_nll"] for row in rows if "train_nll" in row} == {
        1: 1.0,
        2: 0.5,
        3: 0.33333,
        4: 0.25,
    }
    assert [row["validation/loss"] for row in rows if "validation/loss" in row] == [0.5, 0.25]
    assert rows[-1]["what"] == "finish"


def test_a_plan_says_where_to_evaluate():
    plan = plan_steps(24, 2, 1.0, 1e-3, 42, eval_every=5)
    assert [step.number for step in plan if step.evaluate] == [5, 12]  # 10 is too near the end
    assert not any(step.evaluate for step in plan_steps(24, 2, 1.0, 1e-3, 42))


def test_the_loop_without_the_course_learns_saves_and_samples(server, tmp_path, monkeypatch, capsys):
    rows = [{"instruction": "2 + 3 = ?", "input": "add", "output": "Final answer: 5"}] * 33
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", server.key)
    monkeypatch.setattr(sys, "argv", ["sft.py", str(tmp_path / "rows.json"), str(server.model)])
    runpy.run_path(str(ROOT / "docs/sft.py"))
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"([\d.]+) nats", said)]
    assert len({*losses}) == 4 and losses == sorted(losses, reverse=True)
    assert re.search(
        r"to train on: tinker://\S+/weights/sft\nto sample: tinker://\S+/sampler_weights/sft", said
    )
    assert "2 + 3 = ? →" in said
