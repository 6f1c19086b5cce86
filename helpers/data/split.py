"""Examples in, three files out: train, validation and test, with nothing shared between them.

    records = load_data("data/word_problems.json").records
    split = split_data(records, test_size=0.2, validation_size=0.1, seed=42)
    split.count_leaks()                         # 0
    split.save("runs/mine/split")

The test part is cut off first, as in the guide: scikit-learn's `train_test_split`, 80/20, `random_state=42`.
The validation part then comes out of train: checkpoints are chosen on it, and the test set is scored once, at
the end.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from helpers.data.duplicates import DuplicateGroup, find_duplicates, find_repeats
from helpers.data.forms import normalise_record
from helpers.errors import DataError
from helpers.files import read_json, write_json

PARTS = {"train": "train.json", "validation": "validation.json", "test": "test_set.json"}
MIN_RECORDS = 10


@dataclass(frozen=True)
class Split:
    """Three lists of records and a report of how they came about.

    Attributes:
        report: `records`, `sizes`, `seed`, `stratified_by` (None: not), `unseen_templates`, `duplicates`
            (`exact_groups`, `near_groups`, `records`), `left_out` (by the caps, a count a part), and `notes`.
        repeats: records that ask the very same, in groups; those that the caps left out too.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    report: dict[str, Any] = field(default_factory=dict)
    repeats: list[list[dict[str, Any]]] = field(default_factory=list, repr=False)

    def count_leaks(self, near_duplicate: float = 0.9) -> int:
        """How many groups of duplicate questions reach across two parts. One from `split_data` has none."""
        parts = [name for name in PARTS for _ in getattr(self, name)]
        groups = find_duplicates([*self.train, *self.validation, *self.test], near_duplicate)
        return sum(len({parts[i] for i in group.indices}) > 1 for group in groups)

    def save(self, folder: str | Path) -> list[str]:
        """Write `train.json`, `validation.json` and `test_set.json`, as the guide saves its test set.

        Returns:
            The names of the files.

        Raises:
            RunError: the folder can't be written.
        """
        for part, file in PARTS.items():
            write_json(Path(folder) / file, getattr(self, part))
        return list(PARTS.values())


def split_data(
    records: Sequence[dict[str, Any]],
    test_size: float = 0.2,
    validation_size: float = 0.1,
    seed: int = 42,
    *,
    stratify_by: str = "category",
    unseen_templates: Iterable[str] = (),
    near_duplicate: float = 0.9,
    max_train: int = 0,
    max_validation: int = 0,
    max_test: int = 0,
) -> Split:
    """Split records into train, validation and test. The same arguments give the same parts in the same
    order.

    Args:
        records: examples with `instruction`, `input`, `output`; at least 10 different ones.
        test_size: share of all records for the test part, over 0 and under 1.
        validation_size: share of what is left for the validation part, over 0 and under 1.
        seed: `random_state` of every draw.
        stratify_by: a field whose values get the same shares in every part, where that can be done.
        unseen_templates: values of `template` that only the test part may hold. Records with `"unseen": true`
            are kept there too. They count towards `test_size`.
        near_duplicate: see `find_duplicates`. A group of duplicates goes into one part as a whole.
        max_train, max_validation, max_test: most records a part may keep, drawn evenly over the same field; 0
            for all.

    Raises:
        DataError: a size is not possible, a template does not exist, or there are too few different records.
    """
    unseen, caps = set(unseen_templates), {"train": max_train, "validation": max_validation, "test": max_test}
    _check_arguments(records, test_size, validation_size, seed, unseen, caps)
    duplicates, exact = find_repeats(records, near_duplicate)
    same = [[records[index] for index in group] for group in exact]
    notes = _repeat_notes(len(records), duplicates, same)
    draw = _Draw(records, seed, stratify_by, notes)
    groups = _groups(len(records), duplicates)
    held_out = [group for group in groups if any(_is_unseen(records[i], unseen) for i in group)]
    parts = _parts(draw, groups, held_out, test_size, validation_size)
    chosen = {name: [records[i] for group in part for i in group] for name, part in parts.items()}
    kept = {name: draw.cap(part, caps[name], name) for name, part in chosen.items()}
    templates = {
        str(records[i].get("template")) for g in held_out for i in g if _is_unseen(records[i], unseen)
    }
    report = {
        "records": len(records),
        "sizes": {name: len(part) for name, part in kept.items()},
        "seed": seed,
        "stratified_by": stratify_by if any(stratify_by in record for record in records) else None,
        "unseen_templates": sorted(templates),
        "duplicates": {
            "exact_groups": sum(group.kind == "exact" for group in duplicates),
            "near_groups": sum(group.kind == "near" for group in duplicates),
            "records": sum(len(group.indices) for group in duplicates),
        },
        "left_out": {name: len(chosen[name]) - len(kept[name]) for name in kept},
        "notes": notes,
    }
    return Split(kept["train"], kept["validation"], kept["test"], report, same)


def _repeat_notes(count: int, duplicates: list[DuplicateGroup], same: list[list]) -> list[str]:
    """How many records repeat another, if any does."""
    later = sum(len(group.indices) - 1 for group in duplicates)
    exact = sum(len(group) - 1 for group in same)
    if not later:
        return []
    near = f" and {later - exact:,} nearly so" if later > exact else ""
    return [
        f"{exact:,} of {count:,} records ask exactly what an earlier one asks{near}: repeats stay in one "
        "part, and count more often there"
    ]


Group = tuple[int, ...]  # positions of records that ask the same, or of one record


def _parts(
    draw: "_Draw", groups: list[Group], held_out: list[Group], test_size: float, validation_size: float
) -> dict[str, list[Group]]:
    """The groups of each part: the test part is cut off first, then validation; what is held out goes to the
    test part.
    """
    apart = set(held_out)
    seen = [group for group in groups if group not in apart]
    if len(seen) < MIN_RECORDS:
        repeats = len(draw.records) - len(groups)
        raise DataError(
            f"only {len(seen)} different records are left to split ({len(draw.records)} records, {repeats} "
            "of them "
            "repeats)",
            f"bring at least {MIN_RECORDS} different ones",
        )
    from_seen = ceil(test_size * len(groups)) - len(held_out)
    if from_seen < 1:
        draw.notes.append(f"the {len(held_out)} unseen records fill the test part; 1 other was added")
    rest, test = draw.groups(seen, min(max(1, from_seen), len(seen) - 2), "test")
    size = max(1, min(ceil(validation_size * len(rest)), len(rest) - 1))
    train, validation = draw.groups(rest, size, "validation")
    test += held_out
    if held_out:  # so that the first problems of the test set are a fair sample of it
        random.Random(draw.seed).shuffle(test)
    return {"train": train, "validation": validation, "test": test}


def load_part(path: str | Path) -> list[dict[str, Any]]:
    """Read a part that `Split.save` wrote.

    Raises:
        RunError: the file is missing or damaged.
        DataError: it does not hold a list of records.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise DataError(f"{path} does not hold a list of records", "run notebook 01_split again")
    records = []
    for index, row in enumerate(value):
        try:
            records.append(normalise_record(row))
        except DataError as error:
            raise DataError(f"{path}, index {index}: {error.what}", error.fix) from error
    return records


def _check_arguments(
    records: Sequence,
    test_size: float,
    validation_size: float,
    seed: int,
    unseen: set[str],
    caps: dict[str, int],
) -> None:
    for name, value in (("test_size", test_size), ("validation_size", validation_size)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise DataError(f"{name} is {value!r}", "it is a share: over 0 and under 1, such as 0.2")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed!r}", "it is a whole number from 0 to 4294967295, such as 42")
    for name, value in caps.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(f"max_{name} is {value!r}", "it is a number of records: 0 for all, or 1 or more")
    if len(records) < MIN_RECORDS:
        count = "1 record" if len(records) == 1 else f"{len(records)} records"
        raise DataError(
            f"{count} can't be split into train, validation and test",
            f"bring at least {MIN_RECORDS}; a few hundred make a lesson worth reading",
        )
    missing = unseen - {record.get("template") for record in records}
    if missing:
        raise DataError(
            f"no record has the template {', '.join(sorted(map(repr, missing)))}",
            "unseen_templates names values of the field 'template'",
        )


def _is_unseen(record: dict[str, Any], unseen: set[str]) -> bool:
    return record.get("unseen") is True or record.get("template") in unseen


def _groups(count: int, duplicates: list[DuplicateGroup]) -> list[tuple[int, ...]]:
    """All records as groups, in order of their first: duplicates together, every other one alone."""
    later = {index for group in duplicates for index in group.indices[1:]}
    whole = {group.indices[0]: group.indices for group in duplicates}
    return [whole.get(index, (index,)) for index in range(count) if index not in later]


@dataclass(frozen=True)
class _Draw:
    """Random draws with the same shares of each kind, where that can be done; a note where it can't."""

    records: Sequence[dict[str, Any]]
    seed: int
    stratify_by: str
    notes: list[str]

    def groups(self, groups: list[Group], size: int, part: str) -> tuple[list[Group], list[Group]]:
        """Draw `size` groups: (the others, the drawn)."""
        from sklearn.model_selection import train_test_split

        values = [self.records[group[0]].get(self.stratify_by) for group in groups]
        labels = _strata(values, size, self.notes, part)
        rest, drawn = train_test_split(groups, test_size=size, random_state=self.seed, stratify=labels)
        return list(rest), list(drawn)

    def cap(self, records: list[dict], cap: int, part: str) -> list[dict]:
        """At most `cap` of the records, 0 for all."""
        if not cap or cap >= len(records):
            return records
        from sklearn.model_selection import train_test_split

        values = [
            None
            if record.get(self.stratify_by) is None
            else (record[self.stratify_by], record.get("unseen", False))
            for record in records
        ]
        labels = _strata(values, cap, self.notes, f"cap of {part}")
        kept, _ = train_test_split(
            range(len(records)), train_size=cap, random_state=self.seed, stratify=labels
        )
        return [records[i] for i in sorted(kept)]


def _strata(values: list, size: int, notes: list[str], part: str) -> list[str] | None:
    """Labels for a stratified draw of `size` out of `values`; None, with a note, if there can't be one."""
    if all(value is None for value in values):
        return None
    labels = [str(value) for value in values]
    counts = Counter(labels)
    rare = sorted(label for label, count in counts.items() if count < 2)
    if rare:
        notes.append(
            f"{part}: too few records of {', '.join(rare[:5])}{' …' if len(rare) > 5 else ''} to have "
            "shares; "
            "drawn as one kind"
        )
        labels = ["(rare)" if label in rare else label for label in labels]
        if len(rare) == 1:  # one record can't be in two parts: count it as the commonest kind
            labels = [counts.most_common(1)[0][0] if label == "(rare)" else label for label in labels]
    if len(set(labels)) > min(size, len(labels) - size):
        notes.append(f"{part}: more kinds than places; drawn without regard to kind")
        return None
    return labels
