"""The whole road: every committed notebook by nbval as it stands. It runs beside all other tests; alone, it
takes about 9 minutes on two cores. A shorter road is in test_readme.py.
"""

import json
from pathlib import Path

import pytest


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ended(committed_notebooks) -> tuple[Path, int, str]:
    """The folder of their run, nbval's status, and what it printed."""
    return committed_notebooks.runs, *committed_notebooks.result()


def test_committed_notebooks_give_the_outputs_they_show(ended):
    _, status, output = ended
    assert status == 0, output[-6000:]


def test_the_default_run_learns(ended):
    """At least 30 points from base to tuned on at least 100 problems, intervals apart."""
    evaluation = read(ended[0] / "latest/evaluate/model_evaluation.json")
    assert evaluation["test_size"] >= 100
    assert evaluation["test_accuracy"] - evaluation["base_accuracy"] >= 0.30
    assert evaluation["base_accuracy_ci95"][1] < evaluation["test_accuracy_ci95"][0]


def test_the_merged_model_and_vllm_answer_like_the_sampler(ended):
    manifest = read(ended[0] / "latest/manifest.json")
    sampler = read(ended[0] / "latest/evaluate/model_evaluation.json")["test_accuracy"]
    for stage in ("merge", "vllm"):
        results = manifest["stages"][stage]["results"]
        assert (
            results["parity_passed"] and abs(results["accuracy"] - sampler) <= 0.05
        )  # the stub samples in bfloat16, these in float32
