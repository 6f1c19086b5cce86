"""What `datasets` leaves no other way to do. tests/test_patches.py says whether it is still needed and still
fits.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def only_the_cache() -> Iterator[None]:
    """Keep `datasets` from asking a hub that does not answer, and only for as long as the block lasts.

    It reads HF_HUB_OFFLINE once, when it is imported, and `load_dataset_builder` asks the hub whatever
    `DownloadConfig(local_files_only=True)` says: half a minute until it looks into its cache.
    """
    import huggingface_hub.constants
    from datasets import config

    modules: list[Any] = [config, huggingface_hub.constants]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
