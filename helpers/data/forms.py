"""Forms of record: each becomes one with `instruction`, `input` and `output`, and perhaps `messages`.

| form | recognised by | becomes | answer |
|---|---|---|---|
| guide, Alpaca | `instruction`, `output` | itself; with `system` or `history` a conversation | `answer` |
| chat, ShareGPT | `messages`, `conversations` | a conversation, with `system` and `tools` | `answer` |
| prompt and completion | both, as lists of messages | a conversation, with `tools` | `answer` |
| s1K, s1K-1.1 | `question`, `attempt` or `solution` | `question`, first of S1K_OUTPUTS | from `solution` |
| multiple choice | `question`, `choices` or `options` | both, and the letter | the letter |
| GSM8K | `question`, `answer` | both, unchanged | the number after `####` |

A conversation of one question and one answer, and nothing else, is an ordinary record: see conversation.py.
Rows of another form have obvious names, or the user says which column is what: see helpers/data/columns.py.

s1K's `thinking_trajectories` are left out: they are thousands of tokens long, and `attempt` is the worked
solution that followed them.
"""

import functools
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from helpers.data import chat, choices
from helpers.data.conversation import Message, conversation, conversation_record, question_of
from helpers.data.tool_calls import read_tools
from helpers.data.values import kind_of, text_of
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

VIEW = ("instruction", "input", "output")
BEFORE = ("system", "history")
TOOLS = ("tools", "functions")

# Fields that hold a part of the question or of the answer: without it, the record says something else.
BESIDE_TEXT = (
    "history",
    *TOOLS,
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "reasoning_content",
    "reasoning",
    "thinking",
    "system",
)

_THOUSANDS = re.compile(r"(?<![\d,(])\d{1,3}(,\d{3})+(?![\d,)])")  # not the members of `(1,234)`
FORMS = "records need 'instruction' and 'output', or 'question' and 'answer' (or 'solution'), or 'messages'"


@dataclass(frozen=True)
class Form:
    """How a row is read.

    Attributes:
        name: such as `guide or Alpaca`.
        columns: field of the record to the column that it comes from, as a reader is told.
        used: all columns that are read.
        read: makes the record out of the row; raises DataError.
    """

    name: str
    columns: dict[str, str]
    used: frozenset[str]
    read: Callable[[dict[str, Any]], dict[str, Any]]


Shape = tuple[tuple[str, str], ...]
SAMPLES = {"null": None, "empty": "", "text": "…", "list": ["…"], "other": 1}


def shape_of(row: dict[str, Any]) -> Shape:
    """The columns of a row, each with the kind of what it holds: all that the form depends on."""
    return tuple([(name, _kind(value)) for name, value in row.items()])


def _kind(value: Any) -> str:
    """One of SAMPLES."""
    if isinstance(value, str):
        return "empty" if value in ("", "[]") or value.isspace() else "text"
    if value is None:
        return "null"
    if isinstance(value, list):
        return "list" if value else "empty"
    return "other" if value != {} else "empty"


@functools.lru_cache(maxsize=1000)
def known_form(shape: Shape) -> Form | None:
    """The form of the rows of a shape; None if it is of none."""
    row: dict[str, Any] = {name: SAMPLES[kind] for name, kind in shape}
    kept = {name: name for name in KEPT if name in row}
    is_pair = {"instruction", "output"} <= row.keys()
    column = _chat_column(row)
    if column in row and not (is_pair and row[column] is None):
        columns = {"messages": column} | {name: name for name in _filled(row, "system", *TOOLS)} | kept
        return _form("chat", columns, _from_chat, "system", *TOOLS, *VIEW)
    if is_pair:
        columns = {name: name for name in (*_filled(row, *BEFORE, *TOOLS), *VIEW) if name in row} | kept
        return _form("guide or Alpaca", columns, _from_guide, *BEFORE, *TOOLS)
    if {"prompt", "completion"} <= row.keys() and any(
        isinstance(row[name], list) for name in ("prompt", "completion")
    ):
        columns = {"messages": "prompt, completion"} | {name: name for name in _filled(row, *TOOLS)} | kept
        return _form("prompt and completion", columns, _from_prompt, "prompt", "completion", *TOOLS)
    if "question" in row and any(name in row for name in S1K_OUTPUTS):
        output = next((name for name in S1K_OUTPUTS if str(row.get(name) or "").strip()), "solution")
        columns = {"instruction": "question", "output": output}
        columns |= {"category": "cot_type"} if isinstance(row.get("cot_type"), str) else {}
        return _form("s1K", columns, _from_s1k, *columns.values(), "solution")
    if used := choices.columns_of(row):
        columns = {"instruction": ", ".join(["question", *used[:-1]]), "output": used[-1]}
        return _form("multiple choice", columns, choices.read_choices, "question", *used)
    if {"question", "answer"} <= row.keys():
        columns = {"instruction": "question", "output": "answer"}
        return _form("GSM8K", columns, _from_gsm8k, *columns.values())
    return None


def _chat_column(row: dict[str, Any]) -> str:
    """The column of a chat; one that is filled, if any is."""
    return next((name for name in chat.COLUMNS if row.get(name) is not None), chat.COLUMNS[0])


def _filled(row: dict[str, Any], *names: str) -> list[str]:
    """Those of the columns that hold something."""
    return [name for name in names if row.get(name) not in (*chat.EMPTY, "[]")]  # "[]" in a table


def _form(name: str, columns: dict[str, str], read: Callable[[dict], dict], *used: str) -> Form:
    return Form(name, columns, frozenset((*columns.values(), *used)), read)


def normalise_record(row: Any) -> dict[str, Any]:
    """One record in the course's form.

    Args:
        row: what the file holds.

    Raises:
        DataError: the form is not known, or a field is missing, empty, or of the wrong type.
    """
    if not isinstance(row, dict):
        raise DataError(f"the record is {kind_of(row)}, not an object with fields", FORMS)
    if form := known_form(shape_of(row)):
        check_text_only(row, form.used)
        return form.read(row)
    for asked, answer in (("instruction", "output"), ("question", "answer")):
        if asked in row:
            raise DataError(f"field '{answer}' is missing", FORMS)
    raise DataError(f"no known form of record; its fields are {', '.join(map(repr, row)) or 'none'}", FORMS)


def check_text_only(row: dict[str, Any], read: Container[str] = ()) -> None:
    """Refuse a row with a part of its question or answer in a field of BESIDE_TEXT.

    Args:
        read: columns that the row's form reads.

    Raises:
        DataError: names the field.
    """
    if more := [name for name in _filled(row, *BESIDE_TEXT) if name not in read]:
        raise DataError(
            f"field {more[0]!r} is filled, and this form of record has no place for it",
            "write what it holds into the text or into 'messages', or take it out; --columns reads only what "
            "you name",
        )


def _from_guide(row: dict[str, Any]) -> dict[str, Any]:
    record = {
        "instruction": text_of(row, "instruction"),
        "input": text_of(row, "input", needed=False),
        "output": text_of(row, "output"),
    }
    if not _filled(row, *BEFORE, *TOOLS):
        return _with_kept(record, row)
    system, history = text_of(row, "system", needed=False), _filled(row, "history")
    question, answer = conversation(record)
    earlier = row["history"] if history else []
    talk = _talk(row, chat.with_turns_before(earlier, system, question["content"], answer["content"]))
    return talk | {name: record[name].strip() for name in ("instruction", "input")}


def _from_chat(row: dict[str, Any]) -> dict[str, Any]:
    column = _chat_column(row)
    record = _talk(row, chat.read_chat(row[column], text_of(row, "system", needed=False)))
    asked = {name: row.get(name) for name in ("instruction", "input")}
    texts = all(isinstance(text, str) and text for text in asked.values())
    if texts and question_of(asked) == record["instruction"]:  # as in a split's file
        record |= asked
    for field in VIEW:
        if row.get(field) is not None and row[field] != record[field]:
            raise DataError(
                f"{field!r} is {str(row[field])[:40]!r}, but by {column!r} it is {record[field][:40]!r}",
                f"take {field!r} out, or correct it; or name the columns: --columns messages={column}",
            )
    return record


def _from_prompt(row: dict[str, Any]) -> dict[str, Any]:
    turns: list[Any] = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[column]
        turns += value if isinstance(value, list) else [{"role": role, "content": value}]
    return _talk(row, chat.read_chat(turns))


def _talk(row: dict[str, Any], messages: list[Message]) -> dict[str, Any]:
    given = _filled(row, *TOOLS)
    if len(given) > 1:
        raise DataError(f"both {' and '.join(map(repr, given))} are filled", "keep 'tools'")
    tools = read_tools(row[given[0]]) if given else None
    return _with_kept(conversation_record(messages, tools), row)


def _from_s1k(row: dict[str, Any]) -> dict[str, Any]:
    record = {"instruction": text_of(row, "question"), "input": ""}
    for field in S1K_OUTPUTS:
        if (text := text_of(row, field, needed=False)).strip():
            record["output"] = text
            break
    else:
        raise DataError(
            f"none of {', '.join(S1K_OUTPUTS)} holds text", "one of them must hold the worked solution"
        )
    solution = text_of(row, "solution", needed=False).strip()
    boxed = re.findall(r"\\boxed\{([^{}]+)\}", solution)
    if boxed:
        record["answer"] = boxed[-1]
    elif solution and len(solution) <= 40 and "\n" not in solution:
        record["answer"] = solution
    if isinstance(row.get("cot_type"), str):
        record["category"] = row["cot_type"]
    return record


def _from_gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    record = {"instruction": text_of(row, "question"), "input": "", "output": text_of(row, "answer")}
    final = re.search(r"####\s*(\S+)\s*$", record["output"])
    if final:
        record["answer"] = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), final[1])
    return record


def _with_kept(record: dict[str, Any], row: dict) -> dict[str, Any]:
    for field, types in KEPT.items():
        value = row.get(field)
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise DataError(
                f"field '{field}' is {kind_of(value)}",
                f"it must be {' or '.join(dict.fromkeys(TYPES[kind] for kind in types))}, or left out",
            )
        record[field] = str(value) if field == "answer" else value
    return record


TYPES = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list"}
