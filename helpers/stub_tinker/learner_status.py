"""What each key's user is doing, and who needs help: the rows of the status page.

The server itself sees requests, optimizer steps and losses. What only a notebook knows, it says through the
SDK: its own name and stage as metadata of the session, and the number of steps and the validation score as an
event of telemetry, `PROGRESS`.
"""

import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pydantic

from helpers.stub_tinker.engine import Cancelled, SessionEnded
from helpers.stub_tinker.losses import Example
from helpers.stub_tinker.options import Roster
from helpers.stub_tinker.words import SAME, SILENT_SECONDS, STATES, WAIT_SECONDS, shown, span

PROGRESS = "course_progress"
LATELY = 30  # seconds since the last request of someone who still works
MOST = 16  # training runs and sessions of a learner that are known, the latest
ERROR = 240  # characters of one

Count = Annotated[int, pydantic.Field(ge=0, le=10_000_000)]


class Told(pydantic.BaseModel):
    """What a notebook says of a training run: the step it is at, of how many; right answers, of how many."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    run: str
    step: Count | None = None
    steps: Count | None = None
    correct: Count | None = None
    total: Count | None = None


@dataclass
class Training:
    """A training run. `step` counts the optimizer's steps unless the notebook counts its own."""

    step: int = 0
    counts_itself: bool = False
    steps: int | None = None
    loss: float | None = None  # of the last batch, in nats a token with weight
    correct: int | None = None
    total: int | None = None

    @property
    def is_complete(self) -> bool:
        return self.steps is not None and self.step >= self.steps

    @property
    def is_under_way(self) -> bool:
        return self.steps is not None and 0 < self.step < self.steps


@dataclass
class Refused:
    """The last answer to a learner's work, if it was an error. `what` says what was asked."""

    what: str
    message: str
    is_final: bool  # the SDK does not ask again by itself
    at: float = field(default_factory=time.monotonic)
    times: int = 1


class Learner:
    """What was seen of one key since the server's start. Methods are called from any thread."""

    def __init__(self, name: str):
        self.name = shown(name, 60)
        self._session = ""  # the one that asked for something last
        self._places: dict[str, tuple[str, str]] = {}  # notebook and stage of the latest sessions
        self.heard: float | None = None
        self.refused: Refused | None = None
        self._pending = 0
        self._waits_since = 0.0
        self._trainings: dict[str, Training] = {}  # by run; the one that trained last is the last
        self._lock = threading.Lock()

    # What is seen of it

    def came(self, session: str, metadata: Mapping[str, object]) -> None:
        """Note a new session."""
        notebook, stage = (shown(str(metadata.get(key, ""))) for key in ("notebook", "stage"))
        with self._lock:
            self._session, self.heard, self.refused = session, time.monotonic(), None
            _keep(self._places, session, (notebook, stage))

    def failed(self, what: str, message: str, is_final: bool = True) -> None:
        """Note that work was refused, or ended in an error."""
        refused = Refused(what, shown(message, ERROR), is_final)
        with self._lock:
            if self.refused and self.refused.what == what:
                refused.times = self.refused.times + 1
            self.heard, self.refused = refused.at, refused

    def watch(self, session: str, what: str, future: Future) -> None:
        """Note that work was taken on, and when it has ended, and how."""
        with self._lock:
            self._session, self.heard, self.refused = session, time.monotonic(), None
            if not self._pending:
                self._waits_since = time.monotonic()
            self._pending += 1

        def end(_: Future) -> None:
            with self._lock:
                self._pending -= 1
            self.heard = time.monotonic()
            try:
                error = future.exception()
            except CancelledError:
                error = None
            if error and not isinstance(error, SessionEnded | Cancelled):
                self.failed(what, str(error) or type(error).__name__)

        future.add_done_callback(end)

    def began(self, run: str) -> None:
        """Note a new training client."""
        with self._lock:
            _keep(self._trainings, run, Training())

    def stepped(self, run: str, step: int) -> None:
        """Note an optimizer step."""
        with self._lock:
            if training := self._trainings.pop(run, None):
                self._trainings[run] = training
                training.step = training.step if training.counts_itself else step

    def lost(self, run: str, logprobs: list[np.ndarray], examples: list[Example]) -> None:
        """Note the loss of a batch: mean NLL of its targets by weight."""
        weights = [example.inputs["weights"] for example in examples]
        total = float(sum(w.sum() for w in weights))
        nll = -float(sum((lp * w).sum() for lp, w in zip(logprobs, weights, strict=True)))
        with self._lock:
            if training := self._trainings.get(run):
                training.loss = nll / total if total > 0 and math.isfinite(nll) else None

    def told(self, told: Told) -> None:
        """Note what the notebook says of a run of this key, if it is one of the latest."""
        with self._lock:
            training = self._trainings.get(told.run)
            if training is None:
                return
            if told.step is not None:
                training.step, training.counts_itself = told.step, True
            for name in ("steps", "correct", "total"):
                if (value := getattr(told, name)) is not None:
                    setattr(training, name, value)

    # What that means

    def row(self, has_session: bool, last_turn: float | None) -> dict:
        """The row of the page.

        Args:
            has_session: one of its sessions lives.
            last_turn: time of the last computation for this key, on the clock of `time.monotonic`.
        """
        with self._lock:
            run, training = self._latest()
        notebook, stage = self._places.get(self._session, ("", ""))
        waited = time.monotonic() - max(self._waits_since, last_turn or 0.0) if self._pending else 0.0
        state, why, since = self._judge(run, training, has_session, waited)
        return {
            "name": self.name,
            "notebook": notebook,
            "stage": stage,
            "state": state,
            "why": why,
            "since_seconds": round(since),
            "step": training.step,
            "steps": training.steps,
            "loss": training.loss,
            "correct": training.correct,
            "total": training.total,
        }

    def _latest(self) -> tuple[str, Training]:
        """The run that trained last; before any has, the newest."""
        runs = list(reversed(self._trainings.items()))
        return next((one for one in runs if one[1].step), runs[0] if runs else ("", Training()))

    def _judge(
        self, run: str, training: Training, has_session: bool, waited: float
    ) -> tuple[str, str, float]:
        """The state, why, and the seconds that count for it."""
        if self.heard is None:
            return "not here", "has not connected yet", 0.0
        silent = time.monotonic() - self.heard
        nothing = f"no request for {span(silent)}{'' if has_session else ', no notebook open'}"
        refused = self.refused
        if refused and (refused.is_final or (refused.times >= SAME and not self._pending)):
            times = f" {refused.times} times" if refused.times > 1 else ""
            return "stuck", f"{refused.what} failed{times}: {refused.message}", silent
        if waited > WAIT_SECONDS:
            return "waiting", f"{self._pending} in the queue, no turn for {span(waited)}", waited
        if self._pending or silent < LATELY:
            return "working", "", silent
        if training.is_under_way and run.startswith(f"{self._session}:"):
            if silent > SILENT_SECONDS:
                return "stuck", f"{nothing}, in the middle of training", silent
            return "quiet", nothing, silent
        if training.is_complete:
            return "done", f"finished, last request {span(silent)} ago", silent
        return "quiet", nothing, silent


def _keep(latest: dict[str, Any], key: str, value: Any) -> None:
    """Add to what is known of the latest runs or sessions."""
    latest[key] = value
    while len(latest) > MOST:
        del latest[next(iter(latest))]


class Learners:
    """All keys that were seen, and those of a class before they are.

    Args:
        names: of owners.
        roster: of a class.
    """

    def __init__(self, names: Mapping[str, str] | None = None, roster: Roster | None = None):
        self._names, self.roster = dict(names or {}), roster
        everyone = roster.names.values() if roster else ()
        self._all = {owner: Learner(name) for owner, name in self._names.items() if name in everyone}

    def name(self, owner: str) -> str:
        return self._names.get(owner, "another key")

    def of(self, owner: str) -> Learner:
        return self._all.get(owner) or self._all.setdefault(owner, Learner(self.name(owner)))

    def rows(self, owner: str | None, with_session: set[str], last_turns: Mapping[str, float]) -> list[dict]:
        """A row for each, those first who need help, and of them whoever has for longest.

        Args:
            owner: whose row; None for all.
            with_session: owners of live sessions.
            last_turns: see `Learner.row`.
        """
        chosen = [(key, one) for key, one in list(self._all.items()) if owner in (None, key)]
        rows = [one.row(key in with_session, last_turns.get(key)) for key, one in chosen]

        def urgency(row: dict) -> tuple[int, int]:
            return STATES.index(row["state"]), -row["since_seconds"] if row["state"] in STATES[:2] else 0

        return sorted(rows, key=urgency)
