"""A sweep and the processes that it starts: Ctrl-C, failures, and two real sweeps."""

import csv
import json
import signal
import sys
import time
from pathlib import Path

import pytest
from commands import start
from runs_for_tests import make_run
from stub import Server

from helpers.data.split import PARTS
from helpers.files import read_json
from helpers.paths import ROOT
from helpers.runs.info import find_runs
from helpers.runs.manifest import BackendUsed
from helpers.runs.run import Run
from helpers.runs.sweep import grid, plan_sweep, run_sweep

pytestmark = pytest.mark.usefixtures("folder")

# Takes the place of `course run`.
STAND_IN = """
import os, signal, sys, time
from helpers.course.interrupt import heed_ctrl_c
from helpers.errors import DataError
from helpers.runs.run import open_run
from helpers.runs.failures import record_failure
heed_ctrl_c()
run = open_run(sys.argv[sys.argv.index("--name") + 1])
data = run.manifest.settings["data_files"]
print("all that it printed", flush=True)
if "fails" in data:
    record_failure(run, "split", DataError("small.json, index 3: no output", "add one"))
    sys.exit(1)
if "refused" in data:
    sys.exit(2)
if "killed" in data:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    with run.in_use():
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def real_sweep(tmp_path: Path, *arguments: str, ignoring_ctrl_c: bool = False):
    """The command in a process of its own, with a script instead of `course run`."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    code = (
        "import sys\nfrom helpers.course.main import main\nfrom helpers.runs.sweep import run\n"
        f"run.COURSE = (sys.executable, {str(tmp_path / 'stand_in.py')!r})\n"
        f"sys.exit(main(['sweep', '--name', 's', *{arguments!r}]))"
    )
    return start([sys.executable, "-c", code], ignoring_ctrl_c)


@pytest.fixture(autouse=True)
def project_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize(
    ("jobs", "number", "ignoring_ctrl_c"),
    [("1", signal.SIGINT, True), ("2", signal.SIGTERM, False)],
)
def test_ctrl_c_ends_the_runs_and_keeps_what_is_done(
    jobs, number, ignoring_ctrl_c, tmp_path, folder, small_data
):
    """Also where it was started in the background, which is started with SIGINT ignored."""
    arguments = ("--data", str(small_data), "--grid", "seed=1,2,3", "--jobs", jobs)
    process = real_sweep(tmp_path, *arguments, ignoring_ctrl_c=ignoring_ctrl_c)
    deadline = time.monotonic() + 60
    while sum(run.state == "under way" for run in find_runs()) < int(jobs):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "course: interrupted" in err and "Traceback" not in err
    assert "course sweep --resume --name s" in err
    assert [run.state for run in find_runs()] == ["unfinished"] * 3
    assert [run.manifest.failure for run in find_runs()] == [None] * 3
    assert {row["status"] for row in csv.DictReader((folder / "s/results.csv").open())} == {"not started"}


def test_why_a_run_failed_is_in_its_manifest(tmp_path, folder, small_data):
    """Written by the notebook; where it wrote nothing, by the sweep, which names the log."""
    names = ("fails", "refused", "killed")
    files = [tmp_path / f"{name}.json" for name in names]
    for file in files:
        file.write_text(small_data.read_text())
    arguments = ("--grid", "data_files=" + ",".join(map(str, files)), "--until", "split")
    process = real_sweep(tmp_path, *arguments)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    for number, (what, fix) in enumerate(
        (
            ("small.json, index 3: no output", "add one"),
            ("its process ended with exit status 2", "see LOG"),
            ("its process was ended by signal 9", "see LOG"),
        ),
        start=1,
    ):
        log = folder / f"s-0{number}" / "course.log"
        assert f"split    FAILED: {what}" in out and f"s-0{number} failed: split: {what}" in out
        assert f"    log: {log}" in out and log.read_text() == "all that it printed\n"
        failure = Run(log.parent).manifest.failure
        assert failure and (failure.stage, failure.what) == ("split", what)
        assert failure.fix == fix.replace("LOG", str(log))


# for real


@pytest.fixture(scope="module")
def toy(toy_model, tmp_path_factory):
    """A stub with the toy model."""
    with pytest.MonkeyPatch.context() as patch:
        # Two threads for so little work would mostly wait for each other.
        patch.setenv("OMP_NUM_THREADS", "1")
        server = Server(toy_model, tmp_path_factory.mktemp("stub"))
    yield server
    server.stop()


SMALL = {
    "max_train": 16,
    "max_validation": 2,
    "max_test": 4,
    "max_tokens": 8,
    "epochs": 2.0,
    "eval_every": 99,
    "learning_rate": 0.1,
}


@pytest.mark.soak  # 40 s
def test_a_sweep_on_a_dask_cluster_of_two_workers(toy, folder, monkeypatch):
    """Two settings until train, through two worker processes, which share the split."""
    import joblib
    from distributed import Client, LocalCluster
    from distributed.diagnostics.plugin import SchedulerPlugin

    took: set[str] = set()
    monkeypatch.setenv("TINKER_SERVER_API_KEY", toy.key)

    class Watcher(SchedulerPlugin):
        def transition(self, key, start, finish, *args, worker=None, **kwargs):
            if finish == "memory":
                took.add(worker)

    common = SMALL | {"base_model": toy.model, "backend_name": toy.url}
    sweep = plan_sweep("s", grid({"rank": [4, 8]}), common, until="train")
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    )
    with cluster, Client(cluster), joblib.parallel_config(backend="dask"):
        cluster.scheduler.add_plugin(Watcher())
        first, second = run_sweep(sweep, say=lambda _: None)
    logs = "".join(path.read_text()[-1500:] for path in folder.glob("s-*/course.log"))
    assert (first["status"], second["status"]) == ("done", "done"), logs
    assert len(took) == 2  # both workers
    assert (first["split_from"], second["split_from"]) == (None, "s-01")
    assert first["validation_loss"] != second["validation_loss"]
    one, two = Run(folder / "s-01"), Run(folder / "s-02")
    for file in PARTS.values():
        assert read_json(two.file(f"split/{file}")) == read_json(one.file(f"split/{file}"))
    assert (folder / "s/metric.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "s/report.html").read_text()
    assert "s-01" in page and "s-02" in page
    assert json.loads((folder / "s/sweep.json").read_text())["swept"] == ["rank"]


@pytest.mark.soak  # 40 s
def test_a_sweep_over_reinforcement_learning(toy, folder, monkeypatch):
    """Two group sizes of notebook 10 at once, on copies of one run."""
    monkeypatch.setenv("TINKER_SERVER_API_KEY", toy.key)
    backend = BackendUsed(kind="url", url=toy.url)
    make_run("mine", done=("split", "train"), manifest={"backend": backend})
    common = {"base_model": toy.model, "steps": 1, "sft_steps": 1, "problems_a_step": 2}
    common |= {"held_out_problems": 4, "max_tokens": 8}
    sizes, lesson = {"group_size": [2, 4]}, "10_reinforcement_learning"
    rows = run_sweep(plan_sweep("s", grid(sizes), common, lesson=lesson), jobs=2, say=lambda _: None)
    logs = "".join(path.read_text()[-1500:] for path in folder.glob("s-*/course.log"))
    assert [row["status"] for row in rows] == ["done", "done"], logs
    for row in rows:
        scores, run = row["scores"], Run(folder / row["run"])
        assert [scores[f"{who} T=0 count"]["total"] for who in ("before", "repaired")] == [4, 4]
        assert run.manifest.lessons[lesson].settings == common | row["settings"]
        assert run.stage("train").shared_from == "mine" and "value" in scores["repaired KL"]
        loop = read_json(run.file(f"{lesson}/count/settings.json"))
        assert loop["group_size"] == row["settings"]["group_size"]
    assert "repaired KL" in (folder / "s/report.html").read_text()
