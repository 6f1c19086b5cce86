"""The command `course sweep`: which settings, where they run, and what is printed."""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

from helpers.errors import BackendError, RunError, UsageError
from helpers.runs.settings import chosen_parameters
from helpers.runs.sweep.results import best_row, collect, plan_text, results_text, time_line
from helpers.runs.sweep.settings import estimate_sweep, grid, grid_values, read_settings
from helpers.runs.sweep.sweep import Sweep, open_sweep, plan_sweep, run_sweep
from helpers.text import plural


def sweep(options: argparse.Namespace) -> int:
    """Plan, run or resume a sweep and print its table. Returns the exit status: 1 if a run is not done.

    Raises:
        CourseError: the settings can't be used, as far as that shows before the first run starts.
    """
    if options.jobs is not None and (options.jobs < 1 or options.dask):
        what = f"--jobs {options.jobs}" + (" with --dask" if options.dask else "")
        raise UsageError(
            what, "give 1 or more; with --dask, leave it out: each thread of a worker takes a run"
        )
    chosen = _chosen_sweep(options)
    plan = estimate_sweep(chosen)
    if options.dry_run:
        print(
            json.dumps(plan, indent=2)
            if options.json
            else "dry run: nothing is started or written. It would be\n" + plan_text(plan)
        )
        return 0
    say = print if not options.json else lambda text: print(text, file=sys.stderr)
    done = [row["run"] for row in collect(chosen) if row["status"] == "done"]
    before = f", done before: {len(done)}" if done else ""
    say(
        f"sweep {chosen.name}: {plural(len(chosen.parameters), 'run')} until {chosen.until}{before} → {chosen.folder}"
    )
    say(time_line(plan, done))
    try:
        with _ended_like_ctrl_c(), _workers(options):
            run_sweep(chosen, options.jobs, say)
    except KeyboardInterrupt:
        print(
            f"\nWhat was done is kept. To go on:  course sweep --resume --name {chosen.name}", file=sys.stderr
        )
        raise
    return print_results(chosen.name, options.json)


def _chosen_sweep(options: argparse.Namespace) -> Sweep:
    """The sweep to start, or to go on with.

    Raises:
        CourseError: the settings can't be used, or are not those that the sweep was started with.
    """
    old = open_sweep(options.name) if options.resume else None
    others = (
        options.profile,
        options.parameter,
        options.data,
        options.columns,
        options.backend,
        options.last,
    )
    if old and not options.grid and not options.settings and not any(others):
        return old
    if bool(options.grid) == bool(options.settings):
        fix = (
            "leave out all settings to go on with the sweep's own"
            if old
            else "give one of the two, for example --grid rank=8,32"
        )
        raise UsageError("a sweep takes its settings from --grid or from --settings", fix)
    settings = read_settings(options.settings) if options.settings else grid(grid_values(options.grid))
    parameters = chosen_parameters(argparse.Namespace(**{**vars(options), "resume": False}))
    for_all = {text.partition("=")[0].strip() for text in options.parameter}
    if options.grid and (twice := for_all.intersection(settings[0])):
        raise UsageError(f"{min(twice)} is set by -p and by --grid", "leave one of them out")
    new = plan_sweep(options.name, settings, parameters, options.last or "evaluate", new=old is None)
    if old and old != new:
        names = [
            name
            for name in {**old.parameters, **new.parameters}
            if old.parameters.get(name) != new.parameters.get(name)
        ]
        what = f"it went until {old.until}, now {new.until}"
        if names:
            what = f"{names[0]} had {old.parameters.get(names[0])}, now {new.parameters.get(names[0])}"
        raise RunError(
            f"sweep {old.name} was started with other settings: {what}",
            "leave them out to go on with it, or start another with another --name",
        )
    return new


@contextlib.contextmanager
def _workers(options: argparse.Namespace) -> Iterator[None]:
    """The workers of the Dask scheduler that the user named; without one, this machine."""
    if not options.dask:
        yield
        return
    import joblib
    from distributed import Client

    try:
        client = Client(options.dask, timeout=10)
        client.wait_for_workers(1, timeout=30)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"no Dask scheduler with workers at {options.dask}: {error}",
            "start both, or correct the address: tcp://host:8786",
        ) from error
    with client, joblib.parallel_config(backend="dask"):
        yield


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """A request to end (`kill`, a time limit, a closed terminal) interrupts, so that no run goes on without its sweep."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_results(name: str, as_json: bool = False) -> int:
    """Print the results of a sweep as they are now. Returns 1 if a run is not done.

    Raises:
        RunError: there is no such sweep, or it is damaged.
    """
    sweep = open_sweep(name)
    rows = collect(sweep)
    if as_json:
        best = best_row(sweep, rows)
        found = {
            "sweep": name,
            "path": str(sweep.folder),
            "until": sweep.until,
            "best": best and best["run"],
            "runs": rows,
        }
        print(json.dumps(found, indent=2))
    else:
        print("\n" + results_text(sweep, rows))
        print(f"table, plot and a page that compares the runs: {sweep.folder}")
    not_done = [row for row in rows if row["status"] != "done"]
    if not_done:
        print(
            f"\nnot done: {len(not_done)} of {len(rows)} runs. To do them:  course sweep --resume --name {name}",
            file=sys.stderr,
        )
    return 1 if not_done else 0
