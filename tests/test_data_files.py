"""Data files of every kind, packed or not, with the values that they hold; and those that are bombs."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from test_conversation import ANSWER, SYSTEM, TOOL, USER

from helpers.data import load_data, load_json_files
from helpers.data.conversation import conversation
from helpers.errors import DataError

RECORDS = [
    {"instruction": "What comes after 006?", "output": "007"},
    {"instruction": "One half?", "output": "0.50"},
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
TABLE = "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in RECORDS)
PACKERS = {"": bytes, ".gz": gzip.compress, ".ZST": zstandard.compress}
FILES = {
    ".json": json.dumps(RECORDS).encode(),
    ".JSONL": LINES.encode(),
    ".csv": TABLE.encode(),
    ".tsv": TABLE.replace(",", "\t").encode("utf-16"),
}


def parquet(rows: list[dict], **options) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", [*FILES, ".Parquet"])
def test_every_kind_of_file_packed_or_not(tmp_path, suffix, packing):
    path = tmp_path / f"own{suffix}{packing}"
    path.write_bytes(PACKERS[packing](FILES.get(suffix) or parquet(RECORDS)))
    expected = [{"input": "", **record} for record in RECORDS]
    assert load_data(str(path)).records == expected
    if suffix.lower().startswith(".json"):
        assert load_json_files(path) == expected


def test_several_packed_parts_in_one_file_are_read_to_the_end(tmp_path):
    for suffix, pack in list(PACKERS.items())[1:]:
        path = tmp_path / f"own.jsonl{suffix}"
        path.write_bytes(pack(LINES.encode()) * 3)
        assert len(load_data(str(path)).records) == 6


@pytest.mark.parametrize("within", ["list", "struct", "map"])
def test_a_dictionary_within_a_parquet_column_is_refused(tmp_path, within):
    """It would get past the limit of size: a few bytes of file for each value that Python copies."""
    numbers = pa.array(range(5), pa.int32())
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4, pa.int32()), pa.array(["x" * 100]))
    column = {
        "list": lambda: pa.ListArray.from_arrays(numbers, texts),
        "struct": lambda: pa.StructArray.from_arrays([texts], ["a"]),
        "map": lambda: pa.MapArray.from_arrays(numbers, pa.array(list("abcd")), texts),
    }[within]()
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(DataError, match="'text' hold categories"):
        load_data(str(path))


def test_parquet_keeps_values_and_conversations(tmp_path):
    import datasets

    rows = [
        {"messages": [SYSTEM, USER, ANSWER], "tools": json.dumps([TOOL]), "id": 2**60, "label": n}
        for n in (0, -1)
    ]
    kind = datasets.ClassLabel(names=["sums"])
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(rows).cast_column("label", kind).to_parquet(path)
    data = load_data(str(path))
    assert [record["id"] for record in data.records] == [2**60] * 2 and data.sources[0].unused == ["label"]
    assert conversation(data.records[0]) == [SYSTEM, USER, ANSWER] and data.records[0]["tools"] == [TOOL]
    with pytest.raises(DataError, match=r"(?s)row 1: column 'label': the output is empty"):
        load_data(str(path), "instruction=id,output=label")
    path.write_bytes(parquet([{"text": "x", "label": 7, "score": 1.5}]))
    assert load_data(str(path)).records == [{"instruction": "x", "input": "", "output": "7"}]


# What reading each may take at most, in MiB: Arrow keeps several pieces of a Parquet file at once.
BOMBS = {".gz": 200, ".ZST": 200, ".parquet": 400, "-wide.parquet": 400, "-dictionary.parquet": 400}


def bomb(suffix: str) -> bytes:
    """A file of few bytes that holds 256 MiB, or 576 and more if it is Parquet."""
    if suffix == "-wide.parquet":
        row = {f"column{number}": "x" * (1 << 20) for number in range(12)}
        return parquet([row] * 48, compression="zstd")
    if suffix == "-dictionary.parquet":
        texts = pa.array(["x" * (1 << 20)] * 1400).dictionary_encode()
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts}), sink, compression="zstd")
        return sink.getvalue().to_pybytes()
    if suffix == ".parquet":
        return parquet([{"text": "x" * (1 << 20), "label": "y"}] * 768, compression="zstd")
    return PACKERS[suffix](b" " * (1 << 28))


READ_ALL = """
import json, re, sys
from pathlib import Path
from helpers.data import load_data
from helpers.errors import DataError

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) >> 10

load_data(sys.argv[1])  # what reading needs to be imported
before = peak()
for path in sys.argv[2:]:
    try:
        load_data(path)
    except DataError as error:
        print(json.dumps([Path(path).name, str(error), peak() - before]))
"""


def test_bombs_are_refused_before_they_fill_the_memory(tmp_path):
    # In a process of their own: Arrow's threads end this one (cpython issue 128679) if tracemalloc looks on.
    small = tmp_path / "small.parquet"
    small.write_bytes(parquet(RECORDS))
    paths = [tmp_path / f"a.jsonl{suffix}" for suffix in BOMBS]
    for path, suffix in zip(paths, BOMBS, strict=True):
        path.write_bytes(bomb(suffix))
        assert path.stat().st_size < 1 << 19
    command = [sys.executable, "-c", READ_ALL, small, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in refused] == [path.name for path in paths], done.stderr
    for (name, words, mib), most in zip(refused, BOMBS.values(), strict=True):
        assert "may be a decompression bomb" in words and "if you trust it" in words, (name, words)
        assert mib < most, (name, mib)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-9], "cut off, or no gzip file"),
        ("a.jsonl.zst", zstandard.compress(LINES.encode() * 99)[:-9], "cut off, or no zstd file"),
        ("a.jsonl.gz", LINES.encode(), "cut off, or no gzip file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode()) + b"more", "cut off, or no gzip file"),
        ("a.jsonl.gz", gzip.compress(b" \n"), "is empty"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() + b"{oops}"), "line 3: not JSON"),
        ("a.gz", gzip.compress(LINES.encode()), "is neither .json"),
        ("a.xlsx", b"PK", "name a .json file"),
        ("a.parquet", LINES.encode(), "can't be read as Parquet"),
        ("a.parquet", parquet(RECORDS)[:-50], "can't be read as Parquet"),
        ("a.parquet", parquet(RECORDS[:0] or [{"text": None}])[:0], "can't be read as Parquet"),
    ],
)
def test_a_file_that_cant_be_unpacked_says_so(tmp_path, name, content, words):
    path: Path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(str(path))
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_parquet_with_a_column_twice_or_no_rows_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    for table, words in (
        (pa.table([["a"], ["b"]], names=["text", "text"]), "two columns 'text'"),
        (pa.table({"text": pa.array([], pa.string())}), "has no rows"),
    ):
        pq.write_table(table, path)
        with pytest.raises(DataError, match=words):
            load_data(str(path))
