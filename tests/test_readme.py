"""The shell examples of README.md, run one after the other as they stand there, and what they leave behind.

They run in a folder that looks like the project, beside files of the names that the examples use. What is not run is in NOT_RUN, with
the reason. A new example is run by itself.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.files import read_json, read_jsonl
from helpers.paths import ROOT
from helpers.runs.run import STAGES
from helpers.runs.settings import notebook_parameters, profile

NOT_RUN = {
    "make run": "the notebooks with their defaults: test_notebooks.py runs them by nbval, test_setup.py says what make does",
    "make test": "this is it",
    "make lab": "test_serve_class.py starts JupyterLab by it",
    "course run": "as make run",
    "course run --name mine -p epochs=2 -p rank=16": "20 minutes",
    "course run --profile full": "an hour",
    "course run --profile FILE --until evaluate": "FILE is the reader's; test_cli.py reads such files",
    'make run ARGS="-p epochs=2"': "20 minutes",
    "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4": "half an hour; its dry run is run",
    "course sweep --name ranks --resume": "as the line above; test_sweep.py resumes sweeps",
    "course sweep --name seeds --grid seed=1,2,3": "20 minutes",
    "course sweep --name mine --settings FILE": "FILE is the reader's; test_sweep.py reads such files",
    "dask scheduler": "for several machines; test_sweep.py runs a sweep on a Dask cluster of two workers",
    "dask worker tcp://host:8786 --nthreads 1": "as dask scheduler",
    "course sweep --name ranks --grid rank=8,32 --dask tcp://host:8786": "as dask scheduler",
    'course run --dry-run --data "hub:fancyzhx/ag_news#train[:1%]" -p task=classification': "needs the model hub",
    "course run --profile hosted --until export": "needs a key of the hosted service",
    "course run --profile hosted -p base_model=Qwen/Qwen3-8B -p prompt_format=qwen3_disable_thinking -p sampler_precision=bfloat16": "needs a key of the hosted service",
    "python -c \"from helpers.weights import merge_adapter; print(merge_adapter('Qwen/Qwen3-30B-A3B-Instruct-2507', "
    "'runs/latest/export/model_weights', 'merged_model', dtype='bfloat16'))\"": "needs the model hub",
    "course serve --learners 12": "it listens on a port that may be taken; test_serve_class.py runs it on a free one",
    "course serve --learners names.txt --host 0.0.0.0": "as the line above",
    "course serve --host 0.0.0.0": "as the line above",
}
DESIGN = [
    "manifest.json",
    "report.html",
    "split/train.json",
    "split/validation.json",
    "split/test_set.json",
    "train/metrics.jsonl",
    "train/checkpoints.jsonl",
    "train/evaluation_history.json",
    "train/best_checkpoint.json",
    "evaluate/model_evaluation.json",
    "evaluate/samples.jsonl",
    "export/model-checkpoint.tar.gz",
    "export/model_weights/adapter_model.safetensors",
    "merge/merged_model/model.safetensors",
    "merge/parity.json",
    "vllm/outputs.jsonl",
    "vllm/evaluation.json",
    "vllm/parity.json",
    "notebooks/01_split.ipynb",
    "notebooks/06_vllm_inference.ipynb",
]
SMALL = profile("small")
REVIEWS = {
    "data_files": str(ROOT / "data/reviews.csv"),
    "columns": "input=评价原文,output=情绪",
    "task": "classification",
    "instruction": "评价是好评还是差评？",
}  # what the first example sets beside its profile
STEPS, TESTED = 10, 10
FILES = {  # of the reader's own
    "my_problems.json": [
        {"instruction": f"What is {n} + {n}?", "output": f"{n} + {n} = {2 * n}\nFinal answer: {2 * n}"}
        for n in range(10)
    ],
    "more.jsonl": [
        {"question": f"What is {n} - 1?", "answer": f"{n} - 1 = {n - 1}\n#### {n - 1}"} for n in range(11, 21)
    ],
    "tickets.csv": [
        ("text", "label"),
        *((f"ticket {n}: my bill is wrong", "billing") for n in range(8)),
        *((f"ticket {n}: it broke", "repair") for n in range(8)),
    ],
    "notes.csv": [
        ("note", "mood"),
        *((f"day {n}: sun all day", "glad") for n in range(8)),
        *((f"day {n}: rain all day", "sad") for n in range(8)),
    ],
}


def examples() -> list[str]:
    """Lines of the README's shell blocks, in order; one that goes on in the next is one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^ *```bash\n(.*?)^ *```", text)
    return [
        line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def python_example(words: str) -> str:
    """The one Python block of README that holds these words."""
    [block] = [
        block
        for block in re.findall(
            r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8")
        )
        if words in block
    ]
    return block


def command(line: str) -> str:
    """A line without its comment, and with single spaces."""
    return " ".join(re.sub(r"\s# .*", "", line).split())


class Shell:
    """Runs the examples in order, each once."""

    def __init__(self, folder: Path, env: dict[str, str]):
        self.folder, self.env, self.runs = folder, env, Path(env["COURSE_RUNS_DIR"])
        self.waiting = [line for line in examples() if command(line) not in NOT_RUN]
        self.printed: dict[str, str] = {}

    def until(self, start: str) -> str:
        """Run what comes before the one example that starts like this, and it. Returns what it printed."""
        lines = [*self.printed, *self.waiting]
        [wanted] = [line for line in lines if command(line) == start] or [
            line for line in lines if line.startswith(start)
        ]
        while wanted not in self.printed:
            line = self.waiting.pop(0)
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=self.folder,
                env=self.env,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            self.printed[line] = done.stdout
        return self.printed[wanted]

    def run(self, name: str) -> Path:
        return self.runs / name


@pytest.fixture(scope="module")
def shell(course_env, tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git"):
            (folder / path.name).symlink_to(path)
    for name, rows in FILES.items():
        if name.endswith(".csv"):
            (folder / name).write_text("".join(",".join(row) + "\n" for row in rows))
        else:
            (folder / name).write_text(
                json.dumps(rows)
                if name.endswith(".json")
                else "".join(json.dumps(row) + "\n" for row in rows)
            )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an active environment
    return Shell(
        folder,
        course_env
        | {"PATH": path, "COURSE_RUNS_DIR": str(tmp_path_factory.mktemp("readme-runs")), "BROWSER": "true"},
    )


def test_what_is_not_run_stands_in_the_readme():
    lines = [command(line) for line in examples()]
    assert [line for line in NOT_RUN if line not in lines] == []
    assert len(set(lines)) > len(NOT_RUN) + 12


# A first try: reviews in Chinese, from a CSV, through all notebooks


def test_the_first_example_trains(shell):
    printed = shell.until("course run --name reviews --profile small --until train")
    assert re.search(r"\[2/2\] 02_train +\d+:\d\d  \S", printed)
    assert set(read_json(shell.run("reviews") / "manifest.json")["stages"]) == {"split", "train"}


def test_resumed_it_prints_its_table_and_leaves_every_file_of_the_design(shell):
    printed = shell.until("course run --resume --name reviews")
    folder = shell.run("reviews")
    assert [name for name in DESIGN if not (folder / name).is_file()] == []
    assert (folder.parent / "latest").resolve() == folder.resolve()
    for stage in list(STAGES)[2:]:
        assert re.search(rf"^{stage} +\d+:\d\d  \S.+  {stage}/", printed, re.MULTILINE), printed[-2000:]
    assert re.search(r"in all: .*sampling", printed) and "vllm" in printed


def test_the_manifest_says_what_was_done(shell):
    shell.until("course run --resume --name reviews")
    folder = shell.run("reviews")
    manifest = read_json(folder / "manifest.json")
    assert set(manifest["stages"]) == set(STAGES)
    assert all(
        entry["status"] == "done" and entry["seconds"] >= 0 and entry["finished"]
        for entry in manifest["stages"].values()
    )
    assert manifest["seed"] == 42 and manifest["backend"]["kind"] == "stub" and manifest["packages"]["tinker"]
    assert manifest["stages"]["train"]["parameters"]["rank"] == SMALL["rank"]
    artefacts = [path for entry in manifest["stages"].values() for path in entry["artefacts"]]
    assert all((folder / path).exists() and not Path(path).is_absolute() for path in artefacts)


def test_its_files_hold_together(shell):
    shell.until("course run --resume --name reviews")
    folder = shell.run("reviews")
    evaluation = read_json(folder / "evaluate/model_evaluation.json")
    assert {
        "model_path",
        "model_name",
        "base_model",
        "base_accuracy",
        "test_accuracy",
        "test_correct",
        "test_size",
        "test_accuracy_ci95",
    } <= set(evaluation)
    assert evaluation["test_size"] == TESTED == len(read_jsonl(folder / "evaluate/samples.jsonl"))
    assert evaluation["test_accuracy"] == evaluation["test_correct"] / evaluation["test_size"]
    history = read_json(folder / "train/evaluation_history.json")
    assert (
        all(set(row) == {"epoch", "step", "accuracy", "loss"} for row in history) and history[0]["step"] == 0
    )
    metrics = read_jsonl(folder / "train/metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1)) and metrics[-1][
        "train_nll"
    ] < metrics[0]["train_nll"]
    for stage in ("merge", "vllm"):
        parity = read_json(folder / stage / "parity.json")
        assert (
            parity["passed"]
            and parity["max_abs_logprob_diff"] <= parity["tolerance"]
            and parity["prompts"] == SMALL["parity_prompts"]
        )
    assert len(read_jsonl(folder / "vllm/outputs.jsonl")) == TESTED


def test_chinese_reviews_are_learned_and_reach_vllm(shell):
    """Mapped columns, the task's own grader in every notebook, and a score that rises above the commonest label's."""
    shell.until("course run --resume --name reviews")
    folder = shell.run("reviews")
    manifest = read_json(folder / "manifest.json")
    split = manifest["stages"]["split"]["results"]
    assert set(split["task"]["labels"]) == {"好评", "差评"} and split["sources"][0]["columns"] == {
        "input": "评价原文",
        "output": "情绪",
    }
    assert "semicolon" in split["sources"][0]["form"] and split["sources"][0]["unused"] == ["编号"]
    evaluation = read_json(folder / "evaluate/model_evaluation.json")
    measures = evaluation["measures"]
    assert (
        set(evaluation["by_category"]) == {"好评", "差评"}
        and measures["tuned"]["macro_f1"] > measures["base"]["macro_f1"]
    )
    assert (
        evaluation["test_accuracy"]
        >= max(evaluation["base_accuracy"], measures["tuned"]["majority_baseline"]) + 0.2
    )
    assert all(
        abs(manifest["stages"][stage]["results"]["accuracy"] - evaluation["test_accuracy"]) <= 0.1
        for stage in ("merge", "vllm")
    )


def test_show_and_the_report_of_it(shell):
    shown = shell.until("course show reviews")
    assert (
        "run reviews (latest): complete" in shown
        and "input       ← 评价原文" in shown
        and "merged model, vLLM" in shown
    )
    assert shell.until("course report reviews").strip().endswith("reviews/report.html")
    page = (shell.run("reviews") / "report.html").read_text(encoding="utf-8")
    assert (
        page.count("<svg") == 4
        and "http" not in page.replace("http-equiv", "")
        and "Not all of the run" not in page
        and "under way" not in page
    )
    for words in ("Samples to read", "95% interval", "McNemar", "rank", "tinker", "vLLM, 4 at once"):
        assert words in page


def test_the_model_answers(shell):
    """The Python example under "Your model", as it stands."""
    shell.until("course run --resume --name reviews")
    (shell.folder / "runs").symlink_to(shell.runs)
    script = shell.folder / "ask.py"
    script.write_text(python_example("merge/merged_model"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=shell.folder, env=shell.env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "差评"


def test_the_same_again_by_the_command_and_by_papermill_both_at_once(shell, tmp_path):
    """`--like` and plain papermill with the same settings: the same split, initial loss and schedule, side by side on one stub."""
    shell.until("course report reviews")
    known, before, name = notebook_parameters(), set(shell.runs.iterdir()), "new"
    with ThreadPoolExecutor() as pool:
        again = pool.submit(shell.until, "course run --like reviews --name again --until train")
        for stage in ("split", "train"):
            own = {"run_name": name} | {
                key: value for key, value in (SMALL | REVIEWS).items() if key in known[stage]
            }
            words = [word for key, value in own.items() for word in ("-p", key, str(value))]
            done = subprocess.run(
                [
                    "papermill",
                    ROOT / "notebooks" / f"{STAGES[stage][0]}.ipynb",
                    tmp_path / f"{stage}.ipynb",
                    *words,
                ],
                cwd=tmp_path,
                env=shell.env,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            [name] = (
                path.name
                for path in set(shell.runs.iterdir()) - before
                if path.name not in ("again", "latest")
            )
    assert (
        "note:" not in again.result() and read_json(shell.run("again") / "manifest.json")["like"] == "reviews"
    )
    first = read_jsonl(shell.run("reviews") / "train/metrics.jsonl")
    for other in ("again", name):
        for part in ("train", "validation", "test_set"):
            assert (shell.run(other) / f"split/{part}.json").read_bytes() == (
                shell.run("reviews") / f"split/{part}.json"
            ).read_bytes()
        rows = read_jsonl(shell.run(other) / "train/metrics.jsonl")
        assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in first]
        assert [row["train_nll"] for row in rows] == pytest.approx(
            [row["train_nll"] for row in first], abs=1e-3
        )


def test_a_stage_again_by_the_command_and_by_papermill(shell):
    shell.until("course run --from export --until export --name reviews")
    stages = read_json(shell.run("reviews") / "manifest.json")["stages"]
    assert (
        stages["export"]["status"] == "done" and stages["merge"]["status"] == "stale"
    )  # made from the export before this one
    shell.until("papermill notebooks/04_export.ipynb")
    again = read_json(shell.run("reviews") / "manifest.json")["stages"]["export"]
    assert again["status"] == "done" and again["finished"] > stages["export"]["finished"]
    assert read_json(shell.folder / "out.ipynb")["metadata"]["papermill"]["exception"] is None


# Reports, sweeps, other data


def test_reports(shell):
    assert shell.until("course report").splitlines()[-1] == str(
        shell.run(os.readlink(shell.run("latest"))) / "report.html"
    )  # of the newest
    assert shell.until("course report reviews again").strip().endswith("comparison.html")
    page = (shell.runs / "comparison.html").read_text(encoding="utf-8")
    assert "2 runs compared" in page and "No setting differs." in page


def test_sweeps(shell):
    planned = shell.until(
        "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4 --dry-run"
    )
    assert "4 runs until evaluate" in planned and not shell.run("ranks").exists()
    printed = shell.until("course sweep --name bookings-ranks")
    assert "best by validation: bookings-ranks-0" in printed
    assert shell.until("course show bookings-ranks").strip() in printed
    stages = [
        read_json(shell.run(f"bookings-ranks-0{number}") / "manifest.json")["stages"] for number in (1, 2)
    ]
    assert [stages[place]["train"]["parameters"]["rank"] for place in (0, 1)] == [4, 16]
    assert stages[1]["split"]["shared_from"] == "bookings-ranks-01" and set(stages[0]) == {"split", "train"}
    path = shell.run("bookings-ranks") / "report.html"
    assert (
        shell.until("course report bookings-ranks").strip().endswith(str(path))
        and "bookings-ranks-02" in path.read_text()
    )


def test_data_of_ones_own(shell):
    printed = shell.until("course run --dry-run --data my_problems.json")
    assert (
        "my_problems.json: 10 records" in printed and "more.jsonl: 10 records (JSON Lines, GSM8K" in printed
    )
    assert "instruction ← text" in shell.until("course run --dry-run --data tickets.csv")
    assert "input       ← note" in shell.until("course run --dry-run --data notes.csv")


def test_bookings_are_learned(shell):
    shell.until("course run --name bookings ")
    evaluation = read_json(shell.run("bookings") / "evaluate/model_evaluation.json")
    assert evaluation["task"] == {"name": "extraction"} and evaluation["test_size"] == 13
    assert evaluation["test_accuracy"] >= evaluation["base_accuracy"] + 0.3
    assert evaluation["measures"]["tuned"]["field_f1"] > evaluation["measures"]["base"]["field_f1"]


def test_every_example_was_run(shell):
    """Those that no test above waits for, too."""
    if shell.waiting:
        shell.until(shell.waiting[-1])
    assert not shell.waiting
