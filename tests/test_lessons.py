"""Long notebooks of Parts 2 and 3: at small settings, where they must show the right directions, and at the
defaults.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.files import read_json, read_jsonl
from helpers.paths import ROOT

SMALL = {  # 09 takes minutes: seven runs start a notebook each; 10 about a minute on two cores
    "10_reinforcement_learning": {
        "problems_a_step": 6,
        "steps": 4,
        "learning_rate": 6e-4,
        "held_out_problems": 24,
        "max_tokens": 32,
    },
    "09_break_it": {"examples": 16, "many_epochs": 5.0, "problems": 8, "jobs": 2},
}
NBVAL = [
    *("pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=1800", "-q"),
    *(f"--nbval-sanitize-with={ROOT}/tests/nbval_sanitize.cfg", "-p", "no:cacheprovider"),
]


def run(command: list[str], env: dict[str, str], runs: Path, timeout: int) -> Path:
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
    return runs


def small(name: str, folder: Path) -> list[str]:
    """papermill on a notebook at small settings."""
    settings = [word for key, value in SMALL[name].items() for word in ("-p", key, str(value))]
    return ["papermill", f"{name}.ipynb", str(folder / f"{name}.ipynb"), *settings]


def test_reinforcement_learning_raises_the_reward(course_env, tmp_path):
    name = "10_reinforcement_learning"
    runs = run(small(name, tmp_path), course_env, tmp_path, timeout=600)
    assert read_json(runs / name / "scores.json").keys() == {"before", "count", "repaired"}
    for loop in ("count", "repaired"):
        rewards = [row["reward"] for row in read_jsonl(runs / name / loop / "metrics.jsonl")]
        assert sum(rewards[2:]) / 2 > rewards[0], loop


@pytest.mark.soak  # 8 minutes
def test_reinforcement_learning_at_the_defaults(course_env, tmp_path):
    name = "10_reinforcement_learning"
    runs = run([*NBVAL, f"{name}.ipynb"], course_env, tmp_path, timeout=3600)
    scores = read_json(runs / name / "scores.json")
    before, count, repaired = (scores[loop]["T=1"] for loop in ("before", "count", "repaired"))
    assert count["count"] - before["count"] >= 0.3 and count["ci95"][0] > 0 and repaired["ci95"][0] > 0
    assert count["sense"] < before["sense"] < repaired["sense"]
    assert scores["repaired"]["T=0"]["count"] >= scores["before"]["T=0"]["count"]


@pytest.mark.soak  # 4 minutes
def test_the_checklist_for_own_data_at_its_defaults(course_env, tmp_path):
    name = "12_your_own_data"
    made = run([*NBVAL, f"{name}.ipynb"], course_env, tmp_path, timeout=3600) / name / "latest"
    assert (made / "report.html").is_file() and (made / "merge/merged_model/README.md").is_file()
    assert read_json(made / "evaluate/model_evaluation.json")["test_correct"] >= 12


@pytest.fixture(scope="module")
def own_run(course_env, tmp_path_factory) -> Path:
    """A runs folder with a short run of notebooks 01 and 02."""
    runs = tmp_path_factory.mktemp("own")
    settings = {"max_train": 48, "max_validation": 8, "max_tokens": 48, "learning_rate": 2e-3}
    chosen = [word for key, value in settings.items() for word in ("-p", f"{key}={value}")]
    return run(["helpers.course", "run", "--until", "train", *chosen], course_env, runs, timeout=600)


def test_broken_runs_show_what_is_wrong_with_them(own_run, course_env, tmp_path):
    before = os.readlink(own_run / "latest")
    run(small("09_break_it", tmp_path), course_env, own_run, timeout=900)
    check_broken_runs(own_run)
    assert os.readlink(own_run / "latest") == before


@pytest.mark.soak  # 8 minutes
def test_broken_runs_at_the_defaults(own_run, course_env):
    for path in own_run.glob("break-it*"):
        shutil.rmtree(path)
    run([*NBVAL, "09_break_it.ipynb"], course_env, own_run, timeout=3600)
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
