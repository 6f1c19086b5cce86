"""What a sweep says while it works: a line for each stage that a run finished, and for each run that failed.

It reads the run folders, so it does not matter where the jobs run: here, one or several at a time, or on the
workers of a cluster.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.runs.info import is_under_way
from helpers.runs.sweep.plan import Sweep
from helpers.text import clock, printable, red

POLL_SECONDS = 0.5


class Watch:
    """Says what happens in a sweep's runs from `with Watch(sweep, say):` to its end; on a terminal also what
    is under way now.
    """

    def __init__(self, sweep: Sweep, say: Callable[[str], None]):
        self._sweep, self._say, self._terminal = sweep, say, say is print and sys.stdout.isatty()
        self._started, self._end = time.monotonic(), threading.Event()
        self._seen: set[tuple[Any, ...]] = set()
        self._finished: set[str] = {name for name in sweep.settings if sweep.is_done(name)}
        self._before = len(self._finished)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self._seen.update(event for event, *_ in self._events())
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            self._report()
            if self._terminal:
                self._draw(self._now())
        self._report()
        if self._terminal:
            self._draw("")

    def _report(self) -> None:
        """Say what is new."""
        for event, text, flag in self._events():
            if event not in self._seen:
                self._seen.add(event)
                if self._terminal:
                    self._draw("")
                self._say(printable(text) + red(flag))

    def _events(self) -> list[tuple[tuple[Any, ...], str, str]]:
        """All that has happened in the runs so far: what tells it from others, a line, and a warning."""
        found = []
        for number, name in enumerate(self._sweep.settings, start=1):
            with contextlib.suppress(RunError):  # deleted by somebody meanwhile; the job itself says so
                found += self._events_of(number, name)
        return found

    def _events_of(self, number: int, name: str) -> list[tuple[tuple[Any, ...], str, str]]:
        sweep, found = self._sweep, []
        width = max(map(len, sweep.settings))
        head = f"[{number}/{len(sweep.settings)}] {name:{width}}  {sweep.text(name)}"
        manifest = sweep.run(name).manifest
        for stage, entry in manifest.stages.items():
            if entry.status == "done":
                shared = entry.shared_from
                text = f"as in {shared}" if shared else f"{clock(entry.seconds)}  {entry.summary}"
                flag = f". {manifest.flag}" if stage == "evaluate" and manifest.flag else ""
                found.append(((name, stage, entry.finished, shared), f"{head}  {stage:8} {text}", flag))
        if sweep.lesson and sweep.is_done(name):
            entry = manifest.lessons[sweep.lesson]
            line = f"{head}  {sweep.lesson}  {clock(entry.seconds)}"
            found.append(((name, sweep.lesson, entry.started), line, ""))
        if failure := sweep.failure(manifest):
            line = f"{head}  {failure.stage:8} FAILED: {failure.what}"
            found.append(((name, failure.stage, failure.time), line, ""))
        elif sweep.is_done(name) and name not in self._finished:
            self._finished.add(name)
            found.append(((name, "done"), self._count(), ""))
        return found

    def _count(self) -> str:
        """`2 of 6 done after 4:10, about 8:20 left`: as long for the rest as it took so far."""
        done, total = len(self._finished), len(self._sweep.settings)
        spent = time.monotonic() - self._started
        left = f", about {clock(spent / (done - self._before) * (total - done))} left" if done < total else ""
        return f"{done} of {total} done after {clock(spent)}{left}"

    def _now(self) -> str:
        """What is under way: `1:25  ranks-02 train, step 12; ranks-03 evaluate`."""
        under_way = []
        for run in map(self._sweep.run, self._sweep.settings):
            with contextlib.suppress(RunError, OSError):  # deleted by somebody; a loop that begins anew
                entries = [*run.manifest.stages.items(), *run.manifest.lessons.items()]
                begun = [name for name, entry in entries if entry.status == "started"]
                if begun and is_under_way(run.path):
                    under_way.append(f"{run.name} {begun[0]}{_steps(run.path / begun[0])}")
        return f"{clock(time.monotonic() - self._started)}  {'; '.join(under_way) or 'starting'}"

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        print("\r" + printable(text)[: width - 1].ljust(width - 1) + "\r", end="", flush=True)


def _steps(folder: Path) -> str:
    """How many steps the newest loop in a folder has done: `, step 12`; empty before the first."""
    logs = [*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl")]
    if not logs:
        return ""
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    steps = len(newest.read_bytes().splitlines())
    return f", step {steps}" if steps else ""
