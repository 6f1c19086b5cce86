"""The shell examples of README.md and docs/, run one after the other as they stand, and what they leave.

They run in a folder that looks like the project, next to files of the names that the examples use. What is
not run is in NOT_RUN, with the reason; what only `make soak` runs is in SOAK. A new example is run by itself.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from helpers.course.main import main
from helpers.files import read_json, read_jsonl
from helpers.paths import ROOT
from helpers.runs.chosen import read_profile
from helpers.runs.stages import STAGES

NOT_RUN = {
    "make run": "the notebooks with their defaults: test_notebooks.py runs them by nbval, test_setup.py make",
    "make test": "this is it",
    "make lab": "test_serve_class.py starts JupyterLab by it",
    "conda env create -f environment.yml": "needs conda",
    "conda activate tinker-course": "needs conda",
    "python install.py --here": "it would change the environment that runs the tests; test_setup.py tests it",
    "course run": "as make run",
    "course run --name mine -p epochs=2 -p rank=16": "20 minutes",
    "course run --profile full": "an hour",
    "course run --profile FILE --until evaluate": "FILE is the reader's; test_cli.py reads such files",
    'make run ARGS="-p epochs=2"': "20 minutes",
    "course run --from export --until export --name reviews": "the papermill line below it does the same",
    "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4": "half an hour",
    "course run --name support --data data/support_chats.jsonl -p task=text -p prompt_format=template "
    "-p train_on=all_assistant_messages -p epochs=3 -p max_tokens=32": "test_support_chats.py runs it",
    "course sweep --name ranks --resume": "as the line above; test_sweep.py resumes sweeps",
    "course sweep --name seeds --grid seed=1,2,3": "20 minutes",
    "course sweep --name rl --lesson 10 --grid group_size=4,8 --grid kl=0,0.02 -p steps=6": "20 minutes",
    "course sweep --name mine --settings FILE": "FILE is the reader's; test_sweep.py reads such files",
    'course run --dry-run --data "hub:fancyzhx/ag_news#train[:1%]" -p task=classification': "needs the hub",
    "course run --profile hosted --until export": "needs a key of the hosted service",
    "course run --profile hosted -p base_model=Qwen/Qwen3-8B": "needs a key of the hosted service",
    'python -c "from helpers.weights import merge_adapter; '
    "print(merge_adapter('Qwen/Qwen3.6-35B-A3B', 'runs/latest/export/model_weights', "
    "'merged_model', dtype='bfloat16'))\"": "needs the model hub",
    "make run GPU=1": "needs a GPU, and downloads several GB",
    "export TINKER_BASE_URL=https://server.example": "there is no such server",
    "course run --backend https://server.example -p base_model=MODEL": "there is no such server",
    'export VLLM_API_KEY="$KEY"': "the next line needs a GPU",
    "vllm serve merged_model --tensor-parallel-size 8 --max-model-len 8192": "eight GPUs",
    "pytest --tinker-url https://server.example --tinker-model MODEL": "test_conformance.py runs it",
    "vllm serve BASE --enable-lora --max-lora-rank 32 --lora-modules tuned=peft_adapter "
    "--chat-template peft_adapter/chat_template.jinja": "needs a GPU",
    "vllm serve runs/reviews/merge/merged_model --max-model-len 1024": "needs a GPU",
    "VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 python -m vllm.entrypoints.openai.api_server --model "
    "runs/reviews/merge/merged_model --max-model-len 1024 --enforce-eager": "test_serve.py starts it",
    "course serve --learners 12": "its port may be taken; test_serve_class.py runs it on a free one",
    "course serve --learners names.txt --host 0.0.0.0": "as the line above",
    "course serve --host 0.0.0.0": "as the line above",
    "course sweep --name two --grid rank=4,8 -p max_train=96 -p max_validation=8 -p max_test=12 "
    "-p max_tokens=48 -p eval_every=6 -p subset=4 -p sampled_problems=1 -p samples_each=2 "
    "-p learning_rate=2e-3": "3 minutes, to measure; test_sweep.py runs sweeps",
}
SOAK = (  # how examples of minutes begin, and those that need them: `make soak` runs them
    "course run --like reviews --name again",
    "course report reviews again",
    "course sweep --name bookings-ranks",
    "course show bookings-ranks",
    "course report bookings-ranks",
    "course run --resume --name bookings-ranks-01",
)
# Single commands that start nothing: this process runs them.
HERE = re.compile(r"course (run|sweep) .*--dry-run|course report(?!.*--open)")
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
SMALL = read_profile("small")
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


def pages() -> list[Path]:
    """README, and docs/ by name; but commands.md first, whose runs the others use."""
    first = ROOT / "docs" / "commands.md"
    return [ROOT / "README.md", first, *(page for page in sorted(first.parent.glob("*.md")) if page != first)]


def blocks(language: str) -> list[str]:
    """The fenced blocks of all pages, in order."""
    texts = (page.read_text(encoding="utf-8") for page in pages())
    return [block for text in texts for block in re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)]


def examples() -> list[str]:
    """Lines of the shell blocks, in order; one that goes on in the next is one."""
    lines = (line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if line.strip()]


def python_example(words: str) -> str:
    """The one Python block that holds these words."""
    [block] = [block for block in blocks("python") if words in block]
    return block


def command(line: str) -> str:
    """A line without its comment, and with single spaces."""
    return " ".join(re.sub(r"\s# .*", "", line).split())


class Shell:
    """Runs the examples in order, each once."""

    def __init__(self, folder: Path, env: dict[str, str], soak: bool):
        self.folder, self.env, self.runs = folder, env, Path(env["COURSE_RUNS_DIR"])
        self.waiting = [
            line
            for line in examples()
            if command(line) not in NOT_RUN and (soak or not line.startswith(SOAK))
        ]
        self.printed: dict[str, str] = {}

    def until(self, start: str) -> str:
        """Run what comes before the one example that starts like this, and it. Returns what it printed."""
        lines = [*self.printed, *self.waiting]
        [wanted] = [line for line in lines if command(line) == start] or [
            line for line in lines if line.startswith(start)
        ]
        while wanted not in self.printed:
            line = self.waiting.pop(0)
            status, out, err = (self.here if HERE.match(line) else self.bash)(line)
            assert status == 0, f"{line}\n{out[-3000:]}{err[-3000:]}"
            self.printed[line] = out
        return self.printed[wanted]

    def bash(self, line: str) -> tuple[int, str, str]:
        """Exit status, output and errors of a line."""
        options = {"cwd": self.folder, "env": self.env, "timeout": 900}
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, **options)
        return done.returncode, done.stdout, done.stderr

    def here(self, line: str) -> tuple[int, str, str]:
        """The same of a single `course` command, without a new process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            patch.dict(os.environ, self.env, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(shlex.split(line, comments=True)[1:])
        return status, out.getvalue(), err.getvalue()

    def run(self, name: str) -> Path:
        return self.runs / name


def file_text(name: str, rows: list) -> str:
    if name.endswith(".csv"):
        return "".join(",".join(row) + "\n" for row in rows)
    return json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def shell(course_env, tmp_path_factory, pytestconfig):
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git"):
            (folder / path.name).symlink_to(path)
    for name, rows in FILES.items():
        (folder / name).write_text(file_text(name, rows))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an active environment
    runs = str(tmp_path_factory.mktemp("readme-runs"))
    env = course_env | {"PATH": path, "COURSE_RUNS_DIR": runs, "BROWSER": "true"}
    return Shell(folder, env, soak=pytestconfig.option.markexpr == "soak")


def test_what_is_not_run_stands_in_the_pages():
    lines = [command(line) for line in examples()]
    assert [line for line in NOT_RUN if line not in lines] == []
    assert len(set(lines)) >= len(NOT_RUN) + 15


# A first try: reviews in Chinese, from a CSV, through all notebooks


def test_the_first_example_trains(shell):
    printed = shell.until("course run --name reviews --profile small --until train")
    assert re.search(r"\[2/2\] 02_train +\d+:\d\d  \S", printed)
    stages = read_json(shell.run("reviews") / "manifest.json")["stages"]
    assert [name for name, entry in stages.items() if entry] == ["split", "train"]


@pytest.fixture(scope="module")
def reviews(shell) -> Path:
    """The folder of the run, with all stages done."""
    shell.until("course run --resume --name reviews")
    return shell.run("reviews")


def test_resumed_it_prints_its_table_and_leaves_every_file_of_the_design(shell, reviews):
    printed = shell.until("course run --resume --name reviews")
    assert [name for name in DESIGN if not (reviews / name).is_file()] == []
    assert (reviews.parent / "latest").resolve() == reviews.resolve()
    for stage in list(STAGES)[2:]:
        assert re.search(rf"^{stage} +\d+:\d\d  \S.+  {stage}/", printed, re.MULTILINE), printed[-2000:]
    assert re.search(r"in all: .*sampling", printed) and "vllm" in printed


def test_the_manifest_says_what_was_done(reviews):
    manifest = read_json(reviews / "manifest.json")
    assert list(manifest["stages"]) == list(STAGES)
    for entry in manifest["stages"].values():
        assert entry["status"] == "done" and entry["seconds"] >= 0 and entry["finished"]
        for path in entry["artefacts"]:
            assert (reviews / path).exists() and not Path(path).is_absolute()
    assert manifest["seed"] == 42 and manifest["backend"]["kind"] == "stub" and manifest["packages"]["tinker"]
    assert manifest["stages"]["train"]["settings"]["rank"] == SMALL["rank"]


def test_its_files_hold_together(reviews):
    evaluation = read_json(reviews / "evaluate/model_evaluation.json")
    promised = "model_path model_name base_model base_accuracy test_accuracy test_correct test_size controls"
    assert {*promised.split(), "test_accuracy_ci95"} <= set(evaluation)
    assert evaluation["test_size"] == TESTED == len(read_jsonl(reviews / "evaluate/samples.jsonl"))
    assert evaluation["test_accuracy"] == evaluation["test_correct"] / evaluation["test_size"]
    history = read_json(reviews / "train/evaluation_history.json")
    assert all(set(row) == {"epoch", "step", "accuracy", "loss"} for row in history)
    assert history[0]["step"] == 0
    metrics = read_jsonl(reviews / "train/metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    assert metrics[-1]["train_nll"] < metrics[0]["train_nll"]
    for stage in ("merge", "vllm"):
        parity = read_json(reviews / stage / "parity.json")
        assert parity["passed"] and parity["max_abs_logprob_diff"] <= parity["tolerance"]
        assert parity["prompts"] == SMALL["parity_prompts"]
    assert len(read_jsonl(reviews / "vllm/outputs.jsonl")) == TESTED


def test_chinese_reviews_are_learned_and_reach_vllm(reviews):
    """Mapped columns, the task's own grader in every notebook, a score well above the commonest label's."""
    stages = read_json(reviews / "manifest.json")["stages"]
    split = stages["split"]["results"]
    [csv] = split["sources"]
    assert set(split["task"]["labels"]) == {"好评", "差评"}
    assert csv["columns"] == {"input": "评价原文", "output": "情绪"}
    assert "semicolon" in csv["form"] and csv["unused"] == ["编号"]
    evaluation = read_json(reviews / "evaluate/model_evaluation.json")
    base, tuned = (evaluation["measures"][name] for name in ("base", "tuned"))
    assert set(evaluation["by_category"]) == {"好评", "差评"} and tuned["macro_f1"] > base["macro_f1"]
    majority = evaluation["controls"]["majority"]
    floor = max(evaluation["base_accuracy"], majority["correct"] / majority["total"])
    assert evaluation["test_accuracy"] >= floor + 0.2
    for stage in ("merge", "vllm"):
        assert abs(stages[stage]["results"]["accuracy"] - evaluation["test_accuracy"]) <= 0.1


def test_show_and_the_report_of_it(shell, reviews):
    shown = shell.until("course show reviews")
    for words in ("run reviews (latest): complete", "input       ← 评价原文", "merged model, vLLM"):
        assert words in shown
    assert shell.until("course report reviews").strip().endswith("reviews/report.html")
    page = (reviews / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "http" not in page.replace("http-equiv", "")
    for words in ("Samples to read", "95% interval", "McNemar", "rank", "tinker", "vLLM, 4 at once"):
        assert words in page
    for words in ("Not all of the run", "under way"):
        assert words not in page


def test_the_model_answers(shell, reviews):
    """The Python example under "Use your model", as it stands."""
    (shell.folder / "runs").symlink_to(shell.runs)
    script = shell.folder / "ask.py"
    script.write_text(python_example("merge/merged_model"), encoding="utf-8")
    ask = [sys.executable, script]
    done = subprocess.run(ask, cwd=shell.folder, env=shell.env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "差评"


@pytest.mark.soak
def test_the_same_again(shell, reviews):
    """`--like`: the same split, schedule and losses."""
    printed = shell.until("course run --like reviews --name again --until train")
    again = shell.run("again")
    assert "note:" not in printed and read_json(again / "manifest.json")["like"] == "reviews"
    for part in ("train", "validation", "test_set"):
        assert (again / f"split/{part}.json").read_bytes() == (reviews / f"split/{part}.json").read_bytes()
    first, second = (read_jsonl(folder / "train/metrics.jsonl") for folder in (reviews, again))
    assert [row["learning_rate"] for row in second] == [row["learning_rate"] for row in first]
    losses = [row["train_nll"] for row in first]
    assert [row["train_nll"] for row in second] == pytest.approx(losses, abs=1e-3)


def test_a_stage_again_by_papermill(shell, reviews):
    before = read_json(reviews / "manifest.json")["stages"]
    shell.until("papermill notebooks/04_export.ipynb")
    after = read_json(reviews / "manifest.json")["stages"]
    assert after["export"]["status"] == "done"
    assert after["export"]["finished"] > before["export"]["finished"]
    assert after["merge"]["status"] == "stale"  # made from the export before this one
    assert read_json(shell.folder / "out.ipynb")["metadata"]["papermill"]["exception"] is None


# Reports, sweeps, other data


def test_a_report(shell):
    newest = shell.run(os.readlink(shell.run("latest")))
    assert shell.until("course report").splitlines()[-1] == str(newest / "report.html")


@pytest.mark.soak
def test_a_report_of_two_runs(shell):
    assert shell.until("course report reviews again").strip().endswith("comparison.html")
    page = (shell.runs / "comparison.html").read_text(encoding="utf-8")
    assert "2 runs compared" in page and "No setting differs." in page


def test_a_dry_run_of_a_sweep(shell):
    dry = "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4 --dry-run"
    assert "4 runs until evaluate" in shell.until(dry) and not shell.run("ranks").exists()


@pytest.mark.soak
def test_sweeps(shell):
    printed = shell.until("course sweep --name bookings-ranks")
    assert "best by validation: bookings-ranks-0" in printed
    assert shell.until("course show bookings-ranks").strip() in printed
    runs = [shell.run(f"bookings-ranks-0{number}") for number in (1, 2)]
    first, second = (read_json(run / "manifest.json")["stages"] for run in runs)
    assert [stages["train"]["settings"]["rank"] for stages in (first, second)] == [4, 16]
    assert second["split"]["shared_from"] == "bookings-ranks-01" and first["evaluate"] is None
    page = shell.run("bookings-ranks") / "report.html"
    assert shell.until("course report bookings-ranks").strip().endswith(str(page))
    assert "bookings-ranks-02" in page.read_text()


def test_data_of_ones_own(shell):
    printed = shell.until("course run --dry-run --data my_problems.json")
    assert "my_problems.json: 10 records" in printed
    assert "more.jsonl: 10 records (JSON Lines, GSM8K" in printed
    assert "instruction ← text" in shell.until("course run --dry-run --data tickets.csv")
    assert "input       ← note" in shell.until("course run --dry-run --data notes.csv")
    assert "output      ← booking" in shell.until("course run --dry-run --profile small --data data/bookings")


@pytest.mark.soak
def test_a_run_of_a_sweep_goes_on_and_has_learned_the_bookings(shell):
    shell.until("course run --resume --name bookings-ranks-01")
    evaluation = read_json(shell.run("bookings-ranks-01") / "evaluate/model_evaluation.json")
    assert evaluation["task"] == {"name": "extraction"} and evaluation["test_size"] == 13
    asked = {row["name"]: row["correct"] for row in evaluation["base_promptings"]}
    assert evaluation["test_correct"] >= asked["format of training"] + 4  # of 13
    assert evaluation["base_correct"] == max(asked.values()), "eight examples alone may teach this format"
    assert evaluation["measures"]["tuned"]["field_f1"] >= 0.5


def test_every_example_was_run(shell):
    """Those that no test above waits for, too."""
    if shell.waiting:
        shell.until(shell.waiting[-1])
    assert not shell.waiting
