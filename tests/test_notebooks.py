"""The whole road: by `course run` on a short setting, and every committed notebook by nbval as it stands.

These are the slow tests: about 2 and 10 minutes on two cores.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import own_tasks
import pytest

from helpers.files import read_jsonl
from helpers.runs import ROOT, STAGES
from helpers.settings import notebook_parameters

NOTEBOOKS = ["00_start_here", *(notebook for notebook, _ in STAGES.values()), "solutions"]
COURSE = Path(sys.executable).parent / "course"
SHORT = {  # reviews in Chinese, from a CSV: another task than the committed notebooks run
    "columns": "input=评价原文,output=情绪", "task": "classification", "instruction": "评价是好评还是差评？", "epochs": 1.5, "eval_every": 4, "rank": 8,
    "learning_rate": 2e-3, "max_tokens": 24, "parity_prompts": 8, "throughput_tokens": 8, "batch_sizes": "1,4", "serve_prompts": 0, "subset": 2,
    "sampled_problems": 1, "samples_each": 2}
STEPS, TESTED = 8, 10
DESIGN = """manifest.json report.html
split/train.json split/validation.json split/test_set.json
train/metrics.jsonl train/checkpoints.jsonl train/evaluation_history.json train/best_checkpoint.json
evaluate/model_evaluation.json evaluate/samples.jsonl
export/model-checkpoint.tar.gz export/model_weights/adapter_model.safetensors
merge/merged_model/model.safetensors merge/parity.json
vllm/outputs.jsonl vllm/evaluation.json vllm/parity.json
notebooks/01_split.ipynb notebooks/06_vllm_inference.ipynb""".split()


def run(command: list, env: dict, timeout: int) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def short_data(tmp_path_factory):
    return own_tasks.reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="module")
def short_run(course_env, short_data):
    """The folder of a short run of every stage, and what the command printed."""
    parameters = [word for name, value in SHORT.items() for word in ("-p", f"{name}={value}")]
    result = run([COURSE, "run", "--name", "short", "--data", short_data, *parameters], course_env, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return Path(course_env["COURSE_RUNS_DIR"]) / "short", result.stdout


def test_a_short_run_leaves_every_file_of_the_design(short_run):
    folder, _ = short_run
    missing = [name for name in DESIGN if not (folder / name).is_file()]
    assert not missing
    assert (folder.parent / "latest").resolve() == folder.resolve()


def test_a_short_run_prints_its_table(short_run):
    _, printed = short_run
    for stage in STAGES:
        assert re.search(rf"^{stage} +\d+:\d\d  \S.+  {stage}/", printed, re.MULTILINE), printed[-2000:]
    assert re.search(r"in all: .*training .*sampling|in all: .*sampling .*training", printed) and "vllm" in printed


def test_the_manifest_says_what_was_done(short_run):
    manifest = read(short_run[0] / "manifest.json")
    assert set(manifest["stages"]) == set(STAGES)
    assert all(entry["status"] == "done" and entry["seconds"] >= 0 and entry["finished"] for entry in manifest["stages"].values())
    assert manifest["seed"] == 42 and manifest["backend"]["kind"] == "stub" and manifest["packages"]["tinker"]
    assert manifest["stages"]["train"]["parameters"]["rank"] == SHORT["rank"]
    artefacts = [path for entry in manifest["stages"].values() for path in entry["artefacts"]]
    assert all((short_run[0] / path).exists() and not Path(path).is_absolute() for path in artefacts)


def test_the_report_is_one_page_that_needs_nothing_else(short_run):
    page = (short_run[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "http" not in page.replace("http-equiv", "") and "Not all of the run" not in page and "under way" not in page
    for words in ("Samples to read", "95% interval", "McNemar", "rank", "tinker", "vLLM, 4 at once"):
        assert words in page


def test_the_files_of_a_short_run_hold_together(short_run):
    folder, _ = short_run
    evaluation = read(folder / "evaluate/model_evaluation.json")
    assert {"model_path", "model_name", "base_model", "base_accuracy", "test_accuracy", "test_correct", "test_size", "test_accuracy_ci95"} <= set(evaluation)
    assert evaluation["test_size"] == TESTED == len((folder / "evaluate/samples.jsonl").read_text().splitlines())
    assert evaluation["test_accuracy"] == evaluation["test_correct"] / evaluation["test_size"]
    history = read(folder / "train/evaluation_history.json")
    assert all(set(row) == {"epoch", "step", "accuracy", "loss"} for row in history) and history[0]["step"] == 0
    metrics = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1)) and metrics[-1]["train_nll"] < metrics[0]["train_nll"]
    for stage in ("merge", "vllm"):
        parity = read(folder / stage / "parity.json")
        assert parity["passed"] and parity["max_abs_logprob_diff"] <= parity["tolerance"] and parity["prompts"] == SHORT["parity_prompts"]
    assert len((folder / "vllm/outputs.jsonl").read_text().splitlines()) == TESTED


def test_chinese_reviews_are_learned_and_reach_vllm(short_run):
    """Mapped columns, the task's own grader in every notebook, and a score that rises above the commonest label's."""
    manifest = read(short_run[0] / "manifest.json")
    split = manifest["stages"]["split"]["results"]
    assert set(split["task"]["labels"]) == {"好评", "差评"} and split["sources"][0]["columns"] == {"input": "评价原文", "output": "情绪"}
    assert "semicolon" in split["sources"][0]["form"] and split["sources"][0]["unused"] == ["编号"]
    evaluation = read(short_run[0] / "evaluate/model_evaluation.json")
    measures = evaluation["measures"]
    assert set(evaluation["by_category"]) == {"好评", "差评"} and measures["tuned"]["macro_f1"] > measures["base"]["macro_f1"]
    assert evaluation["test_accuracy"] >= max(evaluation["base_accuracy"], measures["tuned"]["majority_baseline"]) + 0.2
    assert all(abs(manifest["stages"][stage]["results"]["accuracy"] - evaluation["test_accuracy"]) <= 0.1 for stage in ("merge", "vllm"))


def test_a_notebook_runs_by_plain_papermill_too(short_run, course_env, tmp_path):
    """Outside the project's folder, with its own parameters, on the run that is there."""
    papermill = Path(sys.executable).parent / "papermill"
    out = tmp_path / "out.ipynb"
    result = subprocess.run(
        [papermill, ROOT / "notebooks/04_export.ipynb", out, "-p", "run_name", "short"],
        cwd=tmp_path, env=course_env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    manifest = read(short_run[0] / "manifest.json")
    assert manifest["stages"]["export"]["status"] == "done"
    assert manifest["stages"]["merge"]["status"] == "stale"  # made from the export before this one


def test_the_same_again_by_the_command_and_by_papermill_both_at_once(short_run, short_data, course_env, tmp_path):
    """`--like` and plain papermill with the same settings: the same split, initial loss and schedule, side by side on one stub."""
    runs, known = short_run[0].parent, notebook_parameters()
    again = subprocess.Popen([COURSE, "run", "--like", "short", "--name", "again", "--until", "train"], cwd=ROOT, env=course_env,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    before = set(runs.iterdir())
    run_name = "new"
    for stage in ("split", "train"):
        own = [word for name, value in (SHORT | {"data_files": str(short_data)}).items() if name in known[stage] for word in ("-p", name, str(value))]
        result = subprocess.run([COURSE.with_name("papermill"), ROOT / "notebooks" / f"{STAGES[stage][0]}.ipynb", tmp_path / f"{stage}.ipynb",
                                 "-p", "run_name", run_name, *own], cwd=tmp_path, env=course_env, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-2000:]
        if stage == "split":
            [run_name] = (path.name for path in set(runs.iterdir()) - before if path.is_dir() and path.name not in ("again", "latest"))
    printed = again.communicate(timeout=600)[0]
    assert again.returncode == 0 and "note:" not in printed, printed
    assert read(runs / "again" / "manifest.json")["like"] == "short"
    for name in ("short", "again", run_name):
        for part in ("train", "validation", "test_set"):
            assert (runs / name / f"split/{part}.json").read_bytes() == (runs / f"short/split/{part}.json").read_bytes()
        rows, first = (read_jsonl(runs / one / "train/metrics.jsonl") for one in (name, "short"))
        assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in first]
        assert [row["train_nll"] for row in rows] == pytest.approx([row["train_nll"] for row in first], abs=1e-3)


@pytest.fixture(scope="module")
def committed_notebooks(course_env, tmp_path_factory):
    """nbval over all notebooks in order, in a runs folder of their own. Returns it, and nbval's report."""
    runs = tmp_path_factory.mktemp("nbval-runs")
    result = run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=1800", "--nbval-sanitize-with=tests/nbval_sanitize.cfg", "-q", "-p", "no:cacheprovider",
         *(f"notebooks/{name}.ipynb" for name in NOTEBOOKS)],
        course_env | {"COURSE_RUNS_DIR": str(runs)}, timeout=2400)
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
        assert results["parity_passed"] and abs(results["accuracy"] - sampler) <= 0.05  # the stub samples in bfloat16, these in float32
