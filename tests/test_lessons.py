"""Part 3: its notebooks at small settings, which must learn in the right direction, and at the defaults."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.files import read_json, read_jsonl
from helpers.paths import ROOT

SMALL = {  # about a minute on two cores
    "10_reinforcement_learning": {
        "problems_a_step": 6,
        "steps": 4,
        "learning_rate": 6e-4,
        "held_out_problems": 24,
        "max_tokens": 32,
    }
}


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


def test_reinforcement_learning_raises_the_reward(course_env, tmp_path):
    name = "10_reinforcement_learning"
    settings = [word for key, value in SMALL[name].items() for word in ("-p", key, str(value))]
    output = tmp_path / f"{name}.ipynb"
    runs = run(["papermill", f"{name}.ipynb", str(output), *settings], course_env, tmp_path, timeout=600)
    assert read_json(runs / name / "scores.json").keys() == {"before", "count", "repaired"}
    for loop in ("count", "repaired"):
        rewards = [row["reward"] for row in read_jsonl(runs / name / loop / "metrics.jsonl")]
        assert sum(rewards[2:]) / 2 > rewards[0], loop


def nbval(name: str, env: dict[str, str], runs: Path) -> Path:
    """Run a notebook at its defaults, and compare its outputs. Gives the folder of what it makes."""
    command = ["pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=1800", "-q"]
    command += [f"--nbval-sanitize-with={ROOT}/tests/nbval_sanitize.cfg", "-p", "no:cacheprovider"]
    return run([*command, f"{name}.ipynb"], env, runs, timeout=3600) / name


@pytest.mark.soak  # 8 minutes
def test_reinforcement_learning_at_the_defaults(course_env, tmp_path):
    scores = read_json(nbval("10_reinforcement_learning", course_env, tmp_path) / "scores.json")
    before, count, repaired = (scores[loop]["T=1"] for loop in ("before", "count", "repaired"))
    assert count["count"] - before["count"] >= 0.3 and count["ci95"][0] > 0 and repaired["ci95"][0] > 0
    assert count["sense"] < before["sense"] < repaired["sense"]
    assert scores["repaired"]["T=0"]["count"] >= scores["before"]["T=0"]["count"]


@pytest.mark.soak  # 4 minutes
def test_the_checklist_for_own_data_at_its_defaults(course_env, tmp_path):
    made = nbval("12_your_own_data", course_env, tmp_path) / "latest"
    assert (made / "report.html").is_file() and (made / "merge/merged_model/README.md").is_file()
    assert read_json(made / "evaluate/model_evaluation.json")["test_correct"] >= 12
