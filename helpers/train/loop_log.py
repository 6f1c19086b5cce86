"""What a loop without epochs (reinforcement learning, preferences, distillation) keeps, and where it goes on.

log = LoopLog(folder, settings)
training_client = log.training_client(backend, base, rank=32, seed=42)
for step in range(log.last_step + 1, steps + 1):
    ...
    log.step(step, reward=0.5)
    log.save(training_client, step)                   # now and then

settings.json      the settings that decide the result; other ones begin anew
metrics.jsonl      one line a step
checkpoints.jsonl  one line a checkpoint: batch, state_path, the names that the cookbook's loops use
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.errors import BackendError
from helpers.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl


class LoopLog:
    """The files of a loop.

    Args:
        folder: it is made.
        settings: all that decides the result.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics, self._checkpoints = folder / "metrics.jsonl", folder / "checkpoints.jsonl"
        path = folder / "settings.json"
        if not (path.exists() and read_json(path) == dict(settings)):
            self._metrics.unlink(missing_ok=True)
            self._checkpoints.unlink(missing_ok=True)
            write_json(path, dict(settings))
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
        import tinker

        service = backend.service_client
        try:
            if self.checkpoints:
                state = self.checkpoints[-1]["state_path"]
                return service.create_training_client_from_state_with_optimizer(state).result()
            if start:
                return service.create_training_client_from_state(start).result()
            return service.create_lora_training_client(
                base_model, rank=rank, seed=seed, train_unembed=False
            ).result()
        except (tinker.TinkerError, ValueError) as error:
            raise BackendError(
                f"{backend} gave no training client: {error}",
                f"delete {self.folder} to start this loop anew"
                if self.checkpoints
                else "check base_model and the backend's models",
            ) from error

    def step(self, step: int, **metrics: float) -> dict[str, float]:
        """Record one step."""
        row = {"step": step, **{name: round(float(value), 5) for name, value in metrics.items()}}
        append_jsonl(self._metrics, row)
        return row

    def save(self, training_client: Any, step: int) -> None:
        """Save weights and optimizer to resume from."""
        path = training_client.save_state(f"{self.folder.name}-{step:06d}").result().path
        append_jsonl(self._checkpoints, {"name": f"{step:06d}", "batch": step, "state_path": path})
