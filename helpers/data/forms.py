"""Forms of record: each becomes one with `instruction`, `input` and `output`, all text.

| form | recognised by | instruction | output | answer |
|---|---|---|---|---|
| guide, Alpaca | `instruction` | `instruction` (and `input`) | `output` | `answer` |
| s1K, s1K-1.1 | `question`, `attempt` or `solution` | `question` | first of S1K_OUTPUTS | from `solution` |
| GSM8K | `question`, `answer` | `question` | `answer`, unchanged | the number after `####` |
| chat | `messages` | system text and the one user turn | the assistant turn | `answer` |

Rows of another form have obvious names, or the user says which column is what: see helpers/data/columns.py.

s1K's `thinking_trajectories` are left out: they are thousands of tokens long, and `attempt` is the worked
solution that followed them.
"""

import re
from typing import Any

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


def known_form(row: dict[str, Any], names: list[str]) -> tuple[str, dict[str, str]] | None:
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


def normalise_record(row: Any, where: str) -> dict[str, Any]:
    """One record in the course's form.

    Args:
        row: what the file holds.
        where: file and line or index, for the error.

    Raises:
        DataError: the form is not known, or a field is missing, empty, or of the wrong type.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: the record is {kind_of(row)}, not an object with fields", FORMS)
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
                f"{where}: field '{field}' is {kind_of(value)}",
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
        raise DataError(f"{where}: field '{field}' is {kind_of(value)}, not text", "put its value in quotes")
    if needed and not value.strip():
        raise DataError(f"{where}: field '{field}' is empty", "fill it in, or take the record out")
    return value


TYPES = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list"}


def kind_of(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
