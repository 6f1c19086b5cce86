"""`course sweep`: a run for each of many settings, with what they share done once.

    from helpers.runs.sweep.sweep import plan_sweep, run_sweep
    from helpers.runs.sweep.settings import grid

    sweep = plan_sweep("ranks", grid({"rank": [8, 32], "learning_rate": [1e-3, 3e-4]}), {"epochs": 1})
    with joblib.parallel_config(backend="dask"):   # or "ray", after ray.util.joblib.register_ray(); without it, this machine
        rows = run_sweep(sweep)

Each setting is a run folder like any other, and each job is `course run --resume` on it in a process of its own. joblib hands the
jobs out. It may hand them to other machines, if these see the same project, environment and runs folder under the same paths.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.runs.base_answers import has_base_answers
from helpers.errors import RunError
from helpers.files import read_json, write_json
from helpers.paths import ROOT, runs_dir
from helpers.runs.run import STAGES, SWEEP_FILE, Run, check_new_run, new_run, now, point_latest_at
from helpers.runs.settings import notebook_parameters, stage_values

FAILURE, LOG = (
    "failed.json",
    "course.log",
)  # in the folder of a run: how the last attempt failed, and all that it printed
ENVIRONMENT = (
    "TINKER_COURSE_HOME",
    "TINKER_BASE_URL",
)  # goes along to workers; a key does not: set it where they start
BASE_SETTINGS = {
    "train": ("base_model", "prompt_format"),
    "evaluate": ("backend_name", "max_tokens", "temperature", "seed"),
}
COURSE = (sys.executable, "-m", "helpers.course.cli")
INTERRUPTED = 130


@dataclass(frozen=True)
class Sweep:
    """Settings to run, a run each.

    Attributes:
        folder: the sweep's own, in the runs folder; its name is the sweep's.
        until: the last stage of each run.
        swept: names of the parameters that differ, in the user's order.
        parameters: what each run gets, by its name: `{"ranks-01": {"rank": 8, "epochs": 1}, …}`.
    """

    folder: Path
    until: str
    swept: tuple[str, ...]
    parameters: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stages(self) -> list[str]:
        return list(STAGES)[: list(STAGES).index(self.until) + 1]

    def run(self, name: str) -> Run:
        return Run(self.folder.parent / name)

    def setting(self, name: str) -> dict[str, Any]:
        """The swept parameters of a run, with today's default where it sets none."""
        defaults = {key: value for stage in notebook_parameters().values() for key, value in stage.items()}
        return {key: self.parameters[name].get(key, defaults.get(key)) for key in self.swept}


def plan_sweep(
    name: str,
    settings: list[dict[str, Any]],
    parameters: dict[str, Any] | None = None,
    until: str = "evaluate",
    new: bool = True,
) -> Sweep:
    """A sweep that is checked, but not begun. Makes nothing.

    Args:
        name: of the sweep; its runs are called NAME-01, NAME-02, …
        settings: parameters by name, one dictionary a run, from `helpers.runs.sweep.settings` or by hand.
        parameters: what all runs have in common; a setting beats it.
        until: the last stage.
        new: False if there may be one of this name, to be compared with.

    Raises:
        CourseError: an unknown parameter, a value of the wrong type, the same setting twice, or a name that is taken.
    """
    from helpers.runs.sweep.settings import check_settings

    common = parameters or {}
    names = [f"{name}-{number:0{max(2, len(str(len(settings))))}}" for number in range(1, len(settings) + 1)]
    swept = tuple(dict.fromkeys(key for setting in settings for key in setting))
    sweep = Sweep(
        runs_dir() / name, until, swept, {run: common | setting for run, setting in zip(names, settings)}
    )
    check_settings(sweep)
    for taken in (name, *names) if new else ():
        check_new_run(taken)
    return sweep


def open_sweep(name: str) -> Sweep:
    """A sweep that was begun before.

    Raises:
        RunError: there is none of this name, or its file is damaged.
    """
    path = runs_dir() / name / SWEEP_FILE
    if not path.is_file():
        raise RunError(
            f"there is no sweep {name!r} in {runs_dir()}",
            "start one: leave out --resume, and give --grid or --settings",
        )
    found = read_json(path)
    try:
        parameters = {str(run): dict(own) for run, own in found["runs"].items()}
        if not parameters or found["until"] not in STAGES:
            raise ValueError
        return Sweep(path.parent, found["until"], tuple(map(str, found["swept"])), parameters)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged", f"`course clean {name}` deletes the sweep") from error


# What runs share


def split_key(sweep: Sweep, name: str) -> dict[str, Any]:
    """What decides a run's split: runs with equal keys share it."""
    return stage_values(sweep.parameters[name], notebook_parameters(), "split")["split"] | {"run_name": ""}


def base_key(sweep: Sweep, name: str) -> dict[str, Any] | None:
    """What decides the base model's answers; None if the sweep does not ask it, or the user named a run that has them."""
    if "evaluate" not in sweep.stages or sweep.parameters[name].get("base_run"):
        return None
    values = stage_values(sweep.parameters[name], notebook_parameters(), "evaluate")
    asked = {f"{stage}.{key}": values[stage][key] for stage, keys in BASE_SETTINGS.items() for key in keys}
    return asked | {"split": split_key(sweep, name)}


def leaders(names: Iterable[str], key: Callable[[str], Any]) -> dict[str, str | None]:
    """For each run the first one with the same key, which does for all of them what they share; None for a run whose key is None."""
    first: list[tuple[Any, str]] = []
    found: dict[str, str | None] = {}
    for name in names:
        own = key(name)
        leader = next((other for known, other in first if known == own), None)
        if leader is None and own is not None:
            first.append((own, name))
        found[name] = None if own is None else leader or name
    return found


# Running


def run_sweep(
    sweep: Sweep, jobs: int | None = None, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Do what is not done yet of a sweep. One that was begun before goes on where it stopped.

    First the split is made, once for all runs that have it in common. Of the runs that can share the base model's answers one asks
    for them; the others take them over. A run that fails does not stop the others.

    Args:
        sweep: from `plan_sweep` or `open_sweep`.
        jobs: runs at a time; None for what an active `joblib.parallel_config` says, and 1 without one.
        say: takes a line of progress.

    Returns:
        A row a run, as `helpers.runs.sweep.results.collect` gives. Table and plot are written into the sweep's folder, and `latest` names
        the run that is best on the validation data.

    Raises:
        RunError: a run was changed by hand since, the sweep is under way in another process, or a folder can't be written.
    """
    from helpers.runs.sweep.progress import Watch
    from helpers.runs.sweep.results import best_row, collect, write_results

    _refuse_changes(collect(sweep))
    if not (sweep.folder / SWEEP_FILE).is_file():
        plan = {
            "name": sweep.name,
            "created": now(),
            "until": sweep.until,
            "swept": list(sweep.swept),
            "runs": sweep.parameters,
        }
        write_json(sweep.folder / SWEEP_FILE, plan)
    with Run(sweep.folder).in_use():
        for name, parameters in sweep.parameters.items():
            run = sweep.run(name) if sweep.run(name).manifest_path.is_file() else new_run(name, latest=False)
            if "sweep" not in run.manifest:
                run.update(parameters=parameters, sweep=sweep.name)
        try:
            with Watch(sweep, say):
                tried: set[str] = set()
                while wave := _next_wave(sweep, tried):
                    statuses = _hand_out(sweep, wave, jobs)
                    # One that stopped before the end without failing waits for what another run was to do: the next wave has it again.
                    tried.update(
                        name
                        for (name, until, _), status in zip(wave, statuses)
                        if status or until == sweep.until
                    )
        except BaseException:
            stop_children()
            write_results(sweep, collect(sweep))
            raise
        rows = collect(sweep)
        write_results(sweep, rows)
        if best := best_row(sweep, rows):
            point_latest_at(sweep.run(best["run"]).path)
        return rows


def _refuse_changes(rows: list[dict[str, Any]]) -> None:
    """Raises RunError if a run is not what the sweep made of it: its scores would stand beside the wrong setting."""
    for row in rows:
        if row["status"] in ("changed", "damaged"):
            raise RunError(
                f"run {row['run']} is {row['status']}: {row['message']}",
                f"delete it, and it is made again: course clean {row['run']}",
            )


def _next_wave(sweep: Sweep, tried: set[str]) -> list[tuple[str, str, bool]]:
    """What can be done at the same time: run, last stage, whether it may ask the base model. Takes over splits that are there.

    Args:
        tried: runs that had their chance.
    """
    names = [name for name in sweep.parameters if name not in tried and not is_done(sweep, name)]
    if unsplit := [name for name in names if not _has(sweep.run(name), "split")]:
        done = [name for name in sweep.parameters if _has(sweep.run(name), "split")]
        groups = leaders([*done, *unsplit], lambda name: split_key(sweep, name))
        for name in unsplit:
            if groups[name] in done:
                sweep.run(name).take_over("split", sweep.run(groups[name]))
        if first := [name for name in unsplit if groups[name] == name]:
            return [(name, "split", False) for name in first]
        names = [name for name in names if not is_done(sweep, name)]
    groups = leaders(names, lambda name: base_key(sweep, name))
    return [
        (name, sweep.until, True) if groups[name] in (None, name) else (name, "train", False)
        for name in names
    ]


def _has(run: Run, stage: str) -> bool:
    return run.manifest["stages"].get(stage, {}).get("status") == "done"


def is_done(sweep: Sweep, name: str) -> bool:
    """Whether a run has all stages of the sweep, and nothing failed since."""
    run = sweep.run(name)
    return all(_has(run, stage) for stage in sweep.stages) and failure(run) is None


def failure(run: Run) -> dict[str, Any] | None:
    """How the last attempt failed: `stage`, `message`, `log`, `time`. None if none did, or a stage was finished since, by hand."""
    if not (run.path / FAILURE).is_file():
        return None
    found = read_json(run.path / FAILURE)
    return (
        None
        if any(entry.get("finished", "") > found["time"] for entry in run.manifest["stages"].values())
        else found
    )


def _hand_out(sweep: Sweep, wave: list[tuple[str, str, bool]], jobs: int | None) -> list[int]:
    """Give the jobs of a wave to joblib. Its own workers are threads, because each of them only waits for a process."""
    from joblib import Parallel, delayed

    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | {
        "COURSE_RUNS_DIR": str(sweep.folder.parent)
    }
    return Parallel(n_jobs=jobs, prefer="threads", pre_dispatch="n_jobs")(
        delayed(run_setting)(sweep, *job, environment) for job in wave
    )


def run_setting(sweep: Sweep, name: str, until: str, may_ask: bool, environment: dict[str, str]) -> int:
    """One job: bring a run up to a stage. This is what a worker of the user's cluster executes.

    Args:
        sweep: which it belongs to.
        name: of the run; its folder is there.
        until: the last stage.
        may_ask: whether it may ask the base model if no other run of the sweep has its answers. One that may not stops at `until`, or
            goes on to the end if they are there by then.
        environment: variables for the process.

    Returns:
        The exit status of `course run`. If it is not 0, `failed.json` in the run folder says why.
    """
    key = base_key(sweep, name)
    mates = [other for other in sweep.parameters if other != name and base_key(sweep, other) == key]

    def donor() -> str | None:
        """The run to take the answers from, empty if there is none; None if that is not for the sweep to say."""
        return (
            None
            if key is None
            else next((other for other in mates if has_base_answers(sweep.run(other))), "")
        )

    if until == "split":
        return _course_run(sweep.run(name), until, donor(), environment)
    if not may_ask and not donor():
        status = (
            0 if _has(sweep.run(name), until) else _course_run(sweep.run(name), until, donor(), environment)
        )
        if status or not donor():
            return status
    return _course_run(sweep.run(name), sweep.until, donor(), environment)


_children: set[subprocess.Popen] = set()


def _course_run(run: Run, until: str, base_run: str | None, environment: dict[str, str]) -> int:
    """`course run` on an existing run, in a process of its own, with all that it prints in the run's `course.log`."""
    failed = (failure(run) or {}).get("stage")  # done again, even if only a check below its last line failed
    command = ["run", "--name", run.name, "--until", until, *(["--from", failed] if failed else ["--resume"])]
    command += (
        [] if base_run is None else ["-p", f"base_run={base_run}"]
    )  # empty too: an earlier one may be gone
    (run.path / FAILURE).unlink(missing_ok=True)
    with open(run.path / LOG, "w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then interrupts each of them once.
        process = subprocess.Popen(
            [*COURSE, *command],
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
    if status not in (0, INTERRUPTED):
        write_json(run.path / FAILURE, failure_of(run.path / LOG, status))
    return status


def failure_of(log: Path, status: int) -> dict[str, Any]:
    """Why a `course run` failed, by what it printed: `stage` (None if none began), `message`, `log`, `time`."""
    text = log.read_text(encoding="utf-8", errors="replace")
    notebook = re.findall(r"(?m)^\[\d+/\d+\] (\w+) .*FAILED$", text)
    stage = next((stage for stage, (name, _) in STAGES.items() if notebook and name == notebook[-1]), None)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    said = re.findall(r"(?m)^(?:course: .+|\w*(?:Error|Exception|Interrupt)\b: .+)$", plain)
    message = (
        said[-1]
        if said
        else f"the process was ended by signal {-status}"
        if status < 0
        else f"exit status {status}"
    )
    return {"stage": stage, "message": message.removeprefix("course: "), "log": log.name, "time": now()}


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
