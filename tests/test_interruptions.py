"""Training that is cut short, by the stub's death, by Ctrl-C or in the middle of a line, and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import COURSE, assert_one_message, real_course, set_ctrl_c, start
from runs_for_tests import make_run
from test_failures import assert_nothing_half_written

from helpers import local_model
from helpers.paths import ROOT
from helpers.runs.run import Run
from helpers.stub_folder import running_server
from helpers.stub_tinker import status

SHORT = [
    word
    for setting in (
        "epochs=2.5",
        "batch_size=4",
        "eval_every=10",
        "max_tokens=16",
        "rank=4",
        "learning_rate=0.02",
    )
    for word in ("-p", setting)
]
STEPS = 40  # 2.5 times the 64 examples of a made-up run, 4 a step
PATIENCE = 60  # seconds in which a user must learn that the stub is gone


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy_model):
    """A cache folder of this file's own: the stub that runs there is ours to kill. Its model is a toy."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(toy_model.parent, home / "models")
    local_model._seal(home / "models" / local_model.LOCAL_MODEL)  # now it passes for the local base model
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_COURSE_HOME", str(home))
        patch.setenv("COURSE_RUNS_DIR", str(tmp_path_factory.mktemp("runs")))
        for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
            patch.delenv(name, raising=False)
        yield home
    kill_stub(home)


def kill_stub(home: Path) -> bool:
    """Kill the stub of this cache folder, and only that one, as a machine out of memory would."""
    note = home / "stub" / "server.json"
    with suppress(OSError):
        os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
        return True
    return False


def metrics(run: Run) -> list[dict]:
    path = run.file("train/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start_training(run: Run, ignoring_ctrl_c: bool = False) -> subprocess.Popen[str]:
    """`course run` some steps past its first checkpoint of trained weights, and well before the next."""
    command = [*COURSE, "run", "--from", "train", "--until", "train", "--name", run.name, *SHORT]
    process = start(command, ignoring_ctrl_c)
    deadline = time.monotonic() + 240
    path = run.file("train/metrics.jsonl")
    while not path.exists() or path.read_text().count("\n") < 12:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


def kernel_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process that runs the notebook of this `course run`."""
    below = psutil.Process(process.pid).children(recursive=True)
    [kernel] = [one for one in below if "ipykernel_launcher" in one.cmdline()]
    return kernel


@pytest.fixture(scope="module")
def uninterrupted(home) -> list[dict]:
    """The metrics of a training run that nothing disturbed."""
    run = make_run("uninterrupted", done=("split",))
    result = real_course("run", "--from", "train", "--until", "train", "--name", run.name, *SHORT)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    return metrics(run)


def assert_resumes_to_the_same_end(run: Run, uninterrupted: list[dict]) -> None:
    """`--resume` without any setting goes on with those of the run, from its last checkpoint."""
    checkpoints = run.file("train/checkpoints.jsonl").read_text()
    result = real_course("run", "--resume", "--until", "train", "--name", run.name)
    assert result.returncode == 0, result.stderr
    assert run.file("train/checkpoints.jsonl").read_text().startswith(checkpoints)
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    assert [row["train_nll"] for row in metrics(run)] == pytest.approx(
        [row["train_nll"] for row in uninterrupted], abs=1e-3
    )
    assert run.manifest.failure is None
    assert_nothing_half_written(run.path)


@pytest.mark.soak  # 40 s
def test_the_stub_is_killed_in_mid_training(home, uninterrupted):
    run = make_run("killed", done=("split",))
    process = start_training(run)
    assert kill_stub(home)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    again = f"course run --resume --name {run.name}"
    assert_one_message(stderr, "the stub Tinker backend", "has ended", again)
    failure = run.manifest.failure
    assert failure and (failure.stage, failure.kind) == ("train", "BackendError")
    assert len(metrics(run)) < STEPS
    assert_nothing_half_written(run.path)
    assert_resumes_to_the_same_end(run, uninterrupted)


def test_control_c_in_mid_training(home):
    """Started with SIGINT ignored, as from `nohup make test &`. Nothing failed, so the manifest is silent."""
    run = make_run("interrupted", done=("split",))
    process = start_training(run, ignoring_ctrl_c=True)
    kernel = kernel_of(process)
    process.send_signal(signal.SIGINT)  # to this process only: the kernel has a session of its own
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted" in stdout and "Traceback" not in stdout + stderr
    assert stderr.strip().splitlines() == [
        f"What was done is kept. To go on from here:  course run --resume --name {run.name} --until train"
    ]
    assert run.manifest.failure is None
    assert_nothing_half_written(run.path)
    kernel.wait(timeout=10)
    assert len(metrics(run)) < STEPS
    kept = [json.loads(line)["step"] for line in run.file("train/checkpoints.jsonl").read_text().splitlines()]
    assert kept[:2] == [0, 10] and kept[-1] < STEPS


SLOW_TO_END = r"""
import asyncio, sys
from pathlib import Path
import nbformat
from jupyter_client.manager import KernelManager
from nbformat.v4 import new_code_cell, new_notebook
from helpers.course.execute import run_notebook
from helpers.course.interrupt import heed_ctrl_c
from helpers.runs.run import new_run

tidy = KernelManager._async_cleanup_resources

async def slowly(self, restart=False):  # nbclient looks once a second whether the kernel lives
    await asyncio.sleep(2)
    await tidy(self, restart)

KernelManager._async_cleanup_resources = slowly
look = (
    "from ipykernel.kernelapp import IPKernelApp\n"
    "open('{0}/connection', 'w').write(open(IPKernelApp.instance().abs_connection_file).read())"
)
interrupt = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
notebook = new_notebook(cells=[new_code_cell(cell) for cell in ("", look.format(sys.argv[1]), interrupt)])
notebook.cells[0].metadata["tags"] = ["parameters"]
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(notebook, Path(sys.argv[1], "01_split.ipynb"))
heed_ctrl_c()
sys.exit(run_notebook(new_run(), "split", {}, "[1/1]", Path(sys.argv[1])))
"""


def test_control_c_says_nothing_of_the_kernel_that_it_ended(tmp_path, folder):
    """Also where nbclient sees the kernel's end: its task then fails with nobody waiting for it."""
    result = subprocess.run(
        [sys.executable, "-c", SLOW_TO_END, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=set_ctrl_c(signal.SIG_IGN),
    )
    assert (result.returncode, result.stderr) == (130, "")
    assert result.stdout.splitlines()[-1].endswith("interrupted")
    # What cells say can't be listened to by other users.
    assert "curve_publickey" in (tmp_path / "connection").read_text()


def test_a_line_cut_in_the_middle_is_forgotten(tmp_path, capsys):
    from test_training import TrainSettings

    from helpers.train.schedule import Step
    from helpers.train.training_log import TrainingLog

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
    assert capsys.readouterr().out == ""
    assert not TrainingLog(tmp_path, TrainSettings(), base="other").resumed
    assert "begun anew: base was not set and is 'other'" in capsys.readouterr().out


def test_the_stub_is_killed_while_it_samples(home):
    from tinker import types

    from helpers.train.backend import connect

    backend = connect("stub")
    sampler = backend.service_client.create_sampling_client(base_model=backend.base_model()).result()
    params = types.SamplingParams(max_tokens=2000, temperature=1.0, seed=1, stop=[])
    prompt = types.ModelInput.from_ints([1, 2, 3])
    sampler.sample(prompt, 1, types.SamplingParams(max_tokens=1)).result()  # the model is loaded now
    answer, server = sampler.sample(prompt, 4, params), running_server(home / "stub")
    assert server
    while not status.fetch(server["url"], server["key"])["queued"]:
        assert not answer.done()
    assert kill_stub(home)
    with pytest.raises(Exception, match="has ended"):
        answer.result(timeout=PATIENCE)
    with pytest.raises(Exception, match="has ended"):
        backend.rest_client.get_server_capabilities().result(timeout=PATIENCE)
