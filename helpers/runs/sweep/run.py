"""Doing a sweep: each run is `course run --resume` on its folder, in a process of its own.

joblib hands the jobs out. It may hand them to other machines, if these see the same project, environment and
runs folder under the same paths.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.paths import ROOT
from helpers.runs.base_answers import has_base_answers
from helpers.runs.failures import record_failure
from helpers.runs.run import Run, data_fingerprints, new_run, point_latest_at
from helpers.runs.settings import written
from helpers.runs.stages import STAGES, stages_until
from helpers.runs.sweep.plan import Sweep
from helpers.runs.sweep.progress import Watch
from helpers.runs.sweep.results import LOG, best_row, collect, write_results
from helpers.runs.sweep.sharing import base_key, leaders, split_key

# These go along to workers; a key does not: set it where they start.
ENVIRONMENT = ("TINKER_COURSE_HOME", "TINKER_BASE_URL", "TINKER_ALLOW_HTTP")
COURSE = (sys.executable, "-m", "helpers.course")
INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """What one worker does: bring a run up to a stage, or run a lesson on it.

    Attributes:
        run: its name.
        until: the last stage.
        may_ask: whether it is allowed to ask the base model if no other run of the sweep has its answers. If
            it is not, it stops at `until`, or goes on to the end if the answers are there by then.
    """

    run: str
    until: str
    may_ask: bool


def run_sweep(
    sweep: Sweep, jobs: int | None = None, say: Callable[[str], None] = print, latest: bool = True
) -> list[dict[str, Any]]:
    """Do what is not done yet of a sweep. One that was begun before goes on where it stopped.

    First the split is made, once for all runs that have it in common. Of the runs that can share the base
    model's answers one asks for them; the others take them over. A run that fails does not stop the others.

    Args:
        sweep: from `plan_sweep` or `open_sweep`.
        jobs: runs at a time; None for what an active `joblib.parallel_config` says, and 1 without one.
        say: takes a line of progress.
        latest: whether `latest` is to name the run that is best on the validation data. Notebook 09, which
            breaks runs on purpose, leaves it where it is.

    Returns:
        A row a run, as `collect` gives. Table and plot are written into the sweep's folder.

    Raises:
        RunError: a run was changed by hand since, the sweep is under way in another process, or a folder
            can't be written.
    """
    _refuse_changes(collect(sweep))
    sweep.save()
    with Run(sweep.folder).in_use():
        _make_runs(sweep)
        try:
            with Watch(sweep, say):
                _do_all(sweep, jobs)
        except BaseException:
            stop_children()
            write_results(sweep, collect(sweep))
            raise
        rows = collect(sweep)
        write_results(sweep, rows)
        if latest and (best := best_row(sweep, rows)):
            point_latest_at(sweep.run(best["run"]).path)
        return rows


def _refuse_changes(rows: list[dict[str, Any]]) -> None:
    """Raises RunError if a run is not what the sweep made of it: its scores would stand beside the wrong
    setting.
    """
    for row in rows:
        if row["status"] in ("changed", "damaged"):
            raise RunError(
                f"run {row['run']} is {row['status']}: {row['message']}",
                f"delete it, and it is made again: course clean {row['run']}",
            )


def _make_runs(sweep: Sweep) -> None:
    for name, settings in sweep.settings.items():
        run = sweep.run(name) if sweep.run(name).manifest_path.is_file() else new_run(name, latest=False)
        if run.manifest.sweep is None:
            if sweep.lesson:
                _copy(sweep, run)
                run.update(like=Path(sweep.like).name, sweep=sweep.name)
            else:
                run.update(settings=settings, sweep=sweep.name)


def _copy(sweep: Sweep, run: Run) -> None:
    """Take over all that a lesson stands on."""
    original = sweep.original()
    for stage in sweep.stages:
        run.take_over(stage, original)
    manifest = original.manifest
    run.update(base_model=manifest.base_model, backend=manifest.backend, settings=manifest.settings)


def _do_all(sweep: Sweep, jobs: int | None) -> None:
    tried: set[str] = set()
    while wave := _next_wave(sweep, tried):
        statuses = _hand_out(sweep, wave, jobs)
        # A run that stopped before the end without failing waits for another one: the next wave has it again.
        tried.update(
            job.run for job, status in zip(wave, statuses, strict=True) if status or job.until == sweep.until
        )


def _next_wave(sweep: Sweep, tried: set[str]) -> list[Job]:
    """What can be done at the same time. Takes over splits that are there.

    Args:
        tried: runs that had their chance.
    """
    names = [name for name in sweep.settings if name not in tried and not sweep.is_done(name)]
    if sweep.lesson:
        return [Job(name, sweep.until, True) for name in names]
    if unsplit := [name for name in names if not _is_split(sweep, name)]:
        done = [name for name in sweep.settings if _is_split(sweep, name)]
        groups = leaders([*done, *unsplit], lambda name: split_key(sweep, name))
        for name in unsplit:
            if (leader := groups[name]) in done:
                _share_split(sweep.run(str(leader)), sweep.run(name))
        if first := [name for name in unsplit if groups[name] == name]:
            return [Job(name, "split", False) for name in first]
        names = [name for name in names if not sweep.is_done(name)]
    groups = leaders(names, lambda name: base_key(sweep, name))
    return [
        Job(name, sweep.until, True) if groups[name] in (None, name) else Job(name, "train", False)
        for name in names
    ]


def _is_split(sweep: Sweep, name: str) -> bool:
    return sweep.run(name).manifest.stages.is_done("split")


def _share_split(leader: Run, run: Run) -> None:
    """Take the leader's split over.

    Raises:
        RunError: the data files have changed since.
    """
    entry = leader.stage("split")
    if entry.data and entry.data != data_fingerprints(entry.settings.data_files):
        raise RunError(
            f"the data files changed since run {leader.name} was split: "
            + ", ".join(row.path for row in entry.data),
            "get the old files back, or start anew under another name",
        )
    run.take_over("split", leader)


def _hand_out(sweep: Sweep, wave: list[Job], jobs: int | None) -> list[int]:
    """Give the jobs of a wave to joblib. Its own workers are threads, because each only waits for a
    process.
    """
    from joblib import Parallel, delayed

    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment["COURSE_RUNS_DIR"] = str(sweep.folder.parent)
    parallel: Any = Parallel(n_jobs=jobs, prefer="threads", pre_dispatch="n_jobs")
    return list(parallel(delayed(run_job)(sweep, job, environment) for job in wave))


def run_job(sweep: Sweep, job: Job, environment: dict[str, str]) -> int:
    """One job, which is what a worker of the user's cluster executes.

    Args:
        environment: variables for the process.

    Returns:
        The exit status of `course run`. If it is neither 0 nor 130, the run's manifest says why.
    """
    run = sweep.run(job.run)
    if sweep.lesson:
        return course_run(run, sweep.lesson, sweep.settings[job.run], environment)
    key = base_key(sweep, job.run)
    mates = [other for other in sweep.settings if other != job.run and base_key(sweep, other) == key]

    def donor() -> str:
        """The run to take the answers from, empty if there is none."""
        return next((other for other in mates if has_base_answers(sweep.run(other))), "")

    def given() -> dict[str, Any]:
        """The setting for it. An empty one counts too: the one it had before may be gone. Not where it is
        the user's choice.
        """
        return {} if key is None else {"base_run": donor()}

    if job.until == "split":
        return course_run(run, job.until, given(), environment)
    if not job.may_ask and not donor():
        done = sweep.is_done(job.run, job.until)
        status = 0 if done else course_run(run, job.until, given(), environment)
        if status or not donor():
            return status
    return course_run(run, sweep.until, given(), environment)


_children: set[subprocess.Popen[bytes]] = set()


def course_run(run: Run, last: str, given: dict[str, Any], environment: dict[str, str]) -> int:
    """`course run --resume` in a process of its own, with all that it prints in the run's `course.log`.

    Args:
        last: the stage to go on to, or a lesson to run.
        given: settings beside those that the run has.

    Returns:
        Its exit status. A failure that it could not record in the manifest itself is recorded here.
    """
    lesson = "" if last in STAGES else last
    before = run.manifest.failures
    which = ["--lesson", lesson.partition("_")[0]] if lesson else ["--until", last]
    command = [*COURSE, "run", "--name", run.name, *which, "--resume"]
    for name, value in given.items():
        command += ["-p", f"{name}={value if isinstance(value, str) else written(value)}"]
    with open(run.path / LOG, "w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then interrupts each of them once.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children.add(process)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # in the main thread, with one job
        stop_children()
        raise
    finally:
        _children.discard(process)
    if status not in (0, INTERRUPTED) and all(failure in before for failure in run.manifest.failures):
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        record_failure(
            run, lesson or _next_stage(run, last), RunError(f"its process {how}", f"see {run.path / LOG}")
        )
    return status


def _next_stage(run: Run, until: str) -> str:
    """The first stage that is not done, where a process that recorded nothing must have been."""
    return next((stage for stage in stages_until(until) if not run.manifest.stages.is_done(stage)), until)


def stop_children() -> None:
    """Interrupt the runs that this process started, as Ctrl-C would, and wait for their end."""
    children = list(_children)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
