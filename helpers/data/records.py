"""From files to records: `.json`, `.jsonl`, `.csv`, `.tsv` and data sets of the hub in, one form of record out.

    data = load_data("tickets.csv", columns="instruction=text,output=label")
    data.records                        # a list of records
    print(data)                         # which column became what

Every record that leaves here has `instruction`, `input` (may be empty) and `output`, all text, and, where its source
has them, `answer`, `category`, `template`, `unseen`, `steps` and `id`. A record that can't be used is an error with its
file, its line or index, and its field: dropping it in silence would change what the numbers of a run mean.

| form | recognised by | instruction | output | answer |
|---|---|---|---|---|
| guide, Alpaca | `instruction` | `instruction` (and `input`) | `output` | `answer` |
| s1K, s1K-1.1 | `question`, `attempt` or `solution` | `question` | the first of S1K_OUTPUTS | from `solution` |
| GSM8K | `question`, `answer` | `question` | `answer`, unchanged | the number after `####` |
| chat | `messages` | system text and the one user turn | the assistant turn | `answer` |

Rows of another form have obvious names, or the user says which column is what: see helpers/data/columns.py.

s1K's `thinking_trajectories` are left out: they are thousands of tokens long, and `attempt` is the worked solution that
followed them.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.data.columns import apply_columns, check_columns, guess_columns, parse_columns
from helpers.data.csv_files import read_csv
from helpers.data.hub import HUB, load_hub
from helpers.errors import DataError

S1K_OUTPUTS = ("attempt", "deepseek_attempt", "gemini_attempt", "solution")
KEPT = {
    "answer": (str, int, float),
    "category": (str,),
    "template": (str,),
    "unseen": (bool,),
    "steps": (list,),
    "id": (str, int),
}
FORMS = "records need 'instruction' and 'output', or 'question' and 'answer' (or 'solution'), or 'messages'"
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Source:
    """A file or data set that was read.

    Attributes:
        name: its path, or the name of the data set as the user gave it.
        form: how it was read, such as `JSON, guide or Alpaca` or `CSV, parted by commas`.
        records: how many there are.
        columns: field of the course's record to the column that it comes from.
        unused: columns that go nowhere.
    """

    name: str
    form: str
    records: int
    columns: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.records:,} records ({self.form})"]
        lines += [f"  {name:11} ← {column}" for name, column in self.columns.items() if name != column]
        same = [name for name, column in self.columns.items() if name == column]
        lines += [
            f"  {what}: {', '.join(names)}"
            for what, names in (("as they are", same), ("not used", self.unused))
            if names
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Data:
    """Records of all sources in order. Printed, it says how each source was read."""

    records: list[dict[str, Any]] = field(repr=False)
    sources: list[Source]

    def __str__(self) -> str:
        return "\n".join(map(str, self.sources))


def load_data(data_files: str, columns: str = "", instruction: str = "", root: Path = Path()) -> Data:
    """Read examples from files and data sets, as notebook 01 does.

    Args:
        data_files: paths, and names of data sets (`hub:OWNER/NAME`: see helpers/data/hub.py), separated by commas.
        columns: which column becomes which field, for all sources: `instruction=text,output=label`. Empty: by form, or by obvious names.
        instruction: one instruction for all records, whose own text is then the `input`.
        root: the folder from which relative paths start.

    Raises:
        DataError: a source can't be read, its columns are not clear, or a record can't be used.
    """
    chosen, records, sources = parse_columns(columns), [], []
    for place in data_paths(data_files, root):
        rows, kind = _read_hub(place) if isinstance(place, str) else _read_file(place)
        source, names = source_name(place, root), _names(rows)
        form = None if chosen or instruction.strip() else _known_form(rows[0][1], names)
        if form:
            used, unused = (
                form[1],
                [
                    name
                    for name in rows[0][1]
                    if name not in {column.partition(": ")[0] for column in form[1].values()}
                ],
            )
            records += [normalise_record(row, where) for where, row in rows]
        else:
            used = chosen or guess_columns(names, source, instruction.strip())
            check_columns(used, names, source, instruction.strip())
            unused = [name for name in names if name not in used.values()]
            records += [apply_columns(row, used, instruction.strip(), where) for where, row in rows]
        sources.append(Source(source, f"{kind}, {form[0]}" if form else kind, len(rows), used, unused))
    if not sources:
        raise DataError("no data file is named", "name at least one, such as data/word_problems.json")
    return Data(records, sources)


def load_json_files(paths: str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read examples from one or more `.json` (a list of records) and `.jsonl` (a record a line) files, in order.

    Args:
        paths: one path or several; the forms of record may differ from file to file and within one.

    Returns:
        Records with `instruction`, `input` and `output`, and optional fields (see the top of this module).

    Raises:
        DataError: a file is missing, empty, not UTF-8, not JSON, or holds a record that can't be used.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise DataError("no data file is named", "name at least one, such as data/word_problems.json")
    for path in map(Path, paths):
        if path.suffix not in (".json", ".jsonl"):
            raise DataError(
                f"{path} is neither .json nor .jsonl",
                "name a .json file (a list of records) or a .jsonl file",
            )
    return [normalise_record(row, where) for path in paths for where, row in _read_file(Path(path))[0]]


def load_s1k(name: str = "simplescaling/s1K") -> list[dict[str, Any]]:
    """Fetch the real s1K (1,000 hard problems with worked solutions) from the Hugging Face hub.

    Its solutions hold blank lines, at which the guide's stop rule ends an answer: use a chat renderer with it.

    Raises:
        DataError: the hub can't be reached, or has no such data set.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # every network library in use has its own errors; none is the course's
        raise DataError(
            f"can't fetch {name} from the Hugging Face hub: {type(error).__name__}: {error}".split("\n")[0],
            "go online (and unset HF_HUB_OFFLINE), or use a file: data/word_problems.json",
        ) from error
    return [normalise_record(row, f"{name}, index {index}") for index, row in enumerate(rows)]


def data_paths(text: str, root: Path) -> list[Path | str]:
    """What a comma-separated parameter names: paths, relative ones taken from `root`, and data sets of the hub, as text."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [part if part.startswith(HUB) else root / part for part in parts]


def source_name(place: Path | str, root: Path) -> str:
    """What to call a file or data set: below `root`, the path from there."""
    return str(place.relative_to(root) if isinstance(place, Path) and place.is_relative_to(root) else place)


def _read_file(path: Path) -> tuple[list[tuple[str, Any]], str]:
    """(where, row) for each row of a file, and what kind of file it is."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} is neither {', '.join(SUFFIXES[:-1])} nor {SUFFIXES[-1]}",
            "name a .json file (a list of records), .jsonl (a record a line), .csv or .tsv (the first line names the columns)",
        )
    text = _read_text(path)
    if suffix in (".json", ".jsonl"):
        return (
            (_json_lines(path, text), "JSON Lines")
            if suffix == ".jsonl"
            else (_json_list(path, text), "JSON")
        )
    rows, delimiter = read_csv(path, text)
    return rows, f"{suffix[1:].upper()}, parted by {delimiter}s"


def _read_hub(name: str) -> tuple[list[tuple[str, Any]], str]:
    data = load_hub(name)
    if not data.rows:
        raise DataError(f"{name}, split {data.split} has no rows", "name another split: hub:OWNER/NAME#SPLIT")
    revision = f", revision {data.revision[:12]}" if data.revision else ""
    return [
        (f"{name}, row {number}", row) for number, row in enumerate(data.rows)
    ], f"data set, split {data.split}{revision}"


def _names(rows: list[tuple[str, Any]]) -> list[str]:
    """All columns that rows have, in order."""
    for where, row in rows:
        if not isinstance(row, dict):
            normalise_record(row, where)  # raises: it is no record
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _known_form(row: dict[str, Any], names: list[str]) -> tuple[str, dict[str, str]] | None:
    """The form that `normalise_record` will find, and which column becomes what there; None for another."""
    kept = {name: name for name in KEPT if name in names}
    if {"instruction", "output"} <= row.keys():
        return "guide or Alpaca", {
            name: name for name in ("instruction", "input", "output") if name in names
        } | kept
    if "messages" in row:
        return "chat", {"instruction": "messages: system and user", "output": "messages: assistant"} | kept
    if "question" in row and any(name in row for name in S1K_OUTPUTS):
        output = next((name for name in S1K_OUTPUTS if str(row.get(name) or "").strip()), "solution")
        return "s1K", {"instruction": "question", "output": output} | (
            {"category": "cot_type"} if "cot_type" in row else {}
        )
    return (
        ("GSM8K", {"instruction": "question", "output": "answer"})
        if {"question", "answer"} <= row.keys()
        else None
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        fix = "check the path: after --data, relative ones start at the current folder; in a notebook, at the project's"
        raise DataError(f"{path} does not exist", fix) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file", "name the .json or .jsonl files in it") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} can't be read",
            f"save it as UTF-8. If it is Chinese, for example: iconv -f GB18030 -t UTF-8 {path.name} > utf8-{path.name} "
            "(Western European: CP1252 for GB18030)",
        ) from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}", "check its permissions") from error
    if not text.strip():
        raise DataError(f"{path} is empty", "put at least ten records into it, or name another file")
    return text


def _json_list(path: Path, text: str) -> list[tuple[str, Any]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        fix = "mend it there; a missing comma, quote or bracket is the usual cause"
        if error.msg == "Extra data":
            fix = "one JSON object a line is JSON Lines: rename the file to .jsonl"
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", fix
        ) from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to read", FORMS) from error
    if not isinstance(value, list):
        raise DataError(
            f"{path} holds {_kind(value)}, not a list of records",
            "put the records in a list: [ {...}, {...} ]",
        )
    if not value:
        raise DataError(
            f"{path} holds an empty list", "put at least ten records into it, or name another file"
        )
    return [(f"{path}, index {index}", row) for index, row in enumerate(value)]


def _json_lines(path: Path, text: str) -> list[tuple[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}",
                "each line must be one whole JSON object",
            ) from error
    return rows


def normalise_record(row: Any, where: str) -> dict[str, Any]:
    """One record in the course's form.

    Args:
        row: what the file holds.
        where: file and line or index, for the error.

    Raises:
        DataError: the form is not known, or a field is missing, empty, or of the wrong type.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: the record is {_kind(row)}, not an object with fields", FORMS)
    if "instruction" in row:
        return _with_kept(
            {
                "instruction": _text(row, "instruction", where),
                "input": _text(row, "input", where, False),
                "output": _text(row, "output", where),
            },
            row,
            where,
        )
    if "messages" in row:
        return _with_kept(_from_messages(row["messages"], where), row, where)
    if "question" in row and any(field in row for field in S1K_OUTPUTS):
        return _from_s1k(row, where)
    if "question" in row:
        return _from_gsm8k(row, where)
    raise DataError(
        f"{where}: no known form of record; its fields are {', '.join(map(repr, row)) or 'none'}", FORMS
    )


def _from_s1k(row: dict, where: str) -> dict[str, Any]:
    record = {"instruction": _text(row, "question", where), "input": ""}
    for field in S1K_OUTPUTS:
        if (text := _text(row, field, where, False)).strip():
            record["output"] = text
            break
    else:
        raise DataError(
            f"{where}: none of {', '.join(S1K_OUTPUTS)} holds text",
            "one of them must hold the worked solution",
        )
    solution = _text(row, "solution", where, False).strip()
    boxed = re.findall(r"\\boxed\{([^{}]+)\}", solution)
    if boxed:
        record["answer"] = boxed[-1]
    elif solution and len(solution) <= 40 and "\n" not in solution:
        record["answer"] = solution
    if isinstance(row.get("cot_type"), str):
        record["category"] = row["cot_type"]
    return record


def _from_gsm8k(row: dict, where: str) -> dict[str, Any]:
    record = {
        "instruction": _text(row, "question", where),
        "input": "",
        "output": _text(row, "answer", where),
    }
    final = re.search(r"####\s*(\S+)\s*$", record["output"])
    if final:
        record["answer"] = final.group(1).replace(",", "")
    return record


def _from_messages(messages: Any, where: str) -> dict[str, Any]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'", FORMS)
    roles = [message.get("role") for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise DataError(
            f"{where}: 'messages' has the roles {roles}; the course trains on one question and one answer",
            "keep one user message and the assistant message after it (a system message may come first)",
        )
    texts = [_message_text(message, f"{where}, message {index}") for index, message in enumerate(messages)]
    return {"instruction": "\n".join(texts[:-1]), "input": "", "output": texts[-1]}


def _message_text(message: dict, where: str) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        message = {"content": "".join(_text(part, "text", where) for part in content)}
    return _text(message, "content", where)


def _with_kept(record: dict[str, Any], row: dict, where: str) -> dict[str, Any]:
    for field, types in KEPT.items():
        value = row.get(field)
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise DataError(
                f"{where}: field '{field}' is {_kind(value)}",
                f"it must be {' or '.join(dict.fromkeys(TYPES[kind] for kind in types))}, or left out",
            )
        record[field] = str(value) if field == "answer" else value
    return record


def _text(row: dict, field: str, where: str, needed: bool = True) -> str:
    value = row.get(field)
    if value is None and not needed:
        return ""
    if value is None:
        raise DataError(f"{where}: field '{field}' is missing", FORMS)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{field}' is {_kind(value)}, not text", "put its value in quotes")
    if needed and not value.strip():
        raise DataError(f"{where}: field '{field}' is empty", "fill it in, or take the record out")
    return value


TYPES = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list"}


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
