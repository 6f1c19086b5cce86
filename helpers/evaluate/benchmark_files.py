"""Benchmarks of which we know the published files: how to read those without the model hub, and where to get
them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.data.csv_files import read_cells
from helpers.errors import DataError
from helpers.files import parse_json, read_text

AGAIN = "get the published file again"
MMLU_COLUMNS = ["Question", "A", "B", "C", "D", "Answer"]


@dataclass(frozen=True)
class Benchmark:
    """A task of `inspect_evals`, and what to know about the file that its authors publish.

    Attributes:
        module: where the task is defined.
        task: its function there.
        read: makes records in the hub's form from a published file.
        where: where to get that file.
        train_file: name of the file beside it that few-shot examples are taken from; empty if the task has
            none.
    """

    module: str
    task: str
    read: Callable[[Path], list[dict]]
    where: str
    train_file: str = ""


def local_records(name: str, dataset_path: str | Path) -> dict[str, list[dict]]:
    """Records by split: `test` and `validation` are the named file, `train` the one beside it if there is
    one.

    Args:
        name: one of BENCHMARKS.
        dataset_path: its published file; for MMLU a folder of them will do.

    Raises:
        DataError: the file is not there, or not usable; names its line, or says where to get it.
    """
    known = BENCHMARKS[name]
    path = Path(dataset_path).expanduser()
    if not path.exists():
        raise DataError(f"{name}'s file {path} does not exist", f"get it: {known.where}")
    if path.is_dir() and known.read is not _read_mmlu:
        raise DataError(f"{path} is a folder", f"name one file: {known.where}")
    rows = known.read(path)
    records = {"test": rows, "validation": rows}
    train = path.parent / known.train_file
    if known.train_file and train.exists() and train != path:
        records["train"] = known.read(train)
    return records


def _read_gsm8k(path: Path) -> list[dict]:
    def check(row: dict) -> str:
        fields = [row.get(name) for name in ("question", "answer")]
        if not all(isinstance(field, str) and field.strip() for field in fields):
            return "`question` and `answer` must be text"
        return "" if "####" in row["answer"] else "`answer` has no `####` before the final answer"

    return _json_lines(path, check)


def _read_hellaswag(path: Path) -> list[dict]:
    def check(row: dict) -> str:
        if not isinstance(row.get("ctx"), str) or not isinstance(row.get("endings"), list):
            return "`ctx` must be text and `endings` a list"
        if "label" not in row or str(row["label"]) == "":
            return "there is no `label`: the test file has none, use hellaswag_val.jsonl"
        if not str(row["label"]).isdigit() or int(row["label"]) >= len(row["endings"]):
            return f"`label` is {row['label']!r}, and there are {len(row['endings'])} endings"
        return ""

    return [
        row | {"source_id": str(row.get("source_id") or row.get("ind") or number)}
        for number, row in enumerate(_json_lines(path, check))
    ]


def _json_lines(path: Path, check: Callable[[dict], str]) -> list[dict]:
    """Rows of a JSON Lines file; `check` says what a row lacks, or nothing."""
    rows = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}", AGAIN) from error
        lacks = check(row) if isinstance(row, dict) else "it is no object with fields"
        if lacks:
            raise DataError(f"{path}, line {number}: {lacks}", f"{AGAIN}, or name the right benchmark")
        rows.append(row)
    return rows


def _read(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty", AGAIN)
    return text


def _read_mmlu(path: Path) -> list[dict]:
    """MMLU's CSV, without a header (question, four choices, letter) or with one. The file's name is the
    subject.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"there is no .csv file in {path}", "name the folder `test` of MMLU's archive, or one file of it"
        )
    return [row for file in files for row in _read_mmlu_file(file)]


def _read_mmlu_file(path: Path) -> list[dict]:
    subject = path.stem.removesuffix("_test").removesuffix("_val").removesuffix("_dev")
    header, rows = MMLU_COLUMNS, []
    for number, cells in read_cells(path, _read(path)):
        if not rows and header is MMLU_COLUMNS and set(MMLU_COLUMNS) <= set(cells):
            header = cells
            continue
        row = dict(zip(header, cells, strict=False))
        letter = row.get("Answer", "").strip().upper()
        if len(cells) != len(header) or letter not in tuple("ABCD"):
            raise DataError(
                f"{path}, line {number}: a row must be a question, four choices and a letter from A to D",
                AGAIN,
            )
        rows.append(
            {
                "question": row["Question"],
                "choices": [row[name] for name in "ABCD"],
                "answer": "ABCD".index(letter),
                "subject": row.get("Subject") or subject,
            }
        )
    return rows


BENCHMARKS = {
    "gsm8k": Benchmark(
        "inspect_evals.gsm8k.gsm8k",
        "gsm8k",
        _read_gsm8k,
        "test.jsonl, and train.jsonl beside it for the worked examples in the prompt, are in "
        "https://github.com/openai/grade-school-math/tree/master/grade_school_math/data",
        "train.jsonl",
    ),
    "mmlu": Benchmark(
        "inspect_evals.mmlu.mmlu",
        "mmlu_0_shot",
        _read_mmlu,
        "the folder `test` of https://people.eecs.berkeley.edu/~hendrycks/data.tar, or one .csv file of it",
    ),
    "hellaswag": Benchmark(
        "inspect_evals.hellaswag.hellaswag",
        "hellaswag",
        _read_hellaswag,
        "hellaswag_val.jsonl is in https://github.com/rowanz/hellaswag/tree/master/data",
    ),
}
