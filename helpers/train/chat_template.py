"""The format of training as a chat template (Jinja), for all that ask the model later: `transformers`, vLLM,
any OpenAI client.

    chat_template(renderer)           # text for chat_template.jinja
    end_tokens(renderer)              # token ids for generation_config.json

The model's own template is taken where it makes the renderer's tokens. Where it doesn't, because it adds a
system prompt that training never saw, say, a template is written from what the renderer puts between the
turns. Either way the tokens are compared, and what differs the template refuses.
"""

import contextlib
import json
from typing import Any

from jinja2 import TemplateError

from helpers.errors import DataError
from helpers.train.audit import CONVERSATIONS, template_tokens
from helpers.train.renderers import answer_tokens, prompt_tokens


def _without_system(name: str) -> dict[str, Any]:
    record = CONVERSATIONS[name]
    return {**record, "messages": record["messages"][1:]}


# Kinds of conversations: the Jinja condition that finds one, and examples to compare.
_KINDS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "a question": ("true", [CONVERSATIONS["a question"]]),
    "a system message": (
        "messages | selectattr('role', 'equalto', 'system') | list",
        [CONVERSATIONS["a system message"]],
    ),
    "several turns": (
        "messages | selectattr('role', 'equalto', 'assistant') | list",
        [_without_system("several turns")],
    ),
    "tools": (
        "tools or messages | selectattr('tool_calls') | list"
        " or messages | selectattr('role', 'equalto', 'tool') | list",
        [
            record
            for name in ("a tool call", "a tool's answer")
            for record in (CONVERSATIONS[name], _without_system(name))
        ],
    ),
    "thinking": (
        "messages | selectattr('reasoning_content') | list",
        [CONVERSATIONS["thinking in an earlier turn"]],
    ),
}

_WRITTEN = """\
{%%- set between = %s -%%}
{%%- set turn = namespace(role='') -%%}
{%%- for message in messages -%%}
  {%%- set step = turn.role ~ '>' ~ message['role'] -%%}
  {%%- if step not in between -%%}
    {{- raise_exception('no ' ~ message['role'] ~ ' message can follow ' ~ (turn.role or 'nothing')) -}}
  {%%- endif -%%}
  {%%- if message['content'] is not string -%%}{{- raise_exception('content must be text') -}}{%%- endif -%%}
  {{- between[step] ~ message['content'] | trim -}}
  {%%- set turn.role = message['role'] -%%}
{%%- endfor -%%}
{%%- if add_generation_prompt and turn.role != 'user' -%%}
  {{- raise_exception('the last message must be of the user') -}}
{%%- endif -%%}
{{- between[turn.role ~ ('>' if add_generation_prompt else '.')] -}}
"""


def chat_template(renderer: Any) -> str:
    """A template whose prompts have the renderer's tokens.

    Args:
        renderer: from `get_renderer`.

    Returns:
        Jinja. Of kinds of conversations that would come out otherwise, it raises an exception.
    """
    own = getattr(renderer.tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own
    templates = [own, _written(renderer)] if own else [_written(renderer)]
    missed = {
        template: [kind for kind in _KINDS if _differs(template, kind, renderer)] for template in templates
    }
    best = min(templates, key=lambda template: ("a question" in missed[template], len(missed[template])))
    return "".join(map(_refusal, missed[best])) + best


def refuses_questions(template: str) -> bool:
    """Whether a template made by `chat_template` can't write the prompts of its format at all."""
    return template.startswith(_refusal("a question"))


def _differs(template: str, kind: str, renderer: Any) -> bool:
    """Whether a template has other tokens than the renderer for prompts that the renderer can write."""
    return any(
        _template_tokens(template, prompt, renderer) != _tokens(prompt, renderer)
        for prompt in _KINDS[kind][1]
    )


def _tokens(record: dict[str, Any], renderer: Any) -> list[int] | None:
    try:
        return prompt_tokens(record, renderer)
    except DataError:
        return None


def _template_tokens(template: str, record: dict[str, Any], renderer: Any) -> list[int] | None:
    """None if it refuses."""
    try:
        return template_tokens(record, renderer, to_answer=True, chat_template=template)
    except (TemplateError, TypeError, ValueError):
        return None


def _refusal(kind: str) -> str:
    words = f"a chat template can't write {kind} with the tokens of training: send token ids"
    return f"{{%- if {_KINDS[kind][0]} -%}}{{{{- raise_exception({json.dumps(words)}) -}}}}{{%- endif -%}}\n"


def _written(renderer: Any) -> str:
    """A template of the texts that the renderer puts before, between and after the turns."""
    said = {"system": "S0S", "user": "U1U", "assistant": "A2A"}
    system, user, assistant = ({"role": role, "content": text} for role, text in said.items())

    def pieces(tokens: list[int] | None, *roles: str) -> list[str]:
        """The text before each role's words, and after the last."""
        text, found = renderer.tokenizer.decode(tokens or [], skip_special_tokens=False), []
        for role in roles:
            before, _, text = text.partition(said[role])
            found.append(before)
        return [*found, text]

    def prompt(*turns: dict[str, str]) -> list[int] | None:
        return _tokens({"messages": list(turns)}, renderer)

    between = {}
    between[">user"], between["user>"] = pieces(prompt(user), "user")
    between[">system"], between["system>user"], _ = pieces(prompt(system, user), "system", "user")
    turns = pieces(prompt(user, assistant, user), "user", "assistant", "user")
    _, between["user>assistant"], between["assistant>user"], _ = turns
    with contextlib.suppress(DataError):
        between["assistant."] = pieces(answer_tokens({"messages": [user, assistant]}, renderer), "assistant")[
            1
        ]
    return _WRITTEN % json.dumps(between, ensure_ascii=False)


def end_tokens(renderer: Any) -> list[int]:
    """The tokens that end an answer. A stop text counts if the tokenizer has one token for it."""
    found = []
    for stop in renderer.get_stop_sequences():
        tokens = (
            renderer.tokenizer.encode(stop, add_special_tokens=False) if isinstance(stop, str) else [stop]
        )
        found += tokens if len(tokens) == 1 else []
    return found
