"""What a loop without epochs (reinforcement learning, preferences, distillation) keeps, and where it goes on.

log = LoopLog(folder, settings)
training_client = log.training_client(backend, base, rank=32, seed=42)
for step in range(log.last_step + 1, steps + 1):
    ...
    log.step(step, reward=0.5)
    log.save(training_client, step)                   # now and then

settings.json      the settings that decide the result; with other ones it begins anew, and says so
metrics.jsonl      one line a step
checkpoints.jsonl  one line a checkpoint: batch, state_path, the names that the cookbook's loops use
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from helpers.train.training_client import changed_settings, make_training_client
from helpers.train.whereabouts import tell

LONG = 200  # characters of a setting


class LoopLog:
    """The files of a loop.

    Args:
        folder: it is made.
        settings: all that decides the result, by name; a long text is kept as its hash. Of these,
            `renderer_name` is told to the service with the run, and `steps` as the number of steps.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self._settings = folder, {name: _brief(value) for name, value in settings.items()}
        self._says: Callable[..., None] = lambda **_: None  # to the service, once there is a client
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics, self._checkpoints = folder / "metrics.jsonl", folder / "checkpoints.jsonl"
        path = folder / "settings.json"
        old = read_json(path) if path.exists() else {}
        if changed := changed_settings(old, self._settings):
            if old:
                print(f"{folder.name}: {changed}. It begins anew, and what was there is deleted")
            self._metrics.unlink(missing_ok=True)
            self._checkpoints.unlink(missing_ok=True)
            write_json(path, self._settings)
        write_jsonl(self._metrics, [row for row in self.metrics if row["step"] <= self.last_step])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a step."""
        return read_jsonl(self._metrics) if self._metrics.exists() else []

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """One row a checkpoint."""
        return read_jsonl(self._checkpoints) if self._checkpoints.exists() else []

    @property
    def last_step(self) -> int:
        """The step of the last checkpoint; 0 before any."""
        return self.checkpoints[-1]["batch"] if self.checkpoints else 0

    def training_client(self, backend: Any, base_model: str, rank: int, seed: int, start: str = "") -> Any:
        """A LoRA training client: new, from the checkpoint `start`, or, where the loop was interrupted, as it
        was at the last checkpoint, optimizer included.

        Raises:
            BackendError: the service refuses, or a checkpoint is gone.
        """
        anew = f"delete {self.folder} to start this loop anew"
        renderer = self._settings.get("renderer_name")
        client = make_training_client(
            backend,
            base_model,
            rank,
            seed,
            resume=self.checkpoints[-1]["state_path"] if self.checkpoints else "",
            start=start,
            metadata={"renderer_name": renderer} if renderer else {},
            advice=anew if self.checkpoints else "check base_model and the backend's models",
            lora={"train_unembed": False},
        )
        self._says = functools.partial(tell, backend, client)
        if steps := self._settings.get("steps"):
            self._says(step=self.last_step, steps=steps)
        return client

    def step(self, step: int, **metrics: float) -> dict[str, float]:
        """Record one step."""
        row = {"step": step, **{name: round(float(value), 5) for name, value in metrics.items()}}
        append_jsonl(self._metrics, row)
        self._says(step=step)
        return row

    def save(self, training_client: Any, step: int) -> None:
        """Save weights and optimizer to resume from, unless this step is saved: a loop that had ended may be
        run once more.
        """
        if any(row["batch"] == step for row in self.checkpoints):
            return
        path = training_client.save_state(f"{self.folder.name}-{step:06d}").result().path
        append_jsonl(self._checkpoints, {"name": f"{step:06d}", "batch": step, "state_path": path})


def _brief(value: Any) -> Any:
    """Of a long text, such as the source of a reward, its hash."""
    if not isinstance(value, str) or len(value) <= LONG:
        return value
    return f"a text with the SHA-256 {hashlib.sha256(value.encode()).hexdigest()}"
