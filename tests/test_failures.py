"""Mistakes and accidents: one clear message, an exit status that is not zero, and nothing half-written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from helpers import local_model
from helpers.course.cli import main
from helpers.paths import ROOT
from helpers.runs.run import Run, new_run

COURSE = Path(sys.executable).with_name("course")
DATA = ROOT / "data" / "word_problems.json"
SMALL = {"max_train": 32, "max_validation": 4, "max_test": 10}
SHORT = [
    "-p",
    "epochs=8",
    "-p",
    "batch_size=4",
    "-p",
    "eval_every=24",
    "-p",
    "max_tokens=16",
    "-p",
    "rank=4",
    "-p",
    "learning_rate=0.02",
]
STEPS = 64  # 8 times 32 examples, 4 a step
PATIENCE = 60  # seconds in which a user must learn that the stub is gone


# A cache and a runs folder of this file's own: the stub that runs there is ours to kill. Its model is a toy, so that steps are short


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy_model):
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(toy_model.parent, home / "models")
    local_model._seal(home / "models" / local_model.LOCAL_MODEL)  # now it passes for the local base model
    yield home
    kill_stub(home)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def environment(home, runs, monkeypatch):
    monkeypatch.setenv("TINKER_COURSE_HOME", str(home))
    monkeypatch.setenv("COURSE_RUNS_DIR", str(runs))
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def kill_stub(home: Path) -> bool:
    """Kill the stub of this cache folder, and only that one, as a machine out of memory would."""
    note = home / "stub" / "server.json"
    with suppress(OSError):
        os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
        return True
    return False


def course(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [COURSE, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def split_run(name: str) -> Run:
    """A run whose split stage is done, as notebook 01 leaves it."""
    from helpers.data import load_json_files, split_data

    run = new_run(name)
    stage = run.begin("split", {})
    files = split_data(load_json_files(DATA), **SMALL).save(stage.path)
    stage.finish("split", artefacts=files)
    return run


def assert_one_message(stderr: str, *words: str) -> None:
    """One error, with its cause (all of `words`) and one next step; no traceback."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    assert "Traceback" not in plain
    assert len(re.findall(r"^(?:course|\w*Error): ", plain, re.M)) == 1, plain
    assert len(re.findall(r"^→ \S", plain, re.M)) == 1, plain
    assert [word for word in words if word not in plain] == [], plain


def assert_nothing_half_written(folder: Path) -> None:
    left_over = [
        str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or ".making" in path.name
    ]
    assert left_over == []
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)


# Data and base model: the notebook stops, through the real command

GOOD = {"instruction": "2 + 2 = ?", "input": "", "output": "Final answer: 4"}
BAD_DATA = {  # name: (file, its content or None for no file, what the message must say)
    "missing": ("data.json", None, ["data.json", "does not exist"]),
    "empty": ("data.json", "", ["data.json", "is empty"]),
    "not JSON": (
        "data.json",
        '[{"instruction": "a",\n "output" "b"}]',
        ["data.json", "not JSON", "line 2, column 11"],
    ),
    "text": ("data.json", json.dumps(["a", "b"]), ["data.json", "index 0", "is text"]),
    "no output": (
        "data.json",
        json.dumps([GOOD, {"instruction": "a"}]),
        ["data.json", "index 1", "'output'"],
    ),
    "no output, lines": (
        "data.jsonl",
        json.dumps(GOOD) + '\n\n{"instruction": "a"}\n',
        ["data.jsonl", "line 3", "'output'"],
    ),
    "one record": ("data.json", json.dumps([GOOD]), ["1 record", "at least 10"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, tmp_path, runs):
    file, content, words = BAD_DATA[case]
    if content is not None:
        (tmp_path / file).write_text(content)
    name = "data-" + re.sub(r"\W+", "-", case)
    result = course("run", "--name", name, "--until", "split", "--data", tmp_path / file)
    assert result.returncode == 1
    assert_one_message(result.stderr, "DataError", *words, f"course run --resume --name {name}")
    assert not (runs / name / "split").exists()
    assert_nothing_half_written(runs / name)


def test_a_base_model_folder_that_is_no_model(tmp_path, runs):
    folder = tmp_path / "deep" / "model"
    folder.mkdir(parents=True)
    result = course("run", "--name", "model", "--until", "split", "-p", f"base_model={folder}")
    assert result.returncode == 1
    assert_one_message(result.stderr, "course: ", str(folder), "config.json")
    assert not (runs / "model").exists()  # refused before anything starts


# Stages out of order


def test_merge_before_export_by_the_command(capsys):
    run = split_run("order")
    assert main(["run", "--from", "merge", "--name", run.name]) == 1
    assert_one_message(capsys.readouterr().err, "order", "'export'", "04_export.ipynb first")
    assert not run.file("merge").exists() and not run.file("notebooks").exists()


def test_merge_before_export_in_the_notebook(tmp_path):
    import papermill

    run = split_run("order-notebook")
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            ROOT / "notebooks" / "05_merge.ipynb",
            tmp_path / "out.ipynb",
            parameters={"run_name": run.name},
            cwd=ROOT / "notebooks",
            kernel_name="python3",
            progress_bar=False,
        )
    assert caught.value.ename == "RunError"
    assert "'export'" in caught.value.evalue and "04_export.ipynb first" in caught.value.evalue
    assert not run.file("merge").exists() and "merge" not in run.manifest["stages"]


def test_from_after_until(capsys):
    run = split_run("turned-round")
    assert main(["run", "--from", "merge", "--until", "train", "--name", run.name]) == 2
    assert_one_message(capsys.readouterr().err, "merge", "train", "--until names the same stage")


def test_runs_that_are_not_there(capsys, monkeypatch, tmp_path):
    assert main(["run", "--resume", "--name", "nobody"]) == 1
    assert_one_message(capsys.readouterr().err, "'nobody'")
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    assert main(["run", "--resume"]) == 1
    assert_one_message(capsys.readouterr().err, str(tmp_path), "course run")


# Parameters: refused before a run folder is made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "epoch=1"], ["'epoch'", "did you mean epochs?"]),
        (["-p", "xyz=1"], ["'xyz'", "parameters are", "epochs"]),
        (["-p", "rank=wide"], ["rank", "a whole number", "'wide'", "-p rank=32"]),
        (["-p", "rank=8.5"], ["rank", "a whole number", "8.5"]),
        (["-p", "epochs=true"], ["epochs", "a number", "True"]),
        (["-p", "base_model=/no/such/model"], ["'/no/such/model'", "neither a model folder nor a name"]),
        (["-p", "benchmark_file=none.jsonl"], ["'none.jsonl'", "is not there"]),
        (["--data", "my,data.csv"], ["'my,data.csv'", "comma", "rename it"]),
        (["-p", "epochs"], ["'epochs'", "-p epochs=1"]),
        (["-p", "run_name=mine"], ["run_name", "--name"]),
        (["--profile", "quik"], ["'quik'", "quick", "small", "full", "hosted"]),
        (["--profile", "mine.toml"], ["mine.toml", "No such file", "epochs = 2.0"]),
        (["--name", "a/b"], ["'a/b'", "letters"]),
    ],
)
def test_wrong_options(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    assert main(["run", *arguments]) == 1
    assert_one_message(capsys.readouterr().err, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--from", "trian"])
    assert caught.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


# Folders that can't be written


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "runs"


def a_file(folder: Path) -> Path:
    (folder / "runs").write_text("")
    return folder / "runs"


def not_on_a_disk(_: Path) -> Path:
    return Path("/proc/no-such-folder/runs")


def no_permission(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("permissions don't stop root")
    (folder / "runs").mkdir(mode=0o555)
    return folder / "runs"


@pytest.mark.parametrize("make", [below_a_file, a_file, not_on_a_disk, no_permission])
def test_a_runs_folder_that_cant_be_written(make, capsys, monkeypatch, tmp_path):
    target = make(tmp_path)
    monkeypatch.setenv("COURSE_RUNS_DIR", str(target))
    assert main(["run", "--until", "split"]) == 1
    assert_one_message(capsys.readouterr().err, str(target), "COURSE_RUNS_DIR=")
    assert_nothing_half_written(tmp_path)


def test_latest_is_a_folder(capsys, monkeypatch, tmp_path):
    (tmp_path / "latest").mkdir()
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    assert main(["run", "--until", "split"]) == 1
    assert_one_message(capsys.readouterr().err, str(tmp_path / "latest"), "out of the way")
    assert_nothing_half_written(tmp_path)


def test_a_file_in_place_of_a_stage_folder(runs):
    run = split_run("blocked")
    run.file("train").write_text("")
    result = course("run", "--resume", "--until", "train", "--name", run.name)
    assert result.returncode == 1
    assert_one_message(result.stderr, "RunError", str(run.file("train")))
    assert_nothing_half_written(run.path)


FULL_DISK = """
import resource, sys
from helpers.errors import RunError
from helpers.files import append_jsonl, write_json
write_json(sys.argv[1] + "/train.json", ["good"])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # files of this process can't grow past 1,000 bytes
for name, write in (("train.json", write_json), ("metrics.jsonl", append_jsonl)):
    try:
        write(f"{sys.argv[1]}/{name}", {"long": "x" * 5000})
    except RunError as error:
        print(error)
"""


def test_a_full_disk_keeps_what_was_there(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    for name in ("train.json", "metrics.jsonl"):
        assert re.search(f"{name}: File too large\n→ ", result.stdout), result.stdout + result.stderr
    assert json.loads((tmp_path / "train.json").read_text()) == ["good"]
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"]


# Training that is cut short: by the stub's death, by Ctrl-C, or in the middle of a line


def metrics(run: Run) -> list[dict]:
    path = run.file("train/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start_training(run: Run) -> subprocess.Popen:
    """`course run` under way, some steps past its first checkpoint of trained weights, and well before the next."""
    process = subprocess.Popen(
        [COURSE, "run", "--from", "train", "--until", "train", "--name", run.name, *SHORT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while (
        not run.file("train/metrics.jsonl").exists()
        or run.file("train/metrics.jsonl").read_text().count("\n") < 27
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


@pytest.fixture(scope="module")
def uninterrupted(home, runs):
    """The metrics of a training run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_COURSE_HOME", str(home))
        patch.setenv("COURSE_RUNS_DIR", str(runs))
        run = split_run("uninterrupted")
        result = course("run", "--from", "train", "--until", "train", "--name", run.name, *SHORT)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    return metrics(run)


def assert_resumes_to_the_same_end(run: Run, uninterrupted: list[dict]) -> None:
    """`--resume` without any parameter goes on with those of the run, from its last checkpoint."""
    checkpoints = run.file("train/checkpoints.jsonl").read_text()
    result = course("run", "--resume", "--until", "train", "--name", run.name)
    assert result.returncode == 0, result.stderr
    assert run.file("train/checkpoints.jsonl").read_text().startswith(checkpoints)
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    assert [row["train_nll"] for row in metrics(run)] == pytest.approx(
        [row["train_nll"] for row in uninterrupted], abs=1e-3
    )
    assert_nothing_half_written(run.path)


def test_the_stub_is_killed_in_mid_training(home, uninterrupted):
    run = split_run("killed")
    process = start_training(run)
    assert kill_stub(home)
    killed = time.monotonic()
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert_one_message(
        stderr,
        "BackendError",
        "the stub Tinker backend",
        "has ended",
        f"course run --resume --name {run.name}",
    )
    print(f"noticed after {time.monotonic() - killed:.1f} s")
    assert len(metrics(run)) < STEPS
    assert_nothing_half_written(run.path)
    assert_resumes_to_the_same_end(run, uninterrupted)


def test_control_c_in_mid_training(uninterrupted):
    run = split_run("interrupted")
    process = start_training(run)
    process.send_signal(
        signal.SIGINT
    )  # a terminal sends it to this process only: the kernel has a session of its own
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted" in stdout and "Traceback" not in stdout + stderr
    assert stderr.strip().splitlines() == [
        f"What was done is kept. To go on from here:  course run --resume --name {run.name}"
    ]
    assert_nothing_half_written(run.path)
    done = len(metrics(run))
    assert done < STEPS
    time.sleep(2)
    assert len(metrics(run)) == done  # its kernel is gone, too
    assert_resumes_to_the_same_end(run, uninterrupted)


SLOW_TO_END = r"""
import asyncio, sys
from pathlib import Path
import nbformat
from jupyter_client.manager import KernelManager
from nbformat.v4 import new_code_cell, new_notebook
from helpers.course import cli
from helpers.runs.run import Run

tidy = KernelManager._async_cleanup_resources

async def slowly(self, restart=False):  # nbclient looks once a second whether the kernel lives
    await asyncio.sleep(2)
    await tidy(self, restart)

KernelManager._async_cleanup_resources = slowly
look = "from ipykernel.kernelapp import IPKernelApp; open('connection', 'w').write(open(IPKernelApp.instance().abs_connection_file).read())"
cells = ["", look, "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"]
notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
notebook.cells[0].metadata["tags"] = ["parameters"]
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
cli.NOTEBOOKS = Path(sys.argv[1])
nbformat.write(notebook, cli.NOTEBOOKS / "01_split.ipynb")
sys.exit(cli.run_stage(Run(cli.NOTEBOOKS), "split", {}, "[1/1]"))
"""


def test_control_c_says_nothing_of_the_kernel_that_it_ended(tmp_path):
    """Also where nbclient sees the kernel's end: its task then fails with nobody waiting for it."""
    result = subprocess.run(
        [sys.executable, "-c", SLOW_TO_END, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (result.returncode, result.stderr) == (130, "")
    assert result.stdout.splitlines()[-1].endswith("interrupted")
    assert (
        "curve_publickey" in (tmp_path / "connection").read_text()
    )  # what cells say can't be listened to by other users


def test_a_line_cut_in_the_middle_is_forgotten(tmp_path):
    from test_training import TrainSettings

    from helpers.train.log import TrainingLog
    from helpers.train.plan import Step

    first = TrainingLog(tmp_path, TrainSettings())
    scores = {"accuracy": 0.1, "correct": 1, "total": 10}
    first.checkpoint(0, 0.0, "tinker://a/weights/0", "tinker://a/sampler_weights/0", scores, 1.0)
    first.step(Step(1, 0.5, [0], 1e-3), 0.9, 100)
    for name in ("metrics.jsonl", "checkpoints.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"step": 2, "tr')
    again = TrainingLog(tmp_path, TrainSettings())
    assert again.resumed and again.last_step == 0 and again.metrics == []
    again.step(Step(1, 0.5, [0], 1e-3), 0.9, 100)
    again.checkpoint(1, 0.5, "tinker://a/weights/1", "tinker://a/sampler_weights/1", scores, 0.9)
    assert [row["step"] for row in again.metrics] == [1] and [row["step"] for row in again.checkpoints] == [
        0,
        1,
    ]
    assert_nothing_half_written(tmp_path)


def test_the_stub_is_killed_while_it_samples(home):
    from tinker import types

    from helpers.train.backend import connect

    backend = connect("stub")
    sampler = backend.service_client.create_sampling_client(base_model=backend.base_model()).result()
    params = types.SamplingParams(max_tokens=2000, temperature=1.0, seed=1, stop=[])
    answer = sampler.sample(types.ModelInput.from_ints([1, 2, 3]), 4, params)
    time.sleep(1)
    assert kill_stub(home)
    with pytest.raises(Exception, match="has ended"):
        answer.result(timeout=PATIENCE)
    with pytest.raises(Exception, match="has ended"):
        backend.rest_client.get_server_capabilities().result(timeout=PATIENCE)


def test_the_kernel_is_killed(capsys, monkeypatch):
    import papermill
    from nbclient.exceptions import DeadKernelError

    def dies(*_, **__):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", dies)
    assert main(["run", "--name", "dead-kernel", "--until", "split"]) == 1
    assert_one_message(capsys.readouterr().err, "01_split", "out of memory")
