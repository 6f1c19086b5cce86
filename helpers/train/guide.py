"""The text of the source guide's format: what its renderer, its chat template and estimates are made of."""

import json
from collections.abc import Mapping
from typing import Any

from helpers.data.conversation import conversation
from helpers.errors import DataError

END_OF_ANSWER = "\n\n"
GUIDE_TURNS = {
    "system": f"{{}}{END_OF_ANSWER}",
    "user": "Instruction: {}\nResponse:",
    "assistant": f" {{}}{END_OF_ANSWER}",
}
GUIDE_STOP = (END_OF_ANSWER, "Instruction:")


def before_input(renderer_name: str) -> str:
    """What stands between an instruction and its input: the guide has a line of its own for it."""
    return "\nInput: " if renderer_name == "guide" else "\n"


def guide_turn(message: Mapping[str, Any]) -> str:
    """The text of one turn.

    Raises:
        DataError: the turn is of a tool, or holds tool calls or thinking, for which the format has no text.
    """
    role, content = message["role"], message["content"]
    what = "tool calls" if message.get("tool_calls") else "" if isinstance(content, str) else "thinking"
    if what or role not in GUIDE_TURNS:
        raise DataError(
            f"the guide's format has no way to write {what or f'a turn of role {role!r}'}",
            "use the model's own chat template for such data: prompt_format='template'",
        )
    return GUIDE_TURNS[role].format(content.strip())


def guide_answer(message: Mapping[str, Any], question: str) -> str:
    """The text of an answer that is to be learned.

    Args:
        question: for the error.

    Raises:
        DataError: it holds text at which sampling would stop, or can't be written.
    """
    turn = guide_turn(message)
    for text in GUIDE_STOP:
        if text in turn.removesuffix(END_OF_ANSWER):
            raise DataError(
                f"the output of {question[:60]!r} holds {text!r}, where the guide's stop rule ends an answer",
                "use a chat renderer for such data (prompt_format='template'), or take that text out",
            )
    return turn


def guide_prompt(record: dict[str, Any]) -> str:
    """The text of a record up to its answer: `Instruction`, an `Input` line if there is one, `Response`."""
    return "".join(map(guide_turn, conversation({"output": ""} | record, before_input("guide"))[:-1]))


def guide_chat_template() -> str:
    """The guide's format as a chat template (Jinja), for servers."""
    cases = []
    for role, turn in GUIDE_TURNS.items():
        before, after = map(json.dumps, turn.split("{}"))
        text = f"{{{{- {before} + message['content'].strip() + {after} }}}}"
        cases.append(f"if message['role'] == '{role}' -%}}{text}")
    return "{%- for message in messages -%}{%- " + "{%- el".join(cases) + "{%- endif -%}{%- endfor -%}"
