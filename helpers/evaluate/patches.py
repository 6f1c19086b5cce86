"""What other packages leave no other way to do. Each has a test in tests/test_patches.py that it is still
needed and still fits.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import datasets
from inspect_ai.dataset import MemoryDataset
from inspect_ai.model import Model


@contextlib.contextmanager
def records_from(module: ModuleType, records: dict[str, list[dict]] | None) -> Iterator[None]:
    """While a task is made, let its module read `records`, or else the hub once, without minutes of retries.

    A task of `inspect_evals` takes its records from `hf_dataset` alone, and has no argument for others.

    Args:
        module: of the task.
        records: by split; None for those of the hub.
    """

    def read(
        path: str,
        split: str,
        sample_fields: Any,
        shuffle: bool = False,
        seed: int | None = None,
        limit: int | None = None,
        **where: Any,
    ) -> MemoryDataset:
        if records:
            rows = datasets.Dataset.from_list(records[split])
        else:
            rows = datasets.load_dataset(path, split=split, **where)
        if shuffle:  # by the generator of the hub's reader: the same order
            rows = rows.shuffle(seed=seed)
        if limit:
            rows = rows.select(range(min(limit, len(rows))))
        samples = [sample_fields(row) for row in rows]
        flat = [sample for made in samples for sample in (made if isinstance(made, list) else [made])]
        return MemoryDataset(flat, name=path)

    original = vars(module)["hf_dataset"]
    vars(module)["hf_dataset"] = read
    try:
        yield
    finally:
        vars(module)["hf_dataset"] = original


def counted(model: Model, on_answer: Callable[[], None]) -> Model:
    """The model, which calls `on_answer` after each answer. What that raises ends the evaluation.

    Inspect's own progress display takes over the terminal, and its hooks only watch: what one raises is
    logged.
    """
    ask = model.api.generate

    async def generate(*args: Any, **kwargs: Any) -> Any:
        output = await ask(*args, **kwargs)
        on_answer()
        return output

    vars(model.api)["generate"] = generate
    return model
