"""The whole road: every committed notebook by nbval as it stands. About 9 minutes on two cores; a shorter
road is in test_readme.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.runs.stages import STAGES

PART_TWO = ["08_lora_by_hand"]
NOTEBOOKS = ["00_start_here", *(kind.notebook for kind in STAGES.values()), *PART_TWO, "solutions"]


def run(command: list, env: dict, timeout: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def committed_notebooks(course_env, tmp_path_factory):
    """nbval over all notebooks in order, in a runs folder of their own. Returns it, and nbval's report."""
    runs = tmp_path_factory.mktemp("nbval-runs")
    result = run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-current-env",
            "--nbval-cell-timeout=1800",
            "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"notebooks/{name}.ipynb" for name in NOTEBOOKS),
        ],
        course_env | {"COURSE_RUNS_DIR": str(runs)},
        timeout=2400,
    )
    return runs, result


def test_committed_notebooks_give_the_outputs_they_show(committed_notebooks):
    result = committed_notebooks[1]
    assert result.returncode == 0, result.stdout[-6000:]


def test_the_default_run_learns(committed_notebooks):
    """At least 30 points from base to tuned on at least 100 problems, intervals apart."""
    evaluation = read(committed_notebooks[0] / "latest/evaluate/model_evaluation.json")
    assert evaluation["test_size"] >= 100
    assert evaluation["test_accuracy"] - evaluation["base_accuracy"] >= 0.30
    assert evaluation["base_accuracy_ci95"][1] < evaluation["test_accuracy_ci95"][0]


def test_the_merged_model_and_vllm_answer_like_the_sampler(committed_notebooks):
    manifest = read(committed_notebooks[0] / "latest/manifest.json")
    sampler = read(committed_notebooks[0] / "latest/evaluate/model_evaluation.json")["test_accuracy"]
    for stage in ("merge", "vllm"):
        results = manifest["stages"][stage]["results"]
        assert (
            results["parity_passed"] and abs(results["accuracy"] - sampler) <= 0.05
        )  # the stub samples in bfloat16, these in float32
