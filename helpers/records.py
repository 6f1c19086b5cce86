"""From files to records: `.json` and `.jsonl`, four forms of record, one form out.

Every record that leaves here has `instruction`, `input` (may be empty) and `output`, all text, and, where its source
has them, `answer`, `category`, `template`, `unseen`, `steps` and `id`. A record that can't be used is an error with its
file, its line or index, and its field: dropping it in silence would change what the numbers of a run mean.

| form | recognised by | instruction | output | answer |
|---|---|---|---|---|
| guide, Alpaca | `instruction` | `instruction` (and `input`) | `output` | `answer` |
| s1K, s1K-1.1 | `question`, `attempt` or `solution` | `question` | the first of S1K_OUTPUTS | from `solution` |
| GSM8K | `question`, `answer` | `question` | `answer`, unchanged | the number after `####` |
| chat | `messages` | system text and the one user turn | the assistant turn | `answer` |

s1K's `thinking_trajectories` are left out: they are thousands of tokens long, and `attempt` is the worked solution that
followed them.
"""

import json
import re
from pathlib import Path
from typing import Any, Iterable

from helpers.errors import DataError

S1K_OUTPUTS = ("attempt", "deepseek_attempt", "gemini_attempt", "solution")
KEPT = {"answer": (str, int, float), "category": (str,), "template": (str,), "unseen": (bool,), "steps": (list,),
        "id": (str, int)}
FORMS = "records need 'instruction' and 'output', or 'question' and 'answer' (or 'solution'), or 'messages'"


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
    return [record for path in paths for record in _load_file(Path(path))]


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
        raise DataError(f"can't fetch {name} from the Hugging Face hub: {type(error).__name__}: {error}".split("\n")[0],
                        "go online (and unset HF_HUB_OFFLINE), or use a file: data/word_problems.json") from error
    return [normalise_record(row, f"{name}, index {index}") for index, row in enumerate(rows)]


def data_paths(text: str, root: Path) -> list[Path]:
    """Paths from a comma-separated parameter, relative ones taken from `root`."""
    return [root / part.strip() for part in text.split(",") if part.strip()]


def _load_file(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"{path} is neither .json nor .jsonl", "name a .json file (a list of records) or a .jsonl file")
    text = _read_text(path)
    rows = _json_lines(path, text) if path.suffix == ".jsonl" else _json_list(path, text)
    return [normalise_record(row, where) for where, row in rows]


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        fix = "check the path; relative ones start at the project's folder"
        raise DataError(f"{path} does not exist", fix) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file", "name the .json or .jsonl files in it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} can't be read",
                        f"save it as UTF-8, for example: iconv -f ENCODING -t UTF-8 {path.name}") from error
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
        raise DataError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", fix) from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to read", FORMS) from error
    if not isinstance(value, list):
        raise DataError(f"{path} holds {_kind(value)}, not a list of records",
                        "put the records in a list: [ {...}, {...} ]")
    if not value:
        raise DataError(f"{path} holds an empty list", "put at least ten records into it, or name another file")
    return [(f"{path}, index {index}", row) for index, row in enumerate(value)]


def _json_lines(path: Path, text: str) -> list[tuple[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}",
                            "each line must be one whole JSON object") from error
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
        return _with_kept({"instruction": _text(row, "instruction", where), "input": _text(row, "input", where, False),
                           "output": _text(row, "output", where)}, row, where)
    if "messages" in row:
        return _with_kept(_from_messages(row["messages"], where), row, where)
    if "question" in row and any(field in row for field in S1K_OUTPUTS):
        return _from_s1k(row, where)
    if "question" in row:
        return _from_gsm8k(row, where)
    raise DataError(f"{where}: no known form of record; its fields are {', '.join(map(repr, row)) or 'none'}", FORMS)


def _from_s1k(row: dict, where: str) -> dict[str, Any]:
    record = {"instruction": _text(row, "question", where), "input": ""}
    for field in S1K_OUTPUTS:
        if _text(row, field, where, False).strip():
            record["output"] = row[field]
            break
    else:
        raise DataError(f"{where}: none of {', '.join(S1K_OUTPUTS)} holds text",
                        "one of them must hold the worked solution")
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
    record = {"instruction": _text(row, "question", where), "input": "", "output": _text(row, "answer", where)}
    final = re.search(r"####\s*(\S+)\s*$", record["output"])
    if final:
        record["answer"] = final.group(1).replace(",", "")
    return record


def _from_messages(messages: Any, where: str) -> dict[str, Any]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'", FORMS)
    roles = [message.get("role") for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise DataError(f"{where}: 'messages' has the roles {roles}; the course trains on one question and one answer",
                        "keep one user message and the assistant message after it (a system message may come first)")
    texts = [_message_text(message, f"{where}, message {index}") for index, message in enumerate(messages)]
    return {"instruction": "\n".join(texts[:-1]), "input": "", "output": texts[-1]}


def _message_text(message: dict, where: str) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        message = {"content": "".join(_text(part, "text", where) for part in content)}
    return _text(message, "content", where)


def _with_kept(record: dict[str, Any], row: dict, where: str) -> dict[str, Any]:
    for field, types in KEPT.items():
        value = row.get(field)
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise DataError(f"{where}: field '{field}' is {_kind(value)}",
                            f"it must be {' or '.join(kind.__name__ for kind in types)}, or left out")
        record[field] = str(value) if field == "answer" else value
    return record


def _text(row: dict, field: str, where: str, needed: bool = True) -> str:
    value = row.get(field)
    if value is None and not needed:
        return ""
    if value is None:
        raise DataError(f"{where}: field '{field}' is missing", FORMS)
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{field}' is {_kind(value)}, not text", "put its value in quotes")
    if needed and not value.strip():
        raise DataError(f"{where}: field '{field}' is empty", "fill it in, or take the record out")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
