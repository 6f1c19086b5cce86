"""The files of the train stage, and where an interrupted run goes on.

    log = TrainingLog(folder, settings, base=base, examples=len(train))
    training_client = log.training_client(backend, base, rank=32, seed=42)
    for step in Progress(plan, log):
        ...
        log.step(step, nll, tokens)
    log.finish()

    metrics.jsonl            one line a step: step, epoch, train_nll, learning_rate, tokens_per_second
    checkpoints.jsonl        one line an evaluation: step, epoch, state_path, sampler_path, accuracy, loss, …
    evaluation_history.json  [{epoch, step, accuracy, loss}]
    best_checkpoint.json     the line of checkpoints.jsonl that is best by `best_metric`

Every line is on disk before the next step starts, and one that a crash cut short is dropped: a run that was
interrupted goes on from its last checkpoint and ends where an uninterrupted run ends. (The cookbook's JSON
logger promises neither, so it doesn't write these files. Its other loggers do the rest: see trackers.py.)
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from helpers.errors import CourseError, DataError
from helpers.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from helpers.train.schedule import Step
from helpers.train.trackers import trackers
from helpers.train.training_client import changed_settings, make_training_client
from helpers.train.whereabouts import tell

FILES = ("metrics.jsonl", "checkpoints.jsonl", "evaluation_history.json", "best_checkpoint.json")

BEST = {
    "accuracy": lambda checkpoint: (checkpoint["accuracy"], -checkpoint["loss"]),
    "loss": lambda checkpoint: (-checkpoint["loss"], checkpoint["accuracy"]),
}


class LogSettings(Protocol):
    """What a log asks of the settings of notebook 02."""

    @property
    def best_metric(self) -> str: ...

    @property
    def patience(self) -> int: ...

    @property
    def prompt_format(self) -> str: ...

    def model_dump(self) -> dict[str, Any]: ...


class TrainingLog:
    """What happened in training, and what to go on with.

    Args:
        folder: the stage's folder.
        settings: those of notebook 02. `best_metric` says what the best checkpoint has: the highest
            `accuracy` (of equals the lowest loss), or the lowest `loss` (of equals the highest accuracy), on
            validation data. `patience` is the number of evaluations without a new best after which
            `stop_early` is true; 0 for never.
        facts: what else decides the result. Files of other settings, or of a finished run, are begun anew.

    Attributes:
        resumed: whether it goes on with an interrupted run.
        latest: the last step that was recorded here; empty before any.
        says: tells the service how far the training is: `tell` with its first arguments filled in.

    Raises:
        DataError: there is no such metric, or patience is below 0.
    """

    def __init__(self, folder: Path, settings: LogSettings, **facts: Any):
        if settings.best_metric not in BEST:
            raise DataError(f"best_metric={settings.best_metric!r}", f"use {' or '.join(BEST)}")
        if settings.patience < 0:
            raise DataError(
                f"patience={settings.patience}", "use 0 for never, or the number of evaluations to wait"
            )
        self.folder, self.patience = folder, settings.patience
        self._metadata = {"renderer_name": settings.prompt_format}  # as the cookbook says it of a run
        self._goodness = BEST[settings.best_metric]
        self._decided_by = settings.model_dump() | facts
        self._settings_path = folder / "settings.json"
        old = read_json(self._settings_path) if self._settings_path.exists() else {}
        changed = changed_settings(old, self._decided_by | {"finished": False})
        self.resumed = not changed and bool(self.checkpoints)
        if changed and old.get("finished") is False and self.checkpoints:
            print(f"the interrupted training is not gone on with, but begun anew: {changed}")
        self.says: Callable[..., None] = lambda **_: None  # to the service, once there is a client
        if self.resumed:
            self._forget_after(self.checkpoints[-1]["step"])
        else:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            write_json(self._settings_path, self._decided_by | {"finished": False})
        self._trackers = trackers(folder, self._decided_by)
        self._began = time.monotonic()
        self.latest: dict[str, Any] = {}

    # what is in the files

    @property
    def metrics(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        return read_jsonl(path) if path.exists() else []

    @property
    def checkpoints(self) -> list[dict]:
        path = self.folder / "checkpoints.jsonl"
        return read_jsonl(path) if path.exists() else []

    @property
    def last_step(self) -> int:
        """The step of the last checkpoint; 0 before any."""
        return self.checkpoints[-1]["step"] if self.checkpoints else 0

    @property
    def best(self) -> dict:
        """The best checkpoint so far, by `best_metric`; of equals the first."""
        return max(self.checkpoints, key=self._goodness)

    @property
    def stop_early(self) -> bool:
        """Whether the last `patience` evaluations brought no improvement."""
        rows = self.checkpoints if self.patience else []
        return bool(rows) and len(rows) - 1 - rows.index(self.best) >= self.patience

    def loss_change(self) -> str:
        """How far the training loss fell, in words: the first batch against the mean of the last ones.

        Raises:
            CourseError: it did not fall, or is NaN.
        """
        losses = [row["train_nll"] for row in self.metrics]
        last_ones = losses[1:][-5:]
        first, last = losses[0], sum(last_ones) / len(last_ones) if last_ones else losses[0]
        said = f"from {first:.3f} in the first batch to {last:.3f} nats a token in the last ones"
        if not math.isfinite(last) or last > first:
            raise CourseError(
                f"the training loss did not fall: {said}",
                "start another run with a smaller learning_rate; if that does not help, look at the data in "
                "notebook 01",
            )
        if not first:
            return f"the training loss is {last:.3f} nats a token"
        little = "\nnote: that is little. More epochs or a higher learning_rate may help"
        return (
            f"the training loss fell by {1 - last / first:.0%}, {said}{little if last > 0.7 * first else ''}"
        )

    # what goes into them

    def start_step(self) -> None:
        """Start the clock of a step. `Progress` does it."""
        self._began = time.monotonic()

    def step(self, step: Step, train_nll: float, tokens: int) -> dict:
        """Record one optimizer step.

        Args:
            train_nll: mean loss of its batch, in nats a target token.
            tokens: in its batch, for the speed.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        row = {
            "step": step.number,
            "epoch": step.epoch,
            "train_nll": round(float(train_nll), 5),
            "learning_rate": step.learning_rate,
            "tokens_per_second": round(tokens / seconds, 1),
        }
        append_jsonl(self.folder / "metrics.jsonl", row)
        self._track(row)
        self.latest = row
        return row

    def checkpoint(
        self,
        step: int,
        epoch: float,
        state_path: str,
        sampler_path: str,
        scores: dict[str, Any],
        loss: float,
    ) -> dict:
        """Record one checkpoint with its validation scores, and the best one so far.

        Args:
            scores: from `evaluate_model`.
            loss: mean loss on the validation data, in nats a target token.
        """
        row = {
            "step": step,
            "epoch": epoch,
            "state_path": state_path,
            "sampler_path": sampler_path,
            "accuracy": scores["accuracy"],
            "loss": round(float(loss), 5),
            "correct": scores["correct"],
            "total": scores["total"],
        }
        append_jsonl(self.folder / "checkpoints.jsonl", row)
        self._write_history()
        self._track({"step": step, "validation/accuracy": row["accuracy"], "validation/loss": row["loss"]})
        self.says(correct=row["correct"], total=row["total"])
        return row

    def finish(self) -> None:
        """Mark the run as finished: the next one starts anew."""
        write_json(self._settings_path, self._decided_by | {"finished": True})
        self.says(steps=self.last_step)  # it may have stopped early
        if self._trackers:
            self._trackers.close()

    def _track(self, row: dict[str, Any]) -> None:
        if self._trackers:
            self._trackers.log_metrics({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def _write_history(self) -> None:
        history = [
            {key: row[key] for key in ("epoch", "step", "accuracy", "loss")} for row in self.checkpoints
        ]
        write_json(self.folder / "evaluation_history.json", history)
        write_json(self.folder / "best_checkpoint.json", self.best)

    def _forget_after(self, step: int) -> None:
        """Drop steps made after the last checkpoint: they will be made again. Drop a line that was cut short,
        too.
        """
        write_jsonl(self.folder / "metrics.jsonl", [row for row in self.metrics if row["step"] <= step])
        write_jsonl(self.folder / "checkpoints.jsonl", self.checkpoints)
        self._write_history()

    # what it needs of the service

    def training_client(self, backend: Any, base_model: str, rank: int, seed: int, **lora: bool) -> Any:
        """A new LoRA training client, or one restored from the last checkpoint, optimizer included. Its run's
        metadata names the prompt format, as `renderer_name`: an endpoint can then ask its checkpoints in it.

        Args:
            backend: from `connect`.
            lora: `train_attn`, `train_mlp`, `train_unembed`.

        Raises:
            BackendError: the service refuses, or the last checkpoint is gone.
        """
        anew = f"delete {self.folder} to start this stage anew"
        client = make_training_client(
            backend,
            base_model,
            rank,
            seed,
            resume=self.checkpoints[-1]["state_path"] if self.resumed else "",
            metadata=self._metadata,
            advice=anew if self.resumed else "change what it names, such as -p rank=… or -p base_model=…",
            lora=lora,
        )
        self.says = functools.partial(tell, backend, client)
        return client

    def forget_old_state(self, backend: Any) -> None:
        """Delete the training state of every checkpoint but the best and the last: it is the largest file of
        all.
        """
        import tinker

        keep = {self.best["state_path"], self.checkpoints[-1]["state_path"]}
        for path in {row["state_path"] for row in self.checkpoints[-3:]} - keep:
            with contextlib.suppress(tinker.NotFoundError):  # deleted before
                backend.rest_client.delete_checkpoint_from_tinker_path(path).result()
