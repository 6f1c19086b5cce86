"""What of a conversation is trained on, and whether a renderer can write it at all.

    tokens, weights = training_tokens(record, renderer, "all_assistant_messages")

A model learns an answer after exactly the tokens that it is asked with. So each answer that is trained
on is compared with the prompt that sampling would use, and what a renderer leaves out is refused.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from helpers.data.conversation import Message
from helpers.errors import CourseError, DataError
from helpers.train.messages import cookbook_messages, messages_of, renderer_name, with_tools

LAST, ALL, MARKED = "last_assistant_message", "all_assistant_messages", "customized"
ANSWERS = (LAST, "last_assistant_turn", ALL, MARKED)

Render = Callable[[list[Any]], list[int]]


def training_tokens(
    record: dict[str, Any], renderer: Any, train_on: str = LAST, by_marks: bool = True
) -> tuple[list[int], list[float]]:
    """The tokens of a record, and the weight of each: 1 where it is trained on, else 0.

    Args:
        train_on: one of the cookbook's `TrainOnWhat`.
        by_marks: whether a message's own `trainable` goes before it.

    Raises:
        DataError: the renderer can't write the record, or not so that it can be trained on like that.
    """
    check_train_on(train_on)
    with naming(record, renderer):
        messages = messages_of(record, renderer)
        if not by_marks:
            messages = [_without(message, "trainable") for message in messages]
        turns = with_tools(cookbook_messages(messages), record, renderer)
        trained = _trained(messages, train_on)
        # where the tools are declared, there may be a message more
        marks = [*[False] * (len(turns) - len(messages)), *trained]
        tokens, weights = _supervised(renderer, turns, marks, _mode(messages, trained, train_on))
        if not any(weights):
            raise ValueError(f"with train_on={train_on!r}, no token of it is trained on")
        check_all_written(turns, tokens, lambda turns: _supervised(renderer, turns, marks, LAST)[0])
        if train_on in ANSWERS:
            _check_answers(renderer, turns, marks, tokens)
    return tokens, weights


def check_train_on(train_on: str) -> None:
    """Raises DataError for what is none of the cookbook's `TrainOnWhat`."""
    from tinker_cookbook.renderers import TrainOnWhat

    known = [str(what.value) for what in TrainOnWhat]
    if train_on not in known:
        raise DataError(f"there is no train_on={train_on!r}", f"it is one of {', '.join(known)}")


def _trained(messages: list[Message], train_on: str) -> list[bool]:
    """For each message, whether it is trained on: as it is marked, else as `train_on` says."""
    asked = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    first = {LAST: len(messages) - 1, "last_assistant_turn": asked + 1}.get(train_on, 0)
    roles = ("assistant",) if train_on in ANSWERS else ("user", "system")
    everything = train_on in ("all_messages", "all_tokens")
    return [
        message.get("trainable", everything or (place >= first and message["role"] in roles))
        for place, message in enumerate(messages)
    ]


def _mode(messages: list[Message], trained: list[bool], train_on: str) -> str:
    """The cookbook's mode that trains on these messages."""
    marked = any("trainable" in message for message in messages)
    if marked and train_on == "all_tokens":
        raise ValueError("train_on='all_tokens' leaves nothing out, and one of its messages has a weight")
    if train_on in ANSWERS and trained == [False] * (len(trained) - 1) + [True]:
        return LAST
    return MARKED if marked else train_on


def _supervised(
    renderer: Any, turns: list[Any], marks: list[bool], mode: str
) -> tuple[list[int], list[float]]:
    from tinker_cookbook.renderers import TrainOnWhat

    if mode == MARKED:
        turns = [{**turn, "trainable": mark} for turn, mark in zip(turns, marks, strict=True)]
    model_input, weights = renderer.build_supervised_example(turns, TrainOnWhat(mode))
    return model_input.to_ints(), [float(weight) for weight in weights]


def _check_answers(renderer: Any, turns: list[Any], marks: list[bool], tokens: list[int]) -> None:
    """Raises ValueError unless each answer is written, after the same prompt, as when it was the last."""
    for place, mark in enumerate(marks):
        if not mark or turns[place]["role"] != "assistant":
            continue
        prompt = renderer.build_generation_prompt(turns[:place]).to_ints()
        end = len(prompt)
        alone = tokens
        if place < len(turns) - 1:
            alone, weights = _supervised(renderer, turns[: place + 1], marks, LAST)
            end = max(number for number, weight in enumerate(weights) if weight) + 1
        if tokens[: len(prompt)] != prompt or tokens[:end] != alone[:end]:
            ends, last = renderer.tokenizer.decode(prompt[-6:]), place == len(turns) - 1
            raise ValueError(
                f"after its prompt, ending {ends!r}, the model would write the answer in message {place + 1} "
                "otherwise than it stands in the whole conversation, so it can't learn it"
                + ("" if last else f": train on the last answer only (train_on={LAST!r})")
            )


def check_all_written(turns: list[Any], tokens: list[int], render: Render) -> None:
    """Raises _LeftOutError if the tokens are the same without a tool call, or without the last reasoning.

    Args:
        render: gives the tokens of turns.
    """
    less = {
        f"the tool calls of message {place + 1}": (place, _without(turn, "tool_calls"))
        for place, turn in enumerate(turns)
        if turn.get("tool_calls")
    }
    if isinstance(parts := turns[-1]["content"], list):
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        less["the reasoning of the last message"] = (len(turns) - 1, {**turns[-1], "content": text})
    for what, (place, turn) in less.items():
        with contextlib.suppress(
            ValueError, AssertionError
        ):  # not written so: then it does make a difference
            if render([*turns[:place], turn, *turns[place + 1 :]]) == tokens:
                raise _LeftOutError(what)


class _LeftOutError(Exception):
    """What a renderer did not write."""


class UnwrittenError(DataError):
    """A renderer can't write a record; `why` says it without naming the two."""

    def __init__(self, record: dict[str, Any], renderer: Any, why: str):
        name = renderer_name(renderer) or type(renderer).__name__
        super().__init__(
            f"prompt format {name!r} can't write the record {start_of(record)}: {why}",
            "use another prompt_format, or leave such records out of the data",
        )
        self.why = why


def _without(turn: Any, key: str) -> Any:
    return {name: value for name, value in turn.items() if name != key}


@contextlib.contextmanager
def naming(record: dict[str, Any], renderer: Any) -> Iterator[None]:
    """Errors of a renderer say which record they are about.

    Raises:
        UnwrittenError: the renderer can't write it.
    """
    try:
        yield
    except CourseError:
        raise
    except NotImplementedError as error:
        raise UnwrittenError(record, renderer, "it has no way to declare tools") from error
    except _LeftOutError as error:
        raise UnwrittenError(record, renderer, f"it leaves out {error}") from error
    except (ValueError, AssertionError) as error:  # the cookbook's RendererError is a ValueError
        raise UnwrittenError(record, renderer, str(error)) from error


def start_of(record: dict[str, Any]) -> str:
    """The start of a record's question, for errors."""
    return repr(str(record.get("instruction", ""))[:60])
