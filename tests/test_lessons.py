"""Long notebooks of Parts 2 and 3: at small settings, where they must show the right directions, and at the
defaults.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs_for_tests import make_run

from helpers.files import read_json, read_jsonl, write_json
from helpers.paths import ROOT
from helpers.train import connect

SMALL = {  # about a minute on two cores each; 09 takes more: seven runs start a notebook each
    "09_break_it": {"examples": 16, "many_epochs": 5.0, "problems": 8, "jobs": 2},
    "10_reinforcement_learning": {
        "problems_a_step": 6,
        "steps": 4,
        "learning_rate": 6e-4,
        "held_out_problems": 24,
        "max_tokens": 32,
    },
    "11_preferences": {
        "mixed_steps": 12,
        "examples_a_step": 8,
        "mixed_learning_rate": 3e-3,
        "problems": 24,
        "pairs_a_step": 4,
        "steps": 2,
        "learning_rate": 1e-3,
        "max_tokens": 10,
        "test_problems": 8,
    },
}


def run(command: list[str], env: dict[str, str], runs: Path, timeout: int) -> None:
    """Run a command in the folder of the notebooks, with a runs folder of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT / "notebooks",
        env=env | {"COURSE_RUNS_DIR": str(runs)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def run_small(name: str, env: dict[str, str], runs: Path) -> None:
    settings = [word for key, value in SMALL[name].items() for word in ("-p", key, str(value))]
    run(["papermill", f"{name}.ipynb", str(runs / f"{name}.ipynb"), *settings], env, runs, timeout=600)


def test_reinforcement_learning_raises_the_reward(course_env, tmp_path):
    name, runs = "10_reinforcement_learning", tmp_path
    run_small(name, course_env, runs)
    assert read_json(runs / name / "scores.json").keys() == {"before", "count", "repaired"}
    for loop in ("count", "repaired"):
        rewards = [row["reward"] for row in read_jsonl(runs / name / loop / "metrics.jsonl")]
        assert sum(rewards[2:]) / 2 > rewards[0], loop


@pytest.fixture
def started_run(course_env, tmp_path, monkeypatch):
    """A run whose best checkpoint is the base model itself."""
    monkeypatch.setenv("TINKER_COURSE_HOME", course_env["TINKER_COURSE_HOME"])
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    service = (backend := connect("stub")).service_client
    base = backend.base_model()
    started = make_run("started", done=("split", "train"), manifest={"base_model": base})
    client = service.create_lora_training_client(base, rank=16, seed=1, train_unembed=False).result()
    best = {"step": 0, "state_path": client.save_state("start").result().path}
    write_json(started.file("train/best_checkpoint.json"), best)
    asked = "Ana has {0} {2} and gets {1}. How many {2} are there?"
    sums = [(a, b, thing) for a in range(2, 6) for b in range(2, 6) for thing in ("cards", "pears", "coins")]
    rows = [
        {
            "instruction": asked.format(*row),
            "input": "",
            "output": f"Final answer: {row[0] + row[1]}",
            "answer": str(row[0] + row[1]),
        }
        for row in random.Random(1).sample(sums, 48)
    ]
    write_json(started.file("split/train.json"), rows[:40])
    write_json(started.file("split/test_set.json"), rows[40:])
    return started


def test_preferences_raise_the_margin(course_env, tmp_path, started_run):
    run_small("11_preferences", course_env, tmp_path)
    scores = read_json(started_run.file("11_preferences/scores.json"))
    assert list(scores) == ["SFT", "DPO", "small beta"]
    assert scores["SFT"]["win_rate"] == 0.5
    for loop, beta in (("dpo", 0.5), ("small_beta", 0.005)):
        margins = [
            row["margin"] / beta
            for row in read_jsonl(started_run.file(f"11_preferences/{loop}/metrics.jsonl"))
        ]
        assert abs(margins[0]) < 0.5 and margins[-1] > 1, loop  # nats


def run_as_committed(name: str, env: dict[str, str], runs: Path) -> None:
    nbval = ["pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=1800", "-q"]
    more = [f"--nbval-sanitize-with={ROOT}/tests/nbval_sanitize.cfg", "-p", "no:cacheprovider"]
    run([*nbval, *more, f"{name}.ipynb"], env, runs, timeout=3600)


@pytest.mark.soak  # 8 minutes
def test_reinforcement_learning_at_the_defaults(course_env, tmp_path):
    name, runs = "10_reinforcement_learning", tmp_path
    run_as_committed(name, course_env, runs)
    scores = read_json(runs / name / "scores.json")
    before, count, repaired = (scores[loop]["T=1"] for loop in ("before", "count", "repaired"))
    assert count["count"] - before["count"] >= 0.3 and repaired["count"] - before["count"] >= 0.2  # of 216
    assert count["sense"] < before["sense"] < repaired["sense"]
    assert scores["repaired"]["T=0"]["count"] >= scores["before"]["T=0"]["count"]


@pytest.mark.soak  # 15 minutes, 5 of them for the run
def test_preferences_at_the_defaults(course_env, tmp_path):
    run(["helpers.course", "run", "--until", "train"], course_env, tmp_path, timeout=1800)
    run_as_committed("11_preferences", course_env, tmp_path)
    scores = read_json(tmp_path / "latest/11_preferences/scores.json")
    dpo = scores["DPO"]
    assert dpo["win_rate"] >= 0.6 and dpo["ci95"][0] > 0.5
    assert dpo["change"][1] >= 0  # the interval's upper end: no loss of right answers is shown
    loops = {"dpo": 0.5, "small_beta": 0.005}
    nats = {
        loop: read_jsonl(tmp_path / f"latest/11_preferences/{loop}/metrics.jsonl")[-1]["margin"] / beta
        for loop, beta in loops.items()
    }
    assert nats["small_beta"] > nats["dpo"]  # it has no reason to stop


@pytest.mark.soak  # 4 minutes
def test_the_checklist_for_own_data_at_its_defaults(course_env, tmp_path):
    run_as_committed("12_your_own_data", course_env, tmp_path)
    made = tmp_path / "12_your_own_data/latest"
    assert (made / "report.html").is_file() and (made / "merge/merged_model/README.md").is_file()
    assert read_json(made / "evaluate/model_evaluation.json")["test_correct"] >= 12


@pytest.fixture(scope="module")
def own_run(course_env, tmp_path_factory) -> Path:
    """A runs folder with a short run of notebooks 01 and 02."""
    runs = tmp_path_factory.mktemp("own")
    settings = {"max_train": 48, "max_validation": 8, "max_tokens": 48, "learning_rate": 2e-3}
    chosen = [word for key, value in settings.items() for word in ("-p", f"{key}={value}")]
    run(["helpers.course", "run", "--until", "train", *chosen], course_env, runs, timeout=600)
    return runs


@pytest.mark.soak  # 5 minutes
def test_broken_runs_show_what_is_wrong_with_them(own_run, course_env):
    before = os.readlink(own_run / "latest")
    run_small("09_break_it", course_env, own_run)
    check_broken_runs(own_run)
    assert os.readlink(own_run / "latest") == before


@pytest.mark.soak  # 8 minutes
def test_broken_runs_at_the_defaults(own_run, course_env):
    for path in own_run.glob("break-it*"):
        shutil.rmtree(path)
    run_as_committed("09_break_it", course_env, own_run)
    check_broken_runs(own_run)


def check_broken_runs(runs: Path) -> None:
    """The directions that the text of notebook 09 states."""
    measured = read_json(runs / "break-it/measured.json")
    loss, capitals = ({name: values[i] for name, values in measured.items()} for i in (1, 2))
    assert loss["rate ÷ 10"] > 1.5 * loss["baseline"] and loss["rate × 10"] > loss["baseline"]
    assert capitals["rate × 10"] < capitals["baseline"] <= capitals["rate ÷ 10"] + 3
    assert loss["ten epochs"] < loss["baseline"]
    trained = read_jsonl(runs / "break-it-07/train/metrics.jsonl")[-4:]
    assert sum(row["train_nll"] for row in trained) / 4 < 0.7 * loss["ten epochs"]
    assert loss["mask off"] > 1.5 * loss["baseline"]  # it counts the questions too
