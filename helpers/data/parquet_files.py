"""Rows of Parquet files, with their values as they are: `007` stays text, an integer an integer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.data.packed import most_bytes
from helpers.data.rows import Row
from helpers.errors import DataError
from helpers.text import size_text

GIB = 1 << 30
TOO_LARGE = "if you trust it, write it as .jsonl and name that file"


def read_parquet(path: Path, raw: bytes) -> list[Row]:
    """The rows of a file, with names where it has numbers of classes.

    Args:
        path: the file, for the error.
        raw: what is in it.

    Raises:
        DataError: it is no Parquet file, has a column twice, or holds far more than its size: nothing beyond
            that is read.
    """
    import pyarrow
    import pyarrow.parquet

    most = most_bytes(len(raw))
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw))
        names = file.schema_arrow.names
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise DataError(f"{path} has two columns {twice[0]!r}", "rename one of them")
        if nested := [field.name for field in file.schema_arrow if _hides_dictionary(field.type)]:
            raise DataError(
                f"{path}: lists or structs in column {nested[0]!r} hold categories, whose size is unknown",
                "write it as .jsonl and name that file",
            )
        sizes = _sizes(file.metadata)
        _check_size(path, sum(sizes), most)
        # A value is at most as large as its part of the file, and may stand in every row: few rows at once.
        batches = file.iter_batches(max(1, min(1000, min(most, GIB) // max(1, sum(sizes)))))
        rows: list[dict[str, Any]] = []
        read = 0
        for batch in batches:
            columns = {name: _decoded(column) for name, column in zip(names, batch.columns, strict=True)}
            read += sum(column.nbytes for column in columns.values())
            _check_size(path, read, most)
            rows += pyarrow.table(columns).to_pylist()
        rows = list(with_names(rows, file.schema_arrow))
    except (OSError, ValueError, ArithmeticError, NotImplementedError) as error:  # pyarrow's, of many kinds
        raise DataError(
            f"{path} can't be read as Parquet: {error}", "get it again, or write it anew"
        ) from error
    if not rows:
        raise DataError(f"{path} has no rows", "put at least ten rows into it, or name another file")
    return [Row(f"row {number}", row) for number, row in enumerate(rows)]


def _decoded(column: Any) -> Any:
    """A column with a value for each row. A dictionary holds equal values once; Python copies each."""
    import pyarrow

    return column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column


def _hides_dictionary(kind: Any) -> bool:
    """Whether a column of this type has a dictionary within its values, where `_decoded` doesn't look."""
    import pyarrow

    outer = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    inner = [outer.field(place).type for place in range(outer.num_fields)]
    return any(pyarrow.types.is_dictionary(one) or _hides_dictionary(one) for one in inner)


def _sizes(metadata: Any) -> list[int]:
    """Bytes of each column in each row group, by what the file says."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [
        max(1, group.column(number).total_uncompressed_size)
        for group in groups
        for number in range(group.num_columns)
    ]


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise DataError(
            f"{path} holds over {size_text(most)}, too much for its size: it may be a decompression bomb",
            TOO_LARGE,
        )


def with_names(rows: Iterable[dict[str, Any]], schema: Any) -> Iterable[dict[str, Any]]:
    """Rows with the name of a class where a data set of the hub has its number; -1 stands for "no label".

    Args:
        schema: of pyarrow; the hub keeps the names in it.
    """
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    classes = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    for row in rows:
        for name, kind in classes.items():
            if (number := row[name]) is not None:
                row[name] = kind.int2str(number) if number >= 0 else None
        yield row
