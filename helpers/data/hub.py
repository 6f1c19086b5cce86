"""Data sets of the Hugging Face hub, through the library `datasets`: `hub:OWNER/NAME`, perhaps with more
behind it.

    hub:fancyzhx/ag_news                        the split `train`
    hub:nyu-mll/glue:sst2#train+validation      a configuration, and other splits
    hub:fancyzhx/ag_news@main                   a revision: a commit, tag or branch
    hub:/some/folder                            a folder with Parquet files or the like, as the hub has them

What was fetched once is read from the library's own cache, also without network.
"""

import contextlib
import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.data.parquet_files import with_names
from helpers.data.patches import only_the_cache
from helpers.errors import DataError
from helpers.net import hub_problem

HUB = "hub:"
FORM = re.compile(
    r"hub:(?P<name>/[^:@#]+|[^:@#\s]+)"  # a folder may have spaces in its path
    r"(?::(?P<config>[^@#\s]+))?(?:@(?P<revision>[^#\s]+))?(?:#(?P<split>\S+))?"
)
WAIT_SECONDS = 5  # for the hub to answer; the library alone tries for half a minute


@dataclass(frozen=True)
class HubData:
    """Rows of a data set, with class numbers as names.

    Attributes:
        revision: the commit it is from; None for a folder.
        bytes, sha256: of the rows, as JSON.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    split: str
    revision: str | None
    bytes: int
    sha256: str


def hub_parts(text: str) -> dict[str, Any]:
    """`name`, `config`, `revision` and `split` of `hub:OWNER/NAME:CONFIG@REVISION#SPLIT`; None for what is
    left out.

    Raises:
        DataError: it is not of this form.
    """
    whole = text.removeprefix(HUB)
    for folder, split in ((whole, ""), whole.rpartition("#")[::2]):
        if folder and Path(folder).is_dir():  # whatever signs its path has
            return {"name": folder, "config": None, "revision": None, "split": split or None}
    match = FORM.fullmatch(text)
    if not match:
        raise DataError(
            f"{text!r} names no data set",
            "write hub:OWNER/NAME, or hub:OWNER/NAME:CONFIG@REVISION#SPLIT, or hub: and a folder",
        )
    return match.groupdict()


@functools.cache
def load_hub(text: str) -> HubData:
    """Fetch a data set, or read it from the cache or a folder.

    Args:
        text: see the top of this module.

    Raises:
        DataError: the form is wrong, the hub can't be reached and the cache has no copy, or there is no such
            data set, configuration, revision or split.
    """
    parts = hub_parts(text)
    import datasets

    folder = Path(parts["name"])
    if folder.is_absolute() and not folder.is_dir():
        raise DataError(f"{text}: there is no folder {folder}", "check the path")
    offline = None if folder.is_dir() else hub_problem(WAIT_SECONDS)
    datasets.disable_progress_bars()
    try:
        with only_the_cache() if offline else contextlib.nullcontext():
            builder = datasets.load_dataset_builder(
                parts["name"], parts["config"], revision=parts["revision"]
            )
            builder.download_and_prepare()
            split = parts["split"] or _only_split(builder, text)
            data: Any = builder.as_dataset(split=split)
    except DataError:
        raise
    except Exception as error:  # the library and its network layers have dozens of kinds
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise DataError(f"{text}: {type(error).__name__}: {reason}", _advice(offline)) from error
    rows = list(with_names(data, data.features.arrow_schema))
    raw = "\n".join(json.dumps(row, ensure_ascii=False, default=str) for row in rows).encode()
    revision = re.search(r"@([0-9a-f]{40})", str(builder.base_path))
    return HubData(
        rows, split, revision[1] if revision else parts["revision"], len(raw), hashlib.sha256(raw).hexdigest()
    )


def _advice(offline: str | None) -> str:
    if offline is None:
        return "check the name, and what follows ':' (configuration), '@' (revision) and '#' (split)"
    return (
        f"the hub can't be reached: {offline}; go online, or download the data set elsewhere and name its "
        "files, "
        "or its folder as hub:/the/folder"
    )


def hub_fingerprint(text: str) -> dict[str, Any]:
    """`path`, `bytes`, `sha256` and `revision` of a data set; None for what can't be had now."""
    try:
        data = load_hub(text)
    except DataError:
        return {"path": text, "bytes": None, "sha256": None, "revision": None}
    return {"path": text, "bytes": data.bytes, "sha256": data.sha256, "revision": data.revision}


def _only_split(builder: Any, text: str) -> str:
    splits = list(builder.info.splits or {})
    if "train" not in splits and len(splits) != 1:
        raise DataError(
            f"{text} has the splits {', '.join(splits)}, and none is called train",
            f"name one: {text}#{splits[0] if splits else 'SPLIT'}",
        )
    return "train" if "train" in splits else splits[0]
