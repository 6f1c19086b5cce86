"""What stands around the training loop of notebook 02: the plan of its steps, its files, and how it resumes.

The loop itself is in the notebook, in sight. This module makes it repeatable: the plan follows from the seed alone, every
checkpoint is on disk before the next step starts, and a run that was interrupted goes on from the last one and ends where
an uninterrupted run ends.
"""

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.errors import BackendError, CourseError, DataError
from helpers.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number from 1, its epoch (a fraction, at its end), its examples and its learning rate."""

    number: int
    epoch: float
    examples: list[int]
    learning_rate: float


def plan_steps(
    size: int, batch_size: int, epochs: float, learning_rate: float, seed: int, warmup: int = 0
) -> list[Step]:
    """All steps of a run: each epoch sees every example once, in a new order; the learning rate falls linearly to zero.

    Args:
        size: number of training examples.
        batch_size: examples a step; the last step of an epoch may have fewer.
        epochs: passes over the data; a fraction ends within a pass.
        learning_rate: of the first step after warm-up.
        seed: decides the order.
        warmup: steps over which the learning rate first rises from zero.

    Raises:
        DataError: there is nothing to train on, or a number is impossible.
    """
    if size < 1:
        raise DataError("there are no training examples", "run 01_split with more data")
    if batch_size < 1 or epochs <= 0 or learning_rate <= 0:
        raise DataError(
            f"batch_size={batch_size}, epochs={epochs}, learning_rate={learning_rate}: each must be above zero",
            "correct the parameter",
        )
    per_epoch = math.ceil(size / batch_size)
    total = max(1, round(per_epoch * epochs))
    steps = []
    for number in range(1, total + 1):
        epoch, place = divmod(number - 1, per_epoch)
        order = random.Random(f"{seed}-{epoch}").sample(range(size), size)
        rate = learning_rate * (
            number / warmup if number <= warmup else 1 - (number - 1 - warmup) / (total - warmup)
        )
        steps.append(
            Step(
                number,
                round(number / per_epoch, 4),
                order[place * batch_size : (place + 1) * batch_size],
                rate,
            )
        )
    return steps


def evaluation_steps(total: int, every: int, epochs: float = 1.0, every_epochs: float = 0.0) -> list[int]:
    """Steps after which to evaluate: 0 (before training), every `every`, and the last, which replaces one just before it.

    Args:
        total: steps of the run.
        every: steps between two looks.
        epochs: of the run.
        every_epochs: above 0, the epochs between two looks; `every` is then not used.

    Raises:
        DataError: `every` is not above zero, or `every_epochs` is below it.
    """
    if every < 1 or every_epochs < 0:
        raise DataError(
            f"eval_every={every}, eval_every_epochs={every_epochs}: the first must be at least 1, the second at least 0",
            "correct the parameter",
        )
    if every_epochs:
        every = max(1, round(every_epochs * total / epochs))
    return [0, *(step for step in range(every, total, every) if total - step >= every / 2), total]


def mean_nll(output: Any, datums: list[Any]) -> float:
    """Negative log likelihood in nats per target token: what is left when weights and batch size are divided out.

    Args:
        output: `ForwardBackwardOutput` of these datums under cross_entropy.
        datums: the batch, with `weights` in their `loss_fn_inputs`.
    """
    weight = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in datums)
    nll = sum(
        -float((result["logprobs"].to_numpy() * datum.loss_fn_inputs["weights"].to_numpy()).sum())
        for result, datum in zip(output.loss_fn_outputs, datums)
    )
    return nll / weight


def target_tokens(datums: list[Any]) -> int:
    """Tokens that carry weight, over all datums."""
    return sum(int((datum.loss_fn_inputs["weights"].to_numpy() != 0).sum()) for datum in datums)


BEST = {
    "accuracy": lambda checkpoint: (checkpoint["accuracy"], -checkpoint["loss"]),
    "loss": lambda checkpoint: (-checkpoint["loss"], checkpoint["accuracy"]),
}


class TrainingLog:
    """The files of the train stage, and where to go on.

        metrics.jsonl            one line a step: step, epoch, train_nll, learning_rate, tokens_per_second
        checkpoints.jsonl        one line an evaluation: step, epoch, state_path, sampler_path, accuracy, loss
        evaluation_history.json  [{epoch, step, accuracy, loss}]
        best_checkpoint.json     the line of checkpoints.jsonl that is best by `best_metric`

    Args:
        folder: the stage's folder.
        settings: everything that decides the result. Files of another setting, or of a finished run, are begun anew.
        best_metric: what the best checkpoint has: the highest `accuracy` (of equals the lowest loss), or the lowest `loss`
            (of equals the highest accuracy), on validation data.
        patience: looks without a new best after which `stop_early` is true; 0 for never.

    Raises:
        DataError: there is no such metric, or patience is below 0.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], best_metric: str = "accuracy", patience: int = 0
    ):
        if best_metric not in BEST:
            raise DataError(f"best_metric={best_metric!r}", f"use {' or '.join(BEST)}")
        if patience < 0:
            raise DataError(f"patience={patience}", "use 0 for never, or the number of looks to wait")
        self.folder, self._goodness, self._patience = folder, BEST[best_metric], patience
        self._settings_path = folder / "settings.json"
        old = read_json(self._settings_path) if self._settings_path.exists() else {}
        self.resumed = old == {**settings, "finished": False} and bool(self.checkpoints)
        if self.resumed:
            self._forget_after(self.checkpoints[-1]["step"])
        else:
            for name in (
                "metrics.jsonl",
                "checkpoints.jsonl",
                "evaluation_history.json",
                "best_checkpoint.json",
            ):
                (folder / name).unlink(missing_ok=True)
            write_json(self._settings_path, {**settings, "finished": False})
        self._settings = settings

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
        """Whether the last `patience` looks brought nothing better."""
        rows = self.checkpoints
        return bool(self._patience and rows) and len(rows) - 1 - rows.index(self.best) >= self._patience

    def step(self, step: Step, train_nll: float, tokens: int, seconds: float) -> None:
        """Record one optimizer step."""
        append_jsonl(
            self.folder / "metrics.jsonl",
            {
                "step": step.number,
                "epoch": step.epoch,
                "train_nll": round(train_nll, 5),
                "learning_rate": step.learning_rate,
                "tokens_per_second": round(tokens / seconds, 1),
            },
        )

    def checkpoint(
        self,
        step: int,
        epoch: float,
        state_path: str,
        sampler_path: str,
        accuracy: float,
        loss: float,
        correct: int,
        total: int,
    ) -> dict:
        """Record one checkpoint with its validation scores, and the best one so far."""
        row = {
            "step": step,
            "epoch": epoch,
            "state_path": state_path,
            "sampler_path": sampler_path,
            "accuracy": accuracy,
            "loss": round(loss, 5),
            "correct": correct,
            "total": total,
        }
        append_jsonl(self.folder / "checkpoints.jsonl", row)
        self._write_history()
        return row

    def _write_history(self) -> None:
        rows = self.checkpoints
        write_json(
            self.folder / "evaluation_history.json",
            [{key: row[key] for key in ("epoch", "step", "accuracy", "loss")} for row in rows],
        )
        write_json(self.folder / "best_checkpoint.json", self.best)

    def _forget_after(self, step: int) -> None:
        """Drop steps made after the last checkpoint: they will be made again. Drop a line that was cut short, too."""
        write_jsonl(self.folder / "metrics.jsonl", [row for row in self.metrics if row["step"] <= step])
        write_jsonl(self.folder / "checkpoints.jsonl", self.checkpoints)
        self._write_history()

    def finish(self) -> None:
        """Mark the run as finished: the next one starts anew."""
        write_json(self._settings_path, {**self._settings, "finished": True})


def open_training_client(
    backend: Any, base_model: str, log: TrainingLog, rank: int, seed: int, **lora: bool
) -> Any:
    """A new LoRA training client, or one restored from the last checkpoint of an interrupted run, optimizer included.

    Args:
        lora: `train_attn`, `train_mlp`, `train_unembed`.

    Raises:
        BackendError: the service refuses, or the last checkpoint is gone.
    """
    import tinker

    service = backend.service_client
    try:
        if not log.resumed:
            return service.create_lora_training_client(base_model, rank=rank, seed=seed, **lora).result()
        return service.create_training_client_from_state_with_optimizer(
            log.checkpoints[-1]["state_path"]
        ).result()
    except (tinker.TinkerError, ValueError) as error:
        fix = (
            f"delete {log.folder} to start this stage anew"
            if log.resumed
            else "check base_model and the backend's list of models"
        )
        raise BackendError(f"{backend} gave no training client: {error}", fix) from error


def forget_old_state(backend: Any, log: TrainingLog) -> None:
    """Delete the training state of every checkpoint but the best and the last: with Adam's moments it is the largest file."""
    keep = {log.best["state_path"], log.checkpoints[-1]["state_path"]}
    for row in log.checkpoints[-3:]:
        if row["state_path"] not in keep:
            _delete(backend, row["state_path"])


def _delete(backend: Any, path: str) -> None:
    import tinker

    try:
        backend.rest_client.delete_checkpoint_from_tinker_path(path).result()
    except tinker.NotFoundError:
        return  # deleted before


class Progress:
    """A progress bar over steps that shows the loss, the speed and the time left. Their time counts as training."""

    def __init__(self, steps: list[Step], done: int, total: int):
        from tqdm import tqdm

        self._steps = steps
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="Training",
            unit="step",
            file=sys.stdout,
            ncols=100,
            mininterval=1,
            position=0,
        )

    def __iter__(self) -> Iterator[Step]:
        with self._bar, worked("training"):
            for step in self._steps:
                yield step
                self._bar.update()

    def show(self, nll: float, tokens: int, seconds: float) -> None:
        self._bar.set_postfix_str(f"NLL {nll:.3f}, {tokens / seconds:.0f} tokens/s", refresh=False)


def clock() -> float:
    """Seconds, for measuring."""
    return time.monotonic()


def loss_change(metrics: list[dict[str, Any]]) -> str:
    """How far the training loss fell, in words: the first batch against the mean of the last ones, which differ among themselves.

    Args:
        metrics: rows of metrics.jsonl, with `train_nll` in nats a token.

    Raises:
        CourseError: it did not fall, or is no number.
    """
    losses = [row["train_nll"] for row in metrics]
    last_ones = losses[1:][-5:]
    first, last = losses[0], sum(last_ones) / len(last_ones) if last_ones else losses[0]
    said = f"from {first:.3f} in the first batch to {last:.3f} nats a token in the last ones"
    if not math.isfinite(last) or last > first:
        raise CourseError(
            f"the training loss did not fall: {said}",
            "start another run with a smaller learning_rate; if that does not help, look at the data in notebook 01",
        )
    little = (
        "\nnote: that is little. More epochs or a higher learning_rate may help" if last > 0.7 * first else ""
    )
    return (
        f"the training loss fell by {1 - last / first:.0%}, {said}{little}"
        if first
        else f"the training loss is {last:.3f} nats a token"
    )
