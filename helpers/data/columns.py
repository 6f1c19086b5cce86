"""Which column of a data file becomes which field of a record: what the user wrote, or else obvious names.

parse_columns("instruction=text,output=label")         # {"instruction": "text", "output": "label"}
guess_columns(["id", "text", "label"], "tickets.csv")  # the same
"""

import difflib
import json
from collections.abc import Iterable
from typing import Any

from helpers.data.chat import is_conversation
from helpers.data.csv_files import split_cells
from helpers.data.values import kind_of, plain_text
from helpers.errors import DataError

TALK = {"messages", "system", "tools"}  # fields of a conversation
FIELDS = (
    "instruction",
    "input",
    "output",
    "answer",
    "category",
    "template",
    "id",
    "messages",
    "system",
    "tools",
)
NEEDED = ("instruction", "output")

# Names that say what a column holds, in lower case. LAST are names that could be something else too: taken if
# no other fits.
QUESTIONS = {
    "instruction",
    "prompt",
    "question",
    "query",
    "text",
    "sentence",
    "content",
    "message",
    "review",
    "ticket",
    "指令",
    "问题",
    "提问",
    "文本",
    "内容",
    "句子",
    "评论",
    "正文",
}
ANSWERS = {
    "output",
    "completion",
    "response",
    "answer",
    "label",
    "target",
    "labels",
    "输出",
    "回答",
    "答案",
    "标签",
    "类别",
    "分类",
}
LAST_QUESTIONS, LAST_ANSWERS = {"input", "body", "输入"}, {"category", "class", "intent", "sentiment", "类型"}
KEPT_BY_NAME = (
    "category",
    "template",
    "id",
)  # columns of these names are kept as they are, if nothing else takes them
EXAMPLE = "instruction=text,output=label"


def parse_columns(text: str) -> dict[str, str]:
    """The parameter `columns`, as field to column: FIELD=COLUMN, separated by commas. A part with a comma in
    it stands in double quotes.

    Raises:
        DataError: a part is not FIELD=COLUMN, names no field, or names one twice; or `output`, or what is
            asked, is missing.
    """
    if not text.strip():
        return {}
    found: dict[str, str] = {}
    for part in split_cells(text):
        field, sign, column = (word.strip() for word in part.partition("="))
        if not sign or not column or field not in FIELDS:
            raise DataError(
                f"columns: {part!r} is not FIELD=COLUMN with a field of a record",
                f"fields are {', '.join(FIELDS)}; write for example {EXAMPLE}",
            )
        if field in found:
            raise DataError(
                f"columns: {field!r} is given twice", f"one column a field; write for example {EXAMPLE}"
            )
        found[field] = column
    if "output" not in found and any(";" in column and "=" in column for column in found.values()):
        raise DataError(
            f"columns: {text!r} is separated by semicolons", f"separate them by commas: {EXAMPLE}"
        )
    if "messages" in found and (beside := found.keys() & {"instruction", "input", "output"}):
        raise DataError(
            f"columns: 'messages' holds the whole conversation: {sorted(beside)[0]!r} has no place beside it",
            "leave one of them out",
        )
    if "messages" not in found and ("output" not in found or not {"instruction", "input"} & set(found)):
        raise DataError(
            f"columns: {text!r} does not say which columns hold the question and the answer",
            f"write for example {EXAMPLE}",
        )
    return found


def guess_columns(names: Iterable[str], source: str, instruction: str = "") -> dict[str, str]:
    """Columns by their names, where only one can be the question and only one the answer.

    Args:
        names: the columns that there are.
        source: file or data set, for the error.
        instruction: the constant instruction, if there is one: the column that holds the question is then the
            `input`.

    Raises:
        DataError: none or several columns could be it. It lists the columns, and shows what to write.
    """
    names = list(names)
    asked = _fitting(names, QUESTIONS, LAST_QUESTIONS)
    answers = _fitting([name for name in names if [name] != asked], ANSWERS, LAST_ANSWERS)
    for what, fitting in (("question", asked), ("answer", answers)):
        if len(fitting) != 1:
            field = "input" if instruction else "instruction"
            example = f"{field}={(asked or ['COLUMN'])[0]},output={(answers or ['COLUMN'])[0]}"
            which = (
                f"{' and '.join(map(repr, fitting))} could each hold"
                if fitting
                else "no column has a name that says that it holds"
            )
            raise DataError(
                f"{source}: {which} the {what}; columns are {', '.join(map(repr, names)) or 'none'}",
                f'say which, such as --columns "{example}", or in notebook 01 columns = "{example}"',
            )
    found = {"input" if instruction else "instruction": asked[0], "output": answers[0]}
    if not instruction:
        inputs = [name for name in names if name.strip().casefold() == "input" and name != asked[0]]
        found |= {"input": inputs[-1]} if inputs else {}
    return found | {name: name for name in KEPT_BY_NAME if name in names and name not in found.values()}


def _fitting(names: list[str], usual: set[str], last: set[str]) -> list[str]:
    """Those of `names` that are usual for it; those that are its last resort, if there is none."""
    fitting = [name for name in names if name.strip().casefold() in usual]
    return fitting or [name for name in names if name.strip().casefold() in last]


def check_columns(columns: dict[str, str], names: Iterable[str], source: str, instruction: str = "") -> None:
    """Refuse a mapping that this source can't have.

    Raises:
        DataError: a column is not there, or both a column and the constant text claim to be the instruction,
            or none does.
    """
    names = list(names)
    for field, column in columns.items():
        if column not in names:
            near = difflib.get_close_matches(column, names)
            raise DataError(
                f"{source} has no column {column!r}, which is to be the {field}; columns are "
                f"{', '.join(map(repr, names))}",
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else "correct the name: case and spaces count, and a column without any filled cell does not",
            )
    if instruction and "instruction" in columns:
        raise DataError(
            f"both the parameter instruction and the column {columns['instruction']!r} hold the instruction",
            f"leave one out, or make the column the input: input={columns['instruction']}",
        )
    if instruction and "messages" in columns:
        raise DataError(
            "the parameter instruction has no place in a conversation",
            "leave it out, or map a text to the input",
        )
    if not instruction and not columns.keys() & {"instruction", "messages"}:
        raise DataError(
            f"{source}: columns name an input and no instruction",
            'name a column for it, or give one text for all: -p instruction="Classify the text: …"',
        )


def apply_columns(row: dict[str, Any], columns: dict[str, str], instruction: str) -> dict[str, Any]:
    """One record of the course's form, out of a row with columns.

    Args:
        row: column to value; numbers become text, and an object or list that is the output becomes JSON.
        columns: field to column.
        instruction: the constant instruction; empty where a column holds it.

    Raises:
        DataError: a column that is needed is missing, empty or no text.
    """
    record: dict[str, Any] = {"instruction": instruction, "input": ""} if instruction else {"input": ""}
    for field, column in columns.items():
        if is_conversation(row.get(column)):
            raise DataError(
                f"column {column!r} holds a conversation, a list of messages, which can't be the {field}",
                f"read the column as a conversation, messages={column}; if that is only a part of one, join "
                "the parts in the file first",
            )
        needed = field in NEEDED or (field == "input" and bool(instruction))
        value = _text(row.get(column), field)
        if value is None:
            raise DataError(
                f"column {column!r}: {kind_of(row[column])} can't be the {field}",
                "it must be text or a number",
            )
        if needed and not value.strip():
            raise DataError(f"column {column!r}: the {field} is empty", "fill it in, or take the row out")
        if value.strip() or field == "input":
            record[field] = value
    return record


def _text(value: Any, field: str) -> str | None:
    """A cell as text; None if it can't be."""
    if isinstance(value, (dict, list)) and field in ("output", "answer"):
        return json.dumps(value, ensure_ascii=False, default=str)
    return plain_text(value)
