"""What a sweep says while it works: a line for each stage that a run finished, and for each run that failed.

It reads the run folders, so it does not matter where the jobs run: here, one or several at a time, or on the workers of a cluster.
"""

from helpers.text import clock
import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from helpers.errors import RunError
from helpers.runs.info import is_under_way
from helpers.runs.sweep.sweep import Sweep, failure, is_done
from helpers.runs.sweep.settings import setting_text

POLL_SECONDS = 0.5


class Watch:
    """Says what happens in a sweep's runs from `with Watch(sweep, say):` to its end; on a terminal also what is under way now."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]):
        self._sweep, self._say, self._terminal = sweep, say, say is print and sys.stdout.isatty()
        self._started, self._end = time.monotonic(), threading.Event()
        self._seen: set[tuple[Any, ...]] = set()
        self._finished: set[str] = {name for name in sweep.parameters if is_done(sweep, name)}
        self._before = len(self._finished)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self._seen.update(event for event, _ in self._events())
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            self._look()
            if self._terminal:
                self._draw(self._now())
        self._look()
        if self._terminal:
            self._draw("")

    def _look(self) -> None:
        """Say what is new."""
        for event, text in self._events():
            if event not in self._seen:
                self._seen.add(event)
                self._draw("") if self._terminal else None
                self._say(text)

    def _events(self) -> list[tuple[tuple[Any, ...], str]]:
        """All that has happened in the runs so far: what tells it from others, and a line."""
        sweep, found = self._sweep, []
        width = max(len(name) for name in sweep.parameters)
        for number, name in enumerate(sweep.parameters, start=1):
            head = f"[{number}/{len(sweep.parameters)}] {name:{width}}  {setting_text(sweep.setting(name))}"
            try:
                run = sweep.run(name)
                failed = failure(run)
                for stage, entry in run.manifest["stages"].items():
                    if entry["status"] == "done":
                        shared = entry.get("shared_from")
                        text = (
                            f"as in {shared}" if shared else f"{clock(entry['seconds'])}  {entry['summary']}"
                        )
                        found.append(((name, stage, entry["finished"], shared), f"{head}  {stage:8} {text}"))
                if failed:
                    found.append(
                        (
                            (name, failed["time"]),
                            f"{head}  {failed['stage'] or 'start':8} FAILED: {failed['message']}",
                        )
                    )
                elif is_done(sweep, name) and name not in self._finished:
                    self._finished.add(name)
                    found.append(((name, "done"), self._count()))
            except RunError:  # deleted by somebody while we look; the job itself says so
                continue
        return found

    def _count(self) -> str:
        """`2 of 6 done after 4:10, about 8:20 left`: as long for the rest as it took so far."""
        done, total, spent = (
            len(self._finished),
            len(self._sweep.parameters),
            time.monotonic() - self._started,
        )
        left = f", about {clock(spent / (done - self._before) * (total - done))} left" if done < total else ""
        return f"{done} of {total} done after {clock(spent)}{left}"

    def _now(self) -> str:
        """What is under way: `1:25  ranks-02 train, step 12; ranks-03 evaluate`."""
        words = []
        for run in map(self._sweep.run, self._sweep.parameters):
            with contextlib.suppress(RunError):  # deleted by somebody
                stage = next(
                    (
                        stage
                        for stage, entry in run.manifest["stages"].items()
                        if entry["status"] == "started"
                    ),
                    None,
                )
                if stage and is_under_way(run.path):
                    metrics = run.path / "train" / "metrics.jsonl"
                    step = (
                        f", step {len(metrics.read_bytes().splitlines())}"
                        if stage == "train" and metrics.is_file()
                        else ""
                    )
                    words.append(f"{run.name} {stage}{step}")
        return f"{clock(time.monotonic() - self._started)}  {'; '.join(words) or 'starting'}"

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        print("\r" + text[: width - 1].ljust(width - 1) + "\r", end="", flush=True)
